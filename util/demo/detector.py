"""What a detector would report of a demonstration scene.

Some things are missed, most are reported more than once and a little off, and a few reports have nothing under them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from util.demo.scene import Scene

MISSED, FALSE_ALARMS = 0.1, 0.1  # of the things of a scene
MOST_TIMES = 3  # that one thing is reported
SHIFT, SCALE = 0.05, 0.1  # standard deviation of a box's place and of the logarithm of its size, relative to the box


class Detection(NamedTuple):
    """Class, score in [0, 1], and the four corners (4, 2) as fractions of the image."""

    kind: str
    score: float
    corners: np.ndarray


def detect_scene(scene: Scene, rng: np.random.Generator) -> list[Detection]:
    """The detections of a scene. Copies of one thing differ in place, size and score."""
    found = []
    for thing in scene.things:
        if rng.random() < MISSED:
            continue
        for _ in range(rng.integers(1, MOST_TIMES + 1)):
            found.append(Detection(thing.kind, rng.uniform(0.5, 1), _shaken(thing.corners(), rng)))
    for thing in scene.things:
        if rng.random() < FALSE_ALARMS:
            elsewhere = thing.corners() - thing.corners().mean(axis=0) + rng.uniform(0.1, 0.9, 2)
            found.append(Detection(thing.kind, rng.uniform(0.3, 0.6), _shaken(elsewhere, rng)))
    return found


def _shaken(corners: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    centre, extent = corners.mean(axis=0), np.ptp(corners, axis=0)
    return centre + rng.normal(0, SHIFT, 2) * extent + np.exp(rng.normal(0, SCALE)) * (corners - centre)
