"""The processes of one run under torchrun: which of them this is, how they start and stop together.

Without torchrun there is one process, and nothing here does anything. PyTorch is imported where it is used: commands
that only touch arrays ask here too whether they are to speak.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from util.errors import InputError

if TYPE_CHECKING:
    import torch

TIMEOUT = timedelta(minutes=30)  # for an answer of the others: more than the main process ever works alone
FAILURE = "galr/failure"  # in the store that torchrun keeps: how the first process failed


def count() -> int:
    """How many processes torchrun started for this run, on all machines; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def rank() -> int:
    """The number of this process among them."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that writes, logs, draws bars and holds the lock."""
    return rank() == 0


def local_rank() -> int:
    """The number of this process among those of its machine: that of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if count() > 1 else 0


@functools.cache
def _store() -> Any:
    """The keys and values that all processes share."""
    import torch.distributed as dist

    store, _, _ = next(dist.rendezvous("env://"))
    return store


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Within it the processes compute together: by nccl on GPUs, by gloo on CPUs."""
    if count() == 1:
        yield
        return
    import torch.distributed as dist

    backend = "cuda:nccl,cpu:gloo" if device.type == "cuda" else "gloo"  # what is agreed on never waits for a GPU
    dist.init_process_group(backend, store=_store(), rank=rank(), world_size=count(), timeout=TIMEOUT)
    yield
    dist.destroy_process_group()  # after an error it might wait for those that are gone


# ---------------------------------------------------------------- what all agree on


def largest(value: int) -> int:
    """The largest of all processes' values. Each waits for the others."""
    if count() == 1:
        return value
    import torch
    import torch.distributed as dist

    values = torch.tensor(value)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return int(values)


def wait_for_all() -> None:
    """Until every process is here."""
    largest(0)


def check_alike(what: str, value: object) -> None:
    """Raises InputError where another process has another value than the main one."""
    if count() == 1:
        return
    import torch.distributed as dist

    values = [None] * count()
    dist.all_gather_object(values, value)
    if others := [number for number, one in enumerate(values) if one != values[0]]:
        raise InputError(f"{what}: process {others[0]} has others than process 0; all machines must see the same files")


# ---------------------------------------------------------------- how all fail


class Failure(NamedTuple):
    """The process that failed, and its exit status."""

    rank: int
    status: int


def first_failure(status: int) -> Failure:
    """Note that this process fails -> the first that did: it says why, and its exit status is that of all."""
    own = Failure(rank(), status)
    if count() == 1:
        return own
    try:
        noted = _store().compare_set(FAILURE, "", "{} {}".format(*own))
    except RuntimeError:  # torchrun itself is gone
        return own
    return Failure(*map(int, noted.split()))


def failure_elsewhere() -> Failure | None:
    """The first process that failed; None where none did, or it had no time to note it."""
    with contextlib.suppress(RuntimeError):
        if count() > 1 and _store().check([FAILURE]):
            return Failure(*map(int, _store().get(FAILURE).split()))
    return None


def lost(error: RuntimeError) -> bool:
    """Whether the error says that another process did not answer."""
    if count() == 1:
        return False
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or any(library in str(error) for library in ("gloo", "NCCL"))
