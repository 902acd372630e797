"""The options of the command line that tell how scenes are cut, read and encoded."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from search.rasters import add_raster_rules, check_scales, raster_rules
from search.regions import add_region_options
from search.windows import SCALES
from utils import InputError, Parser

AS_PUBLISHED = "sides of the windows (default 256 512 768, as published)"


def add_scene_options(parser: Parser, scales: Sequence[int] = SCALES, meaning: str = AS_PUBLISHED) -> None:
    """What cuts, reads and encodes scenes; scales: the default of --scales, in pixels; meaning: its help."""
    parser.add_argument("--scales", nargs="+", type=int, default=list(scales), metavar="PIXELS", help=meaning)
    add_raster_rules(parser)
    add_region_options(parser)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="loader processes (default: one per core)")
    parser.add_device()


def check_scene_options(arguments: argparse.Namespace) -> None:
    """Raise InputError for values that cannot be."""
    check_scales(arguments.scales)
    raster_rules(arguments)
    if arguments.workers < 0:
        raise InputError("--workers must be at least 0")
