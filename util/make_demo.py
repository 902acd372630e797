"""Draw the demonstration data: scenes with exact boxes and true captions, in the published layout.

    python -m util.make_demo --out data/demo_precomp

writes `{train,test}_caps.txt`, `{train,test}_filename.txt`, `images/*.png`, `boxes/*.txt` (DOTA annotation text) and
`demo.json`, the arguments, of which the same give the same bytes. `--scene` adds a large scene with known things in
known places, `scene/scene.jpg`, their boxes, and queries with the regions that they mean, `scene/anno.json`.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from util.demo.captions import CAPTIONS_PER_IMAGE, write_captions
from util.demo.draw import draw_scene
from util.demo.large import SIDE, TILE, annotate_large, draw_large, plan_large
from util.demo.plan import Scene, plan_scenes
from utils import Bar, InputError, Parser, atomic, check_writable, read_json, run_command, write_json, write_text

logger = logging.getLogger("galr")

MARK = "demo.json"  # written first: a folder that holds it is ours to write again
TEST_EVERY = 5  # every fifth image is a test image


def make_demo(out: Path, images: int, size: int, seed: int) -> None:
    """Write the data set. Raise InputError for impossible arguments and for a folder that holds anything else."""
    arguments = {"images": images, "size": size, "seed": seed}
    for name, (least, most) in {"images": (TEST_EVERY, 9999), "size": (32, 2048), "seed": (0, 2**32)}.items():
        if not least <= arguments[name] <= most:
            raise InputError(f"--{name} must be from {least} to {most}, got {arguments[name]}")
    check_folder(out, arguments)
    write_json(out / MARK, arguments)
    scenes = plan_scenes(images, seed)
    for scene in Bar(scenes, desc=f"drawing {out}", unit="image"):
        with atomic(out / "images" / f"{scene.name}.png") as temporary:
            draw_scene(scene, size).save(temporary, format="PNG")
        write_text(out / "boxes" / f"{scene.name}.txt", annotation(scene, size))
    write_lists(out, scenes, seed)


def make_scene(out: Path, seed: int) -> None:
    """Write the large scene, its boxes and its queries."""
    plots = plan_large(seed)
    with atomic(out / "scene.jpg") as temporary:
        draw_large(plots, seed).save(temporary, format="JPEG", quality=90)
    boxes = [annotation(plot.scene, TILE, (plot.column, plot.row)) for plot in plots]
    write_text(out / "boxes" / "scene.txt", "".join(boxes))
    write_json(out / "anno.json", annotate_large(plots, seed))


def check_folder(out: Path, arguments: dict[str, int]) -> None:
    """Raise InputError for a folder with files that are not ours, or that other arguments made."""
    check_writable(out, "--out")
    if (out / MARK).exists():
        made = read_json(out / MARK, "the mark of a demonstration set")
        if made != arguments:
            raise InputError(f"--out {out} holds a set made with {made}; name a new folder or remove that one")
    elif out.exists() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise InputError(f"--out {out} holds other files; name a new or empty folder")


def annotation(scene: Scene, size: int, corner: tuple[int, int] = (0, 0)) -> str:
    """Return DOTA text: `x1 y1 x2 y2 x3 y3 x4 y4 class difficulty`, one object a line, clockwise, in pixels.

    corner: x, y of the scene's own corner in a larger picture, in units of its side.
    """
    lines = []
    for thing in scene.things:
        pixels = " ".join(f"{value:.2f}" for value in (size * (thing.corners() + corner)).ravel())
        lines.append(f"{pixels} {thing.kind} 0\n")
    return "".join(lines)


def write_lists(out: Path, scenes: list[Scene], seed: int) -> None:
    """Write captions one a line; the train list names each image once, the test list once per caption, as published."""
    for split, repeats in (("train", 1), ("test", CAPTIONS_PER_IMAGE)):
        captions, names = [], []
        for scene in scenes:
            if (scene.index % TEST_EVERY == TEST_EVERY - 1) == (split == "test"):
                captions += write_captions(scene, np.random.default_rng([seed, 2, scene.index]))
                names += [f"{scene.name}.png"] * repeats
        write_text(out / f"{split}_caps.txt", "".join(f"{caption}\n" for caption in captions))
        write_text(out / f"{split}_filename.txt", "".join(f"{name}\n" for name in names))


def main() -> None:
    parser = Parser(prog="python -m util.make_demo", description="Draw the demonstration data set.")
    add = parser.add_argument
    add("--out", type=Path, required=True, help="new or empty folder, such as data/demo_precomp")
    add("--images", type=int, default=200, help="how many, a fifth of them for the test (default 200)")
    add("--size", type=int, default=128, help="side of the images in pixels, 32 to 2048 (default 128)")
    add("--seed", type=int, default=0, help="another seed, another set (default 0)")
    add("--scene", action="store_true", help=f"also a scene of {SIDE} x {SIDE}, for search.evaluate")
    given = parser.parse_args()
    make_demo(given.out, given.images, given.size, given.seed)
    if given.scene:
        make_scene(given.out / "scene", given.seed)
    logger.info(f"{given.images} images and {given.images * CAPTIONS_PER_IMAGE} captions written to {given.out}")


if __name__ == "__main__":
    run_command(main)
