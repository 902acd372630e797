"""YOLO-OBB text, as Ultralytics writes it with save_txt and save_conf."""

from __future__ import annotations

import re

from util.regions.dota import Row
from util.regions.text import checked_score, hull, numbers, quoted


def yolo_obb_row(line: str, classes: list[str]) -> Row:
    """`class x1 y1 x2 y2 x3 y3 x4 y4 confidence [track]`, corners in units of the image sides."""
    words = line.split()
    if len(words) not in (10, 11):
        raise ValueError(
            "class, 8 corner coordinates and confidence are needed (Ultralytics writes it with save_conf=True)"
        )
    if not re.fullmatch("[0-9]{1,9}", words[0]) or int(words[0]) >= len(classes):
        raise ValueError(f"the class is {quoted(words[0])}; an index from 0 to {len(classes) - 1} is needed")
    if len(words) == 11 and not re.fullmatch("[0-9]+", words[10]):
        raise ValueError(f"the last column is {quoted(words[10])}; the number of a track would be a whole one")
    if re.fullmatch("[0-9]+", words[9]) and int(words[9]) > 1:
        raise ValueError(
            f"the confidence is {words[9]}; this looks like the number of a track, and no confidence "
            "(Ultralytics writes it with save_conf=True)"
        )
    *corners, confidence = numbers(words[1:10])
    far = [not -1 <= value <= 2 for value in corners]
    if sum(far) > 4:  # one corner may lie far out: a detector's slip, which is clipped
        raise ValueError("corners must be in units of the image sides (0 to 1); these look like pixels")
    return Row(classes[int(words[0])], checked_score(confidence), hull(corners))
