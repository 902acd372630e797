"""Everything whose only purpose is speed on a CPU; on another device the plain formula runs.

A frozen batch norm alone is fused everywhere, for it is fused before the model moves to its device.

    fuse_norms        batch norm with fixed statistics, fused into the convolution before it
    depthwise         backward pass of a depthwise convolution, as one compiled loop
    mvsa_low          the strided convolution of MVSA without its concatenated and upsampled input
    rotate_crop_normalise   augmentation of the published protocol, as one compiled pass
    reuse_memory      freed memory stays with the process

docs/notes/performance.md says what each gains.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


def on_cpu(x: Tensor) -> bool:
    """Return whether the code of this file is for this tensor."""
    return x.device.type == "cpu"


def reuse_memory() -> None:
    """Have the C library keep freed memory for the next step.

    Otherwise every large tensor is mapped, filled with zeros by the kernel page by page, and unmapped again.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library, or Windows: no harm
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, top_pad, mmap_max = -1, -2, -4  # names of malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)
        mallopt(top_pad, 512 * 2**20)


# ---------------------------------------------------------------- batch norm with fixed statistics


@contextlib.contextmanager
def fused(net: nn.Module, images: Tensor) -> Iterator[None]:
    """Fuse the batch norms of a network in evaluation within this context; `images` as in `fuse_norms`."""
    if not on_cpu(images):
        yield
        return
    replaced = fuse_norms(net, images)
    try:
        yield
    finally:
        for path, module in replaced.items():
            net.set_submodule(path, module)


def fuse_norms(net: nn.Module, images: Tensor) -> dict[str, nn.Module]:
    """Fuse every batch norm into the plain convolution before it, in place; return the modules replaced, by path.

    With fixed statistics the two are one convolution, whose scale and shift can still learn:

        gamma (W x - mean) / std + beta = (W gamma / std) x + (beta - gamma mean / std)

    so that a pass over the feature map, forward and backward, is saved. One pass of `images` (1, 3, S, S) shows which
    norm follows which convolution. Parameters keep their names.
    """
    convolutions: dict[int, tuple[Tensor, nn.Conv2d]] = {}  # by the id of its output, which is kept alive
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
        rest = FusedNorm(norm)
        net.set_submodule(path_of[norm], rest)
        net.set_submodule(path_of[conv], FusedConv2d(conv, rest))
    return {path_of[module]: module for pair in pairs for module in pair}


def _is_plain(module: nn.Module) -> bool:
    """Return whether this is a convolution without bias: PyTorch's, or timm's that pads as TensorFlow does."""
    return type(module).__name__ in ("Conv2d", "Conv2dSame") and module.bias is None and module.padding_mode == "zeros"


