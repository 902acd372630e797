"""test.py: the folds that it scores, the rerank of its matrices, and every query's rank."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from postprocessing.matrices import load, load_gallery, matrix_files
from postprocessing.recall import recall
from postprocessing.rerank import rerank_recall
from postprocessing.results import Setting


@pytest.mark.usefixtures("short_trunk")
def test_test_py_scores_the_published_rerank_of_its_matrix_and_writes_every_query_s_rank(scored_run, run) -> None:
    assert run("test.py --path_opt tiny.yaml --rerank").status == 0
    scored = json.loads((scored_run / "checkpoint/tiny/results.json").read_text())
    sims, owner = load("postprocessing/file/tiny_0.npy")
    for found, expected in ((scored, recall(sims, owner)), (scored["rerank"], rerank_recall(sims, owner, Setting()))):
        (fold,) = found["folds"]
        for way in ("i2t", "t2i"):
            assert getattr(expected, way)._asdict().items() <= fold[way].items() and 0 < fold[way]["map"] <= 100
    assert scored["rerank"]["setting"] == asdict(Setting()) and scored["bank"] is None
    with (scored_run / "checkpoint/tiny/ranks.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(sims.shape)
    for way in ("i2t", "t2i"):
        ranks = [int(row["rank"]) for row in rows if row["direction"] == way]
        assert np.mean(ranks) == pytest.approx(scored["folds"][0][way]["meanr"])


@pytest.mark.usefixtures("short_trunk")
def test_the_folds_from_current_num_on_are_scored(scored_run, run) -> None:
    (scored_run / "checkpoint/tiny/0").rename(scored_run / "checkpoint/tiny/2")
    assert run("test.py --path_opt tiny.yaml --set k_fold.nums=3 k_fold.current_num=2").status == 0
    scored = json.loads((scored_run / "checkpoint/tiny/results.json").read_text())
    assert [fold["fold"] for fold in scored["folds"]] == [2]
    missing = run("test.py --path_opt tiny.yaml --set k_fold.nums=3 k_fold.current_num=1")
    assert missing.status == 2 and "folds [1] have no GaLR_best.pth.tar" in missing.message


@pytest.mark.usefixtures("short_trunk")
def test_the_vectors_of_the_captions_are_written_beside_the_matrix(scored_run, run) -> None:
    lines = Path("data/test_caps.txt").read_text().splitlines()
    Path("data/test_caps.txt").write_text("\n".join([lines[1], *lines[1:]]) + "\n")  # two captions of one vector
    assert run("test.py --path_opt tiny.yaml --caption-vectors").status == 0
    best = "--resume checkpoint/tiny/0/GaLR_best.pth.tar --sims a.npy --caption-vectors b.npy"
    assert run(f"test_single.py --path_opt tiny.yaml {best}").status == 0
    vectors, sims = np.load("b.npy"), np.load("a.npy")
    assert np.array_equal(vectors, np.load("postprocessing/file/tiny_0_caption_vectors.npy"))
    assert vectors.dtype == np.float32 and vectors.shape[0] == sims.shape[1] == len(
        load_gallery(Path("a.npy")).captions
    )
    same = [[np.array_equal(one, other) for other in rows] for rows in (vectors, sims.T) for one in rows]
    assert same[: len(vectors)] == same[len(vectors) :] and vectors.std(axis=0).max() > 0
    assert matrix_files(["postprocessing/file/tiny_0*.npy"]) == [Path("postprocessing/file/tiny_0.npy")]
    refused = run("test_single.py --path_opt tiny.yaml --resume none --caption-vectors b.txt")
    assert refused.status == 2 and "--caption-vectors b.txt: the name must end in .npy" in refused.message
