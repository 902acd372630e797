"""Captions, lists, folds, transforms, batches and local features."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import data
import util.images
import util.pixels
from option import load_options
from option.options import KFold
from util import transforms
from util.lists import stem
from util.regions.local_features import load_local
from utils import InputError

CASES = Path(__file__).parent / "cases"


def write_lists(folder: Path, split: str, names: list[str], captions: list[str]) -> None:
    (folder / f"{split}_filename.txt").write_text("\n".join(names) + "\n")
    (folder / f"{split}_caps.txt").write_text("\n".join(captions) + "\n")


def images_of(folder: Path, number: int) -> list[str]:
    """Noise images, of sizes around 60 x 60."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for i in range(number):
        pixels = rng.integers(0, 256, (60 + i % 3, 61 - i % 2, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"i{i}.png")
    return [f"i{i}.png" for i in range(number)]


@pytest.mark.parametrize(
    ("names", "captions", "found"),
    [
        ("ab", "uvwxyz", ["a", "a", "a", "b", "b", "b"]),  # each image once
        ("aaabbb", "uvwxyz", ["a", "a", "a", "b", "b", "b"]),  # once a caption
        ("abc", "xyz", ["a", "b", "c"]),  # no five are needed
        (["a", "b", "", ""], "xy", ["a", "b"]),
        ("abc", [*"xyzv", "", ""], ["a", "a", "b", "b"]),  # blank captions of the last image stay what they are
    ],
)
def test_every_form_of_the_lists_gives_each_caption_its_image(names, captions, found, tmp_path) -> None:
    write_lists(tmp_path, "test", list(names), list(captions))
    split = data.read_split(tmp_path, "test")
    assert split.images == list(dict.fromkeys(filter(None, names)))
    assert split.captions == list(filter(None, captions))
    assert [split.images[row] for row in split.image_of_caption] == found


def test_blank_captions_are_dropped_and_images_without_others_stay_in_the_gallery_of_the_test(tmp_path, capsys) -> None:
    for split in ("train", "test"):
        write_lists(tmp_path, split, ["a", "b", "c"], ["x", "", " ", "", "y", "z"])
    train = data.read_split(tmp_path, "train")
    assert (train.images, train.captions) == (["a", "c"], ["x", "y", "z"])
    assert train.image_of_caption.tolist() == [0, 1, 1]
    assert "3 blank captions of the train list" in (err := capsys.readouterr().err) and "1 images" in err
    test = data.read_split(tmp_path, "test")
    assert (test.images, test.captions) == (["a", "b", "c"], ["x", "y", "z"])
    assert test.image_of_caption.tolist() == [0, 2, 2]
    assert "3 blank captions of the test list" in capsys.readouterr().err


def test_blank_lines_at_the_end_are_dropped_where_the_counts_fit_without_them(capsys) -> None:
    split = data.read_split(CASES / "captions/trailing_blank_lines", "train")
    assert split.captions == ["a plane on a runway .", "two ships in a harbour ."]
    assert split.image_of_caption.tolist() == [0, 1]
    assert "2 blank lines at the end of train_caps.txt are dropped" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("captions", "says"),
    [
        ("xyz", "3 captions .* 2 lines"),
        ([*"xyz", "", ""], r"5 captions .*\(the last 2 of them blank\) do not fit 2 lines"),
    ],
)
def test_counts_that_do_not_fit_are_named_with_blank_lines_at_the_end(captions, says, tmp_path) -> None:
    write_lists(tmp_path, "train", ["a", "b"], list(captions))
    with pytest.raises(InputError, match=says):
        data.read_split(tmp_path, "train")


def test_a_carriage_return_within_a_caption_is_white_space() -> None:
    split = data.read_split(CASES / "captions/lone_carriage_return", "train")
    assert split.captions == ["a plane on a runway .", "two ships ."] and split.images == ["a.jpg", "b.jpg"]


@pytest.mark.skipif("GALR_TEST_DATA" not in os.environ, reason="GALR_TEST_DATA is not set: no real lists")
@pytest.mark.parametrize(
    ("name", "counts"),
    [("rsitmd", (4287, 21435, 452, 2260)), ("rsicd", (9828, 49140, 1093, 5465)), ("ucm", (1890, 9450, 210, 1050))],
)
def test_real_lists_give_the_published_counts(name, counts) -> None:
    train, test = (data.read_split(Path(os.environ["GALR_TEST_DATA"], f"{name}_precomp"), s) for s in ("train", "test"))
    assert (len(train.images), len(train.captions), len(test.images), len(test.captions)) == counts


def k_fold(**keys) -> KFold:
    return KFold(experiment_name="x", nums=4, **keys)


@pytest.mark.parametrize(("images", "keys"), [(2, {}), (1, {"val_fraction": 0.9}), (2, {"mode": "disjoint"})])
def test_a_fold_without_train_or_validation_images_is_an_error(images, keys) -> None:
    with pytest.raises(InputError, match="leaves no"):
        for fold in range(4):
            data.fold_rows(images, k_fold(**keys), fold)


