"""The mean of several models' similarities, and the command."""

from __future__ import annotations

import numpy as np
import pytest

from postprocessing.matrices import Gallery, Matrix, load, load_gallery
from postprocessing.normalise import mean_similarities, save_mean
from postprocessing.recall import query_ranks, recall
from postprocessing.results import Banked, FoldScore, Results, score_of
from utils import InputError, write_json


@pytest.fixture
def files(tmp_path) -> list:
    """Write three matrices of 20 images, each of which tells right answers from wrong ones a little."""
    owner, saved = np.repeat(np.arange(20), 5), []
    for seed in range(3):
        sims = np.random.default_rng(seed).normal(0, 1, (20, 100)).astype(np.float32)
        sims[owner, np.arange(100)] += 1
        saved.append(tmp_path / f"run_{seed}.npy")
        gallery = Gallery([f"images/{i}.png" for i in range(20)], [f"caption {j}" for j in range(100)])
        Matrix(sims, owner, gallery).save(saved[-1])
    return saved


def test_it_is_the_mean_and_better_than_its_members(files) -> None:
    sims, owner = mean_similarities(files)
    assert sims.dtype == np.float32
    assert np.allclose(sims, np.mean([load(file)[0] for file in files], axis=0), atol=1e-6)
    assert recall(sims, owner).mr > max(recall(*load(file)).mr for file in files) + 3


def test_the_command_leaves_a_matrix_that_rerank_and_balance_take(files, tmp_path, run) -> None:
    out = tmp_path / "run_9.npy"
    for _ in range(2):  # the second time the glob finds the mean itself, which is no member
        done = run(f"-m postprocessing.ensemble --sims {tmp_path}/run_[0-9].npy --out {out}")
    sims, owner = load(out)
    assert np.array_equal(sims, mean_similarities(files)[0])
    assert load_gallery(out) == load_gallery(files[0])
    assert f"{recall(sims, owner).mr:.2f}" in done.out


def test_matrices_of_other_images_or_captions_are_refused(files) -> None:
    sims, owner = load(files[1])
    Matrix(sims, owner[::-1].copy()).save(files[1])
    with pytest.raises(InputError, match=r"run_1\.npy is not of the images and captions"):
        mean_similarities(files)
    Matrix(sims[:, :90], owner[:90]).save(files[1])
    with pytest.raises(InputError, match=r"run_1\.npy is not of"):
        mean_similarities(files)
    Matrix(sims, owner).save(files[1])
    gallery = load_gallery(files[2])
    Matrix(*load(files[2]), gallery._replace(captions=[*gallery.captions[1:], "another"])).save(files[2])
    with pytest.raises(InputError, match=r"run_2\.npy is not of"):
        mean_similarities(files)


def test_one_table_has_the_run_its_query_bank_and_its_folds_as_one_model(files, tmp_path, run) -> None:
    for file in files:
        sims, owner = load(file)
        Matrix(sims + 0.5 * sims.max(axis=0), owner).save(file.with_name(f"{file.stem}_bank.npy"))
    folds = {}
    for suffix in ("", "_bank"):
        found = [score_of(query_ranks(*load(file.with_name(f"{file.stem}{suffix}.npy")))) for file in files]
        sizes = {"split": "test", "images": 20, "captions": 100}
        folds[suffix] = [FoldScore(fold=at, **sizes, **dict(score)) for at, score in enumerate(found)]
    bank = Banked.of(folds["_bank"])
    results = Results.of(folds[""], experiment="run", dataset="ucm", lists="ucm_precomp", bank=bank)
    write_json(tmp_path / "checkpoint/results.json", results.model_dump())
    out = run(f"-m postprocessing.ensemble --run {tmp_path}/checkpoint --matrices {tmp_path}").out
    assert max(map(len, out.splitlines())) <= 100
    assert "test split of ucm_precomp: 20 images, 100 captions, chance mR" in out and "PE-RSITR 55.71" in out
    header, _, *rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line[:1] == "|"
    ]
    assert header == ["mR", "one model", "+ query bank", "3 folds as one", "+ query bank"]
    for row, ties in zip(rows, ("random", "against"), strict=True):
        one, all_of_them = results.mean.flat(ties)["mr"], recall(*load(tmp_path / "run_all.npy"), ties).mr
        assert row[0] == f"ties {ties}" and row[1].startswith(f"{one:.2f} \u00b1 ") and row[3] == f"{all_of_them:.2f}"
        assert row[2].startswith(f"{bank.mean.flat(ties)['mr']:.2f} ")
        assert row[4] == f"{recall(*load(tmp_path / 'run_all_bank.npy'), ties).mr:.2f}"
    assert np.array_equal(load(tmp_path / "run_all.npy")[0], mean_similarities(files)[0])


def test_a_matrix_whose_names_are_not_known_is_taken_with_a_warning(files, tmp_path, capsys) -> None:
    owner = load(files[0])[1]
    (tmp_path / "run_0_gallery.json").unlink()
    assert np.array_equal(mean_similarities(files)[1], owner)
    assert "run_0.npy has no names" in capsys.readouterr().err
    save_mean(files, tmp_path / "mean.npy")
    assert load_gallery(tmp_path / "mean.npy") == load_gallery(files[1])


def test_matrices_of_other_scales_are_warned_of_and_can_be_standardised(files, capsys) -> None:
    alike, _ = mean_similarities(files, standardise=True)
    assert capsys.readouterr().err == ""
    Matrix(10 * load(files[2])[0] + 3, *load(files[2])[1:]).save(files[2])
    mean_similarities(files)
    assert "run_2.npy is 10" in (err := capsys.readouterr().err) and "--standardise" in err
    assert np.allclose(mean_similarities(files, standardise=True)[0], alike, atol=1e-5)


def test_a_transposed_matrix_is_named_as_one(files, tmp_path) -> None:
    sims, owner = load(files[0])
    np.save(tmp_path / "t.npy", sims.T)
    with pytest.raises(InputError, match=r"t\.npy: a matrix of 100 x 20 looks transposed"):
        load(tmp_path / "t.npy")
    np.save(tmp_path / "t_images.npy", owner)
    with pytest.raises(InputError, match=r"t_images\.npy: a matrix of 100 x 20 looks transposed"):
        load(tmp_path / "t.npy")
