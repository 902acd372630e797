"""A run that learns: order, losses and recalls of two epochs, so that any change of the training arithmetic is seen.

The numbers stored here were made on one thread with AVX-512; AVX2 gives the same to a few units of the last place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import drawn
import numpy as np
import pytest
import torch
from torch import nn

from data import load_data, validation_split
from engine import encode_split, load_model
from option import load_options
from util.checkpoint import read_checkpoint
from vocab import load_words

pytestmark = pytest.mark.usefixtures("short_trunk", "one_thread")
FOLD = Path("checkpoint/drawn/0")
CLOSE = 1e-4  # of losses; and of similarities: closer ones may change places

RECIPES = {
    "published": "optim.grad_clip=20",
    "ours": "optim.loss=infonce dataset.captions_per_image=3 dataset.batch_size=3 dataset.augment=crops "
    "optim.schedule=cosine optim.warmup=0.5 optim.trunk_lr=1e-3 optim.weight_decay=0.1 optim.betas=[0.8,0.98] "
    "optim.ema=0.5 optim.grad_clip=1 optim.lr=0.005",
}
STORED = json.loads((Path(__file__).parent / "golden" / "learning.json").read_text())


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Sums in the order of one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_epochs_give_the_order_the_losses_and_the_recalls_that_are_stored(
    recipe, tmp_path, run, monkeypatch
) -> None:
    drawn.draw(tmp_path)
    monkeypatch.chdir(tmp_path)
    with order_of_images() as order:
        assert run(f"train.py --path_opt drawn.yaml --device cpu --set {RECIPES[recipe]}").status == 0
    stored, history = STORED[recipe], json.loads((FOLD / "history.json").read_text())
    losses, scores = [row["loss"] for row in history["train"]], [row["mr"] for row in history["val"]]
    ranks, safe = ranks_of_best(RECIPES[recipe].split())
    found = {"order": order, "losses": losses, "mr": scores, "ranks": ranks}
    Path("found.json").write_text(json.dumps(found))  # a change that is meant to move numbers takes them from here
    assert order == stored["order"]
    assert losses == pytest.approx(stored["losses"], rel=CLOSE)
    assert [rank for rank, one in zip(ranks, safe, strict=True) if one] == [
        rank for rank, one in zip(stored["ranks"], safe, strict=True) if one
    ]
    assert sum(safe) > 0.9 * len(safe), "the similarities of this run are too close to tell"
    assert scores[-1] > history["val"][0]["chance"] + 10, "the run learns nothing"
    if all(safe):
        assert scores[-1] == pytest.approx(stored["mr"][-1], abs=1e-9)


def test_a_row_of_the_log_holds_the_mean_loss_since_the_row_before(tmp_path, run, monkeypatch) -> None:
    drawn.draw(tmp_path)
    monkeypatch.chdir(tmp_path)
    losses = []
    for often in (1, 2):
        keys = f"k_fold.experiment_name=every{often} logs.print_freq={often} dataset.batch_size=25 optim.epochs=1"
        assert run(f"train.py --path_opt drawn.yaml --device cpu --set {keys}").status == 0
        history = json.loads(Path(f"checkpoint/every{often}/0/history.json").read_text())
        losses.append([row["loss"] for row in history["train"]])
    (first, second, third), rows = losses
    assert rows == pytest.approx([(first + second) / 2, third], rel=1e-6) and abs(first - second) > 1e-3


def test_every_fold_and_step_has_weights_and_dropout_of_its_own(tmp_path, run, monkeypatch) -> None:
    drawn.draw(tmp_path)
    monkeypatch.chdir(tmp_path)
    seeds, seed = [], torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda number: seeds.append(number) or seed(number))
    keys = "k_fold.nums=2 optim.epochs=1 dataset.batch_size=40"
    assert run(f"train.py --path_opt drawn.yaml --device cpu --set {keys}").status == 0
    assert len(seeds) == len(set(seeds)) == 2 * (1 + 2), "weights once, and dropout at each of two steps, in two folds"


class order_of_images:
    """Note the images that each training step gives to the local branch, in their order."""

    def __enter__(self) -> list[list[int]]:
        self.order: list[list[int]] = []
        self.hook = nn.modules.module.register_module_forward_pre_hook(self.note)
        return self.order

    def note(self, module: nn.Module, inputs: tuple) -> None:
        if type(module).__name__ == "LocalBranch" and module.training:
            self.order.append(drawn.image_rows(inputs[0]))

    def __exit__(self, *_: object) -> None:
        self.hook.remove()


def ranks_of_best(overrides: list[str]) -> tuple[list[int], list[bool]]:
    """The rank of the best answer to each validation query of the best checkpoint, images first; and whether no other
    answer is so close to it that rounding could move it."""
    options, cpu = load_options("drawn.yaml", overrides), torch.device("cpu")
    words = load_words(options)
    data = load_data(validation_split(FOLD, options), options, words, cpu, training=False)
    model = load_model(read_checkpoint(FOLD / "GaLR_best.pth.tar"), options, words, cpu)
    sims, of_caption = encode_split(model, data, options), data.split.image_of_caption
    own = of_caption == np.arange(len(sims))[:, None]
    ranks, safe = [], []
    for scores, answers in [*zip(sims, own, strict=True), *zip(sims.T, own.T, strict=True)]:
        best = scores[answers].max()
        ranks.append(int((scores[~answers] > best).sum()))
        safe.append(bool(np.abs(scores[~answers] - best).min() > CLOSE))
    return ranks, safe
