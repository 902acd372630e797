#!/usr/bin/env bash
# The environment with what backbones of timm, transformers and CLIP need, then their tests. Arguments go to pytest.
NEEDS=${NEEDS:-requirements.txt requirements-extra.txt}
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
python -m pytest -n 2 --dist worksteal \
    tests/test_{clip,cuda_runs,model_folder,other_encoders,package_weights,readme,recipe,share}.py "$@"
