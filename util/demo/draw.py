"""Draw a planned scene as seen from above: ground, water and roads, then houses, trees and objects with their shadows.

Everything is drawn several times larger than wanted and averaged down in the end.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from util.demo.plan import Scene, Thing
from util.demo.things import COLOURS, GROUNDS, STROKES, Colour, Line

SHADOW = 110  # opacity, of 255


def draw_scene(scene: Scene, size: int) -> Image.Image:
    """Draw a scene of `size` x `size` pixels. The same plan gives the same picture at every size."""
    side = size * max(2, math.ceil(512 / size))
    picture = Image.new("RGB", (side, side), GROUNDS[scene.setting.ground][0])
    decoration = scene.decoration()
    for thing in [thing for thing in decoration if thing.flat] + scene.strips():
        draw_thing(picture, thing)
    picture = weathered(picture, scene.setting.texture)
    standing, shadows = [thing for thing in decoration if not thing.flat] + scene.things, Image.new("L", (side, side))
    for thing in standing:
        if not thing.flat:
            draw_thing(shadows, thing, SHADOW)
    picture.paste((20, 22, 26), mask=shadows)
    for thing in standing:
        draw_thing(picture, thing)
    return picture.resize((size, size), Image.Resampling.BOX)


def draw_thing(picture: Image.Image, thing: Thing, shadow: int | None = None) -> None:
    """Draw the strokes of a thing, or its shadow of that opacity."""
    draw, side = ImageDraw.Draw(picture, "RGBA" if picture.mode == "RGB" else None), picture.width
    for fill, shape in STROKES[thing.kind]:
        points = thing.points(shape.points if isinstance(shape, Line) else shape)
        if shadow is not None:
            fill, points = shadow, points + 0.012
        elif isinstance(fill, float):
            fill = tone(COLOURS[thing.colour], fill)
        pixels = [tuple(point) for point in (points * side).tolist()]
        if isinstance(shape, Line):
            draw.line(pixels, fill, max(1, round(0.008 * side)))
        else:
            draw.polygon(pixels, fill)


def tone(colour: Colour, factor: float) -> Colour:
    """Return a darker colour below 1; above 1, mix it with white by the excess."""
    return tuple(round(v * factor if factor <= 1 else v + (255 - v) * (factor - 1)) for v in colour)


def weathered(picture: Image.Image, seed: int) -> Image.Image:
    """Return the picture in another tone, with mottles of three sizes."""
    rng, light = np.random.default_rng(seed), 0
    for strength, cells in ((8, 5), (5, 20), (6, 100)):
        mottles = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
        light = light + strength * np.asarray(mottles.resize(picture.size, Image.Resampling.BILINEAR))
    pixels = np.asarray(picture) * rng.uniform(0.92, 1.08) + rng.uniform(-6, 6, 3) + light[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
