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
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from layers.drea import THRESHOLDS, Denoised, DreaOptions, Regions, denoise, enhanced_adjacency
from util.images import Truncated, image_size, open_image
from util.lists import read_names, safe_paths, unique_keys
from util.regions import proposals
from util.regions.finished import work_through
from util.regions.local_features import PROPOSALS
from util.regions.readers import add_detector_options, add_truncated, regions_of
from utils import Bar, InputError, Parser, atomic, check_writable_file, run_command

logger = logging.getLogger("galr")


def main() -> None:
    arguments = _parse()
    names = list(dict.fromkeys(name for part in ("train", "test") for name in read_names(arguments.data_path, part)))
    keys = unique_keys(names, str(arguments.data_path))
    find_regions = proposed_regions if arguments.regions == PROPOSALS else detected_regions
    regions, attributes = find_regions(arguments, names)
    shown = np.linspace(0, len(names) - 1, min(arguments.preview, len(names))).astype(int)
    paths = safe_paths(arguments.image_path, [names[index] for index in shown])
    pictures = [open_image(path, arguments.truncated) for path in paths]

    denoised, adjacency = drea(Bar(regions, "DREA", unit="image"), arguments.options)
    attributes |= {f"drea.{key}": value for key, value in asdict(arguments.options).items()}
    rep = np.stack([one.nodes for one in denoised])
    write_local(arguments.out, keys, rep, adjacency, attributes)
    shutil.rmtree(_proposals_folder(arguments.out), ignore_errors=True)
    if arguments.published:
        write_published(arguments.published, keys, rep, adjacency)
    if pictures:
        from util.regions.preview import write_sheets  # Matplotlib takes a second to import

        cases = [(names[i], one, regions[i], denoised[i], adjacency[i]) for i, one in zip(shown, pictures, strict=True)]
        write_sheets(arguments.out.with_suffix(""), cases)
    for what, count in (
        ("regions", [len(one.score) for one in regions]),
        ("nodes", [len(one.region_of_node) for one in denoised]),
    ):
        logger.info(f"{what} per image: mean {np.mean(count):.1f}, median {np.median(count):g}, most {max(count)}")
    logger.info(f"{arguments.out}: {len(names)} images; use it with --set dataset.local_path={arguments.out}")


def detected_regions(arguments: argparse.Namespace, names: list[str]) -> tuple[list[Regions], dict[str, Any]]:
    """Return the regions of each image from a detector's files, and attributes that name their source."""

    @functools.cache
    def paths() -> dict[str, str]:
        return dict(zip(names, safe_paths(arguments.image_path, names), strict=True))

    regions, form = regions_of(arguments, names, lambda name: image_size(paths()[name]), arguments.allow_missing)
    return regions, {"source": str(Path(arguments.regions)), "format": form}


def proposed_regions(arguments: argparse.Namespace, names: list[str]) -> tuple[list[Regions], dict[str, Any]]:
    """Return the proposals of each image, and attributes that say how they were made."""
    paths = dict(zip(names, map(Path, safe_paths(arguments.image_path, names)), strict=True))
    if arguments.allow_missing:
        paths = {name: path for name, path in paths.items() if path.exists()}
    folder, settings = _proposals_folder(arguments.out), {"proposals": asdict(proposals.DEFAULTS)}
    work = functools.partial(_propose, truncated=arguments.truncated, workers=arguments.workers)
    results, damaged = work_through(folder, settings, paths, work, arguments.workers, arguments.truncated)
    if damaged:
        raise damaged
    found = [np.array(results.get(name, ())).reshape(-1, 5 + len(proposals.DESCRIPTION)) for name in names]
    found = [proposals.Proposals(columns[:, 0], columns[:, 1:5], columns[:, 5:]) for columns in found]
    train = set(read_names(arguments.data_path, "train"))  # prototypes must not see test images
    of_train = [one.description for name, one in zip(names, found, strict=True) if name in train]
    prototypes = proposals.fit_prototypes(np.concatenate(of_train))
    attributes: dict[str, Any] = {"source": PROPOSALS, "prototypes.description": proposals.DESCRIPTION}
    for prefix, rules in (("proposals", proposals.DEFAULTS), ("prototypes", prototypes)):
        attributes |= {f"{prefix}.{key}": value for key, value in asdict(rules).items()}
    return [proposals.classify(one, prototypes) for one in found], attributes


def _proposals_folder(out: Path) -> Path:
    """Return the folder that keeps the proposals of each image until `out` is written."""
    return out.with_name(f".{out.name}.proposals")


def _propose(paths: list[Path], truncated: Truncated, workers: int) -> Iterator[list[list[float]]]:
    """Yield the proposals of each image, in order, from several processes."""
    work = functools.partial(_propose_file, truncated=truncated)
    if workers <= 1:
        yield from map(work, paths)
        return
    with ProcessPoolExecutor(workers, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)) as pool:
        yield from pool.map(work, paths, chunksize=4)


def _propose_file(path: Path, truncated: Truncated) -> list[list[float]]:
    return np.column_stack(proposals.propose(open_image(path, truncated))).tolist()


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
    keys = [f"{stem}.txt" for stem in stems]
    layout = {
        "adj_matrix": dict(zip(keys, adj.tolist(), strict=True)),
        "local_rep": dict(zip(keys, rep.tolist(), strict=True)),
    }
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.save(file, np.array(layout, dtype=object))


def _parse() -> argparse.Namespace:
    parser = Parser(
        prog="python -m util.build_local",
        description="Turn detected regions into the local features that training reads (docs/data.md).",
    )
    add, default = parser.add_argument, DreaOptions()
    add("--data_path", type=Path, required=True, help="folder with {train,test}_filename.txt")
    add("--image_path", type=Path, required=True, help="folder of the images")
    source = "a folder (DOTA, YOLO-OBB) or file (COCO) of detections, or the word proposals: no detector is needed"
    add("--regions", required=True, help=source)
    add("--out", type=Path, required=True, help="the HDF5 file to write")
    add("--published", type=Path, help="also write the layout of the released files (.npy)")
    add("--preview", type=int, default=0, metavar="N", help="draw N images, on PNG sheets beside --out")
    add_detector_options(parser)
    add_truncated(parser)
    add("--allow-missing", action="store_true", help="images without regions get zeros")
    add("--workers", type=int, default=os.cpu_count(), help="processes (default: one per core)")
    add("--no-denoise", action="store_true", help="keep the most salient raw regions (ablation)")
    add("--no-enhance", action="store_true", help="join all nodes alike (ablation)")
    add("--similarity", choices=THRESHOLDS, default=default.similarity, help="what merges regions")
    add("--similarity-threshold", type=float, help=f"default: {THRESHOLDS}".replace("'", ""))
    for name in ("distance_scale", "saliency_weighting", "multiplicity_weighting"):
        value = getattr(default, name)
        add(f"--{name.replace('_', '-')}", type=float, default=value, help=f"default {value:g}")
    arguments = parser.parse_args()
    given = {option.name: getattr(arguments, option.name) for option in fields(DreaOptions) if option.name in arguments}
    try:
        arguments.options = DreaOptions(denoise=not arguments.no_denoise, enhance=not arguments.no_enhance, **given)
    except ValueError as error:
        raise InputError(str(error)) from None
    if arguments.published and arguments.published.suffix != ".npy":
        raise InputError(f"--published must be a .npy file, got {arguments.published}")
    for path in filter(None, (arguments.out, arguments.published)):
        check_writable_file(path)
    return arguments


if __name__ == "__main__":
    run_command(main)
