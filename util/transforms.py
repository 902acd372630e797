"""Pixels -> images for the model: augmentation in training, and normalisation.

`rotate` (published) is torchvision's PIL path to the bit: Rotate, Crop, ToTensor, Normalize. `flips` and `crops` are
ours: quarter turns and mirror images add no black corners, and an aerial picture has no upright; `crops` also resizes
parts of any size.

A further augmentation (a colour jitter, say) takes three lines: a field of Augmentation, its draw at the end of
`draw_augmentation`, where it leaves all other draws as they are, and its step in `augment`.
"""

from __future__ import annotations

import functools
import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from layers.backbone import MEAN, STD
from layers.cpu import on_cpu, rotate_crop_normalise
from layers.distributed import to_device

LARGEST_ANGLE = 90  # degrees
LARGEST_ASPECT = 4 / 3  # of a crop that is resized

Kind = Literal["rotate", "flips", "crops"]


def resize_size(image_size: int, kind: Kind = "rotate", smallest_crop: float = 1.0) -> int:
    """Return the side that training images are resized to before augmentation: 278 for 256.

    For `crops`, large enough that the smallest crop is never upsampled.
    """
    return round(image_size / math.sqrt(smallest_crop)) if kind == "crops" else round(278 * image_size / 256)


def normalise(pixels: Tensor) -> Tensor:
    """Return (B, H, W, 3) uint8 as (B, 3, H, W) float32, channels last, normalised by ImageNet's mean and deviation."""
    largest, mean, std = _constants(pixels.shape[2], pixels.device)
    rows = pixels.flatten(2).float()  # whole rows: to broadcast three numbers over single pixels is slow
    return rows.div_(largest).sub_(mean).div_(std).view(pixels.shape).permute(0, 3, 1, 2)


