"""The order of training: what is shuffled, what is drawn anew, and what stays the same for one seed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import drawn
import pytest
import torch

from data import Batch, fold_rows, load_data, read_split, train_batches
from option import load_options
from option.options import KFold
from vocab import load_words

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


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The drawn data set, in which no two captions are equal, as the current folder."""
    drawn.draw(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


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


# ---------------------------------------------------------------- what is shuffled


def test_pairs_of_the_published_mode_are_shuffled(folder) -> None:
    order = image_rows(epoch_of())
    assert sorted(order) == sorted(5 * list(range(20)))
    assert order != sorted(order) and len(set(order[:10])) > 5, "pairs stand in the order of the lists"


def test_images_are_shuffled_where_batches_are_made_of_images(folder) -> None:
    order = image_rows(epoch_of(overrides=BY_IMAGE))
    assert sorted(order) == list(range(20))
    assert order != sorted(order), "images stand in the order of the lists"


@pytest.mark.parametrize("overrides", [(), BY_IMAGE], ids=["pairs", "images"])
def test_every_epoch_fold_and_seed_has_an_order_of_its_own(overrides, folder) -> None:
    places = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1)]  # seed, fold, epoch
    orders = [
        tuple(image_rows(epoch_of(fold, epoch, overrides=(*overrides, f"seed={seed}")))) for seed, fold, epoch in places
    ]
    assert len(set(orders)) == len(places)


def test_the_orders_of_seed_0_are_those_of_every_version(folder) -> None:
    """A run of an earlier version that is resumed goes on in the order that it began in."""
    pairs = [image_rows(epoch_of(epoch=epoch))[:12] for epoch in range(2)]
    images = [image_rows(epoch_of(epoch=epoch, overrides=BY_IMAGE)) for epoch in range(2)]
    assert (pairs, images) == (PAIRS, IMAGES)


def test_captions_of_an_image_are_drawn_anew_in_every_epoch(folder) -> None:
    """Each image comes with two of its five captions; in twelve epochs with all of them, and in every place."""
    seen: dict[int, list[tuple]] = {}
    for epoch in range(12):
        for batch in epoch_of(epoch=epoch, overrides=BY_IMAGE):
            for image, words in captions(batch):
                seen.setdefault(image, []).append(words)
    assert len(seen) == 20
    for words in seen.values():
        assert len(words) == 24 and len(set(words)) == 5


# ---------------------------------------------------------------- augmentation


@pytest.mark.parametrize("kind", ["rotate", "flips", "crops"])
def test_every_step_epoch_fold_and_seed_draws_an_augmentation_of_its_own(kind, folder) -> None:
    """All pictures are the same one, so that the batches differ by the augmentation alone."""
    drawn.same_pictures(folder)
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


# ---------------------------------------------------------------- folds


def test_the_split_of_a_fold_is_drawn_from_seed_and_fold_not_from_their_sum() -> None:
    def held_out(seed: int, fold: int) -> list[int]:
        return fold_rows(20, KFold(experiment_name="x", nums=3, seed=seed, val_fraction=0.25), fold)[1].tolist()

    assert held_out(0, 1) != held_out(1, 0) and held_out(1, 2) != held_out(2, 1)
    assert [held_out(0, fold) for fold in range(3)] == SHUFFLED


def test_disjoint_folds_of_a_seed_are_those_of_every_version() -> None:
    keys = KFold(experiment_name="x", nums=3, mode="disjoint", seed=5)
    assert [fold_rows(8, keys, fold)[1].tolist() for fold in range(3)] == DISJOINT
