"""The options of the command line that say what a detector's files are, of training's features and of search alike."""

from __future__ import annotations

import argparse
from pathlib import Path

from util.regions.formats import FORMATS


def add_detector_options(parser: argparse.ArgumentParser) -> None:
    """--format, --classes, --class-map and --coco-images, which belong to the files that --regions names."""
    of_files = parser.add_argument_group("of a detector's files")
    of_files.add_argument("--format", choices=("auto", *FORMATS), default="auto", help="default: told from the content")
    of_files.add_argument(
        "--classes", type=Path, help="YOLO-OBB, COCO: class names in index order (default: a classes.txt, or DOTA-v1.0)"
    )
    of_files.add_argument(
        "--class-map",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=CLASS",
        help="what other names of classes mean; NAME=none drops them",
    )
    of_files.add_argument("--coco-images", type=Path, help="COCO: the JSON file that names images and categories")
