"""Image files -> uint8 pixels: safe decoding, checks before a run, and the HDF5 cache.

Pixels are square, (S, S, 3), resized as torchvision's PIL path does it (bilinear, antialiased).
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from util.errors import InputError
from util.files import atomic, some
from util.progress import Bar

LARGEST = 100_000_000  # pixels; a decompression bomb promises more
warnings.filterwarnings("ignore", module=r"PIL\.")  # once for all threads: what matters is an error here
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


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[Image.Image]:
    """An image file whose head is read. Raises InputError for it, and for whatever its decoder raises inside."""
    try:
        if not os.path.isfile(path):  # noqa: PTH113 - asked once per image and epoch; a pipe would be waited for
            raise InputError(f"image {path} is not " + ("a file" if os.path.lexists(path) else "there"))
        with Image.open(path) as image:
            if image.width * image.height > LARGEST:
                raise InputError(f"image {path} is {image.width} x {image.height} pixels; more than is allowed")
            yield image
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise InputError(f"image {path} promises more than {LARGEST} pixels; more than is allowed") from None
    except Exception as error:  # decoders raise errors of many kinds on damaged files
        raise InputError(f"image {path} cannot be decoded ({' '.join(str(error).split())})") from None


def open_image(path: str | os.PathLike) -> Image.Image:
    """An RGB image. Raises InputError for a file that is missing, damaged, too large, or not 8 bits a channel."""
    with _opened(path) as image:
        if image.mode not in MODES:
            raise InputError(f"image {path} has pixels of mode {image.mode}; convert it to 8 bits a channel")
        return image.convert("RGB")


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """Width and height in pixels, from the head of the file alone. Raises InputError."""
    with _opened(path) as image:
        return image.size


def decode(path: str, size: int) -> np.ndarray:
    """One image as (size, size, 3) uint8. Raises InputError as `open_image` does."""
    return np.asarray(open_image(path).resize((size, size), Image.Resampling.BILINEAR))


def decode_all(paths: Sequence[str], size: int, workers: int, what: str) -> Iterator[np.ndarray]:
    """Decode in parallel, in order, with a progress bar.

    Raises InputError with the number of missing or undecodable images and the first five names.
    """
    faults: list[str] = []

    def attempt(path: str) -> np.ndarray | None:
        try:
            return decode(path, size)
        except InputError as error:
            faults.append(str(error))
            return None

    with ThreadPoolExecutor(max(1, workers)) as pool:
        step = 256
        with Bar(total=len(paths), desc=what, unit="image") as bar:
            for start in range(0, len(paths), step):
                for pixels in pool.map(attempt, paths[start : start + step]):
                    bar.update()
                    if pixels is not None:
                        yield pixels
    if faults:
        raise InputError(f"{len(faults)} of {len(paths)} images are missing or undecodable: {some(sorted(faults))}")


def load_pixels(paths: Sequence[str], size: int, workers: int, what: str = "decoding") -> np.ndarray:
    """All images in memory: (N, size, size, 3) uint8. Raises as `decode_all` does."""
    pixels = np.empty((len(paths), size, size, 3), np.uint8)
    for i, image in enumerate(decode_all(paths, size, workers, what)):
        pixels[i] = image
    return pixels


def _stamps(paths: Sequence[str]) -> np.ndarray:
    """Size in bytes and time stamp in ns of each file (N, 2); -1 where there is none."""
    stamps = np.full((len(paths), 2), -1, np.int64)
    for i, path in enumerate(paths):
        if os.path.isfile(path):  # noqa: PTH113 - tens of thousands of files: Path costs more than the look
            status = os.stat(path)  # noqa: PTH116
            stamps[i] = status.st_size, status.st_mtime_ns
    return stamps


def cache_is_fresh(cache: Path, paths: Sequence[str], sizes: Sequence[int]) -> bool:
    """Whether the HDF5 cache holds exactly these images at these sizes, unchanged since (bytes and time stamp)."""
    if not cache.is_file():
        return False
    try:
        with h5py.File(cache) as file:
            return (
                file["path"].asstr()[:].tolist() == list(paths)
                and np.array_equal(file["stamp"][:], _stamps(paths))
                and all(_can_be_mapped(file[str(size)], (len(paths), size, size, 3)) for size in sizes)
            )
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError):
        return False  # damaged or of another kind: it is built anew


def _can_be_mapped(dataset: h5py.Dataset, shape: tuple[int, ...]) -> bool:
    """Whether it has this shape and lies in its file as one piece of bytes, as `build_cache` leaves it."""
    return dataset.shape == shape and dataset.dtype == np.uint8 and dataset.id.get_offset() is not None


def map_cache(cache: Path, size: int) -> np.ndarray:
    """The images of one size in a fresh cache, (N, size, size, 3), mapped: read from the file as they are used."""
    with h5py.File(cache) as file:
        dataset = file[str(size)]
        return np.memmap(cache, np.uint8, "c", dataset.id.get_offset(), dataset.shape)


def build_cache(cache: Path, paths: Sequence[str], sizes: Sequence[int], workers: int) -> None:
    """Write the decoded images at each size to an HDF5 file, atomically."""
    with atomic(cache) as temporary, h5py.File(temporary, "w") as file:
        file["path"] = [str(path) for path in paths]
        file["stamp"] = _stamps(paths)
        for size in sizes:
            pixels = file.create_dataset(str(size), (len(paths), size, size, 3), np.uint8)
            for i, image in enumerate(decode_all(paths, size, workers, f"caching at {size}")):
                pixels[i] = image
