"""The canvas and the colours of the demonstration scenes.

Everything is a filled polygon on a canvas of at least twice the wanted size, which is averaged down in the end.
"""

from __future__ import annotations

import math

import numpy as np
from skimage import draw

Colour = tuple[float, float, float]

COLOURS: dict[str, Colour] = {
    "white": (240, 240, 236),
    "black": (36, 36, 42),
    "red": (200, 44, 40),
    "blue": (44, 92, 190),
    "yellow": (236, 200, 50),
    "green": (74, 140, 70),
    "brown": (156, 100, 58),
}
GROUNDS: dict[str, Colour] = {
    "grass": (104, 138, 76),
    "bare land": (176, 148, 110),
    "concrete": (150, 150, 146),
    "farmland": (142, 146, 84),
    "residential": (134, 138, 116),
    "water": (46, 88, 116),
}
ASPHALT, LINE, SAND, DARK = (86, 86, 90), (226, 226, 220), (202, 184, 146), (50, 54, 62)
GRASS, TREE, ISLAND = (92, 146, 74), (50, 84, 44), (98, 150, 72)
ROOFS: tuple[Colour, ...] = ((150, 84, 66), (126, 120, 116), (170, 150, 130), (112, 88, 76))
SHADOW, SHADOW_COLOUR = 0.012, (20, 22, 26)  # how far shadows fall to the right and down


class Canvas:
    """A square picture with room for anti-aliasing; points are (x, y) in shares of its side."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.factor = max(2, math.ceil(256 / size))
        self.side = self.factor * size
        self.pixels = np.zeros((self.side, self.side, 3), dtype=np.float32)

    def polygon(self, points: np.ndarray, colour: Colour, alpha: float = 1.0) -> None:
        x, y = np.asarray(points, dtype=float).T * self.side - 0.5
        rows, columns = draw.polygon(y, x, shape=self.pixels.shape[:2])
        self.pixels[rows, columns] += alpha * (np.array(colour, dtype=np.float32) - self.pixels[rows, columns])

    def image(self) -> np.ndarray:
        blocks = self.pixels.reshape(self.size, self.factor, self.size, self.factor, 3)
        return np.clip(np.rint(blocks.mean(axis=(1, 3))), 0, 255).astype(np.uint8)


def tone(colour: Colour, factor: float) -> Colour:
    """A darker colour below 1; above 1, mixed with white by the excess."""
    value = np.array(colour, dtype=float)
    return tuple(value * factor if factor <= 1 else value + (255 - value) * (factor - 1))
