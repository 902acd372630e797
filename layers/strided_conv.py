"""A convolution with stride whose weight gradient is one matrix product.

On CPUs, oneDNN's own weight gradient of strided bf16 convolutions takes several times as long as the products in it
(docs/PERFORMANCE.md); here the patches are laid out and multiplied once. Elsewhere it is a plain convolution.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class StridedConv2d(nn.Conv2d):
    """`nn.Conv2d` in every number, up to rounding, for square kernels without bias, groups or dilation."""

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.device.type == "cpu" and torch.is_autocast_enabled("cpu")):
            return super().forward(x)
        low = torch.get_autocast_dtype("cpu")
        return _Convolution.apply(x.to(low), self.weight.to(low), self.stride[0], self.padding[0])


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = stride, padding
        return functional.conv2d(x, weight, None, stride, padding)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight = ctx.saved_tensors
        stride, padding = ctx.geometry
        out, channels, side, _ = weight.shape
        grad_x = torch.nn.grad.conv2d_input(x.shape, weight, grad, stride, padding)
        rows = functional.pad(x, (padding,) * 4).permute(0, 2, 3, 1)
        patches = rows.unfold(1, side, stride).unfold(2, side, stride).permute(0, 1, 2, 4, 5, 3)
        product = grad.permute(0, 2, 3, 1).reshape(-1, out).T @ patches.reshape(-1, side * side * channels)
        return grad_x, product.view(out, side, side, channels).permute(0, 3, 1, 2), None, None
