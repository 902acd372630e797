"""Whole commands on a GPU that is not there: nothing mixes devices, and no training step waits for the GPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import OPTIONS
from pretend_gpu import PretendGPU

import test
import train
import utils

pytestmark = [
    pytest.mark.usefixtures("short_trunk", "without_pictures"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real GPU"),
]
PLAIN = yaml.safe_load(OPTIONS)
EMBED = {"embed_dim": 32}
TEXT = PLAIN["model"]["seq2vec"]
AMFMN = {"name": "AMFMN", "pretrained": "none", "seq2vec": TEXT, "embed": EMBED}
GRU = {"arch": "gru", "embedding_dim": 8, "hidden_dim": 16}
VSEPP = {"name": "VSE++", "pretrained": "none", "word_dim": 8, "embed": EMBED}
CLIP = {"name": "CLIP", "clip": {"arch": "local-dir:arch", "weights": "none"}}
INFONCE = "optim.loss=infonce optim.learn_temperature=True dataset.captions_per_image=2 dataset.batch_size=4"
MODELS = {  # name -> block of options, overrides
    "GaLR": (PLAIN["model"], "optim.grad_clip=2"),
    "GaLR, EMA": (PLAIN["model"], "optim.ema=0.9"),
    "GaLR, InfoNCE": (PLAIN["model"], INFONCE),
    "GaLR, crops": (PLAIN["model"], "dataset.augment=crops dataset.smallest_crop=0.5"),
    "GaLR, cache on disk": (PLAIN["model"], "dataset.cache=disk"),
    "GaLR, no cache": (PLAIN["model"], "dataset.cache=none dataset.workers=0"),
    "GaLR, BiSkip": (PLAIN["model"] | {"seq2vec": TEXT | {"type": "BiSkip"}}, ""),
    "GaLR, gru, last": (PLAIN["model"] | {"seq2vec": GRU | {"pooling": "last"}}, ""),
    "GaLR, gru, mean": (PLAIN["model"] | {"seq2vec": GRU | {"pooling": "mean", "bidirectional": True}}, ""),
    "GaLR, gru, max": (PLAIN["model"] | {"seq2vec": GRU | {"pooling": "max"}}, ""),
    "GaLR, transformer": (PLAIN["model"] | {"seq2vec": {"arch": "transformer", "path": "bert"}}, "optim.ema=0.9"),
    "AMFMN, soft_att": (AMFMN, ""),
    "AMFMN, fusion_att": (AMFMN | {"cross_attention": {"att_type": "fusion_att"}}, ""),
    "AMFMN, similarity_att": (AMFMN | {"cross_attention": {"att_type": "similarity_att"}}, ""),
    "VSE++, last": (VSEPP, "optim.max_violation=True"),
    "VSE++, mean": (VSEPP | {"text_pooling": "mean"}, "optim.max_violation=True"),
    "CLIP": (CLIP, INFONCE),
}


def write_networks(model: dict) -> None:
    """Write the transformer or CLIP architecture that a model needs, small and random, to the current folder."""
    if model.get("seq2vec", {}).get("arch") == "transformer":
        from test_other_encoders import write_transformer

        write_transformer(Path())
    if model.get("name") == "CLIP":
        from test_clip import arch_in

        arch_in(Path("arch"), "vit")


def run_on(gpu: PretendGPU, model: dict, overrides: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train an epoch, validate, save and test on a pretended GPU, in phases of these names."""
    write_networks(model)
    Path("tiny.yaml").write_text(yaml.safe_dump(PLAIN | {"model": model}))
    device = f"--device {gpu.device.type}"
    settings = f"--path_opt tiny.yaml --set optim.epochs=1 logs.save_steps=0 {overrides}"
    monkeypatch.setattr(train, "bf16_gain", lambda _: 2.0)
    for name, phase in (("train_one_epoch", "training"), ("evaluate", "validation"), ("save_checkpoint", "saving")):
        monkeypatch.setattr(train, name, gpu.wrapped(getattr(train, name), phase))
    monkeypatch.setattr(test, "main", gpu.wrapped(test.main, "test"))
    with gpu:
        for module, words in ((train, f"train.py {device} {settings}"), (test, f"test.py --rerank --bank {device} {settings}")):
            monkeypatch.setattr(sys, "argv", words.split())
            assert utils.exit_status(module.main) == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_a_run_mixes_no_devices_and_no_step_waits(name, precision, work, monkeypatch) -> None:
    """One wait is allowed: for the losses, at a row of the log."""
    model, overrides = MODELS[name]
    run_on(gpu := PretendGPU(), model, f"{overrides} optim.precision={precision}", monkeypatch)
    print("TABLE", json.dumps([name, precision, [[*k, n] for k, n in gpu.found("mixed").items()], [[*k, n] for k, n in gpu.found("wait").items() if k[0]=="training"], [[*k, n] for k, n in gpu.found("wait").items() if k[0]!="training"]]))
    assert gpu.found("mixed") == {}
    assert {event[1:] for event in gpu.found("wait", "training")} <= {("tolist", "util/checkpoint.py losses")}
    assert gpu.found("kernel", "training") and gpu.found("kernel", "validation")
