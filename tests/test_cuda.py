"""On a real GPU: the numbers of the CPU, and training steps that wait for nothing.

test_cuda_runs.py runs whole commands on a pretended one.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_process
from gradients import our_gradients, worst_gradient
from PIL import Image
from torch.utils._pytree import tree_leaves

from bench.eval import our_evaluation
from bench.train import new_model, settings, train_data, train_epoch
from data import Data
from engine import make_optimizer, prepare
from option.options import Options
from util.pixels import FilePixels, MemoryPixels
from util.transforms import augment, draw_augmentation

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
GPU, CPU = torch.device("cuda"), torch.device("cpu")
SMALL = (
    *("dataset.batch_size=32", "dataset.image_size=64"),
    *("model.seq2vec.hidden_dim=64", "model.seq2vec.embedding_dim=32"),
)


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


def test_training_images_are_those_of_the_cpu() -> None:
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (9, 278, 278, 3), np.uint8))
    drawn = draw_augmentation(rng, len(pixels), 256)
    places = torch.arange(8, -1, -1)
    there = augment(pixels.to(GPU), places.to(GPU), drawn, 256)
    assert torch.equal(there.cpu(), augment(pixels, places, drawn, 256))


def test_gradients_in_float32_are_those_of_the_cpu() -> None:
    name, apart = worst_gradient(our_gradients(SMALL, GPU)(), our_gradients(SMALL, CPU)())
    assert apart < 1e-3, name


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-5), ("bf16", 1e-2), ("fp16", 1e-2)])
def test_similarities_are_those_of_the_cpu(precision: str, limit: float) -> None:
    ours, expected = (our_evaluation(SMALL, 20, *how)() for how in ((precision, GPU), ("fp32", CPU)))
    assert np.abs(ours - expected).max() < limit


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


def apart(one: Path, other: Path) -> float:
    """Return the largest difference of two checkpoints' weights, relative to the largest weight of each tensor."""
    first, second = (torch.load(path, weights_only=True, map_location="cpu")["model"] for path in (one, other))
    pairs = [(first[name].double(), x.double()) for name, x in second.items() if x.numel()]
    return max(float((a - b).abs().max() / b.abs().max().clamp(1e-9)) for a, b in pairs)


@pytest.mark.parametrize(("options", "limit"), [("", 1e-2), ("optim.deterministic=true", 0)])
def test_a_stopped_run_ends_as_the_whole_one(options: str, limit: float, work) -> None:
    """To a tolerance, for kernels sum in another order; with deterministic kernels to the bit."""
    train = f"train.py --path_opt tiny.yaml --device cuda --set logs.save_steps=0 {options}"
    last = Path("checkpoint/tiny/0/last.pth.tar")
    assert run_process(train, work).status == 0
    last.rename("whole.pth.tar")
    shutil.rmtree("checkpoint")
    assert run_process(f"{train} optim.epochs=1", work).status == 0
    assert run_process(f"{train} --resume", work).status == 0
    assert apart(last, Path("whole.pth.tar")) <= limit


def test_a_run_is_tested_and_its_checkpoints_are_read_where_there_is_no_gpu(work, run) -> None:
    settings = "--path_opt tiny.yaml --device cuda --set optim.epochs=1 optim.precision=fp16"
    assert run(f"train.py {settings}").status == run(f"test.py {settings}").status == 0
    state = torch.load("checkpoint/tiny/0/last.pth.tar", weights_only=True)  # no map_location
    tensors = [leaf for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor)]
    assert len(tensors) > 50 and {tensor.device.type for tensor in tensors} == {"cpu"}
    assert state["scaler"]["scale"] > 0
