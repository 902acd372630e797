#!/usr/bin/env bash
# The environment with what search/ needs, then its tests. The test of the page drives Debian's chromium where it is
# installed (apt-get install chromium chromium-driver) and skips elsewhere. Arguments go to pytest.
NEEDS=${NEEDS:-requirements.txt requirements-search.txt}
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
python -m pytest -n 2 --dist worksteal tests/test_search_*.py "$@"
