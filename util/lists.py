"""Text files of a data set ({train,test}_{caps,filename}.txt), image names found in another file, and their paths."""

from __future__ import annotations

import functools
import html
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from utils import InputError, printable, read_text, some

logger = logging.getLogger("galr")

# Captions behind names, as in Flickr8k.token.txt (name#0<TAB>caption) or in tables without a head
NAMED = re.compile(r"(\S+?)#\d+[\t,]\s*|(\S+?\.(?:jpe?g|png|tiff?|bmp|gif|webp))(?:#\d+)?[\t ,;|]\s*", re.IGNORECASE)
IMAGE = re.compile(r"\.(?:jpe?g|png|tiff?|bmp|gif|webp)", re.IGNORECASE)
ENTITY = re.compile(r"&(?:#\d+|#x[0-9a-f]+|[a-z]\w*);", re.IGNORECASE)  # of HTML


# ---------------------------------------------------------------- captions and lists


def read_lines(path: Path, what: str) -> list[str]:
    """Read the lines of a text file, stripped. Raises InputError for an empty one."""
    advice = "dataset.data_path or --data_path names the folder of {train,test}_{caps,filename}.txt"
    lines = [line.strip() for line in read_text(path, what, advice).removesuffix("\n").split("\n")]
    if not any(lines):
        raise InputError(f"{what} {path} is empty")
    return lines


def read_captions(data_path: str | os.PathLike, split: str) -> list[str]:
    """Read the captions of `train` or `test`, one a line; blank ones stay. Entities of HTML become their characters.

    Raises InputError for a list whose lines begin with the names of images.
    """
    path = Path(data_path) / f"{split}_caps.txt"
    lines = read_lines(path, "captions")
    first = next(filter(None, lines))
    if NAMED.match(first):
        raise InputError(
            f"captions {path}: the lines begin with the names of images ({printable(first[:60])!r}); make lists of "
            f"such a file by: python -m util.convert_captions --json {path} --out FOLDER"
        )
    return [ENTITY.sub(lambda entity: html.unescape(entity[0]), line) if "&" in line else line for line in lines]


def read_names(data_path: str | os.PathLike, split: str) -> list[str]:
    """Read the image list of `train` or `test` line by line (an image may be named once per caption)."""
    return read_image_list(Path(data_path) / f"{split}_filename.txt")


def read_image_list(path: Path) -> list[str]:
    """Read an image list line by line, without blank lines at the end. Raises InputError for other blank lines."""
    names = read_lines(path, "image list")
    del names[len(names) - _blank_at_end(names) :]
    if "" in names:
        raise InputError(f"image list {path}, line {names.index('') + 1}: blank")
    return names


def _blank_at_end(lines: list[str]) -> int:
    """Count the blank lines at the end."""
    return next((i for i, line in enumerate(reversed(lines)) if line), len(lines))


def read_pairs(data_path: str | os.PathLike, split: str) -> tuple[list[str], list[str]]:
    """Read captions and image list of `train` or `test`; each line of the list has the same number of captions.

    Blank captions at the end are dropped, with a warning, if the counts fit without them. Raises InputError if the
    counts do not fit.
    """
    captions, names = read_captions(data_path, split), read_names(data_path, split)
    blank = _blank_at_end(captions)
    if blank and (len(captions) - blank) % len(names) == 0:
        logger.warning(f"{data_path}: {blank} blank lines at the end of {split}_caps.txt are dropped")
        captions = captions[:-blank]
    if len(captions) % len(names):
        ends = f" (the last {blank} of them blank)" if blank else ""
        raise InputError(
            f"{data_path}: {len(captions)} captions in {split}_caps.txt{ends} do not fit {len(names)} lines in "
            f"{split}_filename.txt; each line needs the same whole number of captions"
        )
    return captions, names


def validation_names(path: Path, train: list[str]) -> list[str]:
    """Return the images of the train list that the list at `path` names, as the train list spells them.

    Raises InputError for names that the train list lacks.
    """
    listed = list(dict.fromkeys(read_image_list(path)))
    found = match(listed, train, f"image list {path}")
    absent = [name for name, key in zip(listed, found, strict=True) if key is None]
    if absent:
        raise InputError(
            f"image list {path}: {len(absent)} of {len(listed)} images are not in the train list, out of which "
            f"validation images are taken: {some(absent)}"
        )
    return [name for name in found if name]


def note_validation_list(data_path: str | os.PathLike) -> None:
    """Say how the validation images of val_filename.txt, if it stands beside the train list, are used: not unasked."""
    path = Path(data_path) / "val_filename.txt"
    if not path.is_file():
        return
    listed, trained = dict.fromkeys(read_image_list(path)), set(read_names(data_path, "train"))
    if absent := [name for name in listed if name not in trained]:
        logger.warning(
            f"{path}: {len(absent)} of {len(listed)} images are not in the train list and are not used; append them "
            f"with their captions to the train lists, and set dataset.val_list={path}"
        )
    else:
        logger.info(f"note: {path} names validation images; dataset.val_list={path} takes them, not random folds")


