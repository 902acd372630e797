"""Draw the objects of each class as seen from above: a table of strokes for each, and Pillow."""

from __future__ import annotations

from functools import lru_cache
from itertools import cycle

from PIL import Image, ImageDraw

Colour = tuple[int, ...]

COLOURS: dict[str, Colour] = {
    "white": (240, 240, 236),
    "black": (36, 36, 42),
    "red": (200, 44, 40),
    "blue": (44, 92, 190),
    "yellow": (236, 200, 50),
    "green": (74, 140, 70),
    "brown": (156, 100, 58),
}
ASPHALT, LINE, DARK, GRASS, TREE = (86, 86, 90), (226, 226, 220), (50, 54, 62), (92, 146, 74), (50, 84, 44)
ROTOR, DECK, RIM, WATER, SHALLOW = (235, 235, 235, 56), (112, 112, 114), (222, 214, 198), (50, 160, 206), (84, 196, 226)

# Strokes in the order of drawing: shape, colour, and points a b in a box from (-1, -1) to (1, 1), of which the first
# coordinate runs along the heading. A number for a colour is a tone of the thing's own. `wedge` ends with two angles.
STROKES: dict[str, tuple[tuple, ...]] = {
    "plane": (
        ("shape", 0.9, 0.34, 0.06, -0.2, 1, -0.4, 1, -0.14, 0, -0.4, -1, -0.2, -1, 0.34, -0.06),
        ("shape", 0.8, -0.66, 0.04, -0.9, 0.4, -1, 0.4, -0.9, 0, -1, -0.4, -0.9, -0.4, -0.66, -0.04),
        ("shape", 1.1, 1, 0, 0.93, 0.06, 0.75, 0.11, -0.55, 0.1, -1, 0.03, -1, -0.03, -0.55, -0.1, 0.75, -0.11),
    ),
    "ship": (
        ("shape", 1.0, 1, 0, 0.78, 0.55, 0.4, 1, -0.9, 1, -1, 0.8, -1, -0.8, -0.9, -1, 0.4, -1, 0.78, -0.55),
        ("shape", 0.72, 0.9, 0, 0.7, 0.33, 0.36, 0.6, -0.9, 0.6, -0.9, -0.6, 0.36, -0.6, 0.7, -0.33),
        ("box", LINE, -0.78, -0.5, -0.36, 0.5),
        *(("box", 1.3, start, -0.36, start + 0.2, 0.36) for start in (-0.2, 0.12, 0.44)),
    ),
    "storage-tank": (
        ("disc", 0.62, -1, -1, 1, 1),
        ("disc", 1.02, -0.86, -0.86, 0.86, 0.86),
        ("wedge", 0.88, -0.86, -0.86, 0.86, 0.86, -30, 60),
        ("wedge", 1.2, -0.86, -0.86, 0.86, 0.86, 150, 240),
        ("disc", 0.5, -0.16, -0.16, 0.16, 0.16),
    ),
    "baseball-diamond": (
        ("wedge", 1.0, -3, -3, 1, 1, 0, 90),
        ("wedge", GRASS, -2.86, -2.86, 0.86, 0.86, 0, 90),
        ("wedge", 1.0, -2.12, -2.12, 0.12, 0.12, 0, 90),
        ("box", GRASS, -0.86, -0.86, -0.16, -0.16),
        ("disc", 1.0, -0.64, -0.64, -0.36, -0.36),
        ("line", LINE, 1, -0.98, -0.98, -0.98, -0.98, 1),
    ),
    "tennis-court": (
        ("box", 0.7, -1, -1, 1, 1),
        ("box", 1.15, -0.74, -0.68, 0.74, 0.68),
        ("frame", LINE, -0.74, -0.68, 0.74, 0.68),
        ("frame", LINE, -0.38, -0.5, 0.38, 0.5),
        ("line", LINE, -0.38, 0, 0.38, 0),
        ("line", LINE, 0, -0.8, 0, 0.8),
    ),
    "basketball-court": (
        ("box", 1.1, -1, -1, 1, 1),
        ("frame", LINE, -0.92, -0.88, 0.92, 0.88),
        ("wedge", 0.6, -1.34, -0.72, -0.5, 0.72, -90, 90),
        ("wedge", 0.6, 0.5, -0.72, 1.34, 0.72, 90, 270),
        ("ring", LINE, -0.18, -0.3, 0.18, 0.3),
        ("line", LINE, 0, -0.88, 0, 0.88),
    ),
    "ground-track-field": (
        ("oval", 0.95, -1, -1, 1, 1),
        *(("track", 1.4, inset - 1, 1.7 * inset - 1, 1 - inset, 1 - 1.7 * inset) for inset in (0.05, 0.1, 0.15)),
        ("oval", GRASS, -0.8, -0.66, 0.8, 0.66),
        ("track", LINE, -0.8, -0.66, 0.8, 0.66),
    ),
    "harbor": tuple(
        ("box", tone, *box)
        for tone, grown in ((0.7, 0.04), (1.15, 0))
        for box in (
            *((a - 0.04 - grown, -0.96 - grown, a + 0.04 + grown, 0.96 + grown) for a in (-0.52, -0.02, 0.48, 0.92)),
            (-1, -0.15 - 2 * grown, 0.96 + grown, 0.15 + 2 * grown),
        )
    ),
    "bridge": (
        ("box", 0.8, -1, -1, 1, 1),
        ("box", DECK, -1, -0.58, 1, 0.58),
        *(("box", LINE, a, -0.04, a + 0.15, 0.04) for a in (-0.94, -0.64, -0.34, -0.04, 0.26, 0.56)),
        *(("box", 0.7, a, -1, a + 0.07, 1) for a in (-0.6, 0.52)),  # the pylons' cross-beams
    ),
    "large-vehicle": (
        ("box", 1.0, -1, -1, 0.5, 1),
        *(("box", 0.75, a, -0.9, a + 0.05, 0.9) for a in (-0.7, -0.4, -0.1, 0.2)),
        ("box", DARK, 0.5, -0.5, 0.6, 0.5),
        ("box", 0.72, 0.6, -0.92, 1, 0.92),
    ),
    "small-vehicle": (
        ("round", 1.0, -1, -1, 1, 1),
        ("box", DARK, -0.6, -0.78, 0.38, 0.78),
        ("box", 1.12, -0.42, -0.72, 0.12, 0.72),
    ),
    "helicopter": (
        ("disc", ROTOR, -0.5, -1, 1, 1),
        ("box", 0.85, -1, -0.07, 0.25, 0.07),
        ("box", 0.75, -1, -0.34, -0.86, 0.34),
        ("disc", 1.0, -0.17, -0.3, 0.7, 0.3),
        ("disc", DARK, 0.42, -0.2, 0.68, 0.2),
        ("line", DARK, -0.25, -0.7, 0.75, 0.7),
        ("line", DARK, -0.25, 0.7, 0.75, -0.7),
    ),
    "roundabout": (
        ("disc", LINE, -1, -1, 1, 1),
        ("disc", ASPHALT, -0.96, -0.96, 0.96, 0.96),
        *(("wedge", LINE, -0.74, -0.74, 0.74, 0.74, start, start + 15) for start in range(0, 360, 30)),
        ("disc", ASPHALT, -0.7, -0.7, 0.7, 0.7),
        ("disc", LINE, -0.52, -0.52, 0.52, 0.52),
        ("disc", 1.1, -0.46, -0.46, 0.46, 0.46),
        ("disc", TREE, -0.18, -0.18, 0.18, 0.18),
    ),
    "soccer-ball-field": (
        ("box", 1.05, -1, -1, 1, 1),
        *(("box", 1.2, a, -0.88, a + 0.18, 0.88) for a in (-0.9, -0.54, -0.18, 0.18, 0.54)),
        ("frame", LINE, -0.91, -0.88, 0.91, 0.88),
        ("frame", LINE, -0.91, -0.45, -0.62, 0.45),
        ("frame", LINE, 0.62, -0.45, 0.91, 0.45),
        ("ring", LINE, -0.19, -0.28, 0.19, 0.28),
        ("line", LINE, 0, -0.88, 0, 0.88),
    ),
    "swimming-pool": (
        ("round", RIM, -1, -1, 1, 1),
        ("round", WATER, -0.9, -0.84, 0.9, 0.84),
        ("round", SHALLOW, -0.76, -0.6, 0.76, 0.6),
    ),
    "house": (("box", 0.75, -1, -1, 1, 0), ("box", 0.55, -1, 0, 1, 1)),
    "tree": (("disc", TREE, -1, -1, 1, 1), ("disc", (80, 112, 75), -0.7, -0.7, 0.3, 0.3)),
}


