#!/usr/bin/env bash
# The environment, lint, and the tests but those of run_model_tests.sh and run_search_tests.sh, in two processes.
# Arguments go to pytest: -m slow runs the long ones, -n 0 all in one process.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
ruff check .
ruff format --check .
python -m pytest -n 2 --dist worksteal --ignore-glob='tests/test_search_*' \
    --ignore=tests/test_{clip,cuda_runs,model_folder}.py \
    --ignore=tests/test_{other_encoders,package_weights,readme,recipe,share}.py "$@"
