"""Turn detected regions into the local features that training reads (HDF5), by DREA.

    python -m util.build_local --data_path DIR --image_path DIR --regions DIR|FILE|proposals --out FILE.h5

docs/data.md tells how to get regions for your own images.
"""

from __future__ import annotations

import argparse
import functools
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from layers.drea import THRESHOLDS, Denoised, DreaOptions, Regions, denoise, enhanced_adjacency
from util.images import BadImages, Truncated, find_damaged, image_size, open_image
from util.lists import read_names, safe_paths, unique_keys
from util.regions.classes import parse_class_map
from util.regions.detections import to_regions
from util.regions.finished import Finished
from util.regions.readers import add_detector_options, add_truncated, read_detections
from utils import Bar, InputError, Interrupted, Parser, RunError, atomic, check_writable_file

logger = logging.getLogger("galr")

PROPOSALS = "proposals"


def main() -> None:
    arguments = _parse()
    signal.signal(signal.SIGTERM, _stop)
    names = image_names(arguments.data_path)
    find_regions = proposed_regions if arguments.regions == PROPOSALS else detected_regions
    regions, attributes = find_regions(arguments, names)
    shown = np.linspace(0, len(names) - 1, min(arguments.preview, len(names))).astype(int)
    paths = safe_paths(arguments.image_path, [names[index] for index in shown])
    pictures = [open_image(path, arguments.truncated) for path in paths]

    denoised, adjacency = drea(Bar(regions, "DREA", unit="image"), arguments.options)
    attributes |= {f"drea.{key}": value for key, value in asdict(arguments.options).items()}
    rep = np.stack([one.nodes for one in denoised])
    keys = unique_keys(names, str(arguments.data_path))
    write_local(arguments.out, keys, rep, adjacency, attributes)
    shutil.rmtree(proposals_folder(arguments.out), ignore_errors=True)
    if arguments.published:
        write_published(arguments.published, keys, rep, adjacency)
    if pictures:
        from util.regions.preview import write_sheets

        cases = [(names[i], p, regions[i], denoised[i], adjacency[i]) for i, p in zip(shown, pictures, strict=True)]
        logger.info("drawn: " + " ".join(map(str, write_sheets(arguments.out.with_suffix(""), cases))))
    for what, count in (
        ("regions", [len(one.score) for one in regions]),
        ("nodes", [len(one.region_of_node) for one in denoised]),
    ):
        logger.info(f"{what} per image: mean {np.mean(count):.1f}, median {np.median(count):g}, most {max(count)}")
    logger.info(f"{arguments.out}: {len(names)} images; use it with --set dataset.local_path={arguments.out}")


def image_names(data_path: Path) -> list[str]:
    """Return the image names of the train list, then those of the test list, each once."""
    names = list(dict.fromkeys(name for split in ("train", "test") for name in read_names(data_path, split)))
    unique_keys(names, str(data_path))  # raises before any work is done
    return names


def detected_regions(arguments: argparse.Namespace, names: list[str]) -> tuple[list[Regions], dict[str, Any]]:
    """Return the regions of each image from a detector's files, and attributes that name their source."""
    source = Path(arguments.regions)
    detections, form = read_detections(source, arguments.format, arguments.classes, arguments.coco_images)

    def size_of(name: str) -> tuple[int, int]:
        return image_size(safe_paths(arguments.image_path, [name])[0])

    regions = to_regions(detections, names, size_of, arguments.allow_missing, parse_class_map(arguments.class_map))
    return regions, {"source": str(source), "format": form}


def proposed_regions(arguments: argparse.Namespace, names: list[str]) -> tuple[list[Regions], dict[str, Any]]:
    """Return the proposals of each image, and attributes that say how they were made."""
    from util.regions import proposals

    paths = dict(zip(names, map(Path, safe_paths(arguments.image_path, names)), strict=True))
    if arguments.allow_missing:
        paths = {name: path for name, path in paths.items() if path.exists()}
    done = Finished(proposals_folder(arguments.out), {"proposals": asdict(proposals.DEFAULTS)})
    propose_all(paths, done, arguments)
    results = done.results()
    found = [np.array(results.get(name, ())).reshape(-1, 5 + len(proposals.DESCRIPTION)) for name in names]
    found = [proposals.Proposals(columns[:, 0], columns[:, 1:5], columns[:, 5:]) for columns in found]
    train = set(read_names(arguments.data_path, "train"))  # prototypes must not see test images
    of_train = [one.description for name, one in zip(names, found, strict=True) if name in train]
    prototypes = proposals.fit_prototypes(np.concatenate(of_train))
    attributes: dict[str, Any] = {"source": PROPOSALS, "prototypes.description": proposals.DESCRIPTION}
    attributes |= {f"proposals.{key}": value for key, value in asdict(proposals.DEFAULTS).items()}
    attributes |= {f"prototypes.{key}": value for key, value in prototypes._asdict().items()}
    return [proposals.classify(one, prototypes) for one in found], attributes


def proposals_folder(out: Path) -> Path:
    """Return the folder that keeps the proposals of each image until `out` is written."""
    return out.with_name(f".{out.name}.proposals")


