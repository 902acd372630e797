"""Command: the mean of several models' similarities (postprocessing/normalise.py)."""

from postprocessing.normalise import ensemble as main
from utils import run_command

if __name__ == "__main__":
    run_command(main)