@functools.cache
def _constants(width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return 255 as a tensor (CUDA would multiply by the inverse of a plain number), and mean and deviation (3 W,)."""
    largest, mean, std = (to_device(torch.tensor(x), device) for x in (255.0, MEAN, STD))
    return largest, mean.repeat(width), std.repeat(width)


class Augmentation(NamedTuple):
    """Random choices for a batch of B training images.

    angles: degrees (B,); offsets: first row and column of the crop (B, 2); mirrored: left to right (B,).
    extents: height and width (B, 2) of a crop that is resized; extents and offsets are then shares of the image.
    """

    angles: np.ndarray
    offsets: np.ndarray
    mirrored: np.ndarray
    extents: np.ndarray | None = None

    def part(self, rows: slice | np.ndarray) -> Augmentation:
        """Return the choices for some of the images."""
        return Augmentation(*(None if array is None else array[rows] for array in self))


def draw_augmentation(
    rng: np.random.Generator, batch: int, image_size: int, kind: Kind = "rotate", smallest_crop: float = 1.0
) -> Augmentation:
    """Draw the augmentation of a batch.

    `rotate`: angles uniform in 0-90 degrees; `flips`: the eight symmetries of a square, equally likely; both: crops of
    `image_size`, uniform over all places. `crops`: the eight symmetries, and a crop of `smallest_crop` to 1 of the area
    and 3:4 to 4:3 in shape, which is resized (Szegedy et al. 2015).
    """
    angles = rng.uniform(0, LARGEST_ANGLE, batch) if kind == "rotate" else 90.0 * rng.integers(0, 4, batch)
    if kind != "crops":
        offsets = rng.integers(0, resize_size(image_size) - image_size + 1, (batch, 2))
        mirrored = np.zeros(batch, bool) if kind == "rotate" else rng.integers(0, 2, batch) > 0
        return Augmentation(angles, offsets, mirrored)
    area = rng.uniform(smallest_crop, 1, (batch, 1))
    aspect = LARGEST_ASPECT ** rng.uniform(-1, 1, batch)
    extents = np.sqrt(area * np.stack((aspect, 1 / aspect), axis=1)).clip(max=1)
    offsets = rng.uniform(0, 1 - extents)
    return Augmentation(angles, offsets, rng.integers(0, 2, batch) > 0, extents)


def augment(pixels: Tensor, rows: Tensor, drawn: Augmentation, image_size: int) -> Tensor:
    """Augment and normalise the images `rows` (B,) of pixels (N, R, R, 3) uint8 -> (B, 3, S, S), channels last."""
    if drawn.extents is not None:
        return crop_and_resize(normalise(pixels.index_select(0, rows)), drawn, image_size)
    steps = inverse_rotations(drawn, pixels.shape[1], image_size)
    if on_cpu(pixels):
        return rotate_crop_normalise(pixels, rows, steps, _normalised_values(), image_size)
    steps = to_device(torch.from_numpy(steps), pixels.device)
    return normalise(rotate_and_crop(pixels.index_select(0, rows), steps, image_size))


@functools.cache
def _normalised_values() -> Tensor:
    """Return each value of the three channels, normalised (3, 256)."""
    values = torch.arange(256, dtype=torch.uint8)
    return normalise(values.repeat(3, 1).T[None, None])[0, :, 0].contiguous()


def rotate_and_crop(images: Tensor, steps: Tensor, image_size: int) -> Tensor:
    """Gather (B, R, R, 3) uint8 along `steps` (B, 6) -> (B, S, S, 3); what lies outside the image is black."""
    side = images.shape[1] + 2  # with a border of black pixels, to which positions outside are clamped
    a, b, c, d, e, f = steps.T[..., None]  # (B, 1) each
    place = torch.arange(image_size, dtype=torch.int32, device=images.device)
    x = _source(c + a * place, b * place, side)
    y = _source(f + d * place, e * place, side)
    first = torch.arange(len(images), dtype=torch.int32, device=images.device)[:, None, None] * side**2
    bordered = functional.pad(images, (0, 0, 1, 1, 1, 1)).view(-1, 3)
    gathered = bordered.index_select(0, torch.add(x, y, alpha=side).add_(first).flatten())
    return gathered.view(len(images), image_size, image_size, 3)


def _source(of_column: Tensor, of_row: Tensor, side: int) -> Tensor:
    """Add (B, S) and (B, S) in 16.16 fixed point, and one for the border -> whole coordinates there (B, S, S)."""
    return (of_column[:, None] + (of_row + 65536)[:, :, None]).bitwise_right_shift_(16).clamp_(0, side - 1)


def inverse_rotations(drawn: Augmentation, side: int, image_size: int) -> np.ndarray:
    """Return (B, 6) int32: x = a column + b row + c, y = d column + e row + f in the source, 16.16 fixed point.

    PIL steps through the source like this, from pixel centres. A mirrored crop is stepped through from its right.
    """
    angle = -np.deg2rad(drawn.angles)
    cos, sin, half = np.cos(angle), np.sin(angle), side / 2
    c = half - cos * half - sin * half
    f = half + sin * half - cos * half
    exact = np.stack((cos, sin, c + cos / 2 + sin / 2, -sin, cos, f - sin / 2 + cos / 2))
    a, b, c, d, e, f = np.floor(exact * 65536 + 0.5).astype(np.int64)
    top, left = drawn.offsets.T
    left = np.where(drawn.mirrored, left + image_size - 1, left)
    c, f = c + a * left + b * top, f + d * left + e * top
    a, d = np.where(drawn.mirrored, -a, a), np.where(drawn.mirrored, -d, d)
    return np.stack((a, b, c, d, e, f), 1).astype(np.int32)


def crop_and_resize(images: Tensor, drawn: Augmentation, image_size: int) -> Tensor:
    """Crop, resize (bilinear), turn and mirror (B, 3, R, R) -> (B, 3, S, S), channels last."""
    angle = np.deg2rad(drawn.angles)
    cos, sin = np.rint(np.cos(angle)), np.rint(np.sin(angle))
    across = np.where(drawn.mirrored, -1, 1)
    turned = np.stack((across * cos, -sin, across * sin, cos), axis=1).reshape(-1, 2, 2)
    # coordinates from -1 to 1, x before y: of the result, mirrored and turned, shrunk to the crop, moved to its centre
    extents, offsets = drawn.extents[:, ::-1, None], drawn.offsets[:, ::-1, None]
    to_source = np.concatenate((extents * turned, 2 * offsets + extents - 1), axis=2).astype(np.float32)
    to_source = to_device(torch.from_numpy(to_source), images.device)
    grid = functional.affine_grid(to_source, [len(images), 3, image_size, image_size], align_corners=False)
    cropped = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return cropped.contiguous(memory_format=torch.channels_last)
