"""search.*: a model folder in place of a checkpoint and its options; the model in the box by default."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from search import encoder
from tests.conftest import Outcome
from tests.searching import SENTENCE, vectors, write_scene

pytestmark = pytest.mark.usefixtures("short_trunk")
Run = Callable[[str], Outcome]
INDEX = "-m search.index --images data/images --workers 0 --device cpu"
ASK = f"-m search.query --text '{SENTENCE}' --top 20 --json --device cpu --index"


def test_a_model_folder_indexes_as_its_checkpoint_does_and_the_one_in_the_box_is_the_default(
    scored_run, run, monkeypatch
):
    (scored_run / "data/local.h5").unlink()
    checkpoint, share = "--path_opt tiny.yaml --resume checkpoint/tiny/0/GaLR_best.pth.tar", "-m util.share --run"
    for command in (
        "-m util.build_local --data_path data --image_path data/images --regions proposals --out data/local.h5",
        f"{share} checkpoint/tiny --out models/tiny --dtype fp32",
        f"{share} checkpoint/tiny --out other",  # in fp16: other weights
        f"{INDEX} --model models/tiny --out a.db",
        f"{INDEX} {checkpoint} --out b.db",
    ):
        assert run(command).status == 0
    ours, theirs = vectors("a.db"), vectors("b.db")
    assert len(ours) == 20 and ours.keys() == theirs.keys()
    np.testing.assert_allclose([ours[name] for name in ours], [theirs[name] for name in ours], atol=1e-6, rtol=0)
    first, second = (json.loads(run(f"{ASK} {index}").out) for index in ("a.db", "b.db"))
    assert [one["path"] for one in first] == [one["path"] for one in second]
    Path("models/tiny").rename("moved")
    assert "--model says where it is now" in run(f"{ASK} a.db").message
    assert run(f"{ASK} a.db --model moved").status == 0
    assert "is not the one that made this index" in run(f"{ASK} a.db --model other").message

    monkeypatch.setattr(encoder, "BOX", scored_run / "moved")
    write_scene(Path("scene.tif"), 3, "uint8", 128)
    ended = run("-m search.localise --scene scene.tif --text 'a red road' --out map.png --scales 64 --device cpu")
    assert ended.status == 0 and Path("map.png").is_file(), ended.err
    assert "--path_opt without --resume" in run(f"{INDEX} --path_opt tiny.yaml --out c.db").message
    monkeypatch.setattr(encoder, "BOX", scored_run / "nothing")
    ended = run(f"{INDEX} --out c.db")
    assert ended.status == 2 and "nothing is not there; give --model" in ended.message and not Path("c.db").exists()
