"""Detected regions -> DREA -> the local features that training reads (HDF5).

    python -m util.build_local --data_path DIR --image_path DIR --regions DIR|FILE|proposals --out FILE.h5

docs/REGIONS.md tells how to get regions for one's own images.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image
from tqdm import tqdm

from layers.drea import DreaOptions, Regions, denoise, enhanced_adjacency
from utils import InputError, Parser, RunError, atomic, existing_file, read_text, run_command


def image_names(data_path: Path) -> list[str]:
    """The image file names of the train list and then the test list, each once, in order of first appearance."""
    names = {}
    for split in ("train", "test"):
        names.update(dict.fromkeys(read_list(data_path, split)))
    return list(names)


def read_list(data_path: Path, split: str) -> list[str]:
    """The lines of {data_path}/{split}_filename.txt."""
    path = data_path / f"{split}_filename.txt"
    lines = [line.strip() for line in read_text(path, "image list").rstrip().split("\n")]
    for number, name in enumerate(lines, 1):
        if not name:
            raise InputError(f"image list {path}, line {number}: blank; one image name on each line is needed")
    return lines


def stem(name: str) -> str:
    """The name of an image up to its first dot, without folders."""
    return Path(name).name.split(".")[0]


def image_file(folder: Path, name: str) -> Path:
    """The path of an image, which must lie inside the folder, links followed."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"image {name} lies outside of the image folder {folder}")
    return existing_file(path, "image")


def open_image(path: Path) -> Image.Image:
    """An RGB image, or InputError."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"image {path} cannot be read: {error}") from None


def in_parallel(function: Callable, items: list, workers: int, what: str) -> Iterator:
    """Results of `function` over `items`, in order, from several processes, with a progress bar."""
    if workers == 1 or len(items) < 2:
        yield from tqdm(map(function, items), what, len(items), disable=None)
        return
    try:
        ignore_interrupt = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)  # the parent handles it
        with ProcessPoolExecutor(min(workers, len(items)), initializer=ignore_interrupt) as pool:
            yield from tqdm(pool.map(function, items, chunksize=4), what, len(items), disable=None)
    except BrokenProcessPool:
        raise RunError(f"a worker process died ({what}); was memory short? Try --workers 1") from None


def _propose_file(path: Path):
    from util.proposals import propose

    return propose(open_image(path))


def proposed_regions(
    data_path: Path, image_path: Path, names: list[str], workers: int
) -> tuple[list[Regions], dict[str, Any]]:
    """Unsupervised proposals of each image, and how they were made (attributes). Prototypes see train images only."""
    from util import proposals

    paths = [image_file(image_path, name) for name in names]
    found = list(in_parallel(_propose_file, paths, workers, "proposals"))
    train = set(read_list(data_path, "train"))
    seen = [proposal.description for name, proposal in zip(names, found, strict=True) if name in train]
    prototypes = proposals.fit_prototypes(np.concatenate(seen))
    attributes = {f"proposals.{key}": value for key, value in asdict(proposals.DEFAULTS).items()}
    attributes |= {f"prototypes.{key}": value for key, value in prototypes._asdict().items()}
    attributes["prototypes.description"] = proposals.DESCRIPTION
    return [proposals.classify(proposal, prototypes) for proposal in found], attributes


def local_features(regions: Iterable[Regions], options: DreaOptions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """DREA over images: local_rep (N, 20, 20), local_adj (N, 20, 20), both float32, and the multiplicities (N, 20)."""
    rep, adj, multiplicity = [], [], []
    for one in regions:
        denoised = denoise(one, options)
        rep.append(denoised.nodes)
        multiplicity.append(denoised.multiplicity)
        adj.append(enhanced_adjacency(denoised.nodes, denoised.multiplicity, options))
    return np.stack(rep), np.stack(adj), np.stack(multiplicity)


def write_local(path: Path, stems: list[str], rep: np.ndarray, adj: np.ndarray, attributes: dict[str, Any]) -> None:
    """Write the HDF5 file of local features."""
    with atomic(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset("name", data=stems, dtype=h5py.string_dtype())
        file.create_dataset("local_rep", data=rep)
        file.create_dataset("local_adj", data=adj)
        file.attrs.update(attributes)


def _arguments() -> Parser:
    parser = Parser(description="Turn detected regions into the local features that training reads.")
    parser.add_argument("--data_path", type=Path, required=True, help="folder with {train,test}_filename.txt")
    parser.add_argument("--image_path", type=Path, required=True, help="folder of the images")
    parser.add_argument("--regions", required=True, help="folder or file of detected regions, or the word proposals")
    parser.add_argument("--out", type=Path, required=True, help="the HDF5 file to write")
    parser.add_argument("--no-denoise", action="store_true", help="keep the 20 most salient raw regions (ablation)")
    parser.add_argument("--no-enhance", action="store_true", help="join all nodes alike (ablation)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one per core)")
    return parser


def main() -> None:
    arguments = _arguments().parse_args()
    options = DreaOptions(denoise=not arguments.no_denoise, enhance=not arguments.no_enhance)
    names = image_names(arguments.data_path)
    regions, attributes = proposed_regions(arguments.data_path, arguments.image_path, names, arguments.workers)
    rep, adj, _ = local_features(tqdm(regions, "DREA", disable=None), options)
    attributes["source"] = arguments.regions
    attributes |= {f"drea.{key}": value for key, value in asdict(options).items()}
    write_local(arguments.out, [stem(name) for name in names], rep, adj, attributes)
    before = np.array([len(one.score) for one in regions])
    after = (rep.any(axis=2)).sum(axis=1)
    for what, count in (("regions", before), ("nodes", after)):
        print(f"{what} per image: mean {count.mean():.1f}, median {np.median(count):.0f}, most {count.max()}")


if __name__ == "__main__":
    run_command(main)