class FusedNorm(nn.Module):
    """The remains of a fused batch norm: its parameters, and its activation if it has one (timm's)."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.eps, self.weight, self.bias = norm.eps, norm.weight, norm.bias
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        self.act = getattr(norm, "act", nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)


class FusedConv2d(nn.Conv2d):
    """A convolution and the batch norm of its output, as one convolution."""

    def __init__(self, conv: nn.Conv2d, norm: FusedNorm) -> None:
        geometry = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
        super().__init__(conv.in_channels, conv.out_channels, *geometry, bias=False, device="meta")
        self.weight = conv.weight
        self.same = type(conv).__name__ == "Conv2dSame"
        self.norm = [norm]  # in a list: it is a submodule of the network at its own place

    def forward(self, x: Tensor) -> Tensor:
        norm, padding = self.norm[0], self.padding
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        weight, shift = self.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale
        if self.same:
            from timm.layers import pad_same

            x, padding = pad_same(x, self.kernel_size, self.stride, self.dilation), (0, 0)
        if on_cpu(x) and torch.is_grad_enabled() and self._is_depthwise():
            return depthwise(x, weight, shift, self.stride[0], padding[0])
        return functional.conv2d(x, weight, shift, self.stride, padding, self.dilation, self.groups)

    def _is_depthwise(self) -> bool:
        pairs = self.kernel_size, self.stride, self.padding  # the last may be a word
        square = all(one[0] == one[1] for one in pairs) and self.dilation == (1, 1)
        return square and self.groups == self.in_channels == self.out_channels


# ---------------------------------------------------------------- depthwise convolution

PARTS = 8  # of a batch; sums over the parts do not depend on the number of threads


def depthwise(x: Tensor, weight: Tensor, shift: Tensor, stride: int, padding: int) -> Tensor:
    """Convolve x (B, C, H, W) with weight (C, 1, k, k), plus shift (C,), in float32.

    oneDNN's backward passes of depthwise convolutions run far below what memory allows; here one compiled loop takes
    both gradients, innermost over the channels, which lie side by side in memory.
    """
    return _Depthwise.apply(x.float(), weight.float(), shift.float(), stride, padding)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, shift: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.place = stride, padding
        return functional.conv2d(x, weight, shift, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = torch.empty_like(x, memory_format=torch.channels_last)
        arrays = [one.permute(0, 2, 3, 1).detach().contiguous().numpy() for one in (x, grad, grad_x)]  # channels last
        taps = weight[:, 0].permute(1, 2, 0).detach().contiguous().numpy()
        grad_taps, run = np.zeros((PARTS, *taps.shape), np.float32), _compiled()
        bounds = [len(x) * index // PARTS for index in range(PARTS + 1)]

        def one_part(index: int) -> None:
            run(*(one[bounds[index] : bounds[index + 1]] for one in arrays), taps, grad_taps[index], *ctx.place)

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(one_part, range(PARTS)))
        grad_weight = torch.from_numpy(grad_taps.sum(0)).permute(2, 0, 1)[:, None]
        return grad_x, grad_weight, grad.sum((0, 2, 3)), None, None


@functools.cache
def _compiled() -> Callable:
    """Compile the loop; numba takes a second to import."""
    import numba

    @numba.njit(nogil=True, fastmath={"contract"})
    def backward(x, grad, grad_x, w, grad_w, stride, padding):
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
                            grad_pixel, grad_tap = grad_x[n, row, column], grad_w[a, b]
                            for c in range(channels):
                                grad_pixel[c] += out[c] * tap[c]
                                grad_tap[c] += out[c] * pixel[c]

    return backward


# ---------------------------------------------------------------- augmentation


def rotate_crop_normalise(pixels: Tensor, rows: Tensor, steps: np.ndarray, values: Tensor, image_size: int) -> Tensor:
    """Rotate, crop and normalise the images `rows` (B,) of pixels (N, R, R, 3) uint8 -> (B, 3, S, S), channels last.

    steps (B, 6): as util/transforms.py works them out; values (3, 256): each value of a channel, normalised.
    """
    if not ((rows >= 0) & (rows < len(pixels))).all():  # compiled loops would read what is not theirs
        raise IndexError(f"rows of images out of range: {rows.min()} to {rows.max()} of {len(pixels)}")
    out = torch.empty(len(rows), image_size, image_size, 3)
    threads = torch.get_num_threads()
    parts = (np.array_split(array, threads) for array in (rows.numpy(), steps, out.numpy()))
    work = functools.partial(_compiled_rotation(), values.numpy(), pixels.contiguous().numpy())
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, *parts))
    return out.permute(0, 3, 1, 2)


@functools.cache
def _compiled_rotation() -> Callable:
    """Compile the loops; array expressions would take seconds to compile."""
    import numba

    @numba.njit(nogil=True)
    def rotate(values, pixels, rows, steps, out):
        """Fill out (B, S, S, 3), row by row: first where its pixels come from, then their values."""
        side, size = pixels.shape[1], out.shape[1]
        image = np.zeros((side**2 + 1, 3), np.uint8)  # its last pixel, black, stands for all outside
        source = np.empty(size, np.int64)
        for i in range(len(out)):
            whole = pixels[rows[i]].reshape(-1, 3)
            for place in range(side**2):
                for channel in range(3):
                    image[place, channel] = whole[place, channel]
            a, b, c, d, e, f = steps[i]
            for row in range(size):
                for column in range(size):
                    x = (a * column + b * row + c) >> 16
                    y = (d * column + e * row + f) >> 16
                    inside = (x >= 0) & (x < side) & (y >= 0) & (y < side)
                    source[column] = y * side + x if inside else side**2
                for column in range(size):
                    for channel in range(3):
                        out[i, row, column, channel] = values[channel, image[source[column], channel]]

    return rotate


# ---------------------------------------------------------------- MVSA


def mvsa_low(conv: nn.Conv2d, f1: Tensor, f2: Tensor) -> Tensor:
    """Return conv([f1; up(f2)]) of a 3x3 convolution with stride 4, without laying out its input.

    A convolution of a concatenation is the sum of its parts' convolutions; and one of an upsampled map is one of the
    map itself with its taps summed: taps 0, 1, 2 meet pixels 0, 0, 1 of every other one of f2.
    """
    taps_1, taps_2 = conv.weight.permute(0, 2, 3, 1).split((f1.shape[1], f2.shape[1]), dim=3)
    taps_2 = torch.stack((taps_2[:, :2].sum(1), taps_2[:, 2]), dim=1)
    taps_2 = torch.stack((taps_2[:, :, :2].sum(2), taps_2[:, :, 2]), dim=2)
    a = functional.linear(_patches(f1, 4, 3), taps_1.flatten(1), conv.bias)
    a = a + functional.linear(_patches(f2, 2, 2), taps_2.flatten(1))
    return a.permute(0, 3, 1, 2)


def mvsa_high(conv: nn.Conv2d, f3: Tensor, f4: Tensor) -> Tensor:
    """Return conv([f3; up(f4)]) of a 1x1 convolution, without laying out its input."""
    weight_3, weight_4 = conv.weight.split((f3.shape[1], f4.shape[1]), dim=1)
    deep = functional.interpolate(functional.conv2d(f4, weight_4), scale_factor=2)
    return functional.conv2d(f3, weight_3, conv.bias) + deep


def _patches(x: Tensor, stride: int, side: int) -> Tensor:
    """Cut patches that do not overlap: (B, C, H, W) -> (B, H / stride, W / stride, side * side * C)."""
    x = x.permute(0, 2, 3, 1).unflatten(2, (-1, stride)).unflatten(1, (-1, stride))
    return x[:, :, :side, :, :side].permute(0, 1, 3, 2, 4, 5).flatten(3)
