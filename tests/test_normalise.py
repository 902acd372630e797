"""Normalisation: Sinkhorn's, by a query bank, the mean of several models; and their commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from postprocessing.matrices import Gallery, Matrix, load, load_gallery, matrix_files
from postprocessing.normalise import (
    GRID,
    Bank,
    dynamic_bank,
    mean_similarities,
    save_mean,
    sinkhorn,
    static_bank,
    temperature_grid,
)
from postprocessing.recall import query_ranks, recall
from postprocessing.results import Banked, FoldScore, Results, score_of
from utils import InputError, write_json

OWNER = np.repeat(np.arange(12), 5)
CHECKPOINT = "checkpoint/tiny/0/GaLR_best.pth.tar"


# ---------------------------------------------------------------- Sinkhorn


def some_sims() -> tuple[np.ndarray, np.ndarray]:
    """Return similarities of images with captions, the right ones a little higher."""
    sims = np.random.default_rng(0).normal(0, 0.1, (12, 60))
    sims[OWNER, np.arange(60)] += 0.2
    return sims, OWNER


def test_sinkhorn_scales_rows_and_columns_one_after_the_other():
    sims, _ = some_sims()
    kernel = np.exp(sims / 0.1)
    for _ in range(3):
        kernel = kernel / kernel.sum(axis=1)[:, None]
        kernel = kernel / kernel.sum(axis=0)[None, :]
    assert np.allclose(np.exp(sinkhorn(sims, 0.1, 3)), kernel)
    assert np.allclose(sinkhorn(sims, 0.1, 0), sims / 0.1)


def test_equal_captions_stay_equal_and_precision_stays_after_sinkhorn():
    sims, _ = some_sims()
    sims[:, 9] = sims[:, 2]
    after = sinkhorn(sims.astype(np.float32))
    assert after.dtype == np.float32 and np.array_equal(after[:, 9], after[:, 2])


def test_balance_gives_recall_before_and_after(tmp_path, run):
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


# ---------------------------------------------------------------- query bank


def problem() -> tuple[np.ndarray, Bank]:
    """Return similarities, those of captions 41 and 43 equal, and a bank with some captions and images repeated."""
    rng = np.random.default_rng(0)
    sims, to_captions, from_images = (rng.uniform(-0.2, 0.8, (12, n)).astype(np.float32) for n in (60, 9, 60))
    for matrix in (sims, from_images):
        matrix[:, 41] = matrix[:, 43]
    return sims, Bank(to_captions, np.arange(9) // 4 + 1, from_images, np.arange(12) // 5 + 1)


@pytest.mark.parametrize("block", [1 << 18, 1])
def test_the_static_bank_is_its_definition_in_blocks_and_as_a_whole(monkeypatch, block):
    monkeypatch.setattr("postprocessing.recall.BLOCK", block)
    sims, bank = problem()
    of_images = np.exp(bank.to_captions.astype(float) / 0.2).mean(axis=1)
    of_captions = np.exp(bank.from_images.astype(float) / 0.2).mean(axis=0)
    after = static_bank(sims, bank, 0.2)
    assert after.dtype == np.float32
    np.testing.assert_allclose(after, sims / 0.2 - np.log(of_images)[:, None] - np.log(of_captions), atol=1e-5)
    assert np.array_equal(after[:, 41], after[:, 43])  # equal captions tie as before


def test_the_dynamic_bank_normalises_the_queries_whose_first_answer_is_one_of_the_bank_s():
    """Compute the published order one query at a time, with every caption and image of the bank."""
    sims, bank = problem()
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


def test_a_caption_is_scored_without_any_other_query():
    sims, bank = problem()
    alone = bank._replace(from_images=bank.from_images[:, 9:10])
    assert np.allclose(static_bank(sims[:, 9:10], alone), static_bank(sims, bank)[:, 9:10])
    assert np.allclose(dynamic_bank(sims[:, 9:10], alone)[1], dynamic_bank(sims, bank)[1][:, 9:10])


def similarities_of(lists: list[str], run) -> tuple[np.ndarray, np.ndarray]:
    """Return the similarities of images and captions of these lists, one after the other, and each caption's image."""
    names, captions = ([f"data/{name}_{kind}.txt" for name in lists] for kind in ("filename", "caps"))
    shutil.copytree("data", "whole")
    images = dict.fromkeys(line for name in names for line in Path(name).read_text().split())
    Path("whole/test_filename.txt").write_text("\n".join(images) + "\n")
    Path("whole/test_caps.txt").write_text("".join(Path(name).read_text() for name in captions))
    whole = f"--resume {CHECKPOINT} --set dataset.data_path=whole --sims whole.npy"
    assert run(f"test_single.py --path_opt tiny.yaml {whole}").status == 0
    return load("whole.npy")