def propose_all(paths: dict[str, Path], done: Finished, arguments: argparse.Namespace) -> None:
    """Propose regions for the images (name -> path) that are not done yet. Raise InputError for damaged ones last."""
    left = {str(path): name for name, path in paths.items() if not done.has(name, path)}
    faults = find_damaged(list(left), arguments.workers, arguments.truncated)
    good = [path for path in left if path not in faults]
    work = functools.partial(_propose_file, truncated=arguments.truncated)
    for path, result in zip(good, in_parallel(work, good, arguments.workers), strict=True):
        done.add(left[path], Path(path), result)
    if faults:
        raise InputError(
            f"{BadImages(faults, len(paths))}; the proposals of the others are kept: mend these, and run the same "
            "command again"
        )


def _propose_file(path: str, truncated: Truncated) -> list[list[float]]:
    from util.regions.proposals import propose

    return np.column_stack(propose(open_image(path, truncated))).tolist()


def in_parallel(function: Callable, items: list, workers: int) -> Iterator:
    """Yield `function` of each item, in order, from several processes, with a progress bar."""
    if workers == 1:
        yield from Bar(map(function, items), PROPOSALS, len(items), unit="image")
        return
    pool = ProcessPoolExecutor(workers, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
    try:
        yield from Bar(pool.map(function, items, chunksize=4), PROPOSALS, len(items), unit="image")
    except BrokenProcessPool:
        raise RunError("a worker process died; if memory was short, try --workers 1") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _stop(signum: int, frame: Any) -> None:
    raise Interrupted(signum, "stopped; run the same command again")


def drea(regions: Iterable[Regions], options: DreaOptions) -> tuple[list[Denoised], np.ndarray]:
    """Return the denoised representation of each image and the adjacency matrices (N, 20, 20) float32."""
    denoised = [denoise(one, options) for one in regions]
    return denoised, np.stack([enhanced_adjacency(one.nodes, one.multiplicity, options) for one in denoised])


def write_local(path: Path, stems: list[str], rep: np.ndarray, adj: np.ndarray, attributes: dict[str, Any]) -> None:
    """Write the HDF5 file of local features (docs/data.md)."""
    with atomic(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset("name", data=stems, dtype=h5py.string_dtype())
        file.create_dataset("local_rep", data=rep)
        file.create_dataset("local_adj", data=adj)
        file.attrs.update(attributes)


def write_published(path: Path, stems: list[str], rep: np.ndarray, adj: np.ndarray) -> None:
    """Write the layout of the released files: one pickled dict, keyed by stem + '.txt', of nested lists."""
    keys = [f"{name}.txt" for name in stems]
    layout = {
        name: dict(zip(keys, part.tolist(), strict=True)) for name, part in (("adj_matrix", adj), ("local_rep", rep))
    }
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.save(file, np.array(layout, dtype=object))


def _parse() -> argparse.Namespace:
    parser = Parser(
        prog="python -m util.build_local",
        description="Turn detected regions into the local features that training reads (docs/data.md).",
    )
    parser.add_argument("--data_path", type=Path, required=True, help="folder with {train,test}_filename.txt")
    parser.add_argument("--image_path", type=Path, required=True, help="folder of the images")
    parser.add_argument(
        "--regions",
        required=True,
        help="a folder (DOTA, YOLO-OBB) or file (COCO) of detections, or the word proposals: no detector is needed",
    )
    parser.add_argument("--out", type=Path, required=True, help="the HDF5 file to write")
    parser.add_argument("--published", type=Path, help="also write the layout of the released files (.npy)")
    parser.add_argument("--preview", type=int, default=0, metavar="N", help="draw N images, on PNG sheets beside --out")
    add_detector_options(parser)
    add_truncated(parser)
    parser.add_argument("--allow-missing", action="store_true", help="images without regions get zeros")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one per core)")
    default = DreaOptions()
    parser.add_argument("--no-denoise", action="store_true", help="keep the most salient raw regions (ablation)")
    parser.add_argument("--no-enhance", action="store_true", help="join all nodes alike (ablation)")
    parser.add_argument("--similarity", choices=THRESHOLDS, default=default.similarity, help="what merges regions")
    parser.add_argument("--similarity-threshold", type=float, help=f"default: {THRESHOLDS}".replace("'", ""))
    for name in ("distance_scale", "saliency_weighting", "multiplicity_weighting"):
        value = getattr(default, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=value, help=f"default {value:g}")
    arguments = parser.parse_args()
    given = {option.name: getattr(arguments, option.name) for option in fields(DreaOptions) if option.name in arguments}
    try:
        arguments.options = DreaOptions(denoise=not arguments.no_denoise, enhance=not arguments.no_enhance, **given)
    except ValueError as error:
        raise InputError(str(error)) from None
    if arguments.workers < 1:
        raise InputError(f"--workers must be at least 1, got {arguments.workers}")
    if arguments.published and arguments.published.suffix != ".npy":
        raise InputError(f"--published must be a .npy file, got {arguments.published}")
    for path in filter(None, (arguments.out, arguments.published)):
        check_writable_file(path)
    return arguments
