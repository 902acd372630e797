"""Depthwise convolution on a CPU: a compiled loop for each pass, innermost the channels, side by side in memory.

oneDNN's backward passes of depthwise convolutions run far below what memory allows (docs/PERFORMANCE.md), in bfloat16
by another factor of several. Here the passes are in float32, over images in parallel; sums are taken in an order that
does not depend on the number of threads.

    y[n, i, j, c] = shift[c] + sum over a, b of w[a, b, c] x[n, i s + a - p, j s + b - p, c]
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

PARTS = 8  # that the images of a batch are divided into


def depthwise(x: Tensor, weight: Tensor, shift: Tensor, stride: int, padding: int, side: int) -> Tensor:
    """x (B, C, H, W), weight (C, 1, k, k), shift (C,) -> (B, C, side, side) float32, channels last.

    padding: rows and columns of zeros before the first; those after the last follow from `side`.
    """
    return _Depthwise.apply(x.float(), weight.float(), shift.float(), stride, padding, side)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, shift: Tensor, stride: int, padding: int, side: int) -> Tensor:
        y = torch.empty(len(x), len(weight), side, side, memory_format=torch.channels_last)
        pixels, taps, start, out = _pixels(x), _taps(weight), shift.detach().numpy(), _pixels(y)
        _in_parts(lambda part, _: _forward(pixels[part], taps, start, stride, padding, out[part]), len(x))
        ctx.save_for_backward(x, weight)
        ctx.place = stride, padding
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = torch.empty_like(x, memory_format=torch.channels_last)
        pixels, taps, of_y, of_x = _pixels(x), _taps(weight), _pixels(grad), _pixels(grad_x)
        of_taps = np.zeros((PARTS, *taps.shape), np.float32)

        def backward(part: slice, index: int) -> None:
            _backward(pixels[part], taps, of_y[part], *ctx.place, of_x[part], of_taps[index])

        _in_parts(backward, len(x))
        of_weight = torch.from_numpy(of_taps.sum(0)).permute(2, 0, 1)[:, None]
        return grad_x, of_weight, grad.sum((0, 2, 3)), None, None, None


def _pixels(x: Tensor) -> np.ndarray:
    """(B, C, H, W) -> (B, H, W, C), contiguous; without a copy where x is channels last."""
    return x.permute(0, 2, 3, 1).detach().contiguous().numpy()


def _taps(weight: Tensor) -> np.ndarray:
    """(C, 1, k, k) -> (k, k, C), contiguous."""
    return weight[:, 0].permute(1, 2, 0).detach().contiguous().numpy()


def _in_parts(work: Callable[[slice, int], None], images: int) -> None:
    """Work on all parts of a batch, in as many threads as PyTorch takes."""
    bounds = [images * index // PARTS for index in range(PARTS + 1)]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(lambda index: work(slice(bounds[index], bounds[index + 1]), index), range(PARTS)))


@numba.njit(nogil=True, fastmath={"contract"})
def _forward(x, w, shift, stride, padding, y):
    """Fill y (B, H', W', C) from x (B, H, W, C), w (k, k, C) and shift (C,)."""
    height, width, channels = x.shape[1:]
    for n in range(len(y)):
        for i in range(y.shape[1]):
            for j in range(y.shape[2]):
                out = y[n, i, j]
                for c in range(channels):
                    out[c] = shift[c]
                for a in range(max(0, padding - i * stride), min(len(w), height + padding - i * stride)):
                    for b in range(max(0, padding - j * stride), min(len(w), width + padding - j * stride)):
                        pixel, tap = x[n, i * stride + a - padding, j * stride + b - padding], w[a, b]
                        for c in range(channels):
                            out[c] += pixel[c] * tap[c]


@numba.njit(nogil=True, fastmath={"contract"})
def _backward(x, w, grad, stride, padding, grad_x, grad_w):
    """Fill grad_x (B, H, W, C) and add to grad_w (k, k, C), from grad (B, H', W', C)."""
    height, width, channels = x.shape[1:]
    grad_x[:] = 0
    for n in range(len(grad)):
        for i in range(grad.shape[1]):
            for a in range(max(0, padding - i * stride), min(len(w), height + padding - i * stride)):
                row = i * stride + a - padding
                for j in range(grad.shape[2]):
                    out = grad[n, i, j]
                    for b in range(max(0, padding - j * stride), min(len(w), width + padding - j * stride)):
                        column = j * stride + b - padding
                        pixel, tap = x[n, row, column], w[a, b]
                        of_pixel, of_tap = grad_x[n, row, column], grad_w[a, b]
                        for c in range(channels):
                            of_pixel[c] += out[c] * tap[c]
                            of_tap[c] += out[c] * pixel[c]
