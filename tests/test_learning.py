"""A run that learns: order, losses and recalls of two epochs, so that any change of the training arithmetic is seen.

The numbers stored here were made on one thread with AVX-512; AVX2 gives the same to a few units of the last place.
"""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Callable, Iterator
from itertools import compress
from pathlib import Path

import drawn
import numpy as np
import pytest
import torch
from interrupted import at_step, stop
from torch import nn

from data import Batch, fold_rows, load_data, read_split, train_batches, validation_split
from engine import encode_split, load_model
from option import load_options
from option.options import KFold
from postprocessing.recall import chance, recall
from util.checkpoint import read_checkpoint
from vocab import load_words

pytestmark = pytest.mark.usefixtures("short_trunk", "one_thread", "without_pictures")
FOLD = Path("checkpoint/drawn/0")
CLOSE = 1e-4  # of losses; and of similarities: closer ones may change places

RECIPES = {
    "published": "optim.grad_clip=20",
    "ours": "optim.loss=infonce dataset.captions_per_image=3 dataset.batch_size=3 dataset.augment=crops "
    "optim.schedule=cosine optim.warmup=0.5 optim.trunk_lr=1e-3 optim.weight_decay=0.1 optim.betas=[0.8,0.98] "
    "optim.ema=0.5 optim.grad_clip=1 optim.lr=0.005",
}
STORED = json.loads((Path(__file__).parent / "golden" / "learning.json").read_text())


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_epochs_give_the_order_the_losses_and_the_recalls_that_are_stored(recipe, train, order) -> None:
    train(RECIPES[recipe])
    stored, history = STORED[recipe], json.loads((FOLD / "history.json").read_text())
    losses, scores = [row["loss"] for row in history["train"]], [row["mr"] for row in history["val"]]
    ranks, safe = ranks_of_best(RECIPES[recipe].split())
    found = {"order": order, "losses": losses, "mr": scores, "ranks": ranks}
    Path("found.json").write_text(json.dumps(found))  # a change that is meant to move numbers takes them from here
    assert order == stored["order"]
    assert losses == pytest.approx(stored["losses"], rel=CLOSE)
    assert list(compress(ranks, safe)) == list(compress(stored["ranks"], safe))
    assert sum(safe) > 0.9 * len(safe), "the similarities of this run are too close to tell"
    assert scores[-1] > history["val"][0]["chance"] + 10, "the run learns nothing"
    if all(safe):
        assert scores[-1] == pytest.approx(stored["mr"][-1], abs=1e-9)


def test_a_row_of_the_log_holds_the_mean_loss_since_the_row_before(train) -> None:
    losses = []
    for often in (1, 2):
        train(f"k_fold.experiment_name=every{often} logs.print_freq={often} dataset.batch_size=25 optim.epochs=1")
        history = json.loads(Path(f"checkpoint/every{often}/0/history.json").read_text())
        losses.append([row["loss"] for row in history["train"]])
    (first, second, third), rows = losses
    assert rows == pytest.approx([(first + second) / 2, third], rel=1e-6) and abs(first - second) > 1e-3


def test_every_fold_and_step_has_weights_and_dropout_of_its_own(train, monkeypatch) -> None:
    seeds, seed = [], torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda number: seeds.append(number) or seed(number))
    train("k_fold.nums=2 optim.epochs=1 dataset.batch_size=40")
    assert len(seeds) == len(set(seeds)) == 2 * (1 + 2), "weights once, and dropout at each of two steps, in two folds"


@pytest.fixture
def order() -> Iterator[list[list[int]]]:
    """Note the images that each training step gives to the local branch, in their order."""
    found: list[list[int]] = []

    def note(module: nn.Module, inputs: tuple) -> None:
        if type(module).__name__ == "LocalBranch" and module.training:
            found.append(drawn.image_rows(inputs[0]))

    hook = nn.modules.module.register_module_forward_pre_hook(note)
    yield found
    hook.remove()


