"""Turn folders of pictures and scenes into what the model takes: windows, pixels, local features; and their options."""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Dataset

from layers.drea import Regions
from option import Options
from search.rasters import SUFFIXES, RasterRules, Scene, open_scene
from search.store import NOWHERE, Record
from search.windows import SCALES, selo_windows
from util.model_folder import folder_rules, options_of
from util.regions.classes import parse_class_map
from util.regions.detections import to_regions
from util.regions.readers import add_detector_options, add_truncated, read_detections
from util.regions.rules import DETECTOR, LocalRules, Sample, read_rules, sample
from utils import ROOT, InputError, Parser, RunError, worker_died

logger = logging.getLogger("galr")

PICTURES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".gif", ".avif")
BATCH = 32  # pictures at a time
BOX = ROOT / "models" / "rs_lite"  # the model that comes with the code
WORTH_WORKERS = 200  # pictures; for fewer, loader processes take longer to start than they save
SCENE = 2  # times the largest window: a file whose longer side exceeds that is a scene
AS_PUBLISHED = "sides of the windows (default 256 512 768, as published)"


class Found(NamedTuple):
    """Hold image files (name in the folder -> size, times), faults of those left out, numbers of others by suffix."""

    files: dict[str, os.stat_result]
    faults: list[str]
    others: collections.Counter[str]


def find_files(root: Path) -> Found:
    """Find the image files of a folder, at any depth. Hidden files are passed over, linked folders not followed.

    Raises InputError where there is no image.
    """
    if not root.is_dir():
        raise InputError(f"image folder {root} " + ("is a file; give its folder" if root.exists() else "is not there"))
    files, faults, others = found = Found({}, [], collections.Counter())
    inside = root.resolve()
    for folder, subfolders, names in os.walk(root):
        linked = sorted(name for name in subfolders if Path(folder, name).is_symlink())
        faults.extend(f"folder {Path(folder, name)}: a link, which is not followed" for name in linked)
        subfolders[:] = sorted(name for name in subfolders if name[0] != "." and not name.endswith(".db"))
        for name in sorted(names):
            path = Path(folder, name)
            if name[0] == ".":
                continue
            if path.suffix.lower() not in (*SUFFIXES, *PICTURES):
                others[path.suffix.lower() or "without a suffix"] += 1
                continue
            relative = path.relative_to(root).as_posix()
            try:
                relative.encode()
                if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(inside):
                    faults.append(f"image {path}: a link that leads out of the folder")
                else:
                    files[relative] = path.stat()
            except (OSError, UnicodeEncodeError) as error:
                faults.append(f"image {path}: {error}")
    if not files and not faults:
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
        is_scene = max(scene.height, scene.width) > SCENE * max(scales)
        whole = [(0, scene.height, 0, scene.width)]
        windows = selo_windows(scene.height, scene.width, scales).tolist() if is_scene else whole
        places = [scene.place(window) for window in windows]
        for note in scene.notes():
            warn_once(note)
        if scene.crs is not None and scene.transform is not None and None in places:
            warn_once(f"PROJ cannot follow the reference system {str(scene.crs)[:60]}: no place is kept; see PROJ_DATA")
    return [
        Record(name, status.st_size, status.st_mtime_ns, *window, len(windows), *(place or [NOWHERE] * 4))
        for window, place in zip(windows, places, strict=True)
    ]


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning once for all files of its kind."""
    logger.warning(message)


def _leave_signals(_: int) -> None:
    """Leave Ctrl-C to the main process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Pictures(Dataset):
    """Read the samples of records in loader workers. A fault comes as a value: raised there, it would end the work."""

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
        try:
            return self._sample(self.records[row])
        except (InputError, OSError) as error:
            return InputError(str(error))

    def _sample(self, record: Record) -> Sample:
        scene = self._scene_of(self.root / record.path)
        regions = None
        if self.regions is not None:
            regions = self.regions.get(record.path, Regions.empty())
            if record.windows > 1:
                regions = crop_regions(regions, (scene.width, scene.height), record.window)
        return sample(scene.read(record.window), self.size, self.rules, regions)

    def _scene_of(self, path: Path) -> Scene:
        """Return the scene of a file, which stays open for its other windows."""
        if self._scene is None or self._scene.path != path:
            self._open.close()
            self._scene = None
            self._scene = self._open.enter_context(open_scene(path, self.raster_rules))
        return self._scene

    def batches(self, size: int, workers: int) -> Iterator[tuple[Sequence[Record], list[Sample | InputError]]]:
        """Yield the records in order, `size` at a time, with their samples. Raises RunError where a worker dies."""
        how = {}
        if len(self) >= WORTH_WORKERS and workers:  # not forked from here: Milvus Lite has threads in this process
            server = multiprocessing.get_context("forkserver")
            server.set_forkserver_preload([__name__])  # imported once, not by each worker
            how = {"num_workers": workers, "multiprocessing_context": server, "worker_init_fn": _leave_signals}
        start = 0
        try:
            for batch in DataLoader(self, batch_size=size, collate_fn=list, **how):
                yield self.records[start : start + len(batch)], batch
                start += len(batch)
        except RuntimeError as error:
            if not worker_died(error):
                raise
            raise RunError(f"a loader worker died ({error}); run the same command again") from None


