"""Detect regions with a torchvision detector and your own weights; write DOTA result text.

    python -m util.detect --image_path DIR --weights FILE --out DIR

The detector is a Faster R-CNN or RetinaNet of torchvision, trained as torchvision does it: label 0 is the background,
label i the i-th name of the class file. The results of each image are kept in --out: the same command run again goes on
from there, and on another folder of images it adds to them. docs/data.md shows the whole way.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from math import inf
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.models import detection, get_model, list_models

from layers.drea import CLASSES
from layers.published import load_state
from util.device import pick_device
from util.images import Truncated, open_image
from util.lists import unique_keys, whole_stem
from util.regions.finished import work_through
from util.regions.readers import add_truncated, read_classes
from util.weights import load_torch, weights_of
from utils import InputError, Parser, check_writable, memory_advice, run_command, write_text

logger = logging.getLogger("galr")

ARCHITECTURES = list_models(module=detection, include=("fasterrcnn_*", "retinanet_*"))
DONE = ".detections"  # the folder in --out that keeps the results of each image


def main() -> None:
    arguments = _parse()
    classes = read_classes(arguments.classes) if arguments.classes else list(CLASSES)
    check_writable(arguments.out, "results go to")
    device = pick_device(arguments.device)
    images = {whole_stem(path.name): path for path in image_paths(arguments.image_path)}
    rules = {name: getattr(arguments, name) for name in ("arch", "threshold", "min_size", "max_size")}
    model = load_detector(weights=arguments.weights, classes=len(classes), **rules).to(device)
    settings = {"weights": hashlib.sha256(arguments.weights.read_bytes()).hexdigest(), "classes": classes, **rules}

    def work(paths: list[Path]) -> Iterator[list[list[float]]]:
        return detect(model, paths, device, arguments.batch_size, arguments.workers, arguments.truncated)

    folder = arguments.out / DONE
    found, damaged = work_through(folder, settings, images, work, arguments.workers, arguments.truncated)
    write_results(arguments.out, found, classes)
    if damaged:
        raise damaged
    logger.info(f"{sum(map(len, found.values()))} regions in {len(found)} images")


def load_detector(
    arch: str, weights: Path, classes: int, threshold: float, min_size: int | None = None, max_size: int | None = None
) -> torch.nn.Module:
    """Return a torchvision detector with the user's weights: a state dict, or one under `model` or `state_dict`.

    Raise InputError for any other file, and for weights of another architecture or number of classes.
    """
    with torch.serialization.safe_globals([argparse.Namespace]):  # torchvision's scripts store their arguments too
        state = weights_of(load_torch(weights, "detector weights"))
    if state is None:
        raise InputError(f"detector weights {weights} hold no state dict (names -> tensors)")
    sizes = {name: size for name, size in (("min_size", min_size), ("max_size", max_size)) if size}
    least = {"score_thresh" if arch.startswith("retinanet") else "box_score_thresh": threshold}
    model = get_model(arch, weights=None, weights_backbone=None, num_classes=classes + 1, **sizes, **least)
    try:
        load_state(model, state)
    except ValueError as error:
        raise InputError(
            f"detector weights {weights} do not fit {arch} with {classes} classes and background: {error}; check "
            "--arch and --classes"
        ) from None
    return model.eval()


def image_paths(folder: Path) -> list[Path]:
    """Return the images of a folder, sorted. Raise InputError for none, and for two of one stem."""
    suffixes = Image.registered_extensions()
    paths = sorted(path for path in folder.glob("[!.]*") if path.suffix.lower() in suffixes and path.is_file())
    if not paths:
        raise InputError(f"image folder {folder} is not there, or holds no images")
    unique_keys([path.name for path in paths], f"image folder {folder}")
    return paths


@torch.inference_mode()
def detect(
    model: torch.nn.Module, paths: list[Path], device: torch.device, batch_size: int, workers: int, truncated: Truncated
) -> Iterator[list[list[float]]]:
    """Yield the detections of each image: label, score, left, top, right, bottom, in pixels."""
    with ThreadPoolExecutor(max(1, workers)) as pool, memory_advice("lower --batch_size"):
        for start in range(0, len(paths), batch_size):
            batch = pool.map(_pixels, paths[start : start + batch_size], repeat(truncated))
            yield from map(_rows, model([pixels.to(device) for pixels in batch]))


def write_results(folder: Path, found: dict[str, list[list[float]]], classes: list[str]) -> None:
    """Write DOTA result text: Task2_{class}.txt for each class, `image score left top right bottom` in pixels."""
    lines: dict[str, list[str]] = {name: [] for name in classes}
    for image, detections in found.items():
        for label, score, *box in detections:
            lines[classes[int(label) - 1]].append(f"{image} {score:.4f} " + " ".join(f"{side:.2f}" for side in box))
    for name, part in lines.items():
        write_text(folder / f"Task2_{name}.txt", "".join(line + "\n" for line in part))


def _pixels(path: Path, truncated: Truncated) -> torch.Tensor:
    return torch.from_numpy(np.array(open_image(path, truncated))).permute(2, 0, 1).float() / 255


def _rows(output: dict[str, torch.Tensor]) -> list[list[float]]:
    label, score, box = output["labels"], output["scores"], output["boxes"]
    keep = (label > 0) & score.isfinite() & box.isfinite().all(dim=1)  # RetinaNet can say "background"
    return torch.cat([label[keep, None].float(), score[keep, None], box[keep]], dim=1).cpu().tolist()


def _parse() -> argparse.Namespace:
    parser = Parser(prog="python -m util.detect", description="Detect regions with a torchvision detector.")
    add = parser.add_argument
    add("--image_path", type=Path, required=True, help="folder of the images")
    add("--weights", type=Path, required=True, help="the detector's weights (a state dict)")
    add("--out", type=Path, required=True, help="folder for the DOTA result text; --regions reads it")
    add("--arch", choices=ARCHITECTURES, default="fasterrcnn_resnet50_fpn", help="torchvision's name")
    add("--classes", type=Path, help="class names, one a line, for labels 1, 2, ... (default: DOTA-v1.0)")
    add("--threshold", type=float, default=0.3, help="lowest score that is kept (default 0.3)")
    add("--min-size", type=int, help="scale the shorter side to this (default: the architecture's)")
    add("--max-size", type=int, help="but the longer side to no more than this")
    add("--batch_size", type=int, default=8, help="images at a time (default 8)")
    add("--workers", type=int, default=2, help="threads that decode images (default 2)")
    add_truncated(parser)
    parser.add_device()
    arguments = parser.parse_args()
    for name, least, most in (("threshold", 0, 1), ("batch_size", 1, inf), ("min_size", 1, inf), ("max_size", 1, inf)):
        value = getattr(arguments, name)
        if value is not None and not least <= value <= most:
            raise InputError(f"{name} must be from {least} to {most}, got {value}")
    return arguments


if __name__ == "__main__":
    run_command(main)
