"""A GPU that is not there: whole commands run as if on it, and every wait and every mix of devices is recorded.

Tensors on the GPU are CPU tensors whose storage carries a mark. Python sees `tensor.device` as the GPU and takes its
branches; the kernels, autocast and the random numbers are the CPU's.

    with PretendGPU() as gpu, gpu.within("training"): ...
    gpu.found("mixed")      {(phase, operation, place): how often}

    mixed    an operation of tensors on both devices: a real GPU raises
    wait     the CPU waits for the GPU: a number is read, or a copy blocks or is not from pinned memory
    copy     a copy to or from the GPU that does not wait
    kernel   any other operation on the GPU that is no view: one launch or more

What C++ decides by the device of a tensor is decided as on a CPU, and no kernel of a GPU is run. Marks are per thread:
a thread of its own sees plain CPU tensors.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self
from unittest import mock

import torch
from torch import Tensor, var_mean
from torch.nn.utils import clip_grad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from util import transforms
from utils import ROOT

CPU, BASE = torch.device("cpu"), torch._C.TensorBase
# Their results depend on the contents of tensors, so the CPU has to see these.
READS = {"nonzero", "masked_select", "unique_dim", "_unique2", "_local_scalar_dense", "bincount", "equal", "is_nonzero"}
LENGTHS_ON_CPU = {"_pack_padded_sequence", "_pad_packed_sequence", "_pack_padded_sequence_backward"}
WRAPPERS = (__file__, "torch/_compile.py", "torch/_dynamo/eval_frame.py")  # around an operation that C++ asks for
NO_LAUNCH = {"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "detach", "alias", "lift_fresh"}


# ---------------------------------------------------------------- fused batch norm, of CUDA alone

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

# ---------------------------------------------------------------- the GPU


class Event(NamedTuple):
    """One operation: its kind, the phase of the run, its name, and the function of the project that asked for it."""

    kind: str
    phase: str
    operation: str
    place: str


def on_gpu(tensor: Tensor) -> bool:
    """Return whether the storage of a tensor carries the mark."""
    try:
        return getattr(tensor.untyped_storage(), "on_gpu", False)
    except (RuntimeError, NotImplementedError):  # a tensor without storage
        return False


def mark(tensor: Tensor, gpu: bool = True) -> Tensor:
    tensor.untyped_storage().on_gpu = gpu
    return tensor


def pinned(tensor: Tensor) -> bool:
    return getattr(tensor.untyped_storage(), "is_pinned_", False)


def place() -> str:
    """Return file and function of the project's innermost frame."""
    frame, root = sys._getframe(1), str(ROOT)
    while frame and (
        frame.f_code.co_filename == __file__
        or "site-packages" in frame.f_code.co_filename  # .venv may stand in the project
        or not frame.f_code.co_filename.startswith(root)
    ):
        frame = frame.f_back
    return f"{frame.f_code.co_filename[len(root) + 1 :]} {frame.f_code.co_name}" if frame else "?"


def in_backward() -> bool:
    """Return whether C++ asks, on the way back: all it makes there is on the device of the gradients."""
    frame = sys._getframe(1)
    while frame and frame.f_code.co_filename.endswith(WRAPPERS):
        frame = frame.f_back
    return bool(frame) and frame.f_code.co_name == "_engine_run_backward"