def folds(folder: Path, val: list[str], *more: str) -> list[data.Fold]:
    """The folds of a data set whose validation images a list names, each five times as in published test lists."""
    (folder / "val_filename.txt").write_text("".join(f"{name}\n" * 5 for name in val))
    keys = [f"dataset.data_path={folder}", f"dataset.val_list={folder}/val_filename.txt", *more]
    return data.make_folds(load_options("option/DEMO/DEMO_GaLR.yaml", keys), None)


def test_a_list_names_the_validation_images_of_every_fold_but_those_without_captions(tmp_path) -> None:
    write_lists(tmp_path, "train", [f"i{i}.tif" for i in range(7)], [*(f"caption {i}" for i in range(12)), "", ""])
    made = folds(tmp_path, ["i4.tif", "i1.jpg", "i6.tif"], "k_fold.nums=2")
    assert [fold.names for fold in made] == [
        {"train": ["i0.tif", "i2.tif", "i3.tif", "i5.tif"], "val": ["i1.tif", "i4.tif"]}
    ] * 2
    assert made[0].val.captions == ["caption 2", "caption 3", "caption 8", "caption 9"]
    assert made[0].val.image_of_caption.tolist() == [0, 0, 1, 1]


def test_every_fold_may_have_a_list_of_its_own(tmp_path) -> None:
    write_lists(tmp_path, "train", [f"i{i}.tif" for i in range(4)], [f"caption {i}" for i in range(4)])
    for fold in range(2):
        (tmp_path / f"val_{fold}.txt").write_text(f"i{fold}.tif\n")
    keys = [f"dataset.data_path={tmp_path}", f"dataset.val_list={tmp_path}/val_{{fold}}.txt", "k_fold.nums=2"]
    made = data.make_folds(load_options("option/DEMO/DEMO_GaLR.yaml", keys), None)
    assert [fold.val.images for fold in made] == [["i0.tif"], ["i1.tif"]]
    with pytest.raises(InputError, match=r"val_2\.txt"):
        data.make_folds(load_options("option/DEMO/DEMO_GaLR.yaml", [*keys, "k_fold.nums=3"]), None)


@pytest.mark.parametrize(
    ("val", "more", "says"),
    [
        (["a.tif", "x.tif", "y.tif"], (), "2 of 3 images are not in the train list, .*: x.tif, y.tif"),
        (["a.tif", "b.tif", "c.tif"], (), "leaves no train image"),
        (["c.tif", "c.jpg"], (), "c.tif stands for both c.tif and c.jpg"),
        (["a.tif"], ("k_fold.mode=disjoint", "k_fold.nums=2"), "leave out it or dataset.val_list"),
    ],
)
def test_a_validation_list_that_does_not_fit_is_an_error(tmp_path, val, more, says) -> None:
    write_lists(tmp_path, "train", ["a.tif", "b.tif", "c.tif"], ["x", "y", "z"])
    with pytest.raises(InputError, match=says):
        folds(tmp_path, val, *more)


def test_test_images_in_the_train_list_are_counted_and_named(tmp_path, capsys) -> None:
    write_lists(tmp_path, "train", ["a.1.tif", "b.tif", "c.2.tif"], ["x", "y", "z"])
    write_lists(tmp_path, "test", ["a.2.jpg", "b.jpg", "c.2.jpg"], ["x", "y", "z"])
    data.read_split(tmp_path, "test")
    assert "2 of 3 images of the test list are in the train list too (b.jpg, c.2.jpg)" in capsys.readouterr().err
    folds(tmp_path, ["c.2.tif"])
    assert "(b.jpg, c.2.jpg)" in capsys.readouterr().err


@pytest.fixture
def small(tmp_path) -> tuple:
    """Options and split of 7 images with 3 captions each; local features that carry the image's number."""
    names = images_of(tmp_path / "images", 7)
    captions = [f"ship {'near ' * (i % 4)}plane" for i in range(21)]
    for split in ("train", "test"):
        write_lists(tmp_path, split, names, captions)
    write_local(tmp_path / "local.h5", names)
    places = {"data_path": tmp_path, "image_path": tmp_path / "images", "local_path": tmp_path / "local.h5"}
    keys = [f"dataset.{key}={value}" for key, value in (places | {"batch_size": 4, "image_size": 32}).items()]
    return load_options("option/DEMO/DEMO_GaLR.yaml", keys), data.read_split(tmp_path, "train")


def write_local(path: Path, names: list[str]) -> None:
    with h5py.File(path, "w") as file:
        file["name"] = [stem(name) for name in reversed(names)]
        file["local_rep"] = np.stack([np.full((20, 20), i, np.float32) for i in reversed(range(len(names)))])
        file["local_adj"] = np.zeros((len(names), 20, 20), np.float32)


def loaded(options, split, cache: str, training: bool) -> data.Data:
    options = options.model_copy(update={"dataset": options.dataset.model_copy(update={"cache": cache, "workers": 1})})
    return data.load_data(split, options, ["ship", "plane", "<unk>"], torch.device("cpu"), training)


