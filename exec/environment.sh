# Sourced by the scripts beside it: goes to the repository root and puts an environment first in PATH that has what
# requirements.txt names (NEEDS: other files). It is the active one if that has it all, else .venv, which is made or
# completed. GALR_VENV names another place than .venv, and is then used in any case; PYTHON3 another Python (3.11 or later).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
NEEDS=${NEEDS:-requirements.txt}
export NEEDS
# shellcheck disable=SC2086
satisfies() { [ -x "$1" ] && "$1" exec/satisfies.py $NEEDS; }

if [ -n "${GALR_VENV:-}" ] || ! satisfies "$(command -v python)"; then
    GALR_VENV=${GALR_VENV:-.venv}
    if ! satisfies "$GALR_VENV/bin/python"; then
        echo "the active environment lacks packages of $NEEDS: installing them in $GALR_VENV (up to 6 GB, some minutes)"
        if [ ! -x "$GALR_VENV/bin/python" ]; then
            "${PYTHON3:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
                echo "error: Python must be 3.11 or later; set PYTHON3 to one" >&2
                exit 2
            }
            "${PYTHON3:-python3}" -m venv "$GALR_VENV"
        fi
        # shellcheck disable=SC2086
        "$GALR_VENV/bin/python" -m pip install -q --disable-pip-version-check -c constraints.txt $(printf -- '-r %s ' $NEEDS)
    fi
    PATH="$(cd "$GALR_VENV/bin" && pwd):$PATH"
    export PATH
fi