@pytest.fixture
def train(drawn_folder, run) -> Callable[[str], None]:
    """Train the drawn data set with these settings."""

    def train(settings: str) -> None:
        assert run(f"train.py --path_opt drawn.yaml --device cpu --set {settings}").status == 0

    return train


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


CPU = torch.device("cpu")
BY_IMAGE = ("optim.loss=infonce", "dataset.captions_per_image=2", "dataset.batch_size=6")

# of seed 0: the first images of two epochs of pairs, two epochs of images, the validation images of three folds
PAIRS = [[9, 1, 3, 16, 1, 19, 7, 1, 11, 6, 4, 13], [16, 18, 0, 0, 13, 4, 18, 19, 6, 0, 8, 15]]
IMAGES = [
    [4, 0, 17, 11, 3, 8, 6, 18, 9, 1, 13, 2, 12, 14, 15, 10, 7, 19, 5, 16],
    [19, 5, 14, 6, 12, 13, 1, 3, 2, 7, 17, 18, 16, 15, 4, 10, 11, 9, 0, 8],
]
SHUFFLED = [[2, 4, 6, 13, 19], [0, 9, 10, 13, 15], [0, 8, 10, 15, 18]]
DISJOINT = [[1, 2, 4], [3, 5, 7], [0, 6]]


def epoch_of(fold: int = 0, epoch: int = 0, first: int = 0, overrides: tuple[str, ...] = ()) -> Iterator[Batch]:
    """The training batches of an epoch of the whole train list."""
    options = load_options("drawn.yaml", overrides)
    data = load_data(read_split("data", "train"), options, load_words(options), CPU, training=True)
    return train_batches(data, options, fold, epoch, first)


def image_rows(batches: Iterator[Batch]) -> list[int]:
    """The images of the batches, in their order."""
    return [row for batch in batches for row in drawn.image_rows(batch.local_rep)]


def captions(batch: Batch) -> list[tuple[int, tuple[int, ...]]]:
    """The pairs of a batch: the row of the image, and the words of the caption."""
    images, words = drawn.image_rows(batch.local_rep), batch.token_ids.tolist()
    return [
        (images[i], tuple(word for word in words[j] if word))
        for i, j in zip(batch.pairs.image.tolist(), batch.pairs.caption.tolist(), strict=True)
    ]


@pytest.mark.parametrize(("overrides", "times"), [((), 5), (BY_IMAGE, 1)], ids=["pairs", "images"])
def test_pairs_of_the_published_mode_or_images_are_shuffled(overrides, times, drawn_folder) -> None:
    order = image_rows(epoch_of(overrides=overrides))
    assert sorted(order) == sorted(times * list(range(20)))
    assert order != sorted(order) and len(set(order[:10])) > 5, "they stand in the order of the lists"


@pytest.mark.parametrize("overrides", [(), BY_IMAGE], ids=["pairs", "images"])
def test_every_epoch_fold_and_seed_has_an_order_of_its_own(overrides, drawn_folder) -> None:
    places = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1)]  # seed, fold, epoch
    orders = [
        tuple(image_rows(epoch_of(fold, epoch, overrides=(*overrides, f"seed={seed}")))) for seed, fold, epoch in places
    ]
    assert len(set(orders)) == len(places)


def test_the_orders_of_seed_0_are_those_of_every_version(drawn_folder) -> None:
    """A run of an earlier version that is resumed goes on in the order that it began in."""
    pairs = [image_rows(epoch_of(epoch=epoch))[:12] for epoch in range(2)]
    images = [image_rows(epoch_of(epoch=epoch, overrides=BY_IMAGE)) for epoch in range(2)]
    assert (pairs, images) == (PAIRS, IMAGES)


