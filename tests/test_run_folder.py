"""A run's folder: a best checkpoint is never written over, and is scored as it was trained or with a warning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from option import load_options
from util.checkpoint import changed_options, warn_of_other_options
from util.pixels import all_paths

pytestmark = pytest.mark.usefixtures("short_trunk", "without_pictures")
TRAIN = "train.py --path_opt tiny.yaml --device cpu"
FOLD = Path("checkpoint/tiny/0")


@pytest.mark.parametrize("resume", ["", " --resume"])
@pytest.mark.parametrize("record", [None, {"ended": "2026-11-30T10:00:00+00:00"}])
def test_a_best_checkpoint_alone_is_not_trained_over(record, resume, work, run) -> None:
    FOLD.mkdir(parents=True)
    (FOLD / "GaLR_best.pth.tar").write_bytes(b"kept")
    if record:
        (FOLD / "run.json").write_text(json.dumps(record))
    refused = run(TRAIN + resume)
    assert refused.status == 2 and "remove the folder" in refused.message
    assert (FOLD / "GaLR_best.pth.tar").read_bytes() == b"kept"


@pytest.mark.parametrize(
    ("key", "trained", "scored"),
    [
        ("model.seq2vec.pooling", "mean", "last"),
        ("model.trunk", "efficientnet_lite0", "tf_efficientnet_lite0"),
        ("dataset.image_size", 64, 96),
    ],
)
def test_a_model_scored_in_another_way_than_it_was_trained_is_warned_of(key, trained, scored, work, caplog) -> None:
    gru = "model.seq2vec={arch: gru}"
    before, after = (load_options("tiny.yaml", [gru, f"{key}={value}"]) for value in (trained, scored))
    warn_of_other_options({"options": before.to_dict()}, after)
    assert f"trained with {key}={trained}, and is now scored with {scored}" in caplog.text


def test_more_folds_may_be_asked_of_a_run_whose_folds_are_independent() -> None:
    def changed(mode: str) -> list[str]:
        return changed_options(*({"k_fold": {"mode": mode, "nums": nums}} for nums in (2, 3)))

    assert changed("shuffle") == []
    assert changed("disjoint") == ["k_fold.nums: 2 -> 3"]


def test_the_images_of_a_data_set_without_test_lists_are_those_of_its_train_list(work) -> None:
    Path("data/test_filename.txt").unlink()
    dataset = load_options("tiny.yaml").dataset
    listed = set(Path("data/train_filename.txt").read_text().split())
    assert {Path(path).name for path in all_paths(dataset)} == listed
