"""Recall of each class, and further metrics in the files of results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from postprocessing.classes import class_metrics, class_of_images
from postprocessing.recall import metrics, query_ranks
from postprocessing.rerank import Reranker, multivariate
from postprocessing.results import Setting
from utils import InputError


def test_the_class_of_an_image_is_in_its_name_its_folder_or_a_file(tmp_path):
    images = ["port_12.tif", "rail-way 3.jpg", "airport/7.tif", "bridge/bridge_001.jpg"]
    assert class_of_images(images, "name") == ["port", "rail-way", "airport", "bridge"]
    with pytest.raises(InputError, match=r"1 of 2 images have no class; .*--classes FILE: 0012\.jpg"):
        class_of_images(["port_1.tif", "0012.jpg"], "name")
    (tmp_path / "classes.txt").write_text("0012.jpg\tsea port\nport_1 dock\n")
    assert class_of_images(["port_1.tif", "0012.png"], str(tmp_path / "classes.txt")) == ["dock", "sea port"]
    with pytest.raises(InputError, match=r"1 of 1 images have no class in .*classes\.txt: a\.tif"):
        class_of_images(["a.tif"], str(tmp_path / "classes.txt"))
    (tmp_path / "classes.txt").write_text("a/1.jpg plane\nb/1.jpg ship\n2.jpg road\n")
    assert class_of_images(["b/1.tif", "a/1.tif", "c/2.tif"], str(tmp_path / "classes.txt")) == [
        "ship",
        "plane",
        "road",
    ]
    with pytest.raises(InputError, match=r"1 images have more than one class: 1\.tif"):
        class_of_images(["1.tif"], str(tmp_path / "classes.txt"))


def test_the_recall_of_a_class_is_that_of_its_queries():
    rng = np.random.default_rng(0)
    sims, owner = rng.normal(size=(12, 30)), rng.integers(0, 11, 30)  # image 11 has no captions
    sims[owner, np.arange(30)] += np.linspace(-1, 3, 12)[owner]  # later images are found more easily
    names = ["b" if i < 6 else "a" for i in range(12)]
    found = class_metrics(query_ranks(sims, owner), names, owner)
    asked = [i for i in range(11) if i in owner]
    best = [1 + np.count_nonzero(sims[i] > sims[i, owner == i].max()) for i in asked]
    hits = [100 * (rank <= 1) for rank, i in zip(best, asked, strict=True) if names[i] == "b"]
    assert np.isclose(found["i2t_r1 b"], np.mean(hits))
    ranks = 1 + np.count_nonzero(sims > sims[owner, np.arange(30)], axis=0)
    hits = [rank == 1 for rank, i in zip(ranks, owner, strict=True) if names[i] == "a"]
    assert np.isclose(found["t2i_r1 a"], 100 * np.mean(hits))
    everywhere = class_metrics(query_ranks(sims, owner), ["x"] * 12, owner)
    whole = metrics(sims, owner)
    assert all(np.isclose(value, whole[key.removesuffix(" x")]) for key, value in everywhere.items())


@pytest.mark.parametrize("variant", ["released", "paper"])
@pytest.mark.parametrize("levels", [5, 1000])
def test_mean_average_precision_after_the_rerank_is_that_of_the_scores(variant, levels):
    """Reranker finds it from the candidates alone, `multivariate` builds the whole matrix."""
    rng = np.random.default_rng(1)
    sims, owner = rng.integers(1, levels, (30, 90)) / levels, rng.integers(0, 30, 90)
    setting = Setting(k=12, variant=variant)
    found = Reranker(sims, owner, 12).ranks(setting).metrics()
    arguments = setting.k, setting.w_similarity, setting.w_reverse, setting.xi, variant
    assert np.isclose(found["i2t_map"], metrics(multivariate(sims, *arguments), owner)["i2t_map"])
    assert np.isclose(found["t2i_map"], metrics(multivariate(sims.T, *arguments).T, owner)["t2i_map"])


@pytest.mark.usefixtures("short_trunk")
def test_a_further_metric_and_the_classes_reach_every_file_of_results(scored_run, run):
    names = Path("data/test_filename.txt").read_text().split()
    lines = [f"{name} {'sea port' if i % 2 else 'dock'}\n" for i, name in enumerate(dict.fromkeys(names))]
    Path("classes.txt").write_text("".join(lines))
    assert run("test.py --path_opt tiny.yaml --rerank --classes classes.txt").status == 0
    folder = Path("checkpoint/tiny")
    results = json.loads((folder / "results.json").read_text())
    assert {"map", "r1 dock", "r10 sea port"} <= results["rerank"]["mean"]["t2i"].keys()
    head = (folder / "results.csv").read_text().splitlines()[0]
    assert "i2t mAP" in head and "t2i r5 sea port" in head
    page = (folder / "results.md").read_text()
    assert "| i2t mAP " in page and "| sea port " in page and f"{results['mean']['i2t']['map']:.2f}" in page
    checkpoint = "--path_opt tiny.yaml --resume checkpoint/tiny/0/GaLR_best.pth.tar"
    single = run(f"test_single.py {checkpoint} --classes classes.txt")
    assert single.status == 0 and "| dock " in single.out
    refused = run("test.py --path_opt tiny.yaml --classes gone.txt")
    assert refused.status == 2 and "classes gone.txt is not there" in refused.message
