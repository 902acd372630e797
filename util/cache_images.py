"""Decode all images of a data set once, into the files that `dataset.cache: disk` reads.

python -m util.cache_images --path_opt option/RSITMD/RSITMD_GaLR.yaml
"""

from util.pixels import main
from utils import run_command

if __name__ == "__main__":
    run_command(main)
