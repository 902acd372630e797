"""Batch normalisation by statistics that do not change: in evaluation, or, its scale and shift still learning, those
that a pretrained network came with.

The normalisation of a convolution's output is then a convolution of its own:

    gamma (W x - mean) / std + beta = (W gamma / std) x + (beta - gamma mean / std)

so that the pass over the feature map, forward and backward, is saved: nearly a third of a training step of a small
network on a CPU. Weights keep the names of the network's library.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@contextlib.contextmanager
def folded(net: nn.Module, images: Tensor) -> Iterator[None]:
    """Within it the network, in evaluation, has its normalisations folded; `images` as in `fold_norms`."""
    replaced = fold_norms(net, images)
    try:
        yield
    finally:
        for path, module in replaced.items():
            net.set_submodule(path, module)


def fold_norms(net: nn.Module, images: Tensor) -> dict[str, nn.Module]:
    """Fold every normalisation of a plain convolution's output into that convolution, in place -> what was replaced.

    A pass of `images` (1, 3, S, S) shows which follow which. Other normalisations stay as they are.
    """
    convolutions: dict[int, tuple[Tensor, nn.Conv2d]] = {}  # by the tensor that each gives, which is kept alive
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def note_output(conv: nn.Module, _: Any, output: Tensor) -> None:
        convolutions[id(output)] = output, conv

    def note_input(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        if id(inputs[0]) in convolutions:
            pairs.append((convolutions[id(inputs[0])][1], norm))

    hooks = [module.register_forward_hook(note_output) for module in net.modules() if _is_plain(module)]
    hooks += [m.register_forward_pre_hook(note_input) for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        net.eval()(images)
    for hook in hooks:
        hook.remove()
    path_of = {module: path for path, module in net.named_modules()}
    for conv, norm in pairs:
        rest = FoldedNorm(norm)
        net.set_submodule(path_of[norm], rest)
        net.set_submodule(path_of[conv], FoldedConv2d(conv, rest))
    return {path_of[module]: module for pair in pairs for module in pair}


def _is_plain(module: nn.Module) -> bool:
    """A convolution without bias that is PyTorch's own, ours, or timm's that pads as TensorFlow does."""
    plain = "Conv2d", "StridedConv2d", "Conv2dSame"
    return type(module).__name__ in plain and module.bias is None and module.padding_mode == "zeros"


class FoldedConv2d(nn.Conv2d):
    """A convolution and the normalisation of what it gives, as one convolution."""

    def __init__(self, conv: nn.Conv2d, norm: FoldedNorm) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            bias=False,
            device="meta",
        )
        self.weight = conv.weight
        self.same = type(conv).__name__ == "Conv2dSame"
        self.norm = [norm]  # in a list: it is a part of the network at its own place

    def forward(self, x: Tensor) -> Tensor:
        norm, padding = self.norm[0], self.padding
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        weight, shift = self.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale
        if x.device.type == "cpu" and torch.is_grad_enabled() and self._is_square_depthwise(x):
            return self._depthwise(x, weight, shift)
        if self.same:
            from timm.layers import pad_same

            x, padding = pad_same(x, self.kernel_size, self.stride, self.dilation), 0
        return functional.conv2d(x, weight, shift, self.stride, padding, self.dilation, self.groups)

    def _is_square_depthwise(self, x: Tensor) -> bool:
        pairs = self.kernel_size, self.stride, x.shape[2:], self.padding  # the last may be a word
        square = all(one[0] == one[1] for one in pairs) and self.dilation == (1, 1)
        return square and self.groups == self.in_channels == self.out_channels

    def _depthwise(self, x: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
        from layers.depthwise import depthwise

        side, kernel, stride = x.shape[2], self.kernel_size[0], self.stride[0]
        if self.same:
            out = -(-side // stride)
            return depthwise(x, weight, shift, stride, max((out - 1) * stride + kernel - side, 0) // 2, out)
        padding = self.padding[0]
        return depthwise(x, weight, shift, stride, padding, (side + 2 * padding - kernel) // stride + 1)


class FoldedNorm(nn.Module):
    """What is left of a normalisation: its weights, and its activation where it has one (timm's)."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.eps, self.weight, self.bias = norm.eps, norm.weight, norm.bias
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        self.act = getattr(norm, "act", nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)
