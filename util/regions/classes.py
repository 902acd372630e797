"""Find the class that a name means: DOTA-v1.0's in any spelling, other data sets' names, the user's own map."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from layers.drea import CLASSES
from utils import InputError, read_text

# Names in DIOR(-R), NWPU VHR-10, HRRSD, UCAS-AOD, FAIR1M, VEDAI, xView, COCO. `vehicle` is mostly cars there.
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
DROPPED = "none"  # in a class map: drop regions of this name without a warning

ClassMap = dict[str, int | None]  # plain name -> index, or None for a dropped class


def plain(name: str) -> str:
    """Return a name without case, spaces and marks."""
    return re.sub("[^a-z0-9]", "", name.lower())


_INDEX = {plain(name): index for index, name in enumerate(CLASSES)}
_INDEX |= {plain(alias): _INDEX[plain(name)] for name, aliases in ALIASES.items() for alias in aliases.split()}


def class_index(name: str) -> int | None:
    """Return the DOTA-v1.0 index of a class name in any spelling, None for an unknown one."""
    return _INDEX.get(plain(name))


def parse_class_map(pairs: Sequence[str]) -> ClassMap:
    """Parse `NAME=CLASS` words; CLASS must be a class of DOTA-v1.0, or `none`. Raise InputError."""
    class_map: ClassMap = {}
    for pair in pairs:
        name, equals, target = pair.rpartition("=")
        if not equals or not plain(name) or (class_index(target) is None and target.strip().lower() != DROPPED):
            raise InputError(
                f"--class-map {pair} must be NAME=CLASS, with a class of DOTA-v1.0 ({', '.join(CLASSES)}) or {DROPPED}"
            )
        class_map[plain(name)] = class_index(target)
    return class_map


def read_classes(path: Path) -> list[str]:
    """Read a class file: one name a line, in the order of the detector's indices."""
    return [line.strip() for line in read_text(path, "class file").rstrip().split("\n")]
