"""Turn detected regions into local features: python -m util.build_local --help."""

from util.regions.build_local import main
from utils import run_command

if __name__ == "__main__":
    run_command(main)
