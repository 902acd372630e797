"""The published run, from nothing: the published options, and small stand-ins of every file in its published form."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from rehearsal import SMALL, command, make_rehearsal, script_environment


@pytest.fixture
def lists(tmp_path) -> Path:
    """The real lists where they are at hand; otherwise a few of the kind: TIFF names, the test's five times."""
    real = Path(os.environ.get("GALR_TEST_DATA", "/nowhere")) / "rsitmd_precomp"
    if real.is_dir():
        return real
    folder = tmp_path / "lists"
    folder.mkdir()
    for split, repeats in (("train", 1), ("test", 5)):
        names = [f"airport_{split}{i}.tif" for i in range(8)]
        captions = [f"a white plane stands near building {i}" for i in range(40)]
        (folder / f"{split}_filename.txt").write_text("".join(f"{name}\n" * repeats for name in names))
        (folder / f"{split}_caps.txt").write_text("".join(f"{caption}\n" for caption in captions))
    return folder


def test_the_published_run_goes_from_nothing_to_the_reranked_table(lists, tmp_path) -> None:
    folder, environment = tmp_path / "rehearsal", script_environment(tmp_path)
    make_rehearsal(folder, lists)
    done = subprocess.run(
        ["bash", "-c", command(SMALL)], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing reads model.cross_attention" in done.stdout  # the published layout
    assert "the vocabulary's rows of utable.npy are kept" in done.stdout
    assert "epoch 0 batch 3/3" in done.stdout
    results = json.loads((folder / "checkpoint/rsitmd_galr/results.json").read_text())
    assert results["rerank"]["folds"] and results["folds"][0]["images"] == SMALL.test
    assert (folder / "postprocessing/file/rsitmd_galr_0.npy").is_file()
