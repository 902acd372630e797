"""Image files -> uint8 pixels: safe decoding, and checks before a run.

Everything that reads an image comes through here, so that regions, pixels and sizes agree on orientation, depth and
damaged files. Images are resized as torchvision's PIL path does it (bilinear, antialiased).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps

from utils import Bar, InputError, some

logger = logging.getLogger("galr")

Truncated = Literal["error", "allow"]  # truncated files: raise an error, or decode what is readable
ADVICE = "dataset.truncated=allow, or --truncated allow, takes what is there"
LARGEST = 150_000_000  # pixels; a decompression bomb promises more
FORMATS = "AVIF BMP DIB GIF ICO JPEG JPEG2000 PCX PNG PPM SGI TGA TIFF WEBP".split()
SIGNED = 2  # a value of TIFF's tag SampleFormat: integers below 0 too
MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
STEP = 256  # images in flight
warnings.filterwarnings("ignore", module=r"PIL\.")  # whatever matters is an error here


class Damaged(InputError):
    """Raised for an image file whose pixels cannot be decoded."""


class CutShort(Damaged):
    """Raised for an image file that is damaged or ends early, of which something is readable."""


class BadImages(InputError):
    """Name images that are missing or undecodable, and all truncated files.

    faults: path -> error; total: number of images examined.
    """

    def __init__(self, faults: dict[str, InputError], total: int) -> None:
        self.faults, self.total = faults, total
        cut = sorted(path for path, fault in faults.items() if isinstance(fault, CutShort))
        others = sorted(str(fault) for path, fault in faults.items() if path not in cut)
        said = [f"cut short: {some(cut, 200)} ({ADVICE})"] * bool(cut) + [some(others)] * bool(others)
        super().__init__(f"{len(faults)} of {total} images are missing or undecodable: {'; '.join(said)}")


class _OnInThisThread(threading.local):
    """Replace Pillow's switch LOAD_TRUNCATED_IMAGES, which is global, by one for each thread."""

    on = False

    def __bool__(self) -> bool:
        return self.on


ImageFile.LOAD_TRUNCATED_IMAGES = _SWITCH = _OnInThisThread()


