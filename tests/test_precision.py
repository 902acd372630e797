"""Precision: bf16, fp16 with loss scaling, TF32, determinism, and activations that are computed twice."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from interrupted import FOLD, LAST, TRAIN, at_step, same_weights, stop
from soak import differences

import engine
import train
import util.precision
from layers.backbone import make_backbone
from layers.gru import Float32GRU
from option import load_options
from option.options import Optim
from util.precision import advise, gain, make_deterministic, make_scaler, set_arithmetic

pytestmark = pytest.mark.usefixtures("short_trunk", "without_pictures")
CPU = torch.device("cpu")
FP16 = f"{TRAIN} --set optim.precision=fp16"


@pytest.mark.parametrize(("precision", "faster", "noted"), [("bf16", 0.5, 1), ("fp16", 2, 0), ("fp32", 0, 0)])
def test_a_run_starts_with_advice_where_a_precision_is_slower_here(precision, faster, noted, work, run, monkeypatch):
    assert 0.0001 < gain("bf16", CPU) < 1000
    monkeypatch.setattr(util.precision, "gain", lambda *_: faster)
    started = run(f"{TRAIN} --set optim.epochs=1 optim.precision={precision}")
    assert started.out.count(f"{precision} has 0.50 times the speed of float32 here") == noted


@pytest.mark.parametrize(
    ("precision", "capability", "warned"), [("bf16", (7, 5), 1), ("bf16", (8, 0), 0), ("fp16", (7, 5), 0)]
)
def test_bf16_on_a_gpu_without_it_is_told_of_fp16(precision, capability, warned, monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(util.precision, "gain", lambda *_: 2)
    advise(Optim(precision=precision), torch.device("cuda"))
    said = capsys.readouterr().err
    assert said.count("compute capability 7.5) has no bf16 units") == said.count("optim.precision=fp16") == warned


def test_fp16_scales_the_loss_and_resumes_to_the_very_same_end(work, run) -> None:
    assert run(FP16).status == 0
    Path("checkpoint").rename("whole")
    with at_step(3, stop(signal.SIGTERM)):
        assert run(FP16).status == 143
    assert run(f"{FP16} --resume").status == 0
    assert differences(Path("whole/tiny/0").absolute(), FOLD.absolute()) == []
    assert torch.load(LAST, weights_only=True)["scaler"]["_growth_tracker"] > 0


@pytest.mark.parametrize("clip", [0, 5])
def test_gradients_that_overflow_skip_the_step_and_the_run_goes_on(clip, work, run, monkeypatch) -> None:
    """A scale of 2 ** 40 makes every gradient infinite: it halves at each step, and no weight moves."""
    monkeypatch.setattr(train, "make_scaler", lambda *_: torch.amp.GradScaler("cpu", init_scale=2.0**40))
    command = f"{FP16} optim.epochs=1 optim.grad_clip={clip}"
    assert run(command).status == 0
    state = torch.load(LAST, weights_only=True)
    assert state["scaler"]["scale"] == 2.0**36
    moved = {float(one["step"]) for one in state["optimizer"]["state"].values()}
    assert moved == {0} and state["Eiters"] == 4


def test_a_loss_that_is_not_finite_stays_an_error(work, run) -> None:
    def spoil(model, batch, *arguments):
        batch.images[0] = torch.nan
        return real(model, batch, *arguments)

    real = engine.train_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "train_step", spoil)
        spoilt = run(FP16)
    assert spoilt.status == 3 and "the loss of batch 1 of epoch 0 is nan" in spoilt.message


def test_only_fp16_scales() -> None:
    enabled = {name: make_scaler(Optim(precision=name), CPU).is_enabled() for name in ("fp32", "bf16", "fp16")}
    assert enabled == {"fp32": False, "bf16": False, "fp16": True}


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_pytorchs_gru_stays_float32_under_autocast(low) -> None:
    torch.manual_seed(0)
    gru, words = Float32GRU(8, 16, batch_first=True), torch.randn(3, 5, 8)
    expected = gru(words)[1]
    packed = torch.nn.utils.rnn.pack_padded_sequence(words, torch.tensor([5, 4, 1]), batch_first=True)
    with torch.autocast("cpu", low):
        assert torch.equal(gru(words)[1], expected) and gru(packed)[1].dtype == torch.float32


def test_no_model_has_a_gru_within_autocast(work) -> None:
    gru = "{arch: gru, hidden_dim: 8, embedding_dim: 4}"
    vsepp = "{name: VSE++, pretrained: none, word_dim: 4, embed: {embed_dim: 8}}"
    for setting in (f"model.seq2vec={gru}", f"model={vsepp}"):
        options = load_options("tiny.yaml", [setting])
        (found,) = (m for m in engine.make_model(options, ["a"]).modules() if isinstance(m, torch.nn.RNNBase))
        assert type(found) is Float32GRU


@pytest.fixture
def arithmetic():
    """Leave the settings of PyTorch as they were."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    set_arithmetic(Optim())


@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_is_off_unless_it_is_asked_for_and_the_users_own_workspace_stays(tf32, arithmetic, monkeypatch) -> None:
    set_arithmetic(Optim(tf32=tf32))
    assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == tf32
    assert torch.backends.cudnn.benchmark
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    make_deterministic()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_a_deterministic_run_is_set_up_before_its_device(work, run, monkeypatch, arithmetic) -> None:
    real = train.pick_device

    def pick(name: str) -> torch.device:
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8" and torch.are_deterministic_algorithms_enabled()
        return real(name)

    monkeypatch.setattr(train, "pick_device", pick)
    assert run(f"{TRAIN} --set optim.deterministic=true optim.epochs=1").status == 0
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark


def test_activations_that_are_computed_twice_change_no_number_and_may_be_turned_on_on_resume(work, run, whole) -> None:
    assert run(f"{TRAIN} --set optim.epochs=1 optim.checkpointing=true").status == 0
    assert run(f"{TRAIN} --resume --set optim.checkpointing=false").status == 0
    assert same_weights(whole, FOLD)


def test_the_backbone_keeps_less_for_the_backward_pass() -> None:
    def kept(recompute: bool) -> int:
        torch.manual_seed(0)
        net, kept = make_backbone("resnet18", 64).train(), {}
        if recompute:
            net.recompute()

        def note(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            features = net(torch.randn(2, 3, 64, 64))
        features.pooled.sum().backward()
        assert net.net.bn1.num_batches_tracked == 1
        return sum(kept.values())

    assert kept(True) < kept(False) / 2


def test_what_does_not_go_with_computing_twice_is_refused(work, run) -> None:
    pytest.importorskip("timm")
    trunk = "model.trunk=resnet10t dataset.image_size=64"
    for settings, says in ((trunk, "optim.checkpointing: batch norms"), ("optim.compile=true", "do not go together")):
        refused = run(f"{TRAIN} --set optim.checkpointing=true {settings}")
        assert refused.status == 2 and says in refused.message
    frozen = "model.trunk_norm=frozen optim.epochs=1"
    assert run(f"{TRAIN} --set optim.checkpointing=true {trunk} {frozen}").status == 0
