"""Names of images, and how one file's names are found in another's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePosixPath

from utils import InputError


def stem(name: str) -> str:
    """An image's name up to the first dot, without folders: the key of its local features."""
    return PurePosixPath(name).name.split(".")[0]


def whole_stem(name: str) -> str:
    """An image's name without folders and without its last suffix: `a.1.tif` -> `a.1`."""
    return PurePosixPath(name).stem


def _as_written(name: str) -> str:
    return name


# How a name is looked for, and as what: the surest first.
_WAYS: tuple[tuple[Callable[[str], str], Callable[[str], str]], ...] = (
    (_as_written, _as_written),
    (whole_stem, _as_written),
    (whole_stem, whole_stem),
    (stem, stem),
)


def match(names: Sequence[str], keys: Iterable[str], where: str) -> list[str | None]:
    """For each name the key of the same image, or None: by the whole stem first, then by the part up to the first dot.

    Raises InputError, which begins with `where` and names both, where two keys or two names share what is left.
    """
    keys = list(dict.fromkeys(keys))
    tables: dict[Callable[[str], str], dict[str, list[str]]] = {}
    for _, form in _WAYS:
        if form not in tables:
            tables[form] = defaultdict(list)
            for key in keys:
                tables[form][form(key)].append(key)
    found = [_find(name, tables, where) for name in names]
    first: dict[str, str] = {}
    for name, key in zip(names, found, strict=True):
        if key is not None and (other := first.setdefault(key, name)) != name:
            raise InputError(f"{where}: {key} stands for both {other} and {name}; rename one")
    return found


def _find(name: str, tables: dict[Callable[[str], str], dict[str, list[str]]], where: str) -> str | None:
    for of_name, of_key in _WAYS:
        found = tables[of_key].get(of_name(name), [])
        if len(found) > 1:
            raise InputError(f"{where}: {found[0]} and {found[1]} both stand for {name}; rename one")
        if found:
            return found[0]
    return None


def unique_keys(names: Sequence[str], where: str) -> list[str]:
    """A key for each image: its `stem`, or its `whole_stem` where images share the former.

    Raises InputError, which begins with `where` and names both, where two images share even that, or one has none.
    """
    sharing: dict[str, int] = defaultdict(int)
    for name in names:
        sharing[stem(name)] += 1
    first: dict[str, str] = {}
    keys = []
    for name in names:
        key = stem(name) if sharing[stem(name)] == 1 else whole_stem(name)
        if not stem(name):
            raise InputError(f"{where}: image {name} has no name before its first dot; rename it")
        if (other := first.setdefault(key, name)) != name:
            raise InputError(f"{where}: images {other} and {name} share a name ({key}); rename one")
        keys.append(key)
    return keys
