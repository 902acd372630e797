"""Query bank normalisation: its definitions, the hubs that it removes, and `test.py --bank`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from postprocessing.matrices import load, matrix_files
from postprocessing.normalise import GRID, Bank, dynamic_bank, static_bank, temperature_grid
from postprocessing.recall import recall

LISTS = ("train_filename.txt", "train_caps.txt", "test_filename.txt", "test_caps.txt")
OWNER = np.repeat(np.arange(12), 5)


def vectors(seed: int, hub: float = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return 12 images of five captions each, in 16 dimensions, with a hub among the images and among the captions.

    A hub is closer to all others, by a part of the direction that all share. Captions 41 and 43 are equal.
    """
    rng = np.random.default_rng(seed)
    images = rng.normal(0, 1, (12, 16))
    captions = images[OWNER] + rng.normal(0, 1, (60, 16))
    shared = 6 * np.eye(16)[0]
    images, captions = images + shared, captions + shared
    images[3] += hub * shared
    captions[7] += hub * shared
    captions[41] = captions[43]
    return images, captions


def cosines(images: np.ndarray, captions: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(images, axis=1)[:, None] * np.linalg.norm(captions, axis=1)
    return (images @ captions.T / norms).astype(np.float32)


def problem(hub: float = 0) -> tuple[np.ndarray, Bank]:
    """Return the similarities of a split and its bank, with one caption twice in it and image 5 three times."""
    (images, captions), (bank_images, bank_captions) = vectors(0, hub), vectors(1)
    distinct, caption_counts = np.unique(bank_captions, axis=0, return_counts=True)
    image_counts = np.ones(12, int)
    image_counts[5] = 3
    bank = Bank(cosines(images, distinct), caption_counts, cosines(bank_images, captions), image_counts)
    return cosines(images, captions), bank


@pytest.mark.parametrize("block", [1 << 18, 1])
def test_the_static_bank_is_its_definition_in_blocks_and_as_a_whole(monkeypatch, block) -> None:
    monkeypatch.setattr("postprocessing.recall.BLOCK", block)
    sims, bank = problem()
    of_images = np.exp(bank.to_captions.astype(float) / 0.2).mean(axis=1)
    of_captions = np.exp(bank.from_images.astype(float) / 0.2).mean(axis=0)
    after = static_bank(sims, bank, 0.2)
    assert after.dtype == np.float32
    np.testing.assert_allclose(after, sims / 0.2 - np.log(of_images)[:, None] - np.log(of_captions), atol=1e-5)
    assert np.array_equal(after[:, 41], after[:, 43])  # equal captions tie as before


def test_the_dynamic_bank_normalises_the_queries_whose_first_answer_is_one_of_the_bank_s() -> None:
    """Compute the published order one query at a time, with every caption and image of the bank."""
    sims, bank = problem(hub=0.3)
    to_bank = np.repeat(bank.to_captions, bank.caption_counts, axis=1).astype(float)
    from_bank = np.repeat(bank.from_images, bank.image_counts, axis=0).astype(float)
    i2t, t2i = dynamic_bank(sims, bank, 0.05)
    changed = 0
    for matrix, similarity, queries in ((t2i.T, sims.T, to_bank.T), (i2t, sims, from_bank)):
        first_answers = {int(row.argmax()) for row in queries}
        for after, before in zip(matrix, similarity.astype(float), strict=True):
            expected = np.exp(20 * before)
            if int(before.argmax()) in first_answers:
                expected = expected / np.exp(20 * queries).sum(axis=0)
                changed += 1
            np.testing.assert_allclose(np.exp(after - after.max()), expected / expected.max(), rtol=1e-3)
    assert 0 < changed < 72


def test_a_caption_is_scored_without_any_other_query() -> None:
    sims, bank = problem()
    alone = bank._replace(from_images=bank.from_images[:, 9:10])
    assert np.allclose(static_bank(sims[:, 9:10], alone), static_bank(sims, bank)[:, 9:10])
    assert np.allclose(dynamic_bank(sims[:, 9:10], alone)[1], dynamic_bank(sims, bank)[1][:, 9:10])


def longer_test_list(work: Path, name: str) -> tuple[int, int]:
    """Write data folder `name`: its test list goes on with the train list.

    Returns how many images and captions the test list had before.
    """
    shutil.copytree(work / "data", work / name)
    lines = {file: (work / "data" / file).read_text().splitlines() for file in LISTS}
    train, test = (list(dict.fromkeys(lines[f"{part}_filename.txt"])) for part in ("train", "test"))
    captions = lines["test_caps.txt"] + lines["train_caps.txt"]
    (work / name / "test_filename.txt").write_text("".join(f"{file}\n" for file in test + train))
    (work / name / "test_caps.txt").write_text("".join(f"{caption}\n" for caption in captions))
    return len(test), len(lines["test_caps.txt"])


def by_definition(sims: np.ndarray, images: int, captions: int, temperature: float) -> np.ndarray:
    """Return the first rows and columns of `sims`, normalised by all that follow; equal ones count once."""
    scaled = sims.astype(np.float64) / temperature
    of_bank = np.exp(np.unique(scaled[:, captions:], axis=1)).mean(axis=1)[:images]
    by_bank = np.exp(np.unique(scaled[images:], axis=0)).mean(axis=0)[:captions]
    return scaled[:images, :captions] - np.log(of_bank)[:, None] - np.log(by_bank)


@pytest.mark.usefixtures("short_trunk")
def test_the_bank_is_the_train_list_at_the_temperature_of_the_guide(scored_run, run) -> None:
    images, captions = longer_test_list(scored_run, "joined")
    assert run("test.py --path_opt tiny.yaml --bank").status == 0
    whole = "--resume checkpoint/tiny/0/GaLR_best.pth.tar --set dataset.data_path=joined --sims joined.npy"
    assert run(f"test_single.py --path_opt tiny.yaml {whole}").status == 0
    after = np.load("postprocessing/file/tiny_0_bank.npy")
    assert after.shape == (images, captions)
    np.testing.assert_allclose(after, by_definition(np.load("joined.npy"), images, captions, 0.14), atol=1e-4)


@pytest.mark.usefixtures("short_trunk")
def test_test_py_scores_with_the_bank_and_saves_its_matrix(scored_run, run) -> None:
    results = scored_run / "checkpoint/tiny/results.json"
    outcome = run("test.py --path_opt tiny.yaml --bank")
    assert outcome.status == 0 and "fold 0 + query bank" in outcome.out
    scored = json.loads(results.read_text())
    assert scored["folds"][0]["mr"] == pytest.approx(recall(*load("postprocessing/file/tiny_0.npy")).mr, abs=1e-9)
    assert scored["rerank"] is None
    after = load("postprocessing/file/tiny_0_bank.npy")
    assert scored["bank"]["folds"][0]["mr"] == pytest.approx(recall(*after).mr, abs=1e-9)
    assert not np.allclose(after[0], load("postprocessing/file/tiny_0.npy")[0])
    assert "+ query bank" in (scored_run / "checkpoint/tiny/results.md").read_text()
    assert run("test.py --path_opt tiny.yaml --bank dynamic").status == 0
    scored = json.loads(results.read_text())["bank"]
    i2t, t2i = (load(f"postprocessing/file/tiny_0_bank_dynamic{end}.npy") for end in ("_i2t", ""))
    assert scored["kind"] == "dynamic"
    assert scored["folds"][0]["i2t"].items() >= recall(*i2t).i2t._asdict().items()
    assert scored["folds"][0]["t2i"].items() >= recall(*t2i).t2i._asdict().items()
    assert "+ dynamic bank" in (scored_run / "checkpoint/tiny/results.md").read_text()
    files = [file.name for file in matrix_files(["postprocessing/file/tiny_0*.npy"])]
    assert files == ["tiny_0.npy"]  # of a glob that finds all of them


@pytest.mark.usefixtures("short_trunk")
def test_the_grid_scores_validation_with_the_fold_s_train_images_as_the_bank_and_writes_nothing(
    scored_run, run
) -> None:
    outcome = run("test.py --path_opt tiny.yaml --bank-grid")
    assert outcome.status == 0
    rows = {row[1].strip(): row[2:-1] for row in (line.split("|") for line in outcome.out.splitlines()) if len(row) > 3}
    assert not Path("postprocessing").exists() and not (scored_run / "checkpoint/tiny/results.json").exists()
    shutil.copytree("data", "whole")  # the first 4 images of the train list validate, all others train
    for kind in ("filename", "caps"):
        shutil.copy(f"data/train_{kind}.txt", f"whole/test_{kind}.txt")
    whole = "--resume checkpoint/tiny/0/GaLR_best.pth.tar --set dataset.data_path=whole --sims whole.npy"
    assert run(f"test_single.py --path_opt tiny.yaml {whole}").status == 0
    sims, owner = load("whole.npy")
    captions = int((owner < 4).sum())
    to_captions, caption_counts = np.unique(sims[:4, captions:], axis=1, return_counts=True)
    from_images, image_counts = np.unique(sims[4:, :captions], axis=0, return_counts=True)
    bank = Bank(to_captions, caption_counts, from_images, image_counts)
    val, owner = sims[:4, :captions], owner[:captions]
    expected = [[recall(val, owner, "random").mr] * len(GRID), *temperature_grid(val, owner, bank)]
    for name, numbers in zip(("no bank", "static", "dynamic"), expected, strict=True):
        assert list(map(float, rows[name])) == pytest.approx(list(numbers), abs=0.006)
