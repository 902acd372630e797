"""Decode all images of a data set once, into the HDF5 file that `dataset.cache: disk` reads.

python -m util.cache_images --path_opt option/RSITMD/RSITMD_GaLR.yaml
"""

from __future__ import annotations

import logging

from option import load_options
from util.pixels import open_cache
from utils import Parser, run_command

logger = logging.getLogger("galr")


def main() -> None:
    parser = Parser(prog="python -m util.cache_images", description="Decode all images of a data set into one file.")
    parser.add_options()
    arguments = parser.parse_args()
    cache, paths = open_cache(load_options(arguments.path_opt, arguments.set).dataset)
    logger.info(
        f"{cache}: {len(paths)} images, {cache.stat().st_size / 2**20:.0f} MiB; use it with dataset.cache: disk"
    )


if __name__ == "__main__":
    run_command(main)
