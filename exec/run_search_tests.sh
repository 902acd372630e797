#!/usr/bin/env bash
# The environment with what search/ needs, then its tests. The test of the page drives Debian's chromium where it is
# installed (apt-get install chromium chromium-driver) and skips elsewhere. Arguments go to pytest.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
python -m pip install -q --disable-pip-version-check -r requirements-search.txt -c constraints-search.txt
python -m pytest tests/test_search_*.py "$@"