def by_definition(sims: np.ndarray, images: int, captions: int, temperature: float) -> np.ndarray:
    """Return the first rows and columns of `sims`, normalised by all that follow; equal ones count once."""
    scaled = sims.astype(np.float64) / temperature
    of_bank = np.exp(np.unique(scaled[:, captions:], axis=1)).mean(axis=1)[:images]
    by_bank = np.exp(np.unique(scaled[images:], axis=0)).mean(axis=0)[:captions]
    return scaled[:images, :captions] - np.log(of_bank)[:, None] - np.log(by_bank)


@pytest.mark.usefixtures("short_trunk")
def test_the_bank_is_the_train_list_at_the_temperature_of_the_guide(scored_run, run):
    assert run("test.py --path_opt tiny.yaml --bank").status == 0
    after, (whole, _) = np.load("postprocessing/file/tiny_0_bank.npy"), similarities_of(["test", "train"], run)
    assert after.shape == (4, 20)
    np.testing.assert_allclose(after, by_definition(whole, 4, 20, 0.14), atol=1e-4)


@pytest.mark.usefixtures("short_trunk")
def test_test_py_scores_with_the_bank_and_saves_its_matrix(scored_run, run):
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
def test_the_grid_scores_validation_with_the_fold_s_train_images_as_the_bank_and_writes_nothing(scored_run, run):
    outcome = run("test.py --path_opt tiny.yaml --bank-grid")
    assert outcome.status == 0
    rows = {row[1].strip(): row[2:-1] for row in (line.split("|") for line in outcome.out.splitlines()) if len(row) > 3}
    assert not Path("postprocessing").exists() and not (scored_run / "checkpoint/tiny/results.json").exists()
    sims, owner = similarities_of(["train"], run)  # its first 4 images validate, all others train
    captions = int((owner < 4).sum())
    to_captions, caption_counts = np.unique(sims[:4, captions:], axis=1, return_counts=True)
    from_images, image_counts = np.unique(sims[4:, :captions], axis=0, return_counts=True)
    bank = Bank(to_captions, caption_counts, from_images, image_counts)
    val, owner = sims[:4, :captions], owner[:captions]
    expected = [[recall(val, owner, "random").mr] * len(GRID), *temperature_grid(val, owner, bank)]
    for name, numbers in zip(("no bank", "static", "dynamic"), expected, strict=True):
        assert list(map(float, rows[name])) == pytest.approx(list(numbers), abs=0.006)


# ---------------------------------------------------------------- several models


@pytest.fixture
def files(tmp_path) -> list:
    """Write three matrices of 20 images, each of which tells right answers from wrong ones a little."""
    owner, saved = np.repeat(np.arange(20), 5), [tmp_path / f"run_{seed}.npy" for seed in range(3)]
    gallery = Gallery([f"images/{i}.png" for i in range(20)], [f"caption {j}" for j in range(100)])
    for seed, file in enumerate(saved):
        sims = np.random.default_rng(seed).normal(0, 1, (20, 100)).astype(np.float32)
        sims[owner, np.arange(100)] += 1
        Matrix(sims, owner, gallery).save(file)
    return saved


