"""Several processes compute what one computes: each encodes its part of every whole batch (`torch.distributed`).

Three things couple the rows of a batch, and each is made whole:

    batch normalisation   goes by mean and variance of the rows of all processes, and so does its gradient
    dropout               is drawn for the whole batch in its order; a process takes its rows of the mask
    the loss              is computed by every process, of all pairs: the vectors are gathered

Why the gradient is exact. Let V be the gathered vectors, and L the loss of V and of what stands behind them (the
similarity's weights, a learned temperature). Each of N processes computes the same L, and goes back from L / N:

    what stands behind V   gets dL / N in each process, and the sum of the N is dL
    vector v_i             is owed the sum of what all N processes find, N times dL / dv_i / N: `gather` multiplies its
                           own by N, where a reduce-scatter would fetch the same numbers from the others
    the encoders           so get in each process what their own rows contribute, and the sum of the N is that of V

so the sum of all gradients over the processes is that of one process, each parameter's counted once. (An average, or a
sum of gradients of L itself, would be off by N.) A batch with fewer rows than processes is not divided: each process
takes all of it, and the same sum of N times L / N holds.
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


def process_count() -> int:
    """How many processes train together: 1 without torchrun."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """The number of this process among them, from 0."""
    return dist.get_rank() if process_count() > 1 else 0


class Part(NamedTuple):
    """What a process has of a batch of `whole` rows: [start, stop). lengths: in words, of captions (whole,)."""

    start: int
    stop: int
    whole: int
    lengths: Tensor | None = None

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def divided(self) -> bool:
        """Whether other processes have the rest."""
        return self.stop - self.start < self.whole


def parts_of(*sizes: int) -> list[Part]:
    """This process's part of each of several sets of rows that make a batch: parts differ by one row at most.

    All of each, where one set has fewer rows than there are processes.
    """
    count, rank = (process_count(), process_rank()) if min(sizes) >= process_count() else (1, 0)
    return [Part(whole * rank // count, whole * (rank + 1) // count, whole) for whole in sizes]


class PartOfBatch(TorchFunctionMode):
    """Within it, modules that are given a part of a batch normalise and drop out as they would with all of it.

    That holds for every module that calls PyTorch's own functions, those of other libraries too.
    """

    current: Part | None = None

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.part = part

    def __enter__(self) -> PartOfBatch:
        PartOfBatch.current = self.part
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        PartOfBatch.current = None
        super().__exit__(*error)

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.dropout:
            return self._dropout(*args, **kwargs)
        if func is functional.batch_norm:
            return batch_norm(*args, **kwargs)
        return func(*args, **kwargs)

    def _dropout(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or len(x) != self.part.stop - self.part.start:
            return functional.dropout(x, p, training)
        return x * functional.dropout(x.new_ones(self.part.whole, *x.shape[1:]), p)[self.part.rows]


# ---------------------------------------------------------------- statistics of the whole batch


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
    """`functional.batch_norm` of x (B, C, ...) with the statistics of the rows of all processes, in float32."""
    if not training:
        return functional.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    y, mean, var = _BatchNorm.apply(x, weight, bias, eps)
    if running_mean is not None:
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var, momentum)
    return y


class _BatchNorm(torch.autograd.Function):
    """x -> y = w x' + b with x' = (x - mean) / sqrt(var + eps); the mean, and the unbiased variance (C,).

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


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance (C,) of the rows of all processes, float32, and how many values they are of (), float64.

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


# ---------------------------------------------------------------- vectors and gradients of the whole batch


def gather(vectors: Tensor, part: Part) -> Tensor:
    """This process's vectors (b, D) -> those of the whole batch (B, D), with the gradient that is explained above."""
    return _Gather.apply(vectors, part)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor, part: Part) -> Tensor:
        ctx.part = part
        whole = vectors.new_zeros(part.whole, *vectors.shape[1:])
        whole[part.rows] = vectors
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad[ctx.part.rows] * dist.get_world_size(), None


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum the gradients over the processes, in one message."""
    if process_count() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, whole in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(whole.view_as(gradient))


# ---------------------------------------------------------------- evaluation


def in_turn() -> slice:
    """Which of a list of batches this process takes: each is encoded once, as a single process would have it."""
    return slice(process_rank(), None, process_count())


def put_together(rows: Sequence[Tensor], vectors: Sequence[Tensor], total: int, device: torch.device) -> Tensor:
    """rows (b,) and vectors (b, D) of this process's batches -> those of all processes (total, D), float32."""
    width = torch.tensor(vectors[0].shape[1] if vectors else 0)  # a process may have had no batch
    if process_count() > 1:
        dist.all_reduce(width, dist.ReduceOp.MAX)
    whole = torch.zeros(total, int(width), device=device)
    for here, encoded in zip(rows, vectors, strict=True):
        whole[here.to(device)] = encoded.float()
    if process_count() > 1:
        dist.all_reduce(whole)
    return whole


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. To a GPU it goes from pinned memory: nothing waits, neither for it nor for the GPU."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


# ---------------------------------------------------------------- what all processes agree on


TIMEOUT = timedelta(minutes=30)  # for an answer of the others: more than the main process ever works alone


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Within it the processes compute together: by nccl on GPUs, by gloo on CPUs."""
    if count() == 1:
        yield
        return
    backend = "cuda:nccl,cpu:gloo" if device.type == "cuda" else "gloo"  # what is agreed on never waits for a GPU
    dist.init_process_group(backend, store=store(), rank=rank(), world_size=count(), timeout=TIMEOUT)
    yield
    dist.destroy_process_group()  # after an error it might wait for those that are gone


def largest(value: int) -> int:
    """The largest of all processes' values. Each waits for the others."""
    if count() == 1:
        return value
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
    values = [None] * count()
    dist.all_gather_object(values, value)
    if others := [number for number, one in enumerate(values) if one != values[0]]:
        raise InputError(f"{what}: process {others[0]} has others than process 0; all machines must see the same files")
