"""Turn folders of pictures and scenes into what the model takes: windows, pixels, local features."""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import logging
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from layers.drea import Regions
from search.rasters import SUFFIXES, RasterRules, Scene, open_scene
from search.store import NOWHERE, Record
from search.windows import selo_windows
from util.regions.local_features import LocalRules, Sample, sample
from util.regions.readers import regions_of
from utils import InputError

logger = logging.getLogger("galr")
warn_once = functools.cache(logger.warning)  # once for all files of a kind

PICTURES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".gif", ".avif")
SCENE = 2  # times the largest window: a file whose longer side exceeds that is a scene


class Found(NamedTuple):
    """Hold what a folder holds: images by name in it, with size and times; why others are left out; other files."""

    files: dict[str, os.stat_result]
    faults: dict[str, str]
    others: collections.Counter[str]  # by suffix


def find_files(root: Path) -> Found:
    """Find the image files of a folder, at any depth; hidden files are passed over, linked folders not followed.

    Raises InputError where there is no image.
    """
    if not root.is_dir():
        raise InputError(f"image folder {root} " + ("is a file; give its folder" if root.exists() else "is not there"))
    found, inside = Found({}, {}, collections.Counter()), root.resolve()
    for folder, subfolders, names in os.walk(root):
        for path in (Path(folder, name) for name in sorted(subfolders) if Path(folder, name).is_symlink()):
            found.faults[str(path)] = f"folder {path}: a link, which is not followed"
        subfolders[:] = sorted(name for name in subfolders if name[0] != "." and not name.endswith(".db"))
        for path in (Path(folder, name) for name in sorted(names) if name[0] != "."):
            if path.suffix.lower() not in (*SUFFIXES, *PICTURES):
                found.others[path.suffix.lower() or "without a suffix"] += 1
                continue
            relative = path.relative_to(root).as_posix()
            try:
                relative.encode()
                if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(inside):
                    raise OSError("a link that leads out of the folder")
                found.files[relative] = path.stat()
            except (OSError, UnicodeEncodeError) as error:
                found.faults[str(path)] = f"image {path}: {error}"
    if not found.files and not found.faults:
        raise InputError(f"image folder {root} holds no images")
    return found


def picture_size(path: Path, rules: RasterRules) -> tuple[int, int]:
    """Return width and height in pixels. Raises InputError."""
    with open_scene(path, rules) as scene:
        return scene.width, scene.height


def records_of(
    root: Path, name: str, status: os.stat_result, scales: Sequence[int], rules: RasterRules
) -> list[Record]:
    """Return the rows that a file becomes: one for a picture, one for each window of a scene. Raises InputError."""
    with open_scene(root / name, rules) as scene:
        windows = [(0, scene.height, 0, scene.width)]
        if max(scene.height, scene.width) > SCENE * max(scales):
            windows = selo_windows(scene.height, scene.width, scales).tolist()
        places = [scene.place(window) or [NOWHERE] * 4 for window in windows]
        for note in scene.notes():
            warn_once(note)
    return [
        Record(name, status.st_size, status.st_mtime_ns, *window, len(windows), *place)
        for window, place in zip(windows, places, strict=True)
    ]


def leave_signals(_: int) -> None:
    """Leave Ctrl-C to the main process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass
class Pictures(Dataset):
    """Read records and their samples in loader workers; regions: a detector's, by path.

    A fault comes in place of a sample: raised there, it would end the work.
    """

    root: Path
    records: Sequence[Record]
    size: int
    rules: LocalRules
    raster_rules: RasterRules
    regions: dict[str, Regions] | None = None
    _scene: Scene | None = None
    _open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, row: int) -> tuple[Record, Sample | InputError]:
        record = self.records[row]
        path = self.root / record.path
        try:
            if self._scene is None or self._scene.path != path:  # it stays open for its other windows
                self._open.close()
                self._scene = None
                self._scene = self._open.enter_context(open_scene(path, self.raster_rules))
            regions = None if self.regions is None else self.regions[record.path]
            if regions is not None and record.windows > 1:
                regions = crop_regions(regions, (self._scene.width, self._scene.height), record.window)
            return record, sample(self._scene.read(record.window), self.size, self.rules, regions)
        except (InputError, OSError) as error:
            return record, InputError(str(error))


# ---------------------------------------------------------------- a detector's regions


def given_regions(
    arguments: argparse.Namespace, paths: dict[str, Path], rules: RasterRules
) -> dict[str, Regions] | None:
    """Read the regions that a detector's files give of the named images; None where --regions is not given.

    Raises InputError for files that do not fit.
    """
    if not arguments.regions:
        return None
    if arguments.regions == "none":
        return dict.fromkeys(paths, Regions.empty())
    regions, _ = regions_of(arguments, list(paths), lambda name: picture_size(paths[name], rules), allow_missing=True)
    return dict(zip(paths, regions, strict=True))


def crop_regions(regions: Regions, size: tuple[int, int], window: Sequence[int]) -> Regions:
    """Return the regions of a scene of `size` (width, height) whose centre lies in a window, in units of its sides.

    window: first row, end row, first column, end column. Boxes are cut at its border.
    """
    top, bottom, left, right = window
    sides, corner = np.array([right - left, bottom - top]), np.array([left, top])
    centre, extent = regions.box[:, :2] * size, regions.box[:, 2:] * size
    inside = ((centre >= corner) & (centre < corner + sides)).all(axis=1)
    low = ((centre - extent / 2 - corner) / sides).clip(0, 1)[inside]
    high = ((centre + extent / 2 - corner) / sides).clip(0, 1)[inside]
    return Regions(regions.class_id[inside], regions.score[inside], np.hstack([(low + high) / 2, high - low]))
