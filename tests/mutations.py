"""Random changes of files and values, for tests/fuzz.py and tests/fuzz_search.py."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np

ODD_WORDS = [
    b"nan",
    b"-inf",
    b"1e999",
    b"-1",
    b"0",
    b"9" * 400,
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\r\n",
    b"\n\n",
    b"../",
    b"/",
    b"\xc3\xa9",
    b"\xf0\x9f\x9a\xa2",
    b"{",
    b"[" * 50,
    b'"',
    b"'",
    b"&a *a",
    b": ",
    b"!!python/name:os",
    b"- ",
    b"%",
    b"true",
    b"null",
    b"0x7fffffffffffffff",
    b"\xff\xff\xff\xff",
    b"\x80\x05.",
]
ODD_VALUES = [
    None,
    True,
    -1,
    0,
    10**30,
    10**400,
    0.5,
    math.nan,
    math.inf,
    "",
    "x",
    "\0",
    "../x",
    "9" * 5000,
    "\ud800",
    [],
    [[]],
    {},
    {"x": {}},
    [1, "a", None],
    {"": 0},
]


def mutate(raw: bytes, rng: random.Random) -> bytes:
    """Return bytes with a few random changes of bytes, words, lines and parts; now and then random bytes alone."""
    if rng.random() < 0.02:
        return rng.randbytes(rng.randrange(300))
    raw = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(raw) + 1)
        to = min(len(raw), at + rng.choice((1, 1, 2, 4, 8, 50, 500)))
        kind = rng.randrange(7)
        if kind == 0 and at < len(raw):
            raw[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            raw[at:to] = rng.randbytes(to - at)
        elif kind == 2:
            del raw[at:to]
        elif kind == 3:
            raw[at:at] = raw[at:to] * rng.choice((1, 2, 20))
        elif kind == 4:
            raw[at:at] = rng.choice(ODD_WORDS)
        elif kind == 5:
            raw[at:to] = rng.choice(ODD_WORDS)
        elif rng.random() < 0.3:
            del raw[at:]
    return bytes(raw)


def odd(tree: Any, rng: random.Random, extra: list = ODD_VALUES) -> Any:
    """Return a tree of dicts and lists with one of its parts replaced, dropped, doubled or renamed."""
    if isinstance(tree, dict) and tree and rng.random() < 0.85:
        key = rng.choice(list(tree))
        kind = rng.random()
        if kind < 0.08:
            return {k: v for k, v in tree.items() if k != key}
        if kind < 0.16:
            return tree | {rng.choice(["", "x", "\0", f"{key}x", str(rng.random())]): tree[key]}
        return tree | {key: odd(tree[key], rng, extra)}
    if isinstance(tree, list) and tree and rng.random() < 0.85:
        at = rng.randrange(len(tree))
        kind = rng.random()
        if kind < 0.08:
            return tree[:at] + tree[at + 1 :]
        if kind < 0.16:
            return tree + tree[at:]
        return [*tree[:at], odd(tree[at], rng, extra), *tree[at + 1 :]]
    return rng.choice(extra)


def odd_array(rng: random.Random, shapes: list[tuple]) -> np.ndarray:
    """Return random numbers of a random type, in one of these shapes or an odd one."""
    shape = rng.choice([*shapes, (), (0,), (1,), (3, 0), (2, 2, 2)])
    kind = rng.choice(["f4", "f4", "f4", "f8", "f2", "i8", "u1", "?", "c8", "S3", "U2", "M8[s]", "V4", ">f4"])
    array = np.frombuffer(rng.randbytes(max(1, math.prod(shape)) * np.dtype(kind).itemsize), kind)
    array = array[: math.prod(shape)].reshape(shape)
    return np.nan_to_num(array) if kind.endswith(("f4", "f8")) and rng.random() < 0.5 else array
