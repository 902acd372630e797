#!/usr/bin/env bash
# The environment, lint, and the tests but those of run_model_tests.sh and run_search_tests.sh, in two processes.
# Arguments go to pytest: -m slow runs the long ones, -n 0 all in one process.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
ruff check .
ruff format --check .
python -m pytest -n 2 --dist worksteal --ignore-glob='tests/test_search_*' \
    --ignore=tests/test_backbone.py --ignore=tests/test_clip.py --ignore=tests/test_cuda_models.py --ignore=tests/test_other_encoders.py \
    --ignore=tests/test_package_weights.py --ignore=tests/test_recipe.py "$@"
