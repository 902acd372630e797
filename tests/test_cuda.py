"""What only a GPU shows: the numbers of the CPU, and steps that wait for nothing. Skipped where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.eval import our_evaluation
from bench.train import new_model, our_gradients, settings, train_data, worst_gradient
from data import MemoryPixels, augment, draw_augmentation
from engine import make_optimizer, prepare, train_epoch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
GPU, CPU = torch.device("cuda"), torch.device("cpu")
SMALL = ("dataset.batch_size=32", "dataset.image_size=64")


def test_training_images_are_those_of_the_cpu() -> None:
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (9, 278, 278, 3), np.uint8))
    drawn = draw_augmentation(rng, len(pixels), 256)
    torch.testing.assert_close(
        augment(pixels.to(GPU), drawn, 256).cpu(), augment(pixels, drawn, 256), rtol=0, atol=1e-6
    )


def test_gradients_in_float32_are_those_of_the_cpu() -> None:
    name, apart = worst_gradient(our_gradients(SMALL, GPU)(), our_gradients(SMALL, CPU)())
    assert apart < 1e-3, name


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-5), ("bf16", 1e-2)])
def test_similarities_are_those_of_the_cpu(precision: str, limit: float) -> None:
    ours, expected = (our_evaluation(SMALL, 20, *how)() for how in ((precision, GPU), ("fp32", CPU)))
    assert np.abs(ours - expected).max() < limit


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("place", [GPU, CPU])
def test_a_training_step_waits_for_the_gpu_nowhere(place: torch.device, precision: str) -> None:
    """Wherever the decoded images stand: the GPU would be idle while the next step is being prepared."""
    options = settings(SMALL, precision)
    model, data = prepare(new_model(options), options, GPU), train_data(options, GPU)
    data = data._replace(pixels=MemoryPixels(data.pixels.pixels.to(place)))
    steps = train_epoch(model, data, options, make_optimizer(model), 0, 0)
    next(steps)
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = [next(steps).loss for _ in range(3)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.stack(losses).isfinite().all()


def test_a_run_trains_resumes_and_is_tested(work, run) -> None:
    train = "train.py --path_opt tiny.yaml --device cuda --set optim.precision=bf16"
    assert run(f"{train} optim.epochs=1").status == 0
    assert run(f"{train} --resume --force").status == 0
    assert run("test.py --path_opt tiny.yaml --device cuda").status == 0
