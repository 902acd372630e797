"""Whole runs on a pretended GPU (pretend_gpu.py): the models and options that they cover, and how one is run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from conftest import OPTIONS
from pretend_gpu import PretendGPU

import test
import train
import utils

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


def check_case(gpu: PretendGPU) -> None:
    """Check that nothing mixed devices, and that nothing but WAITS waited while an epoch or a validation went on."""
    assert gpu.found("mixed") == {}
    assert gpu.found("wait", "training").keys() | gpu.found("wait", "validation").keys() <= WAITS
    assert all(gpu.found("kernel", phase) for phase in ("training", "validation", "test"))
