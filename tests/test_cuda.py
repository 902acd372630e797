"""On a GPU: the numbers of the CPU, and training steps that wait for nothing.

Where there is no GPU, tensors without contents stand in for those on it, and show where tensors of two devices meet and
where the CPU would wait. What needs a real GPU is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from gradients import our_gradients, worst_gradient
from PIL import Image
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

from bench.eval import our_evaluation
from bench.train import new_model, settings, train_data, train_epoch
from data import Data, image_batches
from engine import make_optimizer, prepare
from layers.gru import pack, recurrence
from option.options import Options
from util import transforms
from util.pixels import FilePixels, MemoryPixels
from util.transforms import augment, draw_augmentation

pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
GPU, CPU = torch.device("cuda"), torch.device("cpu")
SMALL = (
    "dataset.batch_size=32",
    "dataset.image_size=64",
    "model.seq2vec.hidden_dim=64",
    "model.seq2vec.embedding_dim=32",
)

# ---------------------------------------------------------------- without a GPU


class SimulatedGPU(FakeTensorMode):
    """Tensors on `cuda` have shape and type, no contents; those on the CPU are real. `faults` collects what is amiss.

    To read a number from the GPU raises, as there is none.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.faults: list[str] = []
        self.pinned: list[torch.Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._pin_memory.default:
            self.pinned.append(args[0].clone())
            return self.pinned[-1]
        if func is torch.ops.aten.is_pinned.default:
            return self.is_pinned(args[0])
        if kwargs.pop("pin_memory", None):
            self.pinned.append(func(*args, **kwargs))
            return self.pinned[-1]
        leaves = tree_leaves((args, kwargs))
        ours = [x for x in leaves if isinstance(x, torch.Tensor) and not isinstance(x, FakeTensor) and x.dim()]
        devices = {x.type for x in leaves if isinstance(x, torch.device)}
        if "cuda" not in devices and not any(isinstance(x, FakeTensor) for x in leaves):
            return func(*args, **kwargs)
        if func is torch.ops.aten._to_copy.default:
            if not kwargs.get("non_blocking") and "device" in kwargs:
                self.faults.append("a copy that waits")
            elif ours and "cuda" in devices and not self.is_pinned(args[0]):
                self.faults.append("a copy that waits, as the memory is not pinned")
        elif ours:
            self.faults.append(f"{func} of tensors on both devices")
        return super().__torch_dispatch__(func, types, args, kwargs)

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in {one.untyped_storage().data_ptr() for one in self.pinned}


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedGPU]:
    if torch.cuda.is_available():
        pytest.skip("there is a real GPU")
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_: True)
    transforms._constants.cache_clear()
    with SimulatedGPU() as gpu:
        yield gpu
    transforms._constants.cache_clear()


def put_on(module: nn.Module, device: torch.device) -> None:
    """Do what `module.to(device)` does, which cannot put simulated tensors in the place of real ones."""
    for part in module.modules():
        for name, tensor in part._parameters.items():
            if tensor is not None:
                part._parameters[name] = nn.Parameter(tensor.detach().to(device), requires_grad=tensor.requires_grad)
        for name, tensor in part._buffers.items():
            part._buffers[name] = tensor.to(device)


def data_from(place: str, options: Options, folder: Path) -> Data:
    """Return training data on the GPU, its images there, in the CPU's memory, or in files."""
    there = train_data(options, CPU)
    pixels = there.pixels.pixels
    if place == "files":
        paths = [str(folder / f"{i}.png") for i in range(len(pixels))]
        for path, image in zip(paths, pixels, strict=True):
            Image.fromarray(image.numpy()).save(path)
        source = FilePixels(paths, pixels.shape[1], 0)
    else:
        source = MemoryPixels(pixels.to(GPU if place == "gpu" else CPU))
    return there._replace(token_ids=there.token_ids.to(GPU), pixels=source)


@pytest.mark.parametrize(("place", "precision"), [("gpu", "bf16"), ("cpu", "fp32"), ("files", "bf16")])
def test_a_step_up_to_its_loss_waits_nowhere_and_keeps_to_its_device(
    place, precision, simulated, monkeypatch, tmp_path
) -> None:
    options = settings(SMALL, precision)
    model, there = new_model(options), data_from(place, options, tmp_path)
    put_on(model, GPU)
    simulated.faults.clear()
    monkeypatch.setattr(torch.Tensor, "backward", lambda _: None)  # PyTorch's engine wants a real GPU
    losses = list(train_epoch(model, there, options, make_optimizer(model, options.optim)))
    assert [loss.device.type for loss in losses] == ["cuda"] * len(losses)
    assert simulated.faults == []


@pytest.mark.parametrize("place", ["gpu", "cpu", "files"])
def test_images_to_be_encoded_come_to_the_gpu_without_waiting(place, simulated, tmp_path) -> None:
    there = data_from(place, settings(SMALL), tmp_path)
    simulated.faults.clear()
    for batch in image_batches(there, 50):
        assert [tensor.device.type for tensor in batch] == ["cuda"] * 3
    assert simulated.faults == []


def test_the_recurrence_of_the_gru_keeps_to_its_device(simulated) -> None:
    packing = pack(torch.tensor([3, 5, 1, 4]), 6, GPU)
    gates, weight, mask = (torch.ones(3, n, 24, device=GPU) for n in (13, 24, 4))
    assert recurrence(gates, weight, mask, packing.sizes).device.type == "cuda"
    assert simulated.faults == []


def test_the_simulation_sees_what_is_amiss(simulated) -> None:
    there = torch.tensor([1.0, 2.0], device=GPU)
    assert simulated.faults == ["a copy that waits"]
    torch.ones(2).to(GPU, non_blocking=True)
    assert "not pinned" in simulated.faults[1]
    torch.ones(2).pin_memory().to(GPU, non_blocking=True)
    with pytest.raises(RuntimeError, match="same device"):
        there + torch.ones(2)
    assert len(simulated.faults) == 3 and "both devices" in simulated.faults[2]
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
    assert torch.equal(there.cpu(), augment(pixels, places, drawn, 256))


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
@pytest.mark.parametrize("place", ["gpu", "cpu", "files"])
def test_a_training_step_waits_for_the_gpu_nowhere(place: str, precision: str, tmp_path) -> None:
    """Wherever the decoded images stand: the GPU would be idle while the next step is being prepared."""
    options = settings(SMALL, precision)
    model, there = prepare(new_model(options), options, GPU), data_from(place, options, tmp_path)
    steps = train_epoch(model, there, options, make_optimizer(model, options.optim))
    next(steps)
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = [next(steps) for _ in range(3)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.stack(losses).isfinite().all()


@needs_gpu
def test_a_run_trains_resumes_and_is_tested(work, run) -> None:
    train = "train.py --path_opt tiny.yaml --device cuda --set optim.precision=bf16"
    assert run(f"{train} optim.epochs=1").status == 0
    assert run(f"{train} --resume --force").status == 0
    assert run("test.py --path_opt tiny.yaml --device cuda").status == 0
