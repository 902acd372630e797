#!/usr/bin/env bash
# On a fresh machine: the environment, then lint and tests. Arguments go to pytest (-m slow for the long ones).
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
ruff check .
ruff format --check .
python -m pytest "$@"