def warn_of_shared_images(data_path: str | os.PathLike) -> None:
    """Warn of test images in the train list, compared without suffix: lists say .tif where files are .jpg."""
    if not all((Path(data_path) / f"{split}_filename.txt").exists() for split in ("train", "test")):
        return
    trained = {whole_stem(name) for name in read_names(data_path, "train")}
    tested = dict.fromkeys(read_names(data_path, "test"))
    if shared := [name for name in tested if whole_stem(name) in trained]:
        logger.warning(
            f"{data_path}: {len(shared)} of {len(tested)} images of the test list are in the train list too "
            f"({some(shared)}): test scores come out too good"
        )


# ---------------------------------------------------------------- names


def stem(name: str) -> str:
    """Return an image's name up to the first dot, without folders: the key of its local features."""
    return PurePosixPath(name).name.split(".")[0]


def whole_stem(name: str) -> str:
    """Return an image's name without folders and without its last suffix: `a.1.tif` -> `a.1`."""
    return PurePosixPath(name).stem


# How a name is compared with a key, the surest way first: form of the name, form of the key.
_WAYS = ((str, str), (whole_stem, str), (whole_stem, whole_stem), (stem, stem))


def match(names: Sequence[str], keys: Iterable[str], where: str) -> list[str | None]:
    """Find for each name the key of the same image, or None: by the whole stem first, then up to the first dot.

    Raises InputError, which begins with `where` and names both, if two keys or two names cannot be told apart.
    """
    keys = list(dict.fromkeys(keys))
    tables: dict = {form: defaultdict(list) for _, form in _WAYS}
    for form, table in tables.items():
        for key in keys:
            table[form(key)].append(key)
    found: list[str | None] = []
    first: dict[str, str] = {}
    for name in names:
        equal = next((hits for of_name, of_key in _WAYS if (hits := tables[of_key].get(of_name(name)))), [None])
        if len(equal) > 1:
            raise InputError(f"{where}: {equal[0]} and {equal[1]} both stand for {name}; rename one")
        if equal[0] is not None and (other := first.setdefault(equal[0], name)) != name:
            raise InputError(f"{where}: {equal[0]} stands for both {other} and {name}; rename one")
        found.append(equal[0])
    return found


def unique_keys(names: Sequence[str], where: str) -> list[str]:
    """Return a key for each image: its `stem`, or its `whole_stem` if images share the former.

    Raises InputError, which begins with `where` and names both, if two images share even that, or one has none.
    """
    count = Counter(map(stem, names))
    first: dict[str, str] = {}
    keys = []
    for name in names:
        key = stem(name) if count[stem(name)] == 1 else whole_stem(name)
        if not stem(name):
            raise InputError(f"{where}: image {name} has no name before its first dot; rename it")
        if (other := first.setdefault(key, name)) != name:
            raise InputError(f"{where}: images {other} and {name} share a name ({key}); rename one")
        keys.append(key)
    return keys


# ---------------------------------------------------------------- paths


def safe_paths(folder: str | os.PathLike, names: Sequence[str]) -> list[str]:
    """Return the paths of the named images, found by their stem if the folder has them with another suffix.

    Raises InputError for a name that would leave the folder, and for a stem that two images have.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"image folder {folder} is not there; set dataset.image_path")
    root = folder.resolve()
    outside = [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]
    paths = [] if outside else _found(folder, names)
    outside += [str(path) for path in paths if path.is_symlink() and not _within(path, root)]
    folders = {path.parent for path in paths} - {folder}
    outside += [str(parent) for parent in sorted(folders) if parent.exists() and not _within(parent, root)]
    if outside:
        raise InputError(f"{len(outside)} image names lead out of {folder}: {some(outside)}")
    return list(map(str, paths))


def _found(folder: Path, names: Sequence[str]) -> list[Path]:
    """Return the paths of images. One that is not there is looked for by its stem, in its folder, then in `folder`."""
    paths = [folder / name for name in names]
    by_stem = functools.cache(_images_by_stem)
    other: dict[Path, str] = {}
    for at, (name, path) in enumerate(zip(names, paths, strict=True)):
        if path.exists() or not (hits := by_stem(path.parent)[path.stem] or by_stem(folder)[path.stem]):
            continue
        if len(hits) > 1:
            raise InputError(f"{hits[0]} and {hits[1]} both stand for the image {name}; remove one")
        if (first := other.setdefault(hits[0], name)) != name:
            raise InputError(f"{hits[0]} stands for both images {first} and {name} of the list")
        paths[at] = hits[0]
    if other:
        file, name = next(iter(other.items()))
        _say(f"{folder}: {len(other)} of {len(names)} images have other names there: {name} is {file}")
    return paths


def _images_by_stem(folder: Path) -> dict[str, list[Path]]:
    found = defaultdict(list)
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if IMAGE.fullmatch(file.suffix):
            found[file.stem].append(file)
    return found


@functools.cache
def _say(note: str) -> None:
    logger.info(f"note: {note}")


def _within(path: Path, root: Path) -> bool:
    try:
        return path.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # a loop of links
        return False
