"""Detected regions -> DREA -> the local features that training reads (HDF5).

    python -m util.build_local --data_path DIR --image_path DIR --regions DIR|FILE|proposals --out FILE.h5

docs/REGIONS.md tells how to get regions for one's own images.
"""

from __future__ import annotations

import argparse
import functools
import logging
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args

import h5py
import numpy as np

from layers.drea import THRESHOLDS, Denoised, DreaOptions, Regions, denoise, enhanced_adjacency
from util.images import BadImages, Truncated, find_damaged, image_size, open_image, safe_paths
from util.journal import Journal
from util.lists import read_names
from util.names import unique_keys
from util.regions.classes import parse_class_map
from util.regions.detections import to_regions
from util.regions.formats import read_detections
from util.regions.options import add_detector_options
from utils import Bar, InputError, Interrupted, Parser, RunError, atomic, check_writable_file, run_command, some

logger = logging.getLogger("galr")

PROPOSALS = "proposals"
DESCRIPTION = "Turn detected regions into the local features that training reads (see docs/REGIONS.md)."


def main() -> None:
    arguments = _parse()
    signal.signal(signal.SIGTERM, _stop)
    names = image_names(arguments.data_path)
    if arguments.regions == PROPOSALS:
        regions, attributes = proposed_regions(arguments, names)
    else:
        regions, attributes = detected_regions(arguments, names)
    shown = np.linspace(0, len(names) - 1, min(arguments.preview, len(names))).astype(int)
    shown_paths = safe_paths(arguments.image_path, [names[index] for index in shown])
    pictures = [open_image(path, arguments.truncated) for path in shown_paths]

    denoised, adjacency = drea(Bar(regions, "DREA", unit="image"), arguments.options)
    attributes |= {f"drea.{key}": value for key, value in asdict(arguments.options).items()}
    rep = np.stack([one.nodes for one in denoised])
    keys = unique_keys(names, str(arguments.data_path))
    write_local(arguments.out, keys, rep, adjacency, attributes)
    journal_of(arguments.out).unlink(missing_ok=True)
    if arguments.published:
        write_published(arguments.published, keys, rep, adjacency)
    if pictures:
        from util.regions.preview import write_sheets

        cases = [(names[i], p, regions[i], denoised[i], adjacency[i]) for i, p in zip(shown, pictures, strict=True)]
        logger.info("drawn: " + " ".join(map(str, write_sheets(arguments.out.with_suffix(""), cases))))
    _report("regions", [len(one.score) for one in regions])
    _report("nodes", [len(one.region_of_node) for one in denoised])
    logger.info(f"{arguments.out}: {len(names)} images; use it with --set dataset.local_path={arguments.out}")


def image_names(data_path: Path) -> list[str]:
    """The image names of the train list and then the test list, each once, in order of first appearance.

    Raises InputError for a missing or blank list, and for images that no key tells apart (`util.names.unique_keys`).
    """
    names = list(dict.fromkeys(name for split in ("train", "test") for name in read_names(data_path, split)))
    unique_keys(names, str(data_path))
    return names


def detected_regions(arguments: argparse.Namespace, names: list[str]) -> tuple[list[Regions], dict[str, Any]]:
    """The regions of each image from a detector's files, and where they come from (attributes)."""
    source = Path(arguments.regions)
    detections, form = read_detections(source, arguments.format, arguments.classes, arguments.coco_images)

    faults: dict[str, InputError] = {}

    def size_of(name: str) -> tuple[int, int]:
        path = safe_paths(arguments.image_path, [name])[0]
        try:
            return image_size(path)
        except InputError as error:
            faults[path] = error
            return 1, 1

    regions = to_regions(detections, names, size_of, arguments.allow_missing, parse_class_map(arguments.class_map))
    if faults:
        raise BadImages(faults, len(names))
    return regions, {"source": str(source), "format": form}


def proposed_regions(arguments: argparse.Namespace, names: list[str]) -> tuple[list[Regions], dict[str, Any]]:
    """Unsupervised proposals of each image, and how they were made (attributes). Prototypes see train images only."""
    from util.regions import proposals

    paths = dict(zip(names, safe_paths(arguments.image_path, names), strict=True))
    missing = [name for name, path in paths.items() if not Path(path).exists()]
    if missing and not arguments.allow_missing:
        raise InputError(
            f"{len(missing)} of {len(names)} images are not in {arguments.image_path}: {some(missing)}; "
            "add them, or give --allow-missing"
        )
    for name in missing:
        del paths[name]
    journal = Journal(journal_of(arguments.out), {"proposals": asdict(proposals.DEFAULTS)})
    propose_all(paths, journal, arguments)
    found = dict.fromkeys(names, proposals.NOTHING)
    found |= {name: proposals.unpack(journal.results[name]) for name in paths}
    train = dict.fromkeys(read_names(arguments.data_path, "train"))
    prototypes = proposals.fit_prototypes(np.concatenate([found[name].description for name in train]))
    attributes: dict[str, Any] = {"source": PROPOSALS, "prototypes.description": proposals.DESCRIPTION}
    attributes |= {f"proposals.{key}": value for key, value in asdict(proposals.DEFAULTS).items()}
    attributes |= {f"prototypes.{key}": value for key, value in prototypes._asdict().items()}
    return [proposals.classify(found[name], prototypes) for name in names], attributes


