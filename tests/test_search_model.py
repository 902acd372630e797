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


@pytest.fixture
def shared(scored_run: Path, run: Run) -> Path:
    """Share the tiny checkpoint, its local features by proposals, as models/tiny, in fp32."""
    (scored_run / "data/local.h5").unlink()
    local = "-m util.build_local --data_path data --image_path data/images --regions proposals --out data/local.h5"
    assert run(local).status == 0
    assert run("-m util.share --run checkpoint/tiny --out models/tiny --dtype fp32").status == 0
    return scored_run / "models/tiny"


def test_an_index_of_a_folder_is_that_of_its_checkpoint_and_knows_it_by_its_weights(shared: Path, run: Run) -> None:
    checkpoint = "--path_opt tiny.yaml --resume checkpoint/tiny/0/GaLR_best.pth.tar"
    for how, out in (("--model models/tiny", "a.db"), (checkpoint, "b.db")):
        ended = run(f"{INDEX} {how} --out {out}")
        assert ended.status == 0, ended.err
    ours, theirs = vectors("a.db"), vectors("b.db")
    assert len(ours) == 20 and ours.keys() == theirs.keys()
    np.testing.assert_allclose([ours[name] for name in ours], [theirs[name] for name in ours], atol=1e-6, rtol=0)
    first, second = (json.loads(run(f"{ASK} {index}").out) for index in ("a.db", "b.db"))
    assert [one["path"] for one in first] == [one["path"] for one in second]

    shared.rename("moved")
    assert "--model says where it is now" in run(f"{ASK} a.db").message
    assert run(f"{ASK} a.db --model moved").status == 0
    assert run("-m util.share --run checkpoint/tiny --out other").status == 0  # in fp16: other weights
    assert "is not the one that made this index" in run(f"{ASK} a.db --model other").message


def test_without_a_name_the_model_in_the_box_is_taken(shared: Path, run: Run, monkeypatch) -> None:
    monkeypatch.setattr(encoder, "BOX", shared)
    assert run(f"{INDEX} --out a.db").status == 0
    assert len(json.loads(run(f"{ASK} a.db").out)) == 20
    write_scene(Path("scene.tif"), 3, "uint8", 128)
    ended = run("-m search.localise --scene scene.tif --text 'a red road' --out map.png --scales 64 --device cpu")
    assert ended.status == 0 and Path("map.png").is_file(), ended.err
    ended = run(f"{INDEX} --path_opt tiny.yaml --out b.db")
    assert ended.status == 2 and "--path_opt without --resume" in ended.message
    monkeypatch.setattr(encoder, "BOX", shared / "nothing")
    ended = run(f"{INDEX} --out b.db")
    assert ended.status == 2 and "nothing is not there; give --model" in ended.message and not Path("b.db").exists()
