"""Draw a planned scene as seen from above: ground, water, roads, houses and trees, then its objects.

Everything is drawn several times larger than wanted and averaged down in the end.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from util.demo.plan import ROAD_WIDTH, Rectangle, Scene, Setting, Thing
from util.demo.things import ASPHALT, LINE, Colour, draw_thing

GROUNDS: dict[str, Colour] = {
    "grass": (104, 138, 76),
    "bare land": (176, 148, 110),
    "concrete": (150, 150, 146),
    "farmland": (142, 146, 84),
    "residential": (134, 138, 116),
    "water": (46, 88, 116),
}
SAND, SHADOW = (202, 184, 146), (20, 22, 26)
FLAT = ("baseball-diamond", "tennis-court", "basketball-court", "ground-track-field", "roundabout", "soccer-ball-field")
TURNS = (None, Image.Transpose.ROTATE_270, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_90)  # clockwise


def draw_scene(scene: Scene, size: int) -> Image.Image:
    """Draw a scene of `size` x `size` pixels. The same plan gives the same picture at every size."""
    side = size * max(2, math.ceil(512 / size))
    picture, built = draw_setting(scene.setting, scene.roads(), side)
    occupied = ImageDraw.Draw(built)
    for thing in scene.things:
        occupied.polygon(pixels(thing.corners(), side), 255)
    for thing in [*plan_decoration(scene.setting, np.asarray(built)), *scene.things]:
        paste(picture, thing)
    return picture.resize((size, size), Image.Resampling.BOX)


def pixels(points: np.ndarray, side: int) -> list[tuple[float, float]]:
    """Return points (n, 2) in units of the side as Pillow wants them."""
    return [(float(x), float(y)) for x, y in np.asarray(points) * side]


def draw_setting(setting: Setting, roads: list[Rectangle], side: int) -> tuple[Image.Image, Image.Image]:
    """Draw ground, water and roads; return them and a mask of water and roads, both turned."""
    rng = np.random.default_rng(setting.texture)
    picture, built = draw_ground(setting.ground, side, rng), Image.new("L", (side, side))
    draw, occupied = ImageDraw.Draw(picture), ImageDraw.Draw(built)
    if setting.layout in ("river", "shore"):
        y = np.linspace(0, 1, 60)
        left = setting.start + 0.012 * np.sin(2 * math.pi * (1.6 * y + rng.random()))
        right = setting.end + 0.012 * np.sin(2 * math.pi * (1.4 * y + rng.random())) + (setting.layout == "shore")
        sand, water = (
            pixels([*zip(left - grown, y, strict=True), *zip((right + grown)[::-1], y[::-1], strict=True)], side)
            for grown in (0.022, 0)
        )
        draw.polygon(sand, SAND)
        occupied.polygon(water, 255)  # the mask of the water alone, at first
        picture.paste(draw_ground("water", side, rng), mask=built)
        occupied.polygon(sand, 255)
    for road in roads:
        draw_road(draw, road, side)
        occupied.rectangle([value * side for value in road], 255)
    if setting.layout == "crossing":  # no line runs through the crossing
        (x0, _, x1, _), (_, y0, _, y1) = roads
        draw.rectangle([value * side for value in (x0, y0, x1, y1)], ASPHALT)
    turn = TURNS[setting.turn]
    return (picture, built) if turn is None else (picture.transpose(turn), built.transpose(turn))


def draw_ground(ground: str, side: int, rng: np.random.Generator) -> Image.Image:
    """Draw the texture of a ground, its tone a little different in every setting."""

    def noise(cells: int) -> np.ndarray:
        grid = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
        return np.asarray(grid.resize((side, side), Image.Resampling.BILINEAR))

    colour = np.array(GROUNDS[ground]) * rng.uniform(0.92, 1.08) + rng.uniform(-6, 6, 3)
    light = 8 * noise(5) + 6 * noise(20) + 7 * noise(100)
    x, y = np.meshgrid(*[(np.arange(side) + 0.5) / side] * 2)
    angle = rng.uniform(0, math.pi)
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    if ground == "concrete":
        light = 0.6 * light - 12 * (np.minimum(x * 8 % 1, y * 8 % 1) < 0.05)
    elif ground == "water":
        light = 0.4 * light + 5 * np.sin(2 * math.pi * (24 * along + noise(9)))
    elif ground == "farmland":
        field = np.floor(along * 2.3 + 1.7).astype(int) % 5, np.floor(across * 2.3 + 1.7).astype(int) % 5
        colour = colour + (rng.uniform(-1, 1, (5, 5, 1)) * [34, 12, 14] + rng.uniform(-14, 14, (5, 5, 1)))[field]
        light = light + 8 * np.sin(2 * math.pi * 26 * along)
    return Image.fromarray((colour + light[..., None]).clip(0, 255).astype(np.uint8))


def draw_road(draw: ImageDraw.ImageDraw, road: Rectangle, side: int) -> None:
    """Draw asphalt with lines along both edges and a broken line in the middle."""
    draw.rectangle([value * side for value in road], ASPHALT)
    upright = road[3] - road[1] > road[2] - road[0]
    low, high = road[0::2] if upright else road[1::2]
    lines = [(place, 0, 1) for place in (low + 0.07 * ROAD_WIDTH, high - 0.07 * ROAD_WIDTH)]
    lines += [((low + high) / 2, start, start + 0.05) for start in np.arange(0.02, 1, 0.1)]
    for place, start, end in lines:
        ends = np.array([(place, start), (place, end)])
        draw.line(pixels(ends if upright else ends[:, ::-1], side), LINE, max(1, round(0.009 * side)))


def plan_decoration(setting: Setting, occupied: np.ndarray) -> list[Thing]:
    """Plan houses on a loose grid or trees in clumps, where nothing else stands."""
    rng, found = np.random.default_rng(setting.texture + 1), []
    if setting.ground == "residential":
        for x, y in (np.indices((8, 8)).reshape(2, -1).T + 0.5) / 8 + rng.uniform(-0.012, 0.012, (64, 2)):
            size, quarter, roof = rng.uniform(0.85, 1.1), rng.integers(2), ("red", "white", "brown", "red")
            found.append(Thing("house", roof[rng.integers(4)], x, y, 0.085 * size, 0.064 * size, quarter * math.pi / 2))
    elif setting.trees:
        for clump in rng.random((26, 2)):
            for (x, y), size in zip(clump + rng.uniform(-0.04, 0.04, (3, 2)), rng.uniform(0.032, 0.06, 3), strict=True):
                found.append(Thing("tree", "green", x, y, size, size, 0))
    side, reach = len(occupied), round(0.05 * len(occupied))

    def is_free(thing: Thing) -> bool:
        x, y = round(thing.x * side), round(thing.y * side)
        return not occupied[max(0, y - reach) : y + reach, max(0, x - reach) : x + reach].any()

    return [thing for thing in found if is_free(thing)]


def paste(picture: Image.Image, thing: Thing) -> None:
    """Draw an object, and the shadow of one that is not flat, into a picture."""
    side = picture.width
    sprite = draw_thing(thing.kind, thing.colour, round(thing.length * side), round(thing.width * side))
    sprite = sprite.rotate(-math.degrees(thing.angle), Image.Resampling.BICUBIC, expand=True)
    x, y = round(thing.x * side - sprite.width / 2), round(thing.y * side - sprite.height / 2)
    if thing.kind not in FLAT:
        fall = round(0.012 * side)
        picture.paste(SHADOW, (x + fall, y + fall), sprite.getchannel("A").point(lambda value: 0.45 * value))
    picture.paste(sprite, (x, y), sprite)
