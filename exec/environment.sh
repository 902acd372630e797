# Sourced by the scripts beside it: goes to the repository root, makes the virtual environment .venv where it is missing
# or out of date, and puts it first in PATH. GALR_VENV names another place; PYTHON3 another Python (3.11 or later).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
GALR_VENV=${GALR_VENV:-.venv}
PYTHON3=${PYTHON3:-python3}

if [ ! -x "$GALR_VENV/bin/python" ]; then
    "$PYTHON3" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "error: $PYTHON3 is older than Python 3.11; set PYTHON3 to a newer one" >&2
        exit 2
    }
    echo "making the environment $GALR_VENV"
    "$PYTHON3" -m venv "$GALR_VENV"
fi
if ! cat requirements.txt constraints.txt | cmp -s - "$GALR_VENV/installed.txt"; then
    echo "installing the requirements (some minutes and 6 GB the first time)"
    "$GALR_VENV/bin/python" -m pip install -q --disable-pip-version-check -r requirements.txt -c constraints.txt
    cat requirements.txt constraints.txt > "$GALR_VENV/installed.txt"
fi
PATH="$(cd "$GALR_VENV/bin" && pwd):$PATH"
export PATH