def epoch(options, split, cache: str, first: int = 0) -> list[data.Batch]:
    return list(data.train_batches(loaded(options, split, cache, True), options, fold=0, epoch=0, first=first))


@pytest.mark.parametrize("kind", ["rotate", "crops"])
def test_every_cache_gives_the_same_batches_and_so_does_a_start_in_mid_epoch(kind, small) -> None:
    options, split = small
    options = options.model_copy(update={"dataset": options.dataset.model_copy(update={"augment": kind})})
    expected = epoch(options, split, "ram")
    for cache, first in (("none", 0), ("disk", 0), ("ram", 3), ("none", 3)):
        batches = epoch(options, split, cache, first)
        assert len(batches) == 6 - first
        for ours, other in zip(batches, expected[first:], strict=True):
            assert all(map(torch.equal, (*ours.inputs, *ours.pairs), (*other.inputs, *other.pairs)))


@pytest.mark.parametrize("cache", ["none", "ram", "disk"])
def test_evaluation_sees_pixels_and_local_features_of_some_images_and_captions_longest_first(cache, small) -> None:
    options, split = small
    ready = loaded(options, data.subset(split, np.array([5, 2, 6])), cache, False)
    batches = list(data.image_batches(ready, 2))
    assert [len(batch[0]) for batch in batches] == [2, 1]
    images, local_rep, _ = map(torch.cat, zip(*batches, strict=True))
    expected = [util.images.decode(Path(options.dataset.image_path, f"i{i}.png"), 32) for i in (5, 2, 6)]
    assert torch.equal(images, transforms.normalise(torch.from_numpy(np.stack(expected))))
    assert local_rep[:, 0, 0].tolist() == [5, 2, 6]
    batches = list(data.caption_batches(ready.token_ids, 4))
    rows, lengths = (torch.cat([batch[i] for batch in batches]) for i in (0, 2))
    assert sorted(rows.tolist()) == list(range(9))
    assert lengths.tolist() == sorted(ready.lengths.tolist(), reverse=True)


def test_published_npy_and_hdf5_give_the_same_features(tmp_path) -> None:
    names = ["a.x.tif", "b.tif"]
    write_local(tmp_path / "l.h5", names)
    rep, adj = load_local(tmp_path / "l.h5", names)
    tree = {
        key: {f"{stem(n)}.txt": table.tolist() for n, table in zip(names, tables, strict=True)}
        for key, tables in (("local_rep", rep), ("adj_matrix", adj))
    }
    np.save(tmp_path / "l.npy", tree, allow_pickle=True)
    assert all(map(np.array_equal, load_local(tmp_path / "l.npy", names), (rep, adj)))
    assert rep[:, 0, 0].tolist() == [0, 1]
    assert [array.any() for array in load_local("zeros", names)] == [False, False]  # the ablation


def test_keys_that_share_a_name_up_to_the_first_dot_are_told_apart_by_the_whole_stem(tmp_path) -> None:
    path = CASES / "local/two_names_one_stem.npy"
    tree = np.load(path, allow_pickle=True).item()  # our own copy
    names = ["P0770__0.5__0___512.png", "P0770__0.5__0___0.png"]
    local_rep, _ = load_local(path, names)
    expected = [tree["local_rep"][f"{Path(name).stem}.txt"] for name in names]
    assert not np.array_equal(*expected) and np.array_equal(local_rep, np.float32(expected))
    with pytest.raises(
        InputError, match=r"P0770__0.5__0___0.txt and P0770__0.5__0___512.txt both stand for P0770__0.tif"
    ):
        load_local(path, ["P0770__0.tif"])
    write_local(tmp_path / "l.h5", ["a.tif"])
    with pytest.raises(InputError, match=r"a stands for both a.1.tif and a.2.tif"):
        load_local(tmp_path / "l.h5", ["a.1.tif", "a.2.tif"])


def test_images_without_features_are_counted_and_named(tmp_path) -> None:
    write_local(tmp_path / "l.h5", ["a"])
    with pytest.raises(InputError, match=r"6 of 7 images have none: b0.tif, b1.tif, b2.tif, b3.tif, b4.tif, \.\.\."):
        load_local(tmp_path / "l.h5", ["a", *[f"b{i}.tif" for i in range(6)]])


@pytest.mark.parametrize("fault", ["nan", "shape", "missing", "truncated"])
def test_faulty_features_are_named(tmp_path, fault) -> None:
    path = tmp_path / "l.h5"
    write_local(path, ["a"])
    with h5py.File(path, "a") as file:
        if fault == "nan":
            file["local_rep"][0, 3, 3] = np.nan
        elif fault == "shape":
            del file["local_rep"]
            file["local_rep"] = np.zeros((1, 20, 19), np.float32)
        elif fault == "missing":
            del file["local_adj"]
    if fault == "truncated":
        path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"l\.h5"):
        load_local(path, ["a"])
