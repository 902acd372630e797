"""Query bank normalisation: what it computes, what it mends, and `test.py --bank`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from engine import Captions
from layers.model import Model
from postprocessing import querybank
from postprocessing.matrices import load, matrix_files
from postprocessing.querybank import hubness, normalised
from postprocessing.recall import recall

LISTS = ("train_filename.txt", "train_caps.txt", "test_filename.txt", "test_caps.txt")
OWNER = np.repeat(np.arange(12), 5)


def vectors(seed: int, hub: float = 0) -> tuple[torch.Tensor, Captions]:
    """12 images of five captions each, in a space of 16 dimensions, with a hub among the images and the captions.

    A hub is closer to all others than the rest, by a part of the direction that all share.
    """
    rng = np.random.default_rng(seed)
    images = rng.normal(0, 1, (12, 16))
    captions = images[OWNER] + rng.normal(0, 1, (60, 16))
    shared = 6 * np.eye(16)[0]
    images, captions = images + shared, captions + shared
    images[3] += hub * shared
    captions[7] += hub * shared
    captions[41] = captions[43]
    distinct, place = np.unique(captions, axis=0, return_inverse=True)
    return torch.from_numpy(images).float(), Captions(torch.from_numpy(distinct).float(), place.reshape(-1))


def cosines(split: tuple[torch.Tensor, Captions]) -> np.ndarray:
    return Model().similarity(split[0], split[1].vectors).numpy()[:, split[1].place]


def test_it_is_the_definition_in_blocks_and_as_a_whole(monkeypatch) -> None:
    (images, captions), (bank_images, bank_captions) = split, bank = vectors(0), vectors(1)
    sims = cosines(split)
    to_bank = np.exp(Model().similarity(images, bank_captions.vectors).double().numpy() / 0.2).mean(axis=1)
    from_bank = np.exp(Model().similarity(bank_images, captions.vectors).double().numpy() / 0.2).mean(axis=0)
    expected = sims / 0.2 - np.log(to_bank)[:, None] - np.log(from_bank)[captions.place]
    for block in (querybank.SIMILARITY_BLOCK, 100):
        monkeypatch.setattr(querybank, "SIMILARITY_BLOCK", block)
        after = normalised(sims, hubness(Model(), split, bank, 0.2))
        assert after.dtype == np.float32 and np.allclose(after, expected, atol=1e-5)
        assert np.array_equal(after[:, 41], after[:, 43])  # equal captions tie as before


def test_a_hub_of_either_kind_is_found_by_the_train_list_and_answers_its_own_again() -> None:
    split, bank = vectors(0, hub=2), vectors(1)
    sims = cosines(split)
    found = hubness(Model(), split, bank)
    assert found.of_images.argmax() == 3 and found.of_captions.argmax() == 7
    before, after = recall(sims, OWNER), recall(normalised(sims, found), OWNER)
    assert after.mr > before.mr + 1


def test_a_caption_is_scored_without_any_other_query() -> None:
    split, bank = vectors(0), vectors(1)
    sims, found = cosines(split), hubness(Model(), split, bank)
    alone = sims[:, 9:10] / found.temperature - found.of_images[:, None]
    assert np.array_equal(alone[:, 0].argsort(), normalised(sims, found)[:, 9].argsort())


@pytest.fixture
def scored_run(work: Path, checkpoint: Path) -> Path:
    """Link the checkpoint as fold 0 of the run `tiny`; the work folder is the current one."""
    folder = work / "checkpoint/tiny/0"
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.symlink_to(checkpoint.parent)
    return work


def longer_test_list(work: Path, name: str, images: int | None) -> tuple[int, int]:
    """Write data folder `name`: its test list goes on with the first `images` of the train list.

    Returns how many images and captions the test list had before.
    """
    shutil.copytree(work / "data", work / name)
    lines = {file: (work / "data" / file).read_text().splitlines() for file in LISTS}
    train, test = (list(dict.fromkeys(lines[f"{part}_filename.txt"])) for part in ("train", "test"))
    each, added = len(lines["train_caps.txt"]) // len(train), train[:images]
    captions = lines["test_caps.txt"] + lines["train_caps.txt"][: each * len(added)]
    (work / name / "test_filename.txt").write_text("".join(f"{file}\n" for file in test + added))
    (work / name / "test_caps.txt").write_text("".join(f"{caption}\n" for caption in captions))
    return len(test), len(lines["test_caps.txt"])


def by_definition(sims: np.ndarray, images: int, captions: int, temperature: float) -> np.ndarray:
    """The normalisation of the first rows and columns of `sims` by all that follow, of which equal ones count once."""
    scaled = sims.astype(np.float64) / temperature
    of_bank = np.exp(np.unique(scaled[:, captions:], axis=1)).mean(axis=1)[:images]
    by_bank = np.exp(np.unique(scaled[images:], axis=0)).mean(axis=0)[:captions]
    return scaled[:images, :captions] - np.log(of_bank)[:, None] - np.log(by_bank)


@pytest.mark.usefixtures("short_trunk")
def test_the_bank_is_the_train_list_at_the_temperature_of_the_guide(scored_run, run) -> None:
    images, captions = longer_test_list(scored_run, "joined", None)
    assert run("test.py --path_opt tiny.yaml --bank").status == 0
    whole = "--resume checkpoint/tiny/0/GaLR_best.pth.tar --set dataset.data_path=joined --sims joined.npy"
    assert run(f"test_single.py --path_opt tiny.yaml {whole}").status == 0
    after = np.load("postprocessing/file/tiny_0_bank.npy")
    assert after.shape == (images, captions)
    np.testing.assert_allclose(after, by_definition(np.load("joined.npy"), images, captions, 0.14), atol=1e-4)


@pytest.mark.usefixtures("short_trunk")
def test_another_test_query_changes_no_other_score(scored_run, run) -> None:
    assert run("test.py --path_opt tiny.yaml --bank").status == 0
    before = np.load("postprocessing/file/tiny_0_bank.npy")
    images, captions = longer_test_list(scored_run, "more", 1)
    assert run("test.py --path_opt tiny.yaml --bank --set dataset.data_path=more").status == 0
    after = np.load("postprocessing/file/tiny_0_bank.npy")
    assert after.shape[0] == images + 1
    np.testing.assert_allclose(after[:images, :captions], before, atol=1e-4)


@pytest.mark.usefixtures("short_trunk")
def test_test_py_scores_with_the_bank_and_saves_its_matrix(scored_run, run) -> None:
    assert run("test.py --path_opt tiny.yaml").status == 0
    results = scored_run / "checkpoint/tiny/results.json"
    plain = json.loads(results.read_text())
    assert plain["bank"] is None
    outcome = run("test.py --path_opt tiny.yaml --bank")
    assert outcome.status == 0 and "fold 0 + query bank" in outcome.out
    scored = json.loads(results.read_text())
    assert scored["folds"] == plain["folds"] and scored["rerank"] is None
    after = load("postprocessing/file/tiny_0_bank.npy")
    assert scored["bank"]["folds"][0]["mr"] == pytest.approx(recall(*after).mr, abs=1e-9)
    assert not np.allclose(after[0], load("postprocessing/file/tiny_0.npy")[0])
    assert "+ query bank" in (scored_run / "checkpoint/tiny/results.md").read_text()
    files = [file.name for file in matrix_files(["postprocessing/file/tiny_0*.npy"], "--sims")]
    assert files == ["tiny_0.npy"]  # of a glob that finds all of them