@lru_cache(maxsize=64)
def draw_thing(kind: str, colour: str, length: int, width: int) -> Image.Image:
    """Draw an object that heads to the right in a picture of `length` x `width` pixels, transparent around it."""
    image = Image.new("RGBA", (length, width))
    draw = ImageDraw.Draw(image)
    thick = max(2, round(0.018 * max(length, 2 * width)))
    for shape, fill, *values in STROKES[kind]:
        fill = fill if isinstance(fill, tuple) else tone(COLOURS[colour], fill)
        points = [(value + 1) / 2 * (size - 1) for value, size in zip(values, cycle((length, width)), strict=False)]
        if shape in ("box", "frame"):
            draw.rectangle(points, *((fill,) if shape == "box" else (None, fill, thick)))
        elif shape in ("disc", "ring"):
            draw.ellipse(points, *((fill,) if shape == "disc" else (None, fill, thick)))
        elif shape in ("round", "oval", "track"):
            radius = (points[3] - points[1]) / (4 if shape == "round" else 2)
            draw.rounded_rectangle(points, radius, *((None, fill, thick) if shape == "track" else (fill,)))
        elif shape == "wedge":
            draw.pieslice(points[:4], *values[4:], fill)
        elif shape == "line":
            draw.line(points, fill, thick)
        else:
            draw.polygon(points, fill)
    return image


def tone(colour: Colour, factor: float) -> Colour:
    """Return a darker colour below 1; above 1, mix it with white by the excess."""
    return tuple(round(v * factor if factor <= 1 else v + (255 - v) * (factor - 1)) for v in colour)
