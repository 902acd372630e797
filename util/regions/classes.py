"""Names of classes: of DOTA-v1.0 in any spelling, of other data sets, and of the user's own map."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from layers.drea import CLASSES
from utils import InputError, read_text

# What other data sets call the classes of DOTA-v1.0: DIOR(-R), NWPU VHR-10, HRRSD, UCAS-AOD, FAIR1M's groups, VEDAI,
# xView's groups, COCO. DIOR's and NWPU's `vehicle` are cars for the greatest part.
ALIASES = {
    "plane": "airplane aeroplane aircraft",
    "ship": "boat vessel",
    "storage-tank": "oil-tank oil-storage-tank oiltank tank",
    "baseball-diamond": "baseball-field",
    "ground-track-field": "track-field athletic-field",
    "harbor": "harbour port",
    "small-vehicle": "vehicle car small-car van pickup",
    "large-vehicle": "truck bus lorry",
    "soccer-ball-field": "football-field soccer-field",
    "roundabout": "traffic-circle rotary",
    "swimming-pool": "pool",
}

DROPPED = "none"  # in a class map: regions of this name are dropped without a word


def plain(name: str) -> str:
    """A name without case, spaces and marks."""
    return re.sub("[^a-z0-9]", "", name.lower())


_INDEX = {plain(name): index for index, name in enumerate(CLASSES)}
_INDEX |= {plain(alias): _INDEX[plain(name)] for name, aliases in ALIASES.items() for alias in aliases.split()}

ClassMap = dict[str, int | None]  # plain name -> index, or None for what is dropped


def class_index(name: str) -> int | None:
    """The DOTA-v1.0 index of a class name in any spelling (case, spaces, marks), or None."""
    return _INDEX.get(plain(name))


def parse_class_map(pairs: Sequence[str]) -> ClassMap:
    """A map of class names from `NAME=CLASS` words; CLASS is one of DOTA-v1.0's, or `none`. Raises InputError."""
    own: ClassMap = {}
    for pair in pairs:
        name, equals, target = pair.rpartition("=")
        if not equals or not plain(name) or (class_index(target) is None and target.strip().lower() != DROPPED):
            raise InputError(
                f"--class-map {pair}: NAME=CLASS is needed, with a class of DOTA-v1.0 ({', '.join(CLASSES)}), or "
                f"{DROPPED} for regions that are to be dropped"
            )
        own[plain(name)] = class_index(target)
    return own


def read_classes(path: Path) -> list[str]:
    """A class file: one name a line, in the order of the detector's indices."""
    names = [line.strip() for line in read_text(path, "class file").rstrip().split("\n")]
    for number, name in enumerate(names, 1):
        if not name:
            raise InputError(f"class file {path}, line {number}: blank; one class name on each line is needed")
    return names
