"""Image files -> uint8 pixels: safe decoding, and checks before a run.

Pixels are square, (S, S, 3), resized as torchvision's PIL path does it (bilinear, antialiased). Whatever looks at an
image goes through here, so that regions, pixels and sizes agree: on orientation, on depth, on damaged files.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps

from utils import Bar, InputError, some

logger = logging.getLogger("galr")

Truncated = Literal["error", "allow"]  # what becomes of files that are cut short
ADVICE = "dataset.truncated=allow, or --truncated allow, takes what is there"

LARGEST = 150_000_000  # pixels; a decompression bomb promises more
warnings.filterwarnings("ignore", module=r"PIL\.")  # once for all threads: what matters is an error here
FORMATS = "AVIF BMP DIB GIF ICO JPEG JPEG2000 PCX PNG PPM SGI TGA TIFF WEBP".split()
MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}


def safe_paths(folder: str | os.PathLike, names: Sequence[str]) -> list[str]:
    """Paths of the named images. Raises InputError for a name that would leave the folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"image folder {folder} is not there; set dataset.image_path")
    root = folder.resolve()
    long = [name for name in names if len(name) > 1000 or any(len(part.encode()) > 255 for part in Path(name).parts)]
    if long:
        raise InputError(f"{len(long)} image names are too long for a file: {some([name[:80] for name in long])}")
    paths = [folder / name for name in names]
    outside = [
        name
        for name, path in zip(names, paths, strict=True)
        if Path(name).is_absolute() or ".." in Path(name).parts or (path.is_symlink() and not _within(path, root))
    ]
    linked = {path.parent for path in paths if path.parent != folder}
    outside += [str(parent) for parent in sorted(linked) if parent.exists() and not _within(parent, root)]
    if outside:
        raise InputError(f"{len(outside)} image names lead out of {folder}: {some(outside)}")
    return [str(path) for path in paths]


def _within(path: Path, root: Path) -> bool:
    try:
        return path.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # a loop of links
        return False


class CutShort(InputError):
    """An image file that is damaged or ends early, of which something can be decoded all the same."""


class BadImages(InputError):
    """Images that are missing or undecodable, and the files that are cut short, all named.

    faults: path -> what is wrong with it; total: how many images were looked at.
    """

    def __init__(self, faults: dict[str, InputError], total: int) -> None:
        self.faults, self.total = faults, total
        cut = sorted(path for path, fault in faults.items() if isinstance(fault, CutShort))
        others = sorted(str(fault) for path, fault in faults.items() if path not in cut)
        parts = [f"{len(faults)} of {total} images are missing or undecodable"]
        if cut:
            parts.append(f"cut short: {some(cut, 200)} ({ADVICE})")
        super().__init__(f"{parts[0]}: " + "; ".join(parts[1:] + ([some(others)] if others else [])))


class _OnInThisThread(threading.local):
    """Stands for Pillow's switch LOAD_TRUNCATED_IMAGES, which is one for all threads: on in those that ask for it."""

    on = False

    def __bool__(self) -> bool:
        return self.on


ImageFile.LOAD_TRUNCATED_IMAGES = _SWITCH = _OnInThisThread()


@contextlib.contextmanager
def what_is_there() -> Iterator[None]:
    """Within it, this thread decodes of damaged files what is there; the rest is grey or black."""
    _SWITCH.on = True
    try:
        yield
    finally:
        _SWITCH.on = False


