"""Runs that are stopped, killed or damaged on purpose, shared by the tests of what is not lost."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from soak import compare

import engine
import train

TRAIN = "train.py --path_opt tiny.yaml --device cpu"
FOLD = Path("checkpoint/tiny/0")
LAST = FOLD / "last.pth.tar"


class Killed(BaseException):
    """Stands for SIGKILL in this process: nothing of the project catches it, nothing is saved after it."""


@contextlib.contextmanager
def after(module: object, name: str, number: int, do: Callable[[], None], of: Callable = lambda *_: True) -> Iterator:
    """Do something after the n-th call of a function; `of` tells whether a call counts."""
    calls, real = 0, getattr(module, name)

    def counted(*arguments, **more):
        nonlocal calls
        result = real(*arguments, **more)
        counts = of(*arguments)
        calls += counts
        if counts and calls == number:
            do()
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, counted)
        yield


def at_step(number: int, do: Callable[[], None]) -> AbstractContextManager:
    """Do something after so many training steps, before their checkpoint is written."""
    return after(engine, "train_step", number, do)


def after_save(name: str, number: int) -> AbstractContextManager:
    """Die right after the checkpoint `name` has been written for the n-th time."""
    return after(train, "save_checkpoint", number, die, lambda _, path: path.name == name)


@contextlib.contextmanager
def in_validation(number: int, do: Callable[[], None]) -> Iterator[None]:
    """Do something at the second batch of the validation with this number, from 1."""
    seen = 0

    def counted(*arguments):
        nonlocal seen
        seen += 1
        for i, batch in enumerate(real(*arguments)):
            if seen == number and i == 1:
                do()
            yield batch

    real = engine.image_batches
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "image_batches", counted)
        yield


def same_weights(one: Path, other: Path) -> bool:
    """Return whether two folds ended with the same weights, bit for bit."""
    models = (torch.load(folder / "last.pth.tar", weights_only=True)["model"] for folder in (one, other))
    return compare(*models, "") == []


def stop(signum: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), signum)


def die() -> None:
    raise Killed


def steps(path: Path) -> int:
    return torch.load(path, weights_only=True)["Eiters"]


def flipped(raw: bytes) -> bytes:
    middle = len(raw) // 2
    return raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :]


@contextlib.contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes (in this process)."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
