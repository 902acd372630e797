"""On a GPU: the numbers of the CPU, and training steps that wait for nothing.

Where there is no GPU, tensors without contents stand in for those on it, and show where tensors of two devices meet and
where the CPU would wait. What needs a real GPU is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

from bench.eval import our_evaluation
from bench.train import new_model, our_gradients, settings, train_data, worst_gradient
from data import MemoryPixels
from engine import make_optimizer, prepare, train_epoch
from layers.gru import _Recurrence, pack
from util import transforms
from util.transforms import augment, draw_augmentation

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
GPU, CPU = torch.device("cuda"), torch.device("cpu")
SMALL = ("dataset.batch_size=32", "dataset.image_size=64", "model.seq2vec.hidden_dim=64",
         "model.seq2vec.embedding_dim=32")  # fmt: skip

# ---------------------------------------------------------------- without a GPU


class SimulatedGPU(FakeTensorMode):
    """Tensors on `cuda` have shape and type, no contents; those on the CPU are real. `faults` collects what is amiss.

    To read a number from the GPU raises, as there is none.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.faults: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._pin_memory.default:
            return args[0]
        if func is torch.ops.aten.is_pinned.default:
            return False
        kwargs.pop("pin_memory", None)
        leaves = tree_leaves((args, kwargs))
        ours = [x for x in leaves if isinstance(x, torch.Tensor) and not isinstance(x, FakeTensor) and x.dim()]
        devices = {x.type for x in leaves if isinstance(x, torch.device)}
        if "cuda" not in devices and not any(isinstance(x, FakeTensor) for x in leaves):
            return func(*args, **kwargs)
        if func is torch.ops.aten._to_copy.default:
            if not kwargs.get("non_blocking") and "device" in kwargs:
                self.faults.append("a copy that waits")
        elif ours:
            self.faults.append(f"{func} of tensors on both devices")
        return super().__torch_dispatch__(func, types, args, kwargs)


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedGPU]:
    if torch.cuda.is_available():
        pytest.skip("there is a real GPU")
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_: True)
    transforms._mean_and_std.cache_clear()
    with SimulatedGPU() as gpu:
        yield gpu
    transforms._mean_and_std.cache_clear()


def put_on(module: nn.Module, device: torch.device) -> None:
    """As `module.to(device)`, which cannot put simulated tensors in the place of real ones."""
    for part in module.modules():
        for name, tensor in part._parameters.items():
            if tensor is not None:
                part._parameters[name] = nn.Parameter(tensor.detach().to(device), requires_grad=tensor.requires_grad)
        for name, tensor in part._buffers.items():
            part._buffers[name] = tensor.to(device)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("place", [GPU, CPU])
def test_a_step_up_to_its_loss_waits_nowhere_and_keeps_to_its_device(place, precision, simulated, monkeypatch) -> None:
    options = settings(SMALL, precision)
    model, there = new_model(options), train_data(options, CPU)
    put_on(model, GPU)
    there = there._replace(token_ids=there.token_ids.to(GPU), pixels=MemoryPixels(there.pixels.pixels.to(place)))
    simulated.faults.clear()
    monkeypatch.setattr(torch.Tensor, "backward", lambda _: None)  # PyTorch's engine wants a real GPU
    losses = [step.loss for step in train_epoch(model, there, options, make_optimizer(model), 0, 0)]
    assert [loss.device.type for loss in losses] == ["cuda"] * len(losses)
    assert simulated.faults == []


def test_the_backward_pass_of_the_gru_keeps_to_its_device(simulated) -> None:
    lengths = torch.tensor([3, 5, 1, 4])
    packing = pack(lengths, 6, GPU)
    context = SimpleNamespace(needs_input_grad=(True, True, False, False))
    context.save_for_backward = lambda *tensors: setattr(context, "saved_tensors", tensors)
    gates, weight, mask = (torch.ones(3, n, 24, device=GPU) for n in (13, 24, 4))
    last = _Recurrence.forward(context, gates, weight, mask, packing, True)
    gradients = _Recurrence.backward(context, torch.ones_like(last))
    assert [gradient.device.type for gradient in gradients[:2]] == ["cuda", "cuda"]
    assert simulated.faults == []


def test_the_simulation_sees_what_is_amiss(simulated) -> None:
    there = torch.tensor([1.0, 2.0], device=GPU)
    assert simulated.faults == ["a copy that waits"]
    with pytest.raises(RuntimeError, match="same device"):
        there + torch.ones(2)
    assert "both devices" in simulated.faults[1]
    with pytest.raises(DataDependentOutputException):
        there.sum().item()


# ---------------------------------------------------------------- with one


@needs_gpu
def test_training_images_are_those_of_the_cpu() -> None:
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (9, 278, 278, 3), np.uint8))
    drawn = draw_augmentation(rng, len(pixels), 256)
    places = torch.arange(8, -1, -1)
    there = augment(pixels.to(GPU), places.to(GPU), drawn, 256)
    torch.testing.assert_close(there.cpu(), augment(pixels, places, drawn, 256), rtol=0, atol=1e-6)


@needs_gpu
def test_gradients_in_float32_are_those_of_the_cpu() -> None:
    name, apart = worst_gradient(our_gradients(SMALL, GPU)(), our_gradients(SMALL, CPU)())
    assert apart < 1e-3, name


@needs_gpu
@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-5), ("bf16", 1e-2)])
def test_similarities_are_those_of_the_cpu(precision: str, limit: float) -> None:
    ours, expected = (our_evaluation(SMALL, 20, *how)() for how in ((precision, GPU), ("fp32", CPU)))
    assert np.abs(ours - expected).max() < limit


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("place", [GPU, CPU])
def test_a_training_step_waits_for_the_gpu_nowhere(place: torch.device, precision: str) -> None:
    """Wherever the decoded images stand: the GPU would be idle while the next step is being prepared."""
    options = settings(SMALL, precision)
    model, there = prepare(new_model(options), options, GPU), train_data(options, GPU)
    there = there._replace(pixels=MemoryPixels(there.pixels.pixels.to(place)))
    steps = train_epoch(model, there, options, make_optimizer(model), 0, 0)
    next(steps)
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = [next(steps).loss for _ in range(3)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.stack(losses).isfinite().all()


@needs_gpu
def test_a_run_trains_resumes_and_is_tested(work, run) -> None:
    train = "train.py --path_opt tiny.yaml --device cuda --set optim.precision=bf16"
    assert run(f"{train} optim.epochs=1").status == 0
    assert run(f"{train} --resume --force").status == 0
    assert run("test.py --path_opt tiny.yaml --device cuda").status == 0