@functools.cache
def formats() -> list[str]:
    """Return the formats that are read: those of pictures; others run programs (EPS) or hold drawings (WMF)."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[Image.Image]:
    """An image file whose head is read. Raises InputError for it, and for whatever its decoder raises inside."""
    try:
        if not os.path.isfile(path):  # noqa: PTH113 - asked once per image and epoch; a pipe would be waited for
            raise InputError(f"image {path} is not " + ("a file" if os.path.lexists(path) else "there"))
        with Image.open(path, formats=formats()) as image:
            if image.width * image.height > LARGEST:
                raise InputError(f"image {path} is {image.width} x {image.height} pixels; more than is allowed")
            yield image
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise InputError(f"image {path} promises more than {LARGEST} pixels; more than is allowed") from None
    except Exception as error:  # decoders raise errors of many kinds on damaged files
        raise InputError(f"image {path} cannot be decoded ({' '.join(str(error).split())})") from None


def open_image(path: str | os.PathLike, truncated: Truncated = "error") -> Image.Image:
    """An RGB image, turned as its orientation mark says.

    Raises InputError for a file that is missing, damaged, too large, or not 8 bits a channel; with `truncated` allow,
    of a file that is cut short comes what is there.
    """
    return _read(path, truncated)[0]


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """Width and height in pixels of what `open_image` gives, from the head of the file. Raises InputError."""
    with _opened(path) as image:
        turned = image.format != "TIFF" and _orientation(image) >= 5  # of a TIFF, Pillow has seen to it
        return (image.height, image.width) if turned else image.size


def decode(path: str, size: int, truncated: Truncated = "error") -> np.ndarray:
    """One image as (size, size, 3) uint8. Raises InputError as `open_image` does."""
    return square(open_image(path, truncated), size)


def square(image: Image.Image, size: int) -> np.ndarray:
    """An image as (size, size, 3) uint8."""
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def _read(path: str | os.PathLike, truncated: Truncated) -> tuple[Image.Image, bool]:
    """What `open_image` gives, and whether the file is cut short."""
    try:
        return _rgb(path), False
    except InputError as error:
        with what_is_there():
            try:
                image = _rgb(path)
            except InputError:
                raise error from None
        if truncated == "allow":
            return image, True
        raise CutShort(f"{error}; it is cut short ({ADVICE})") from None


def _rgb(path: str | os.PathLike, draft: bool = False) -> Image.Image:
    with _opened(path) as image:
        _check_depth(path, image)
        if draft:  # a JPEG, reduced: as much is read, and less computed
            image.draft(None, (1, 1))
        rgb = image.convert("RGB")
        if _orientation(image) != 1:
            ImageOps.exif_transpose(rgb, in_place=True)
        return rgb


def _check_depth(path: str | os.PathLike, image: Image.Image) -> None:
    if image.mode not in MODES:
        raise InputError(f"image {path} has pixels of mode {image.mode}; convert it to 8 bits a channel")
    if _deep(image):
        raise InputError(f"image {path} has 16 bits a channel; convert it to 8 bits a channel")


def _orientation(image: Image.Image) -> int:
    """The orientation mark, 1 to 8; from 5 on, sides are swapped."""
    mark = image.getexif().get(ExifTags.Base.Orientation, 1)
    return mark if mark in range(1, 9) else 1


def _deep(image: Image.Image) -> bool:
    """Whether the file has more than 8 bits a channel, which Pillow cuts down in colour images without a word."""
    for codec, _, _, arguments in image.tile:
        words = arguments if isinstance(arguments, tuple) else (arguments,)
        if codec.startswith("ppm") and any(isinstance(word, int) and word > 255 for word in words):
            return True
        if codec == "SGI16" or any(isinstance(word, str) and re.search(";(16|32)[A-Z]", word) for word in words):
            return True
    return False


class Attempt(NamedTuple):
    """How the work on an image went: its result, or what kept it from one; and whether the file is cut short."""

    path: str
    result: Any
    fault: InputError | None
    cut_short: bool = False


def attempts(
    paths: Sequence[str], work: Callable[[Image.Image], Any], workers: int, truncated: Truncated, draft: bool = False
) -> Iterator[Attempt]:
    """Decode in parallel threads -> what `work` makes of each image, in order."""

    def attempt(path: str) -> Attempt:
        try:
            image, cut = (_rgb(path, draft=True), False) if draft else _read(path, truncated)
            return Attempt(path, work(image), None, cut)
        except InputError as error:
            return Attempt(path, None, error)

    with ThreadPoolExecutor(max(1, workers)) as pool:
        step = 256
        for start in range(0, len(paths), step):
            yield from pool.map(attempt, paths[start : start + step])


def check_heads(paths: Sequence[str], workers: int) -> None:
    """Look at the head of every file. Raises BadImages for the missing, the too large, and what is not of 8 bits."""

    def fault(path: str) -> InputError | None:
        try:
            with _opened(path) as image:
                _check_depth(path, image)
        except InputError as error:
            return error
        return None

    with ThreadPoolExecutor(max(1, workers)) as pool:
        faults = dict(zip(paths, pool.map(fault, paths), strict=True))
    if bad := {path: error for path, error in faults.items() if error}:
        raise BadImages(bad, len(paths))


def check_images(paths: Sequence[str], workers: int, truncated: Truncated = "error") -> dict[str, InputError]:
    """Decode every image, quickly -> path and fault of those that `open_image` would refuse.

    With `truncated` allow, one warning counts the files that are cut short.
    """
    suspects = [
        one.path
        for one in Bar(
            attempts(paths, lambda _: None, workers, truncated, draft=True), "checking", len(paths), unit="image"
        )
        if one.fault
    ]
    faults, cut = {}, []
    for one in attempts(suspects, lambda _: None, workers, truncated):
        if one.fault:
            faults[one.path] = one.fault
        elif one.cut_short:
            cut.append(one.path)
    warn_of_cut(cut, len(paths))
    return faults


def find_damaged(paths: Sequence[str], workers: int, truncated: Truncated) -> dict[str, InputError]:
    """Look at images before long work on them -> path and fault of the damaged ones, which a warning names.

    Raises BadImages for what `check_heads` finds, and where there is nothing else.
    """
    check_heads(paths, workers)
    faults = check_images(paths, workers, truncated)
    if faults and len(faults) == len(paths):
        raise BadImages(faults, len(paths))
    if faults:
        logger.warning(f"{BadImages(faults, len(paths))}; the others are done first")
    return faults


def warn_of_cut(cut: Sequence[str], total: int) -> None:
    """Say which files are cut short, if any."""
    if cut:
        logger.warning(f"{len(cut)} of {total} images are cut short; what is there is decoded: {some(list(cut))}")


def decode_all(
    paths: Sequence[str], size: int, workers: int, what: str, truncated: Truncated = "error"
) -> Iterator[np.ndarray]:
    """Decode in parallel, in order, with a progress bar, to (size, size, 3) uint8.

    Raises BadImages for the missing and undecodable ones. With `truncated` allow, one warning counts the files that are
    cut short.
    """
    faults, cut = {}, []
    with Bar(total=len(paths), desc=what, unit="image") as bar:
        for one in attempts(paths, lambda image: square(image, size), workers, truncated):
            bar.update()
            if one.cut_short:
                cut.append(one.path)
            if one.fault:
                faults[one.path] = one.fault
            else:
                yield one.result
    if faults:
        raise BadImages(faults, len(paths))
    warn_of_cut(cut, len(paths))


def load_pixels(
    paths: Sequence[str], size: int, workers: int, what: str = "decoding", truncated: Truncated = "error"
) -> np.ndarray:
    """All images in memory: (N, size, size, 3) uint8. Raises as `decode_all` does."""
    pixels = np.empty((len(paths), size, size, 3), np.uint8)
    for i, image in enumerate(decode_all(paths, size, workers, what, truncated)):
        pixels[i] = image
    return pixels
