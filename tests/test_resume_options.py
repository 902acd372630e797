"""Options on --resume: what moves a number of the run may not change, what the run has learned is not lost."""

from __future__ import annotations

import signal
from pathlib import Path

import drawn
import pytest
import torch
from interrupted import at_step, stop
from matplotlib.figure import Figure

import engine
import train
from option import load_options
from util.checkpoint import changed_options

pytestmark = pytest.mark.usefixtures("short_trunk")
FOLD = Path("checkpoint/drawn/0")
TRAIN = "train.py --path_opt drawn.yaml --device cpu"
RECIPE = "optim.loss=infonce optim.ema=0.9 optim.schedule=cosine optim.lr=0.01 dataset.batch_size=25"
MOVE_NO_NUMBER = set(
    "dataset.workers dataset.cache dataset.image_path dataset.data_path dataset.vocab_path dataset.val_list "
    "dataset.truncated dataset.batch_size_val optim.checkpointing optim.early_stopping logs.save_steps "
    "logs.save_minutes logs.ckpt_save_path logs.logger_name logs.matrices k_fold.current_num k_fold.nums "
    "model.seq2vec.dir_st".split()
)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The drawn data set as the current folder."""
    drawn.draw(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "retrieval_grid", lambda *_: Figure())
    return tmp_path


@pytest.fixture
def stopped(folder, run) -> dict:
    """The last checkpoint of a run of six steps that was stopped after the fourth."""
    with at_step(4, stop(signal.SIGTERM)):
        assert run(f"{TRAIN} --set {RECIPE}").status == 143
    return last()


def last() -> dict:
    return torch.load(FOLD / "last.pth.tar", weights_only=True)


def test_an_option_that_would_move_a_number_is_refused_and_named(stopped, run) -> None:
    before = (FOLD / "last.pth.tar").read_bytes()
    for change, said in {
        "optim.ema=0.5": "optim.ema: 0.9 -> 0.5",
        "optim.ema=0": "optim.ema: 0.9 -> 0",
        "optim.temperature=0.1": "optim.temperature: 0.07 -> 0.1",
        "optim.learn_temperature=false": "optim.learn_temperature: True -> False",
        "optim.epochs=3": "optim.epochs: 2 -> 3",
        "optim.betas=[0.9,0.98]": "optim.betas: [0.9, 0.999] -> [0.9, 0.98]",
        "optim.grad_clip=1": "optim.grad_clip: 0",
        "seed=1": "seed: 0 -> 1",
    }.items():
        refused = run(f"{TRAIN} --resume --set {RECIPE} {change}")
        assert refused.status == 2 and said in refused.message, change
    assert (FOLD / "last.pth.tar").read_bytes() == before


def test_a_run_may_be_made_longer_where_the_rate_goes_by_steps_and_not_where_it_is_a_cosine() -> None:
    def changed(schedule: str, old: int, new: int) -> list[str]:
        return changed_options(*({"optim": {"schedule": schedule, "epochs": epochs}} for epochs in (old, new)))

    assert changed("step", 2, 3) == []
    assert changed("step", 3, 2) == ["optim.epochs: 3 -> 2"]
    assert changed("cosine", 2, 3) == ["optim.epochs: 2 -> 3"]


def test_only_options_that_move_no_number_may_change(folder) -> None:
    """Every option, of every block, one after the other."""
    free = []

    def visit(old: dict, tree: dict, block: dict, prefix: str) -> None:
        for key, value in block.items():
            if isinstance(value, dict):
                visit(old, tree, value, f"{prefix}{key}.")
            else:
                block[key] = "another value"
                if not (prefix + key == "optim.epochs" or changed_options(old, tree)):
                    free.append(prefix + key)
                block[key] = value

    options = load_options("drawn.yaml", ["optim.schedule=cosine"])
    tree = options.to_dict()
    visit(options.to_dict(), tree, tree, "")
    assert set(free) == MOVE_NO_NUMBER


def test_average_and_temperature_go_on_from_where_they_were(stopped, run) -> None:
    """An average that begins anew would count its steps anew; a temperature that is lost would be 0.07 again."""
    steps = []
    real = engine.train_step

    def watched(model, batch, criterion, *arguments):
        steps.append(criterion.temperature)
        return real(model, batch, criterion, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "train_step", watched)
        assert run(f"{TRAIN} --resume --set {RECIPE}").status == 0
    assert steps[0] == pytest.approx(1 / stopped["loss"]["log_scale"].exp().item()) and abs(steps[0] - 0.07) > 1e-4
    assert len(steps) == 2 and last()["average"]["n_averaged"] == stopped["average"]["n_averaged"] + 2 == 6


@pytest.mark.parametrize(
    ("stopped_at", "change", "first"),
    [
        (2, "dataset.batch_size=50", 1),  # 50 of the 75 pairs are done
        (2, "dataset.batch_size=10", 5),
        (2, "dataset.batch_size=30", 0),
        (3, "dataset.batch_size=30", 3),  # the epoch is over
        (2, "seed=1", 0),
        (2, "dataset.captions_per_image=1", 0),
        (2, "optim.lr=0.001", 2),
    ],
)
def test_other_batches_neither_repeat_nor_leave_out_a_pair_of_the_epoch(
    stopped_at, change, first, folder, run, monkeypatch
) -> None:
    """The place is kept in pairs; where no new batch begins there, the epoch begins anew and the run says so."""
    with at_step(stopped_at, stop(signal.SIGTERM)):
        assert run(f"{TRAIN} --set {RECIPE}").status == 143
    began, real = [], engine.train_batches

    def watched(data, options, fold, epoch, first):
        began.append((epoch, first))
        return real(data, options, fold, epoch, first)

    monkeypatch.setattr(engine, "train_batches", watched)
    resumed = run(f"{TRAIN} --resume --force --set {RECIPE} {change}")
    assert resumed.status == 0 and began == [(0, first), (1, 0)]
    assert ("epoch 0 begins anew" in resumed.err) == (first == 0)
    assert last()["epoch"] == 2
