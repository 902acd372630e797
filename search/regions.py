"""A detector's regions for new images and scenes (docs/REGIONS.md)."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from layers.drea import Regions
from search.local import DETECTOR, LocalRules
from util.regions.classes import parse_class_map
from util.regions.detections import to_regions
from util.regions.readers import add_detector_options, read_detections
from utils import InputError, Parser

NONE = "none"


def add_region_options(parser: Parser) -> None:
    """What names a detector's files."""
    parser.add_argument("--regions", help="a detector's files for the images, or the word none: no regions")
    add_detector_options(parser)


def check_regions_given(rules: LocalRules, arguments: argparse.Namespace) -> None:
    """Raise InputError where a model needs a detector's regions and none are given."""
    if rules.source == DETECTOR and not arguments.regions:
        raise InputError(
            "the model was trained with a detector's regions; give those of the new images with --regions DIR|FILE, "
            "or --regions none for the global part alone"
        )


def given_regions(
    arguments: argparse.Namespace, names: Sequence[str], size_of: Callable[[str], tuple[int, int]]
) -> dict[str, Regions] | None:
    """The regions that a detector's files give of the named images, {} for `none`; None where no files are given.

    size_of(name) gives (width, height) in pixels. Raises InputError for files that do not fit.
    """
    if not arguments.regions:
        return None
    if arguments.regions == NONE:
        return {}
    detections, _ = read_detections(Path(arguments.regions), arguments.format, arguments.classes, arguments.coco_images)
    class_map = parse_class_map(arguments.class_map)
    regions = to_regions(detections, list(names), size_of, allow_missing=True, class_map=class_map)
    return dict(zip(names, regions, strict=True))


def crop_regions(regions: Regions, size: tuple[int, int], window: tuple[int, int, int, int]) -> Regions:
    """The regions of a scene of `size` (width, height) whose centre lies in a window, in units of the window's sides.

    window: first row, end row, first column, end column. Boxes are cut at its border.
    """
    top, bottom, left, right = window
    sides, corner = np.array([right - left, bottom - top]), np.array([left, top])
    centre, extent = regions.box[:, :2] * size, regions.box[:, 2:] * size
    inside = ((centre >= corner) & (centre < corner + sides)).all(axis=1)
    low = ((centre - extent / 2 - corner) / sides).clip(0, 1)[inside]
    high = ((centre + extent / 2 - corner) / sides).clip(0, 1)[inside]
    return Regions(regions.class_id[inside], regions.score[inside], np.hstack([(low + high) / 2, high - low]))
