"""Whole commands on a GPU that is not there: nothing mixes devices, and no training step waits for the GPU."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import several
import torch
import torch.distributed as dist
import yaml
from conftest import OPTIONS, ROOT
from pretend_gpu import CUDA_ALONE, PretendGPU
from test_clip import arch_in
from test_other_encoders import write_transformer
from test_processes import NO_DROPOUT
from torch.nn import functional

import test
import train
import utils
from layers import distributed
from util.pixels import MemoryPixels

pytestmark = pytest.mark.usefixtures("short_trunk", "without_pictures")
PLAIN = yaml.safe_load(OPTIONS)
GALR, TEXT, EMBED = PLAIN["model"], PLAIN["model"]["seq2vec"], {"embed_dim": 32}
GRU = {"arch": "gru", "embedding_dim": 8, "hidden_dim": 16}
AMFMN = {"name": "AMFMN", "pretrained": "none", "seq2vec": TEXT, "embed": EMBED}
VSEPP = {"name": "VSE++", "pretrained": "none", "word_dim": 8, "embed": EMBED}
CLIP = {"name": "CLIP", "clip": {"arch": "local-dir:arch", "weights": "none"}}
INFONCE = "optim.loss=infonce dataset.captions_per_image=2 dataset.batch_size=4"
CROPS = "dataset.augment=crops dataset.smallest_crop=0.5"
CASES = {  # name -> block of the model, overrides
    "GaLR": (GALR, "optim.grad_clip=2"),
    "GaLR, EMA": (GALR, "optim.ema=0.9"),
    "GaLR, InfoNCE": (GALR, INFONCE),
    "GaLR, crops": (GALR, CROPS),
    "GaLR, cache on disk": (GALR, "dataset.cache=disk"),
    "GaLR, no cache": (GALR, "dataset.cache=none dataset.workers=0"),
    "GaLR, all of it": (GALR, f"optim.ema=0.9 dataset.cache=disk {INFONCE} {CROPS}"),
    "GaLR, BiSkip": (GALR | {"seq2vec": TEXT | {"type": "BiSkip"}}, ""),
    "gru, last": (GALR | {"seq2vec": GRU | {"pooling": "last"}}, ""),
    "gru, mean": (GALR | {"seq2vec": GRU | {"pooling": "mean", "bidirectional": True}}, ""),
    "gru, max": (GALR | {"seq2vec": GRU | {"pooling": "max"}}, ""),
    "transformer": (GALR | {"seq2vec": {"arch": "transformer", "path": "bert"}}, "optim.ema=0.9"),
    "frozen_transformer": (GALR | {"seq2vec": {"arch": "frozen_transformer", "path": "bert"}}, INFONCE),
    "AMFMN, soft_att": (AMFMN, ""),
    "AMFMN, fusion_att": (AMFMN | {"cross_attention": {"att_type": "fusion_att"}}, ""),
    "AMFMN, similarity_att": (AMFMN | {"cross_attention": {"att_type": "similarity_att"}}, ""),
    "VSE++, last": (VSEPP, "optim.max_violation=True"),
    "VSE++, mean": (VSEPP | {"text_pooling": "mean"}, "optim.max_violation=True"),
    "CLIP": (CLIP, INFONCE),
}
WAITS = {  # allowed
    ("training", "tolist", "util/train_state.py losses"),  # at a row of the log
    ("validation", "copy to the CPU", "data.py caption_batches"),  # once a split: lengths of captions
    ("validation", "unique_dim", "engine.py embed_captions"),
    ("validation", "copy to the CPU", "engine.py embed_captions"),
    ("validation", "copy to the CPU", "engine.py similarities"),
}


@pytest.fixture
def pretended(work: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendGPU]:
    """Give a pretended GPU on which train.py and test.py run in phases: training, validation, saving, test."""
    if torch.cuda.is_available():
        pytest.skip("there is a real GPU")
    gpu = PretendGPU()
    for name, phase in (("train_one_epoch", "training"), ("evaluate", "validation"), ("save_checkpoint", "saving")):
        monkeypatch.setattr(train, name, gpu.wrapped(getattr(train, name), phase))
    monkeypatch.setattr(train, "advise", lambda *_: None)
    monkeypatch.setattr("util.pixels.free_memory", lambda _: float("inf"))
    monkeypatch.setattr(test, "main", gpu.wrapped(test.main, "test"))
    monkeypatch.setattr(test, "draw_run", lambda *_, **__: ([], None))
    return gpu


def run_case(gpu: PretendGPU, name: str, precision: str) -> None:
    """Train an epoch, validate, save and test on the GPU, in the current folder."""
    model, overrides = CASES[name]
    Path("tiny.yaml").write_text(yaml.safe_dump(PLAIN | {"model": model}))
    settings = f"--set optim.epochs=1 optim.precision={precision} logs.save_steps=0 {overrides}"
    with gpu, pytest.MonkeyPatch.context() as patch:
        for main, words in ((train.main, "train.py"), (test.main, "test.py --rerank --bank")):
            command = f"{words} --path_opt tiny.yaml --device {gpu.device.type} {settings}"
            patch.setattr(sys, "argv", command.split())
            assert utils.exit_status(main) == 0


QUICK = [("GaLR", "bf16"), ("GaLR, all of it", "fp32"), ("gru, mean", "fp32"), ("AMFMN, soft_att", "bf16")]
QUICK += [("VSE++, last", "fp32"), ("GaLR", "fp16"), ("CLIP", "fp32"), ("frozen_transformer", "fp32")]
ALL = [(name, precision) for name in CASES for precision in ("fp32", "bf16")]
ALL += [(name, "fp16") for name in ("GaLR", "GaLR, all of it")]  # with loss scaling


@pytest.mark.parametrize(
    ("name", "precision"), [pytest.param(*case, marks=[pytest.mark.slow] * (case not in QUICK)) for case in ALL]
)
def test_a_run_mixes_no_devices_and_no_step_waits(name, precision, pretended) -> None:
    """Training, validation, a checkpoint, and test.py with rerank and query bank; nothing but WAITS waits."""
    if name == "CLIP":
        arch_in(Path("arch"), "vit")
    if "transformer" in name:
        write_transformer(Path())
    run_case(pretended, name, precision)
    assert pretended.found("mixed") == {}
    assert pretended.found("wait", "training").keys() | pretended.found("wait", "validation").keys() <= WAITS
    assert all(pretended.found("kernel", phase) for phase in ("training", "validation", "test"))


def test_the_pretended_gpu_sees_what_is_amiss() -> None:
    gpu, numbers = PretendGPU(), torch.tensor([1.0, 2.0])
    with gpu:
        there = numbers.to("cuda:0")
        assert there.device == torch.device("cuda", 0) and not numbers.is_cuda
        numbers.pin_memory().to("cuda:0", non_blocking=True)
        there + numbers
        there[torch.tensor([0])], there[there > 1]
        float(there.sum()), there.tolist(), there.cpu(), there.nonzero()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
    assert {event[1] for event in gpu.found("mixed")} == {"add"} and sum(gpu.found("copy").values()) == 1
    copies = {"copy to the GPU, not from pinned memory", "copy to the CPU"}
    indices = {"index by an index on the CPU", "index by a mask"}
    assert {event[1] for event in gpu.found("wait")} == copies | indices | {"_local_scalar_dense", "tolist", "nonzero"}


def test_a_run_on_a_gpu_of_apple_mixes_no_devices(pretended) -> None:
    pretended.device = torch.device("mps", 0)
    run_case(pretended, "AMFMN, fusion_att", "fp32")
    assert pretended.found("mixed") == {} and pretended.found("kernel", "training")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_processes_mix_nothing_wait_for_nothing_and_find_the_losses_of_one(precision, work, run) -> None:
    """Batch norm over both runs by the fused kernels of CUDA, whose formulas the pretended GPU has."""
    settings = [f"optim.precision={precision}", "optim.lr=1e-5", *NO_DROPOUT.split()]
    script = str(ROOT / "tests/pretended_processes.py")
    processes = several.start(2, [script, str(work), *settings, "k_fold.experiment_name=two"], work)
    said = [process.communicate(timeout=200) for process in processes]
    for rank in range(2):
        found = json.loads((work / f"faults.{rank}.json").read_text())
        assert found["status"] == 0 and found["backends"] == ["cuda:nccl,cpu:gloo"], said
        assert [tuple(event) for event in found["faults"] if tuple(event) not in WAITS] == []
        assert {name for name in CUDA_ALONE if found["kernels"].get(name)} == set(CUDA_ALONE)
    alone = f"train.py --path_opt tiny.yaml --device cpu --set optim.epochs=1 logs.print_freq=1 {' '.join(settings)}"
    assert run(alone).status == 0
    losses, expected = (
        [row["loss"] for row in json.loads((work / f"checkpoint/{name}/0/history.json").read_text())["train"]]
        for name in ("two", "tiny")
    )
    assert losses == pytest.approx(expected, rel=1e-4 if precision == "fp32" else 5e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_batch_norm_is_the_plain_one(dtype, monkeypatch) -> None:
    """By formulas in the kernels' place, with one process: output, gradients, running statistics."""
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)
    monkeypatch.setattr(dist, "all_gather_into_tensor", lambda everyone, own: everyone.copy_(own))
    monkeypatch.setattr(dist, "all_reduce", lambda _: None)
    torch.manual_seed(0)
    images, slope = torch.randn(2, 4, 3, 5, 6).to(dtype).unbind()
    found = []
    for norm, device in ((distributed.batch_norm, "cuda:0"), (functional.batch_norm, "cpu")):
        with PretendGPU() if device != "cpu" else contextlib.nullcontext():
            x = images.to(device).contiguous(memory_format=torch.channels_last).requires_grad_()
            numbers = torch.tensor([[1.0, 2, 3], [4, 5, -1], [0, 0, 0], [1, 1, 1]])
            weight, bias, *moments = (row.to(device) for row in numbers.clone())
            weight, bias = weight.requires_grad_(), bias.requires_grad_()
            y = norm(x, *moments, weight, bias, True, 0.1, 1e-5)
            y.backward(slope.to(device))
            found.append([one.cpu().float() for one in (y.detach(), x.grad, weight.grad, bias.grad, *moments)])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(
            ours, plain, rtol=1e-4 if dtype == torch.float32 else 2e-2, atol=2e-2 * (dtype != torch.float32) + 1e-5
        )


def test_the_next_batch_is_read_from_the_file_by_a_thread(monkeypatch) -> None:
    readers, real = [], torch.index_select

    def read(*arguments, **options):
        readers.append(threading.current_thread())
        return real(*arguments, **options)

    monkeypatch.setattr(torch, "index_select", read)
    images, rows = torch.arange(24, dtype=torch.uint8).view(6, 2, 2, 1), [np.array(r) for r in ([5, 0], [1], [2, 2])]
    with PretendGPU() as gpu:
        batches = MemoryPixels(images).batches(rows, gpu.device)
        first = next(batches)[0]
        for _ in range(500):  # the second is read though nobody has asked for it
            time.sleep(0.01 * (len(readers) < 2))
        assert len(readers) == 2
        found = [first, *(batch for batch, _ in batches)]
        assert all(batch.device == gpu.device for batch in found)
        assert [batch.cpu().tolist() for batch in found] == [images[row].tolist() for row in rows]
    assert len(readers) == 3 and threading.main_thread() not in readers and gpu.found("mixed") == {}
