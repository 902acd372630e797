"""Command: Sinkhorn normalisation of saved matrices (postprocessing/normalise.py)."""

from postprocessing.normalise import balance as main
from utils import run_command

if __name__ == "__main__":
    run_command(main)