def test_the_mean_is_better_than_its_members(files):
    sims, owner = mean_similarities(files)
    assert sims.dtype == np.float32
    assert np.allclose(sims, np.mean([load(file)[0] for file in files], axis=0), atol=1e-6)
    assert recall(sims, owner).mr > max(recall(*load(file)).mr for file in files) + 3


def test_the_command_leaves_a_matrix_that_rerank_and_balance_take(files, tmp_path, run):
    out = tmp_path / "run_9.npy"
    for _ in range(2):  # the second time the glob finds the mean itself, which is no member
        done = run(f"-m postprocessing.ensemble --sims {tmp_path}/run_[0-9].npy --out {out}")
    sims, owner = load(out)
    assert np.array_equal(sims, mean_similarities(files)[0])
    assert load_gallery(out) == load_gallery(files[0])
    assert f"{recall(sims, owner).mr:.2f}" in done.out


def test_matrices_of_other_images_or_captions_are_refused(files):
    sims, owner = load(files[1])
    gallery = load_gallery(files[2])
    for other in (
        Matrix(sims, owner[::-1].copy()),
        Matrix(sims[:, :90], owner[:90]),
        Matrix(sims, owner, gallery._replace(captions=[*gallery.captions[1:], "another"])),
    ):
        other.save(files[1])
        with pytest.raises(InputError, match=r"run_1\.npy is not of the images and captions"):
            mean_similarities(files)


def test_one_table_has_the_run_its_query_bank_and_its_folds_as_one_model(files, tmp_path, run):
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
    for suffix in ("", "_bank"):
        members = [file.with_name(f"{file.stem}{suffix}.npy") for file in files]
        assert np.array_equal(load(tmp_path / f"run_all{suffix}.npy")[0], mean_similarities(members)[0])


def test_a_matrix_whose_names_are_not_known_is_taken_with_a_warning(files, tmp_path, capsys):
    owner = load(files[0])[1]
    (tmp_path / "run_0_gallery.json").unlink()
    assert np.array_equal(mean_similarities(files)[1], owner)
    assert "run_0.npy has no names" in capsys.readouterr().err
    save_mean(files, tmp_path / "mean.npy")
    assert load_gallery(tmp_path / "mean.npy") == load_gallery(files[1])


def test_matrices_of_other_scales_are_warned_of_and_can_be_standardised(files, capsys):
    alike, _ = mean_similarities(files, standardise=True)
    assert capsys.readouterr().err == ""
    Matrix(10 * load(files[2])[0] + 3, *load(files[2])[1:]).save(files[2])
    mean_similarities(files)
    assert "run_2.npy is 10" in (err := capsys.readouterr().err) and "--standardise" in err
    assert np.allclose(mean_similarities(files, standardise=True)[0], alike, atol=1e-5)


def test_a_transposed_matrix_is_named_as_one(files, tmp_path):
    sims, owner = load(files[0])
    np.save(tmp_path / "t.npy", sims.T)
    with pytest.raises(InputError, match=r"t\.npy: a matrix of 100 x 20 looks transposed"):
        load(tmp_path / "t.npy")
    np.save(tmp_path / "t_images.npy", owner)
    with pytest.raises(InputError, match=r"t_images\.npy: a matrix of 100 x 20 looks transposed"):
        load(tmp_path / "t.npy")


@pytest.mark.parametrize("wrong", ["--temperature 0", "--temperature -1", "--temperature nan", "--steps 0"])
def test_a_wrong_setting_of_balance_is_one_line(wrong, files, run):
    refused = run(f"-m postprocessing.balance --sims {files[0]} {wrong}")
    assert refused.status == 2 and "--temperature must be above 0 and --steps an integer >= 1" in refused.message


def test_a_mean_of_nothing_but_its_own_file_is_one_line(files, run):
    refused = run(f"-m postprocessing.ensemble --sims {files[0]} --out {files[0]}")
    assert refused.status == 2 and "would be written over" in refused.message