def test_captions_of_an_image_are_drawn_anew_in_every_epoch(drawn_folder) -> None:
    """Each image comes with two of its five captions; in twelve epochs with all of them, and in every place."""
    seen: dict[int, list[tuple]] = {}
    for epoch in range(12):
        for batch in epoch_of(epoch=epoch, overrides=BY_IMAGE):
            for image, words in captions(batch):
                seen.setdefault(image, []).append(words)
    assert len(seen) == 20
    for words in seen.values():
        assert len(words) == 24 and len(set(words)) == 5


@pytest.mark.parametrize("kind", ["rotate", "flips", "crops"])
def test_every_step_epoch_fold_and_seed_draws_an_augmentation_of_its_own(kind, drawn_folder) -> None:
    """All pictures are the same one, so that the batches differ by the augmentation alone."""
    drawn.same_pictures(drawn_folder)
    overrides = (f"dataset.augment={kind}",)
    first, second = (batch.images for _, batch in zip(range(2), epoch_of(overrides=overrides), strict=False))
    others = [
        next(epoch_of(fold, epoch, overrides=(*overrides, f"seed={seed}"))).images
        for seed, fold, epoch in ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    ]
    batches = [first, second, *others]
    for i, one in enumerate(batches):
        assert not any(torch.equal(one, other) for other in batches[:i])
    assert not any(torch.equal(first[0], other) for other in first[1:]), "the images of a batch are turned alike"
    assert torch.equal(next(epoch_of(overrides=overrides, first=1)).images, second), "a resumed epoch draws otherwise"


def test_the_split_of_a_fold_is_drawn_from_seed_and_fold_not_from_their_sum() -> None:
    def held_out(seed: int, fold: int) -> list[int]:
        return fold_rows(20, KFold(experiment_name="x", nums=3, seed=seed, val_fraction=0.25), fold)[1].tolist()

    assert held_out(0, 1) != held_out(1, 0) and held_out(1, 2) != held_out(2, 1)
    assert [held_out(0, fold) for fold in range(3)] == SHUFFLED


def test_disjoint_folds_of_a_seed_are_those_of_every_version() -> None:
    keys = KFold(experiment_name="x", nums=3, mode="disjoint", seed=5)
    assert [fold_rows(8, keys, fold)[1].tolist() for fold in range(3)] == DISJOINT


# four validation images with five captions each, eight steps an epoch
COMMAND = "train.py --path_opt drawn.yaml --device cpu --set k_fold.val_fraction=0.2 dataset.batch_size=10"


@pytest.fixture
def scored(drawn_folder, monkeypatch) -> Callable[..., None]:
    """Let the validations of a run find similarity matrices that are given, one after the other."""

    def give(*matrices: np.ndarray) -> None:
        left = iter(matrices)
        monkeypatch.setattr("train.similarities", lambda *_: next(left))

    return give


def matrix(right: int) -> np.ndarray:
    """Return similarities of which so many of the 20 captions find their image first, and the others last."""
    own = np.repeat(np.eye(4, dtype=np.float32), 5, axis=1)
    return np.where(np.arange(20) < right, own, -own) + np.linspace(0, 0.1, 20, dtype=np.float32)


def best() -> dict:
    return torch.load(FOLD / "GaLR_best.pth.tar", weights_only=True)


def last() -> dict:
    return torch.load(FOLD / "last.pth.tar", weights_only=True)


def history() -> dict[str, list[dict]]:
    return json.loads((FOLD / "history.json").read_text())


@pytest.mark.parametrize(
    ("right", "epoch"),
    [((3, 5, 4), 1), ((4, 5, 5), 1), ((5, 4, 3), 0), ((3, 4, 5), 2)],
    ids=["the middle is best", "of equal scores the first", "the first is best", "the last is best"],
)
def test_the_best_checkpoint_is_of_the_first_epoch_with_the_highest_validation_score(right, epoch, scored, run) -> None:
    scored(*map(matrix, right))
    assert run(f"{COMMAND} optim.epochs=3").status == 0
    scores = [row["mr"] for row in history()["val"]]
    assert np.argsort(scores, kind="stable").tolist() == np.argsort(right, kind="stable").tolist()
    state = best()
    assert state["epoch"] == epoch and state["Eiters"] == 8 * (epoch + 1)
    assert state["best_rsum"] == pytest.approx(6 * max(scores))


