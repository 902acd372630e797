"""Sinkhorn normalisation: the sums of rows and columns, the hubs that it removes, and the command."""

from __future__ import annotations

import json

import numpy as np
import pytest

from postprocessing.matrices import Matrix
from postprocessing.normalise import sinkhorn
from postprocessing.recall import recall


def some_sims(images: int = 12, each: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Return similarities of images with captions, the right ones a little higher."""
    rng, owner = np.random.default_rng(0), np.repeat(np.arange(images), each)
    sims = rng.normal(0, 0.1, (images, len(owner)))
    sims[owner, np.arange(len(owner))] += 0.2
    return sims, owner


def test_it_is_the_scaling_of_rows_and_columns_one_after_the_other() -> None:
    sims, _ = some_sims()
    kernel = np.exp(sims / 0.1)
    for _ in range(3):
        kernel = kernel / kernel.sum(axis=1)[:, None]
        kernel = kernel / kernel.sum(axis=0)[None, :]
    assert np.allclose(np.exp(sinkhorn(sims, 0.1, 3)), kernel)
    assert np.allclose(sinkhorn(sims, 0.1, 0), sims / 0.1)


def test_equal_captions_stay_equal_and_precision_stays() -> None:
    sims, _ = some_sims()
    sims[:, 9] = sims[:, 2]
    after = sinkhorn(sims.astype(np.float32))
    assert after.dtype == np.float32 and np.array_equal(after[:, 9], after[:, 2])


def test_the_command_gives_recall_before_and_after(tmp_path, run) -> None:
    sims, owner = some_sims()
    sims[3] += 0.4
    files = [tmp_path / f"run_{fold}.npy" for fold in (0, 1)]
    for file in files:
        Matrix(sims, owner).save(file)
    done = run(f"-m postprocessing.balance --sims {tmp_path}/run_*.npy --out {tmp_path}/out.json")
    written = json.loads((tmp_path / "out.json").read_text())
    assert [row["file"] for row in written["matrices"]] == list(map(str, files))
    assert written["setting"] == {"temperature": 0.07, "steps": 10}
    assert written["mean"]["before"]["mr"] == pytest.approx(recall(sims, owner).mr)
    assert written["mean"]["after"]["mr"] == pytest.approx(recall(sinkhorn(sims), owner).mr)
    assert f"{written['mean']['after']['mr']:.2f}" in done.out


@pytest.mark.parametrize(("scale", "warned"), [(1, False), (100, True), (0.01, True)])
def test_similarities_that_the_temperature_does_not_suit_are_warned_of(scale, warned, tmp_path, run):
    sims, owner = some_sims()
    Matrix(scale * sims, owner).save(tmp_path / "a.npy")
    done = run(f"-m postprocessing.balance --sims {tmp_path}/a.npy")
    assert ("the temperature 0.07 suits cosines" in done.err) == warned
