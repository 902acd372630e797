"""Several processes compute what one computes: each encodes its shard of every global batch (`torch.distributed`).

Three things couple the rows of a batch, and each is computed for the global batch:

    batch norm   mean and variance are of the rows of all processes, and so is its gradient
    dropout      is drawn for the global batch in its order; a process takes its rows of the mask
    the loss     is computed by every process, of all pairs: the vectors are gathered

Gradients. Each of N processes goes back from L / N, the same loss. Parameters behind the gathered vectors V get dL / N
in each process, and the sum over processes is dL. A vector is owed the sum of what all N processes find,
N dL / dv / N: `gather` multiplies its own by N. So the sum of the gradients over processes is that of one process, each
parameter's counted once. A batch with fewer rows than processes is not divided: each process takes all of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from utils import InputError, count, rank, store

TIMEOUT = timedelta(minutes=30)  # for an answer of the others: more than the main process ever works alone


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Let the processes compute together within this context: by nccl on GPUs, by gloo on CPUs."""
    if count() == 1:
        yield
        return
    backend = "cuda:nccl,cpu:gloo" if device.type == "cuda" else "gloo"  # what is agreed on never waits for a GPU
    dist.init_process_group(backend, store=store(), rank=rank(), world_size=count(), timeout=TIMEOUT)
    yield
    dist.destroy_process_group()  # after an error it might wait for those that are gone


def world_size() -> int:
    """Return how many processes compute together: 1 without torchrun."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def largest(value: int) -> int:
    """Return the largest of all processes' values; each waits for the others."""
    if count() == 1:
        return value
    values = torch.tensor(value)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return int(values)


def wait_for_all() -> None:
    """Wait until every process is here."""
    largest(0)


def check_alike(what: str, value: object) -> None:
    """Raise InputError if another process has another value than the main one."""
    if count() == 1:
        return
    values = [None] * count()
    dist.all_gather_object(values, value)
    if others := [number for number, one in enumerate(values) if one != values[0]]:
        raise InputError(f"{what}: process {others[0]} has others than process 0; all machines must see the same files")


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return `tensor.to(device)`; to a CUDA GPU from pinned memory, so that nothing waits."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type == "cuda")


# ---------------------------------------------------------------- shards of a batch


class Shard(NamedTuple):
    """Rows [start, stop) that a process has of a batch of `total`. lengths: in words, of all captions (total,)."""

    start: int
    stop: int
    total: int
    lengths: Tensor | None = None

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def divided(self) -> bool:
        return self.stop - self.start < self.total


