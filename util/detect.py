"""Detect regions with a torchvision detector: python -m util.detect --help."""

from util.regions.detect import main
from utils import run_command

if __name__ == "__main__":
    run_command(main)
