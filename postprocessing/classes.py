"""Recall of each class: the class of an image by its name or a file, and the recalls of the queries of a class."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from postprocessing.recall import CUTS, DIRECTIONS, Metrics, QueryRanks, Ranks
from utils import InputError, read_text, some

BY_NAME = "name"


def class_of_images(images: Sequence[str], source: str) -> list[str]:
    """Return the class of each image: by its `name` without the number (`port_12.tif`, else its folder), or by a file.

    The file has lines `NAME CLASS`; names may lack the suffix, and the folder where a stem has one class alone. Raise
    InputError for an image without class, or of several.
    """
    if source == BY_NAME:
        paths = map(PurePosixPath, images)
        found = [re.sub(r"[\s_(-]*\d+\)?$", "", path.name.split(".")[0]) or path.parent.name for path in paths]
    else:
        lines = [re.split(r"[\t,; ]+", line.strip(), maxsplit=1) for line in read_text(source, "classes").split("\n")]
        known: dict[str, set[str]] = defaultdict(set)
        for name, of_name in (line for line in lines if len(line) == 2):
            for key in _keys(name):
                known[key].add(of_name.strip())
        classes = [next((known[key] for key in _keys(image) if key in known), {""}) for image in images]
        if several := [image for image, names in zip(images, classes, strict=True) if len(names) > 1]:
            raise InputError(f"{source}: {len(several)} images have more than one class: {some(several)}")
        found = [name for names in classes for name in names]
    if without := [image for image, name in zip(images, found, strict=True) if not name]:
        way = "; give a file of lines NAME CLASS: --classes FILE" if source == BY_NAME else f" in {Path(source)}"
        raise InputError(f"{len(without)} of {len(images)} images have no class{way}: {some(without)}")
    return found


def _keys(name: str) -> tuple[str, str]:
    """Return a name without its suffix, and without its folders too."""
    path = PurePosixPath(name)
    return name.removesuffix(path.suffix), path.stem


def class_metrics(
    ranks: QueryRanks, class_of_image: Sequence[str], image_of_caption: np.ndarray, ties: str = "against"
) -> Metrics:
    """Return R@1, R@5 and R@10 of the queries of each class, as keys of `metrics`: `i2t_r1 port`.

    class_of_image (images,); a caption is of the class of its image.
    """
    names = np.asarray(class_of_image)
    classes = names[np.unique(image_of_caption)], names[image_of_caption]
    flat: Metrics = {}
    for name in np.unique(classes[0]).tolist():
        for way, of_query in zip(DIRECTIONS, classes, strict=True):
            part = Ranks(*(array[of_query == name] for array in getattr(ranks, way)[:3]))
            flat |= {f"{way}_r{k} {name}": 100.0 * float(part.hits(k, ties).mean()) for k in CUTS}
    return flat