def test_ties_count_against_the_query_where_the_best_epoch_is_chosen(scored, run) -> None:
    """A model that gives all answers one score is worth its chance at random, and nothing here."""
    equal, hardly = np.zeros((4, 20), np.float32), matrix(1)
    owner = np.repeat(np.arange(4), 5)
    assert recall(equal, owner, "random")[2] > recall(hardly, owner, "random")[2]
    assert recall(equal, owner)[2] < recall(hardly, owner)[2]
    scored(hardly, equal)
    assert run(f"{COMMAND} optim.epochs=2").status == 0
    assert best()["epoch"] == 0
    (_, row) = history()["val"]
    assert row["mr"] == pytest.approx(recall(equal, owner)[2])
    assert row["mr_random"] == pytest.approx(recall(equal, owner, "random")[2])
    assert (row["images"], row["captions"]) == (4, 20)
    assert row["chance"] == pytest.approx(chance(owner, 4)[2])


@pytest.mark.parametrize(
    ("right", "options", "epochs"),
    [
        ((3, 5, 4, 5, 6), "", 4),  # equal is not better
        ((5, 4, 6, 5, 5), "", 5),  # counted anew from the better one
        ((5, 4, 3, 2, 1), "", 3),
        ((5, 4, 3, 2, 1), "optim.early_stopping=0", 5),
        ((5, 4, 3), "logs.eval_step=2", 4),  # validations after epochs 1 and 3 (from 0)
        ((3, 4, 5), "logs.eval_step=2", 5),  # and after the last
    ],
)
def test_training_stops_early_where_no_validation_gets_better(right, options, epochs, scored, run) -> None:
    scored(*map(matrix, right))
    command = f"{COMMAND} optim.epochs=5 optim.early_stopping=2 {options}"
    outcome = run(command)
    assert outcome.status == 0 and last()["epoch"] == epochs
    early = f"fold 0 stops early, after epoch {epochs - 1}: no validation was better in 2 epochs"
    assert (early in outcome.out) == (epochs < 5)
    validated = [row["epoch"] for row in history()["val"]]
    assert validated == ([*range(1, epochs, 2), *[4] * (epochs == 5)] if "eval_step" in options else [*range(epochs)])
    assert "fold 0 is finished: skipped" in run(f"{command} --resume").out


def test_early_stopping_counts_across_a_resume_and_more_patience_goes_on(scored, run) -> None:
    scored(*map(matrix, (5, 4, 3, 2, 1)))
    command = f"{COMMAND} optim.epochs=5 optim.early_stopping"
    with at_step(12, stop(signal.SIGTERM)):
        assert run(f"{command}=2").status == 143
    assert "stops early, after epoch 2" in run(f"{command}=2 --resume").out
    assert "stops early, after epoch 3" in run(f"{command}=3 --resume").out
    assert last()["epoch"] == 4
    assert best()["epoch"] == 0


def test_the_log_is_a_table_too(scored, run) -> None:
    scored(matrix(3), matrix(4))
    with at_step(13, stop(signal.SIGTERM)):
        run(f"{COMMAND} optim.epochs=2 logs.print_freq=4")
    rows = list(csv.DictReader((FOLD / "log.csv").open()))
    assert [row["step"] for row in rows] == ["4", "8", "8", "12"]
    assert [bool(row["loss"]) for row in rows] == [not row["t2i_r10"] for row in rows] == [True, True, False, True]
    run(f"{COMMAND} optim.epochs=2 logs.print_freq=4 --resume --force")
    rows = list(csv.DictReader((FOLD / "log.csv").open()))
    assert len(rows) == 6 and float(rows[-1]["mr"]) == history()["val"][-1]["mr"]
    assert float(rows[0]["loss"]) == history()["train"][0]["loss"]
