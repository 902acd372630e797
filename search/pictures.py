"""Files of pictures and scenes -> what the model takes: the windows of a file, their pixels and local features."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from layers.drea import Regions
from search.local import LocalRules
from search.rasters import SUFFIXES, RasterRules, Scene, open_scene
from search.regions import crop_regions
from search.store import NOWHERE, PATH_BYTES, Record
from search.windows import selo_windows
from util.images import image_size, open_image
from utils import InputError, RunError

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif")
BATCH = 32  # pictures at a time
SCALES = (512,)  # pixels: the windows that scenes are cut into
WORTH_WORKERS = 200  # pictures; for fewer, loader processes take longer to start than they save
SCENE = 2  # times the largest window: a file whose longer side exceeds that is a scene


class Sample(NamedTuple):
    """A picture as the model takes it: pixels (S, S, 3) uint8, local_rep and local_adj (20, 20) float32."""

    pixels: np.ndarray
    local_rep: np.ndarray
    local_adj: np.ndarray


def sample(image: Image.Image, size: int, rules: LocalRules, regions: Regions | None = None) -> Sample:
    """A picture of any size -> a square of `size`, resized as in training, and its local features."""
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    return Sample(pixels, *rules.features(image, regions))


def find_files(root: Path) -> tuple[dict[str, os.stat_result], list[str]]:
    """The image files of a folder, at any depth: name within it -> size and times; and the faults of those left out.

    Hidden files, and links that lead out of the folder, are passed over. Raises InputError where there is no image.
    """
    if not root.is_dir():
        raise InputError(f"image folder {root} is not there")
    files, faults, inside = {}, [], root.resolve()
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if name[0] != "." and not name.endswith(".db"))
        for name in sorted(names):
            path = Path(folder, name)
            if name[0] == "." or path.suffix.lower() not in (*SUFFIXES, *PICTURES):
                continue
            relative = path.relative_to(root).as_posix()
            if fault := _fault_of_name(path, relative, inside):
                faults.append(fault)
                continue
            try:
                files[relative] = path.stat()
            except OSError as error:
                faults.append(f"image {path}: {error.strerror}")
    if not files and not faults:
        raise InputError(f"image folder {root} holds no images")
    return files, faults


def _fault_of_name(path: Path, relative: str, inside: Path) -> str:
    try:
        length = len(relative.encode())
    except UnicodeEncodeError:
        return f"image {path}: its name is not UTF-8"
    if length > PATH_BYTES:
        return f"image {path}: its name is too long"
    try:
        if path.is_symlink() and not path.resolve().is_relative_to(inside):
            return f"image {path}: a link that leads out of the folder"
    except (OSError, RuntimeError):
        return f"image {path}: a link that leads nowhere"
    return ""


def picture_size(path: Path, rules: RasterRules) -> tuple[int, int]:
    """Width and height in pixels. Raises InputError."""
    if path.suffix.lower() in SUFFIXES:
        with open_scene(path, rules) as scene:
            return scene.width, scene.height
    return image_size(path)


def records_of(
    root: Path, name: str, status: os.stat_result, scales: Sequence[int], rules: RasterRules
) -> list[Record]:
    """The rows that a file becomes: one for a picture, one for each window of a scene. Raises InputError."""
    path = root / name
    if path.suffix.lower() in SUFFIXES:
        with open_scene(path, rules) as scene:
            return _records(name, status, scene.height, scene.width, scales, scene)
    width, height = image_size(path)
    return _records(name, status, height, width, scales, None)


def _records(
    name: str, status: os.stat_result, height: int, width: int, scales: Sequence[int], scene: Scene | None
) -> list[Record]:
    is_scene = max(height, width) > SCENE * max(scales)
    windows = selo_windows(height, width, scales).tolist() if is_scene else [(0, height, 0, width)]
    places = [scene.place(window) if scene else None for window in windows]
    return [
        Record(name, status.st_size, status.st_mtime_ns, *window, len(windows), *(place or [NOWHERE] * 4))
        for window, place in zip(windows, places, strict=True)
    ]


def _leave_signals(_: int) -> None:
    """Ctrl-C is for the main process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Pictures(Dataset):
    """The samples of records, read in loader workers. A fault comes as a value: raised there, it would end the work."""

    def __init__(
        self,
        root: Path,
        records: Sequence[Record],
        size: int,
        rules: LocalRules,
        raster_rules: RasterRules,
        regions: dict[str, Regions] | None = None,
    ) -> None:
        self.root, self.records, self.size, self.rules = root, records, size, rules
        self.raster_rules, self.regions = raster_rules, regions
        self._scene: Scene | None = None
        self._open = contextlib.ExitStack()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, row: int) -> Sample | InputError:
        record = self.records[row]
        try:
            return self._sample(record)
        except (InputError, OSError) as error:
            return InputError(str(error))

    def _sample(self, record: Record) -> Sample:
        path, window = self.root / record.path, (record.top, record.bottom, record.left, record.right)
        in_scene = record.windows > 1 or path.suffix.lower() in SUFFIXES
        image = self._scene_of(path).read(window) if in_scene else open_image(path)
        regions = None
        if self.regions is not None:
            regions = self.regions.get(record.path, Regions.empty())
            if record.windows > 1:
                scene = self._scene_of(path)
                regions = crop_regions(regions, (scene.width, scene.height), window)
        return sample(image, self.size, self.rules, regions)

    def _scene_of(self, path: Path) -> Scene:
        """The scene of a file, which stays open for its other windows."""
        if self._scene is None or self._scene.path != path:
            self._open.close()
            self._scene = None
            self._scene = self._open.enter_context(open_scene(path, self.raster_rules))
        return self._scene

    def batches(self, size: int, workers: int) -> Iterator[tuple[Sequence[Record], list[Sample | InputError]]]:
        """The records in order, `size` at a time, with their samples. Raises RunError where a worker dies."""
        if len(self) < WORTH_WORKERS or workers == 0:
            loader = DataLoader(self, batch_size=size, collate_fn=list)
        else:  # not forked: Milvus Lite has threads in this process
            loader = DataLoader(
                self,
                batch_size=size,
                collate_fn=list,
                num_workers=workers,
                multiprocessing_context="forkserver",
                worker_init_fn=_leave_signals,
            )
        start = 0
        try:
            for batch in loader:
                yield self.records[start : start + len(batch)], batch
                start += len(batch)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise RunError(f"a loader worker died ({error}); run the same command again") from None
