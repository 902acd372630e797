"""Draw the demonstration data: scenes with exact boxes and true captions, in the published layout.

    python -m util.make_demo --out data/demo_precomp

writes `{train,test}_caps.txt`, `{train,test}_filename.txt`, `images/*.png`, `boxes/*.txt` (DOTA annotation text) and
`demo.json`, the arguments, of which the same give the same bytes. `--scene` adds a large scene with known things in
known places, `scene/scene.jpg`, their boxes, and queries with the regions that they mean, `scene/anno.json`.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from util.demo.captions import CAPTIONS_PER_IMAGE, write_captions
from util.demo.draw import draw_scene
from util.demo.plan import SCENES_PER_SETTING, Scene, plan_scenes
from utils import Bar, InputError, Parser, atomic, check_writable, read_json, run_command, write_json, write_text

logger = logging.getLogger("galr")

MARK = "demo.json"  # written first: a folder that holds it is ours to write again
TEST_EVERY = 5  # every fifth image is a test image
# The large scene: pixels of a part, of which a window of 512 shows what a training image shows; parts along a side.
TILE, TILES = 500, 8


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
        write_text(out / "boxes" / f"{scene.name}.txt", scene.annotation(size))
    write_lists(out, scenes, seed)


def check_folder(out: Path, arguments: dict[str, int]) -> None:
    """Raise InputError for a folder with files that are not ours, or that other arguments made."""
    check_writable(out, "--out")
    if (out / MARK).exists():
        made = read_json(out / MARK, "the mark of a demonstration set")
        if made != arguments:
            raise InputError(f"--out {out} holds a set made with {made}; name a new folder or remove that one")
    elif out.exists() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise InputError(f"--out {out} holds other files; name a new or empty folder")


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


def plan_large(seed: int) -> dict[tuple[int, int], Scene]:
    """Plan a scene, most of them without objects, for each column and row of the large scene.

    Those with objects do not touch, and none shows the main class of another, so that each sentence means one place.
    """
    planned, places, mains, shown = plan_scenes(TILES**2 * SCENES_PER_SETTING, seed + 1), {}, set(), set()
    for at, scene in enumerate(planned):
        place, kinds = divmod(at // SCENES_PER_SETTING, TILES), {group.kind for group in scene.groups}
        if place in places and places[place].groups:
            continue
        places[place] = replace(scene, groups=[])
        if place[0] % 2 and place[1] % 2 and not kinds & mains and scene.groups[0].kind not in shown:
            places[place] = scene
            mains.add(scene.groups[0].kind)
            shown |= kinds
    return places


def make_scene(out: Path, seed: int) -> None:
    """Write the large scene, its boxes, and queries in the form of AIR-SLT: captions and the hulls of their objects."""
    picture, queries, boxes = Image.new("RGB", (TILE * TILES, TILE * TILES)), [], ""
    for place, scene in Bar(plan_large(seed).items(), desc="drawing the scene", unit="part"):
        picture.paste(draw_scene(scene, TILE), (TILE * place[0], TILE * place[1]))
        if scene.groups:
            boxes += scene.annotation(TILE, place)
            caption = write_captions(scene, np.random.default_rng([seed, 6, scene.index]))[0]
            hull = np.concatenate([group.hull for group in scene.groups]).clip(0, 1) + place
            (left, top), (right, bottom) = (TILE * np.stack([hull.min(axis=0), hull.max(axis=0)])).round(2).tolist()
            region = [[left, top], [right, top], [right, bottom], [left, bottom]]
            queries.append({"caption": caption, "jpg_name": "scene.jpg", "points": [region]})
    with atomic(out / "scene.jpg") as temporary:
        picture.save(temporary, format="JPEG", quality=90)
    write_text(out / "boxes" / "scene.txt", boxes)
    write_json(out / "anno.json", queries)


def main() -> None:
    parser = Parser(prog="python -m util.make_demo", description="Draw the demonstration data set.")
    add = parser.add_argument
    add("--out", type=Path, required=True, help="new or empty folder, such as data/demo_precomp")
    add("--images", type=int, default=200, help="how many, a fifth of them for the test (default 200)")
    add("--size", type=int, default=128, help="side of the images in pixels, 32 to 2048 (default 128)")
    add("--seed", type=int, default=0, help="another seed, another set (default 0)")
    add("--scene", action="store_true", help="also a scene of 4000 x 4000, for search.evaluate")
    given = parser.parse_args()
    make_demo(given.out, given.images, given.size, given.seed)
    if given.scene:
        make_scene(given.out / "scene", given.seed)
    logger.info(f"{given.images} images and {given.images * CAPTIONS_PER_IMAGE} captions written to {given.out}")


if __name__ == "__main__":
    run_command(main)