def journal_of(out: Path) -> Path:
    """Where proposals are kept until `out` is written."""
    return out.with_name(f".{out.name}.proposals.jsonl")


def propose_all(paths: dict[str, str], journal: Journal, arguments: argparse.Namespace) -> None:
    """Add to the journal the proposals of the images (name -> path) that it lacks.

    Raises InputError for damaged images, when the others are done.
    """
    left = {name: path for name, path in paths.items() if not journal.has(name, Path(path))}
    faults = find_damaged(list(left.values()), arguments.workers, arguments.truncated)
    good = {name: path for name, path in left.items() if path not in faults}
    work = functools.partial(_propose_file, truncated=arguments.truncated)
    results = in_parallel(work, list(good.values()), arguments.workers, "proposals")
    for (name, path), result in zip(good.items(), results, strict=True):
        if isinstance(result, InputError):
            faults[path] = result
        else:
            journal.add([(name, Path(path), result)])
    if faults:
        raise InputError(
            f"{BadImages(faults, len(paths))}; the proposals of the others are kept: mend these, and run the same "
            "command again"
        )


def _propose_file(path: str, truncated: Truncated) -> str | InputError:
    """The proposals of an image, packed, or what is wrong with it: raised in a worker, it would end the others."""
    from util.regions.proposals import pack, propose

    try:
        return pack(propose(open_image(path, truncated)))
    except InputError as error:
        return error


def in_parallel(function: Callable, items: list, workers: int, what: str) -> Iterator:
    """Results of `function` over `items`, in order, from several processes, with a progress bar."""
    if workers == 1 or len(items) < 2:
        yield from Bar(map(function, items), what, len(items), unit="image")
        return
    pool = ProcessPoolExecutor(min(workers, len(items)), initializer=_leave_signals_to_parent)
    try:
        yield from Bar(pool.map(function, items, chunksize=4), what, len(items), unit="image")
    except BrokenProcessPool:
        raise RunError(f"a worker process died ({what}); if memory was short, try --workers 1") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_signals_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _stop(signum: int, frame: Any) -> None:
    raise Interrupted(signum, "stopped; run the same command again")


def drea(regions: Iterable[Regions], options: DreaOptions) -> tuple[list[Denoised], np.ndarray]:
    """DREA over images: their denoised representations, and the adjacency matrices (N, 20, 20) float32."""
    denoised = [denoise(one, options) for one in regions]
    return denoised, np.stack([enhanced_adjacency(one.nodes, one.multiplicity, options) for one in denoised])


def write_local(path: Path, stems: list[str], rep: np.ndarray, adj: np.ndarray, attributes: dict[str, Any]) -> None:
    """Write the HDF5 file of local features (docs/REGIONS.md, "The files")."""
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


def _report(what: str, counts: list[int]) -> None:
    logger.info(f"{what} per image: mean {np.mean(counts):.1f}, median {np.median(counts):g}, most {max(counts)}")


def _parse() -> argparse.Namespace:
    parser = Parser(prog="python -m util.build_local", description=DESCRIPTION)
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
    parser.add_argument(
        "--truncated",
        choices=get_args(Truncated),
        default="error",
        help="images that are cut short: an error (default), or what is there of them",
    )
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
    if arguments.workers < 1 or arguments.preview < 0:
        raise InputError("--workers must be at least 1 and --preview at least 0")
    if arguments.out.suffix == ".npy":
        raise InputError(f"--out {arguments.out}: an HDF5 file is written there, so name it .h5 (.npy: --published)")
    if arguments.published and arguments.published.suffix != ".npy":
        raise InputError(f"--published {arguments.published}: name it .npy, by which training knows the form")
    if arguments.published and arguments.published.resolve() == arguments.out.resolve():
        raise InputError("--published and --out name the same file")
    detectors = arguments.classes, arguments.coco_images, arguments.class_map
    if arguments.regions == PROPOSALS and (arguments.format != "auto" or any(detectors)):
        raise InputError(
            "--format, --classes, --class-map and --coco-images belong to a detector's files, not to proposals"
        )
    for path in filter(None, (arguments.out, arguments.published)):
        check_writable_file(path)
    return arguments


if __name__ == "__main__":
    run_command(main)
