"""Pixels -> images for the model: random rotation and crop in training, and normalisation.

What torchvision's PIL path gives (Rotate, Crop, ToTensor, Normalize), to the bit, a batch at a time on the training
device: on a CPU in one compiled loop, on a GPU as one gather. `flips` and `crops` are ours: quarter turns and mirror
images, which invent no pixel and leave no black corner, for an aerial picture has no upright; and of `crops` parts of
any size, resized.
"""

from __future__ import annotations

import functools
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from layers.distributed import to_device

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
LARGEST_ANGLE = 90  # degrees
LARGEST_ASPECT = 4 / 3  # of a crop that is resized

Kind = Literal["rotate", "flips", "crops"]


def resize_size(image_size: int, kind: Kind = "rotate", smallest_crop: float = 1.0) -> int:
    """The side that training images are resized to before rotation and crop: 278 for 256. For `crops`, that at which
    the smallest has the size wanted: none is enlarged, and so blurred, as no image of a test is."""
    return round(image_size / math.sqrt(smallest_crop)) if kind == "crops" else round(278 * image_size / 256)


# ---------------------------------------------------------------- normalisation


def normalise(pixels: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in channels-last memory, as ToTensor and Normalize give it."""
    largest, mean, std = _constants(pixels.shape[2], pixels.device)
    rows = pixels.flatten(2).float()  # whole rows: to repeat three numbers pixel by pixel is slow
    return rows.div_(largest).sub_(mean).div_(std).view(pixels.shape).permute(0, 3, 1, 2)


@functools.cache
def _constants(width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """255, which as a plain number CUDA would multiply by the inverse of; mean and deviation of a row, (3 width,)."""
    largest, mean, std = (to_device(torch.tensor(x), device) for x in (255.0, MEAN, STD))
    return largest, mean.repeat(width), std.repeat(width)


@functools.cache
def _normalised_bytes() -> np.ndarray:
    """(3, 256): red, green and blue of each value, normalised."""
    values = torch.arange(256, dtype=torch.uint8)
    return normalise(values.repeat(3, 1).T[None, None])[0, :, 0].contiguous().numpy()


# ---------------------------------------------------------------- rotation and crop


class Augmentation(NamedTuple):
    """What a training image undergoes: angles in degrees (B,), the crop's first row and column (B, 2), and whether the
    crop is mirrored, left to right (B,).

    extents: height and width (B, 2) of a crop that is resized; these, and its offsets, are shares of the picture's.
    """

    angles: np.ndarray
    offsets: np.ndarray
    mirrored: np.ndarray
    extents: np.ndarray | None = None

    def part(self, rows: slice | np.ndarray) -> Augmentation:
        """Of some of the images."""
        return Augmentation(*(None if array is None else array[rows] for array in self))


def draw_augmentation(
    rng: np.random.Generator, batch: int, image_size: int, kind: Kind = "rotate", smallest_crop: float = 1.0
) -> Augmentation:
    """`rotate`: angles uniform in 0-90 degrees; `flips`: each of the eight ways to lay a square picture down is equally
    likely; both: crops of `image_size`, uniform over all places. `crops`: the eight ways, and a crop that is resized,
    of `smallest_crop` to 1 of the area and 3:4 to 4:3 in shape (Inception's; Szegedy et al. 2015)."""
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


def augment(pixels: Tensor, places: Tensor, augmentation: Augmentation, image_size: int) -> Tensor:
    """Rotate (nearest, zero fill), crop, mirror and normalise the images in the rows `places` (B,) of pixels; or crop,
    resize (bilinear), lay down and normalise them.

    (N, R, R, 3) uint8 -> (B, 3, S, S) float32, channels last.
    """
    if augmentation.extents is not None:
        return crop_and_resize(normalise(pixels.index_select(0, places)), augmentation, image_size)
    steps = inverse_rotations(augmentation, pixels.shape[1], image_size)
    on_device = augment_on_cpu if pixels.device.type == "cpu" else augment_on_gpu
    return on_device(pixels, places, steps, image_size)


def crop_and_resize(images: Tensor, augmentation: Augmentation, image_size: int) -> Tensor:
    """(B, 3, R, R) -> (B, 3, S, S), channels last. Coordinates go from -1 to 1: of the result (x, y), mirrored and
    turned, then shrunk to the crop and moved to its centre."""
    angle = np.deg2rad(augmentation.angles)
    cos, sin = np.rint(np.cos(angle)), np.rint(np.sin(angle))
    across = np.where(augmentation.mirrored, -1, 1)
    turned = np.stack((across * cos, -sin, across * sin, cos), axis=1).reshape(-1, 2, 2)
    extents, offsets = augmentation.extents[:, ::-1, None], augmentation.offsets[:, ::-1, None]  # x before y
    to_source = np.concatenate((extents * turned, 2 * offsets + extents - 1), axis=2).astype(np.float32)
    to_source = to_device(torch.from_numpy(to_source), images.device)
    grid = functional.affine_grid(to_source, [len(images), 3, image_size, image_size], align_corners=False)
    cropped = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return cropped.contiguous(memory_format=torch.channels_last)


def inverse_rotations(augmentation: Augmentation, side: int, image_size: int) -> np.ndarray:
    """(B, 6) int32: x = a column + b row + c, y = d column + e row + f in the source, 16.16 fixed point.

    PIL steps through the source like this, from pixel centres. A mirrored crop is stepped through from its right.
    """
    angle = -np.deg2rad(augmentation.angles)
    cos, sin, half = np.cos(angle), np.sin(angle), side / 2
    c = half - cos * half - sin * half
    f = half + sin * half - cos * half
    exact = np.stack((cos, sin, c + cos / 2 + sin / 2, -sin, cos, f - sin / 2 + cos / 2))
    a, b, c, d, e, f = np.floor(exact * 65536 + 0.5).astype(np.int64)
    top, left = augmentation.offsets.T
    left = np.where(augmentation.mirrored, left + image_size - 1, left)
    c, f = c + a * left + b * top, f + d * left + e * top
    a, d = np.where(augmentation.mirrored, -a, a), np.where(augmentation.mirrored, -d, d)
    return np.stack((a, b, c, d, e, f), 1).astype(np.int32)


def augment_on_cpu(pixels: Tensor, places: Tensor, steps: np.ndarray, image_size: int) -> Tensor:
    """In one pass over the images, in as many threads as PyTorch takes. Raises IndexError for places outside."""
    if len(places) and not 0 <= places.min() <= places.max() < len(pixels):
        raise IndexError(f"places {places.min()} to {places.max()} of {len(pixels)} images")
    out = torch.empty(len(places), image_size, image_size, 3)
    threads = torch.get_num_threads()
    parts = (np.array_split(array, threads) for array in (places.numpy(), steps, out.numpy()))
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(functools.partial(_augment, _normalised_bytes(), pixels.contiguous().numpy()), *parts))
    return out.permute(0, 3, 1, 2)


@numba.njit(nogil=True)
def _augment(normalised, pixels, places, steps, out):
    """Fill out (B, S, S, 3), row by row: first where its pixels come from, then their values.

    normalised (3, 256), pixels (N, R, R, 3), places (B,), steps (B, 6). Plain loops throughout: array expressions take
    seconds to compile.
    """
    side, size = pixels.shape[1], out.shape[1]
    image = np.zeros((side**2 + 1, 3), np.uint8)  # its last pixel, black, stands for all outside
    source = np.empty(size, np.int64)
    for i in range(len(out)):
        whole = pixels[places[i]].reshape(-1, 3)
        for place in range(side**2):
            for channel in range(3):
                image[place, channel] = whole[place, channel]
        a, b, c, d, e, f = steps[i]
        for row in range(size):
            for column in range(size):
                x = (a * column + b * row + c) >> 16
                y = (d * column + e * row + f) >> 16
                inside = (x >= 0) & (x < side) & (y >= 0) & (y < side)
                source[column] = y * side + x if inside else side**2
            for column in range(size):
                for channel in range(3):
                    out[i, row, column, channel] = normalised[channel, image[source[column], channel]]


def augment_on_gpu(pixels: Tensor, places: Tensor, steps: np.ndarray, image_size: int) -> Tensor:
    """By one gather of whole pixels: what lies outside the source is clamped to a border of black ones."""
    device, side = pixels.device, pixels.shape[1] + 2
    a, b, c, d, e, f = to_device(torch.from_numpy(steps), device).T[..., None]  # (B, 1) each
    place = torch.arange(image_size, dtype=torch.int32, device=device)
    x = _source(c + a * place, b * place, side)
    y = _source(f + d * place, e * place, side)
    first = torch.arange(len(places), dtype=torch.int32, device=device)[:, None, None] * side**2
    bordered = functional.pad(pixels.index_select(0, places), (0, 0, 1, 1, 1, 1)).view(-1, 3)
    gathered = bordered.index_select(0, (first + y * side + x).flatten())
    return normalise(gathered.view(len(places), image_size, image_size, 3))


def _source(of_column: Tensor, of_row: Tensor, side: int) -> Tensor:
    """Sums of (B, S) and (B, S) in 16.16 fixed point -> whole coordinates in the bordered image (B, S, S)."""
    return ((of_column[:, None] + of_row[:, :, None]) >> 16).add_(1).clamp_(0, side - 1)