def shards_of(*sizes: int) -> list[Shard]:
    """Return this process's shard of each of several sets of rows that make a batch; shards differ by a row at most.

    All of each, if one set has fewer rows than there are processes.
    """
    n, k = (world_size(), rank()) if min(sizes) >= world_size() else (1, 0)
    return [Shard(total * k // n, total * (k + 1) // n, total) for total in sizes]


class GlobalBatch(TorchFunctionMode):
    """Let modules that are given a shard normalise and drop out as they would with the global batch.

    That holds for every module that calls PyTorch's own functions, those of other libraries too.
    """

    current: Shard | None = None  # of the context that is open

    def __init__(self, shard: Shard) -> None:
        super().__init__()
        self.shard = shard

    def __enter__(self) -> GlobalBatch:
        GlobalBatch.current = self.shard
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        GlobalBatch.current = None
        super().__exit__(*error)

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        func = {functional.dropout: self._dropout, functional.batch_norm: batch_norm}.get(func, func)
        return func(*args, **(kwargs or {}))

    def _dropout(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or len(x) != self.shard.stop - self.shard.start:
            return functional.dropout(x, p, training)
        return x * functional.dropout(x.new_ones(self.shard.total, *x.shape[1:]), p)[self.shard.rows]


def global_places(order: Tensor) -> tuple[int, Tensor | None]:
    """Return how many captions the global batch has, and the places of this process's among all, longest first.

    order (b,): of this process's captions, longest first. None for the places if the batch is not divided.
    """
    shard = GlobalBatch.current
    if shard is None:
        return len(order), None
    longest_first = shard.lengths.clamp(min=1).sort(descending=True, stable=True).indices
    return shard.total, longest_first.argsort()[shard.rows][order]


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Call `functional.batch_norm` on x (B, C, ...) with the statistics of the rows of all processes, in float32."""
    if not training:
        return functional.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    if x.is_cuda:
        return _FusedBatchNorm.apply(x, weight, bias, running_mean, running_var, momentum, eps)
    y, mean, var = _BatchNorm.apply(x, weight, bias, eps)
    if running_mean is not None:
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var, momentum)
    return y


class _BatchNorm(torch.autograd.Function):
    """Map x to w x' + b with x' = (x - mean) / sqrt(var + eps), the mean, and the unbiased variance (C,).

    dL/dx = w / sqrt(var + eps) (g - mean of g - x' mean of (g x')), g = dL/dy, the means over the rows of all.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
        mean, var, count = _statistics(x)
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt(), count)
        unbiased = var * (count / (count - 1)).float()
        ctx.mark_non_differentiable(mean, unbiased)
        return functional.batch_norm(x, mean, var, weight, bias, False, 0.0, eps), mean, unbiased

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        channel, others = (1, -1, *[1] * (x.ndim - 2)), [0, *range(2, x.ndim)]
        normal, grad = (x.float() - mean.view(channel)) * scale.view(channel), grad.float()
        sums = torch.stack((grad.sum(others), (grad * normal).sum(others)))
        of_bias, of_weight = sums.clone()  # of this process's rows, like every gradient of a weight
        dist.all_reduce(sums)
        of_mean, of_var = (sums / count).float().view(2, *channel)
        scale = (scale if weight is None else scale * weight).view(channel)
        of_x = ((grad - of_mean - normal * of_var) * scale).to(x.dtype)
        return of_x, *((None, None) if weight is None else (of_weight, of_bias)), None


class _FusedBatchNorm(torch.autograd.Function):
    """Do what `_BatchNorm` does by the CUDA kernels of `nn.SyncBatchNorm`, each of which passes over x once.

    `nn.SyncBatchNorm` itself waits for the GPU in every layer, to see whether a process has no rows: here all have.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        x = _dense(x)
        mean, scale = torch.batch_norm_stats(x, eps)  # scale: 1 / sqrt(var + eps)
        own = torch.cat((mean, scale, mean.new_full((1,), x.numel() // x.shape[1])))
        everyone = own.new_empty(dist.get_world_size() * len(own))
        dist.all_gather_into_tensor(everyone, own)
        means, scales, counts = everyone.view(-1, len(own)).split((len(mean), len(mean), 1), dim=1)
        counts = counts.flatten()
        moments = means, scales, running_mean, running_var, momentum, eps, counts  # the running ones are moved here
        mean, scale = torch.batch_norm_gather_stats_with_counts(x, *moments)
        ctx.save_for_backward(x, weight, mean, scale, counts.int())
        return torch.batch_norm_elemt(x, weight, bias, mean, scale, eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, counts = ctx.saved_tensors
        given = (_dense(grad), x, mean, scale, weight)
        *sums, of_weight, of_bias = torch.batch_norm_backward_reduce(
            *given, True, weight is not None, weight is not None
        )
        sums = torch.stack(sums)
        dist.all_reduce(sums)
        of_x = torch.batch_norm_backward_elemt(*given, *sums, counts)
        return of_x, of_weight, of_bias, None, None, None, None


def _dense(x: Tensor) -> Tensor:
    """Return x contiguous in its memory format, as the fused kernels want it."""
    return x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and biased variance (C,) of the rows of all processes, and how many values a channel has (), float64.

    From each process's own, which loses nothing to a large mean: var = sum n_i (var_i + (mean_i - mean)^2) / n.
    """
    var, mean = torch.var_mean(x.float(), [0, *range(2, x.ndim)], correction=0)
    count = mean.new_full((1,), x.numel() // x.shape[1], dtype=torch.float64)
    own = torch.cat((mean.double(), var.double(), count))
    everyone = own.new_empty(dist.get_world_size() * len(own))
    dist.all_gather_into_tensor(everyone, own)
    means, variances, counts = everyone.view(-1, len(own)).split((len(mean), len(mean), 1), dim=1)
    count = counts.sum()
    mean = (counts * means).sum(0) / count
    var = (counts * (variances + (means - mean) ** 2)).sum(0) / count
    return mean.float(), var.float(), count


# ---------------------------------------------------------------- vectors and gradients


def gather(vectors: Tensor, shard: Shard) -> Tensor:
    """Gather the vectors (b, D) of all processes -> (B, D), with the gradient that is explained above."""
    return _Gather.apply(vectors, shard)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor, shard: Shard) -> Tensor:
        ctx.rows = shard.rows
        total = vectors.new_zeros(shard.total, *vectors.shape[1:])
        total[shard.rows] = vectors
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad[ctx.rows] * dist.get_world_size(), None


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum the gradients over the processes, in one message."""
    if world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(total.view_as(gradient))


def own_share() -> slice:
    """Return rank::world_size, the share of a list of batches that this process evaluates."""
    return slice(rank() if world_size() > 1 else 0, None, world_size())


def all_gather(rows: Sequence[Tensor], vectors: Sequence[Tensor], total: int, device: torch.device) -> Tensor:
    """Gather the evaluated batches of all processes: rows (b,) and vectors (b, D) of each -> (total, D), float32."""
    width = torch.tensor(vectors[0].shape[1] if vectors else 0)  # a process may have had no batch
    if world_size() > 1:
        dist.all_reduce(width, dist.ReduceOp.MAX)
    found = torch.zeros(total, int(width), device=device)
    for here, encoded in zip(rows, vectors, strict=True):
        found[to_device(here, device)] = encoded.float()
    if world_size() > 1:
        dist.all_reduce(found)
    return found