# ---------------------------------------------------------------- a detector's regions


def given_regions(
    arguments: argparse.Namespace, names: Sequence[str], size_of: Callable[[str], tuple[int, int]]
) -> dict[str, Regions] | None:
    """Read the regions that a detector's files give of the named images: {} for `none`, None where none are given.

    size_of(name) returns (width, height) in pixels. Raises InputError for files that do not fit.
    """
    if not arguments.regions:
        return None
    if arguments.regions == "none":
        return {}
    detections, _ = read_detections(Path(arguments.regions), arguments.format, arguments.classes, arguments.coco_images)
    class_map = parse_class_map(arguments.class_map)
    regions = to_regions(detections, list(names), size_of, allow_missing=True, class_map=class_map)
    return dict(zip(names, regions, strict=True))


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


# ---------------------------------------------------------------- command lines


def add_scene_options(parser: Parser, scales: Sequence[int] = SCALES, meaning: str = AS_PUBLISHED) -> None:
    """Add what cuts, reads and encodes scenes; scales: the default of --scales, in pixels; meaning: its help."""
    parser.add_argument("--scales", nargs="+", type=int, default=list(scales), metavar="PIXELS", help=meaning)
    parser.add_argument("--bands", nargs=3, type=int, metavar="N", help="bands for red, green and blue, from 1")
    parser.add_argument(
        "--stretch",
        type=float,
        default=2.0,
        metavar="PERCENT",
        help="of more than 8 bits: this percentile is black, 100 - it white (default 2)",
    )
    add_truncated(parser)
    parser.add_argument("--regions", help="a detector's files for the images, or the word none: no regions")
    add_detector_options(parser)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="loader processes (default: one per core)")
    parser.add_device()


def check_scene_options(arguments: argparse.Namespace) -> None:
    """Raise InputError for values that cannot be."""
    if min(arguments.scales) < 16:
        raise InputError(f"--scales must be at least 16 pixels, got {min(arguments.scales)}")
    if arguments.bands and min(arguments.bands) < 1:
        raise InputError(f"--bands count from 1, got {min(arguments.bands)}")
    if not 0 <= arguments.stretch < 50:
        raise InputError(f"--stretch must be a percentile from 0, below 50, got {arguments.stretch:g}")
    if arguments.workers < 0:
        raise InputError(f"--workers must be at least 0, got {arguments.workers}")


def add_model(parser: Parser) -> None:
    """Add what names the model: a model folder, or a checkpoint and its option file."""
    parser.add_options(required=False)
    parser.add_argument(
        "--model",
        "--resume",
        dest="resume",
        metavar="FOLDER|CKPT",
        help="model folder, or checkpoint (with --path_opt); default: models/rs_lite",
    )


def read_options(arguments: argparse.Namespace) -> tuple[Options, LocalRules, RasterRules]:
    """Read the options, the rules of local features and those of rasters that a command line names.

    Sets the model in the box where none is named. Raises InputError where there is no model, and where it needs a
    detector's regions and none are given.
    """
    if arguments.resume is None:
        if arguments.path_opt or not BOX.is_dir():
            why = "--path_opt without --resume" if arguments.path_opt else f"{BOX} is not there"
            raise InputError(f"no model: {why}; give --model FOLDER, or --path_opt FILE --resume CKPT")
        arguments.resume = str(BOX)
    cut = ["dataset.truncated=allow"] if arguments.truncated == "allow" else []
    options = options_of(arguments.resume, arguments.path_opt, [*arguments.set, *cut])
    is_folder = Path(arguments.resume).is_dir()
    local = folder_rules(arguments.resume, options) if is_folder else read_rules(options.local_path)
    if local.source == DETECTOR and not arguments.regions:
        raise InputError(
            "the model was trained with a detector's regions; give those of the new images with --regions DIR|FILE, "
            "or --regions none for the global part alone"
        )
    bands = tuple(arguments.bands) if arguments.bands else None
    return options, local, RasterRules(bands, arguments.stretch, options.dataset.truncated)