@functools.cache
def formats() -> list[str]:
    """Return the formats that are read: those of pictures; others run programs (EPS) or hold drawings (WMF)."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[Image.Image]:
    """Open an image and read its header. Raises InputError for it, and for whatever its decoder raises inside."""
    is_image = False
    try:
        if not os.path.isfile(path):  # noqa: PTH113 - asked once per image and epoch; a pipe would be waited for
            raise InputError(f"image {path} is not " + ("a file" if os.path.lexists(path) else "there"))
        with Image.open(path, formats=formats()) as image:
            if image.width * image.height > LARGEST:
                raise InputError(f"image {path} is {image.width} x {image.height} pixels; more than is allowed")
            is_image = True
            yield image
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise InputError(f"image {path} promises more than {LARGEST} pixels; more than is allowed") from None
    except Exception as error:  # decoders raise errors of many kinds on damaged files
        kind = Damaged if is_image else InputError
        raise kind(f"image {path} cannot be decoded ({' '.join(str(error).split())})") from None


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """Return width and height of what `open_image` gives, from the header alone. Raises InputError."""
    with _opened(path) as image:
        turned = image.format != "TIFF" and _orientation(image) >= 5  # Pillow turns the size of a TIFF itself
        return (image.height, image.width) if turned else image.size


def open_image(path: str | os.PathLike, truncated: Truncated = "error") -> Image.Image:
    """Return an RGB image, turned by its orientation tag.

    Raises InputError for a file that is missing, damaged, too large, or deeper than 8 bits a channel.
    """
    return _read(path, truncated)[0]


def decode(path: str, size: int, truncated: Truncated = "error") -> np.ndarray:
    """Return one image as (size, size, 3) uint8. Raises InputError as `open_image` does."""
    return square(open_image(path, truncated), size)


def square(image: Image.Image, size: int) -> np.ndarray:
    """Return an image as (size, size, 3) uint8."""
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def _read(path: str | os.PathLike, truncated: Truncated) -> tuple[Image.Image, bool]:
    """Return what `open_image` gives, and whether the file is cut short."""
    try:
        return _rgb(path), False
    except Damaged as error:
        _SWITCH.on = True
        try:
            image = _rgb(path)  # what is readable; the rest is grey or black
        except InputError:
            raise error from None
        finally:
            _SWITCH.on = False
        if truncated == "allow":
            return image, True
        raise CutShort(f"{error}; it is cut short ({ADVICE})") from None


def from_bands(
    bands: np.ndarray, palette: np.ndarray | None = None, bits: int = 8, white_is_zero: bool = False
) -> Image.Image:
    """Return the RGB image that `open_image` gives of a file with these raw bands (3, H, W) uint8.

    palette: the colours (n, 3) uint8 that the values of the first band number. bits: of a value, 1 to 8.
    white_is_zero: the largest value is black.

    >>> from_bands(np.array([[[0, 3]]] * 3, np.uint8), bits=2).getpixel((1, 0))
    (255, 255, 255)
    """
    if palette is not None:
        return Image.fromarray(palette[bands[0]])
    scaled = bands * np.uint8(255 // (2**bits - 1))
    return Image.fromarray(np.moveaxis(255 - scaled if white_is_zero else scaled, 0, -1))


def _rgb(path: str | os.PathLike) -> Image.Image:
    with _opened(path) as image:
        if image.mode not in MODES:
            raise InputError(f"image {path} has pixels of mode {image.mode}; convert it to 8 bits a channel")
        if _deep(image):
            raise InputError(f"image {path} has 16 bits a channel; convert it to 8 bits a channel")
        if SIGNED in getattr(image, "tag_v2", {}).get(ExifTags.Base.SampleFormat, ()):
            raise InputError(f"image {path} has values below 0; convert it to 8 bits a channel, from 0 on")
        rgb = image.convert("RGB")
        if _orientation(image) != 1:
            ImageOps.exif_transpose(rgb, in_place=True)
        return rgb


def _orientation(image: Image.Image) -> int:
    """Return the orientation tag, 1 to 8; from 5 on, width and height are swapped."""
    tag = image.getexif().get(ExifTags.Base.Orientation, 1)
    return tag if tag in range(1, 9) else 1


def _deep(image: Image.Image) -> bool:
    """Return whether a channel has more than 8 bits, which Pillow silently cuts down in colour images."""
    if image.format == "JPEG2000":
        image.fp.seek(0)
        _, found, sizes = image.fp.read(4096).partition(b"\xff\x4f\xff\x51")
        return bool(found) and len(sizes) > 38 and sizes[38] % 128 >= 8  # bits of the first component, less 1
    for codec, _, _, arguments in image.tile:
        words = arguments if isinstance(arguments, tuple) else (arguments,)
        if codec.startswith("ppm") and any(isinstance(word, int) and word > 255 for word in words):
            return True
        if codec == "SGI16" or any(isinstance(word, str) and re.search(";(16|32)[A-Z]", word) for word in words):
            return True
    return False


# ---------------------------------------------------------------- many images


def decode_all(
    paths: Sequence[str],
    work: Callable[[Image.Image], Any],
    workers: int,
    truncated: Truncated = "error",
    what: str = "checking images",
    cut: list[str] | None = None,
) -> Iterator[Any]:
    """Decode images in parallel threads, in order, with a progress bar -> what `work` makes of each.

    cut: takes the paths of truncated files. Raises BadImages at the end if any image is bad.
    """

    def attempt(path: str) -> tuple[Any, bool, InputError | None]:
        try:
            image, is_cut = _read(path, truncated)
            return work(image), is_cut, None
        except InputError as error:
            return None, False, error

    faults, cut = {}, [] if cut is None else cut
    with ThreadPoolExecutor(max(1, workers)) as pool, Bar(total=len(paths), desc=what, unit="image") as bar:
        for start in range(0, len(paths), STEP):
            part = paths[start : start + STEP]
            for path, (result, is_cut, fault) in zip(part, pool.map(attempt, part), strict=True):
                bar.update()
                if is_cut:
                    cut.append(path)
                if fault:
                    faults[path] = fault
                else:
                    yield result
    if faults:
        raise BadImages(faults, len(paths))
    warn_of_cut(cut, len(paths))


def warn_of_cut(cut: Sequence[str], total: int) -> None:
    """Name the truncated files, if any."""
    if cut:
        logger.warning(f"{len(cut)} of {total} images are cut short; what is there is decoded: {some(list(cut))}")


def load_pixels(paths: Sequence[str], size: int, workers: int, truncated: Truncated = "error") -> np.ndarray:
    """Return all images in memory: (N, size, size, 3) uint8. Raises as `decode_all` does."""
    pixels = np.empty((len(paths), size, size, 3), np.uint8)
    for i, image in enumerate(decode_all(paths, lambda image: square(image, size), workers, truncated, "decoding")):
        pixels[i] = image
    return pixels


def check_images(paths: Sequence[str], workers: int, truncated: Truncated = "error") -> dict[str, InputError]:
    """Decode every image -> path and error of those that `open_image` would refuse."""
    try:
        deque(decode_all(paths, lambda _: None, workers, truncated), maxlen=0)
    except BadImages as error:
        return error.faults
    return {}


def find_damaged(paths: Sequence[str], workers: int, truncated: Truncated) -> dict[str, InputError]:
    """Check images before long work on them -> path and error of the damaged ones, which a warning names.

    Raises BadImages for files that are missing, no images, too large or too deep, and if all are damaged.
    """
    faults = check_images(paths, workers, truncated)
    wrong = {path: fault for path, fault in faults.items() if not isinstance(fault, Damaged)}
    if wrong or (faults and len(faults) == len(paths)):
        raise BadImages(wrong or faults, len(paths))
    if faults:
        logger.warning(f"{BadImages(faults, len(paths))}; the others are done first")
    return faults
