"""Compute what the fused batch norm kernels of CUDA compute, for the pretended GPU (pretend_gpu.py)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, var_mean

SHAPE = (1, -1, 1, 1)


def _stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    var, mean = var_mean(x.float(), [0, 2, 3], correction=0)
    return mean, (var + eps).rsqrt()


def _gather_stats(x: Tensor, means: Tensor, scales: Tensor, running_mean, running_var, momentum, eps, counts):
    counts, total = counts[:, None], counts.sum()
    mean = (counts * means).sum(0) / total
    var = (counts * (scales**-2 - eps + (means - mean) ** 2)).sum(0) / total
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(var * total / (total - 1), momentum)
    return mean, (var + eps).rsqrt()


def _elemt(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor, eps: float) -> Tensor:
    return ((x - mean.view(SHAPE)) * (scale * weight).view(SHAPE) + bias.view(SHAPE)).to(x.dtype)


def _backward_reduce(grad: Tensor, x: Tensor, mean: Tensor, scale: Tensor, *_: Any) -> tuple[Tensor, ...]:
    of_bias, products = (one.sum((0, 2, 3)) for one in (grad.float(), grad.float() * (x - mean.view(SHAPE))))
    return of_bias, products, products * scale, of_bias.clone()


def _backward_elemt(grad, x, mean, scale, weight, of_bias, products, counts) -> Tensor:
    total = counts.sum()
    centred = grad - (of_bias / total).view(SHAPE) - (x - mean.view(SHAPE)) * (scale**2 * products / total).view(SHAPE)
    return (centred * (scale * weight).view(SHAPE)).to(x.dtype)


CUDA_ALONE = {  # kernels that a CPU has not
    "batch_norm_stats": _stats,
    "batch_norm_gather_stats_with_counts": _gather_stats,
    "batch_norm_elemt": _elemt,
    "batch_norm_backward_reduce": _backward_reduce,
    "batch_norm_backward_elemt": _backward_elemt,
}