class PretendGPU(TorchDispatchMode):
    """Stand for `cards` GPUs, of which this process uses the one of number `index`."""

    def __init__(self, index: int = 0, cards: int = 1, kind: str = "cuda") -> None:
        super().__init__()
        self.device, self.cards = torch.device(kind, index), cards
        self.events: list[Event] = []
        self.phase = "start"

    @contextlib.contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """Give what happens within this context a name."""
        before, self.phase = self.phase, phase
        yield
        self.phase = before

    def wrapped(self, function: Callable, phase: str) -> Callable:
        """Return the function with a phase of its own."""

        def run(*args: Any, **kwargs: Any) -> Any:
            with self.within(phase):
                return function(*args, **kwargs)

        return run

    def found(self, kind: str, phase: str | None = None) -> dict[tuple[str, str, str], int]:
        """Count the events of a kind: (phase, operation, place) -> how often."""
        return Counter(event[1:] for event in self.events if event.kind == kind and phase in (None, event.phase))

    def note(self, kind: str, operation: str) -> None:
        self.events.append(Event(kind, self.phase, operation, "" if kind == "kernel" else place()))

    # ------------------------------------------------------------ operations

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, name = dict(kwargs or {}), func._schema.name.split("::")[1]
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if name == "is_pinned":
            return pinned(args[0])
        pin = kwargs.pop("pin_memory", None) or name == "_pin_memory"
        func = torch.ops.aten.clone.default if name == "_pin_memory" else func
        wanted = kwargs.get("device")
        to_gpu = wanted is not None and wanted.type == self.device.type
        if to_gpu:
            kwargs["device"] = CPU
        marked = [on_gpu(x) for x in tensors]
        here = any(marked)
        back = in_backward()
        result_here = to_gpu or back or (here and (wanted is None or name.startswith("new_") or name.endswith("_like")))
        result_here &= not pin  # what is pinned is on the CPU
        if name == "_to_copy" and not here:
            if to_gpu:
                self.note_copy(args[0], kwargs.get("non_blocking"))
        elif name == "copy_" and marked[0] != marked[1] and args[1].dim() and not back:
            non_blocking = kwargs.get("non_blocking") or args[2:] == (True,)
            if marked[0]:
                self.note_copy(args[1], non_blocking)
            else:
                self.note("copy" if non_blocking and pinned(args[0]) else "wait", "copy to the CPU")
        elif here:
            self.note_faults(name, args, [x for x, m in zip(tensors, marked, strict=True) if not m and x.numel()])
        out = CUDA_ALONE.get(name, func)(*args, **kwargs)
        results = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if name in LENGTHS_ON_CPU:
            results = results[:1]
        if pin:
            for result in results:
                result.untyped_storage().is_pinned_ = True
        if result_here:
            view = not func._schema.is_mutable and any(
                r.untyped_storage()._cdata == x.untyped_storage()._cdata for r in results for x in tensors
            )
            if results and not view and name not in NO_LAUNCH | READS and not (name == "_to_copy" and not here):
                self.note("kernel", name)
            for result in results:
                mark(result)
        elif here and name not in READS:
            self.note("kernel", name)
        return out

    def note_copy(self, source: Tensor, non_blocking: bool | None) -> None:
        why = "not from pinned memory" if not pinned(source) else "" if non_blocking else "blocking"
        self.note("wait" if why else "copy", f"copy to the GPU{why and ', '}{why}")

    def note_faults(self, name: str, args: tuple, others: list[Tensor]) -> None:
        """Note what is amiss with an operation on the GPU; `others` are its tensors that are not there."""
        if name == "index" or name.startswith("index_put"):
            if any(x.dtype in (torch.bool, torch.uint8) for x in tree_leaves(args[1]) if isinstance(x, Tensor)):
                self.note("wait", f"{name} by a mask")
            if others:
                self.note("wait", f"{name} by an index on the CPU")
        elif any(x.dim() for x in others) and name not in LENGTHS_ON_CPU:
            self.note("mixed", name)
        if name in READS:
            self.note("wait", name)

    # ------------------------------------------------------------ what Python asks

    def __enter__(self) -> Self:
        gpu, here, real = self, self.device, BASE.device
        self._patches = contextlib.ExitStack()

        def device(tensor: Tensor) -> torch.device:
            found = real.__get__(tensor)
            return here if found == CPU and on_gpu(tensor) else found

        def cpu(tensor: Tensor, *_: Any, **__: Any) -> Tensor:
            if not on_gpu(tensor):
                return tensor
            gpu.note("wait", "copy to the CPU")
            return mark(BASE.clone(tensor), gpu=False)

        def to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            target = kwargs.pop("device", args[0] if args else None)
            target = target.device if isinstance(target, Tensor) else target
            if not isinstance(target, str | torch.device):
                return BASE.to(tensor, *args, **kwargs)
            target, rest = torch.device(target), args[1:]
            if on_gpu(tensor):
                if target == CPU and kwargs.get("non_blocking"):
                    return mark(BASE.clone(tensor), gpu=False)
                moved = cpu(tensor) if target == CPU else tensor
                kwargs.pop("non_blocking", None)
                rest = [x for x in rest if not isinstance(x, bool)]
                return BASE.to(moved, *rest, **kwargs) if rest or set(kwargs) & {"dtype", "memory_format"} else moved
            return BASE.to(tensor, here if target.type == here.type else target, *rest, **kwargs)

        def refuse(name: str) -> Callable:
            plain = getattr(Tensor, name)

            def method(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
                if on_gpu(tensor):
                    raise TypeError(f"can't convert {here} device type tensor to numpy")
                return plain(tensor, *args, **kwargs)

            return method

        def tolist(tensor: Tensor) -> list:
            if on_gpu(tensor):
                gpu.note("wait", "tolist")
            return BASE.tolist(tensor)

        group = clip_grad._group_tensors_by_device_and_dtype

        def by_device(lists: list[list[Tensor]], *args: Any) -> dict:
            return {(value[0][0][0].device, dtype): value for (_, dtype), value in group(lists, *args).items()}

        self._set(Tensor, device=property(device), is_cuda=property(lambda tensor: device(tensor).type == "cuda"))
        self._set(Tensor, cpu=cpu, to=to, tolist=tolist, numpy=refuse("numpy"), __array__=refuse("__array__"))
        autocast, enabled, low = torch.autocast, torch.is_autocast_enabled, torch.get_autocast_dtype
        of = {here.type: "cpu"}
        self._set(
            torch,
            autocast=lambda kind, *args, **kwargs: autocast(of.get(kind, kind), *args, **kwargs),
            is_autocast_enabled=lambda kind=here.type: enabled(of.get(kind, kind)),
            get_autocast_dtype=lambda kind: low(of.get(kind, kind)),
        )
        self._set(clip_grad, _group_tensors_by_device_and_dtype=by_device)
        self._set(torch.nn.RNNBase, flatten_parameters=lambda _: None)
        self._set(torch.accelerator, is_available=lambda *_, **__: False)  # the loader would pin in a thread
        self._set(torch.optim.Optimizer, _accelerator_graph_capture_health_check=lambda _: None)
        self._set(torch.cuda.amp.common, amp_definitely_not_available=lambda: False)
        cuda = here.type == "cuda"
        self._set(torch.backends.mps, is_available=functools.cache(lambda: not cuda))  # Dynamo wants a __wrapped__
        self._set(torch.cuda, is_available=lambda: cuda, device_count=lambda: gpu.cards if cuda else 0)
        self._set(torch.cuda, _lazy_init=lambda: None, set_device=lambda _: None, synchronize=lambda *_: None)
        self._set(torch.cuda, current_device=lambda: here.index, get_device_name=lambda *_: "Pretended GPU")
        self._set(torch.cuda, get_device_capability=lambda *_: (9, 0), manual_seed_all=lambda _: None)
        self._set(torch.cuda, mem_get_info=lambda *_: (80 << 30, 80 << 30))
        transforms._constants.cache_clear()
        self._patches.callback(transforms._constants.cache_clear)
        return super().__enter__()

    def _set(self, owner: Any, **values: Any) -> None:
        """Replace attributes until the end."""
        for name, value in values.items():
            self._patches.enter_context(mock.patch.object(owner, name, value, create=True))

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._patches.close()
