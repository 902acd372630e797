"""The model in the box, models/rs_lite: it is small, whole, and has seen no test image of three lists."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from conftest import ROOT

from util.lists import read_names, whole_stem
from utils import read_json

BOX = ROOT / "models/rs_lite"
LISTS = {"ucm_precomp": "ucm_precomp", "ucm_amfmn_precomp": "ucm_precomp", "rsicd_precomp": "rsicd_precomp"}

pytestmark = pytest.mark.skipif(not BOX.is_dir(), reason="models/rs_lite is not there")


@pytest.fixture
def data() -> Path:
    """Return the folder of real data."""
    if not os.environ.get("GALR_TEST_DATA"):
        pytest.skip("GALR_TEST_DATA is not set to the folder of real data")
    return Path(os.environ["GALR_TEST_DATA"])


def seen(data: Path) -> list[Path]:
    """Return the paths of the images that trained or validated the model, which its names say relative to `data`."""
    split = read_json(BOX / "split.json", "split")
    return [data / name for part in ("train", "val") for name in split[part]]


def test_the_box_saw_every_train_image_of_its_two_lists_and_no_other(data: Path) -> None:
    wanted = {
        data / folder / "images" / name
        for lists, folder in LISTS.items()
        if lists != "ucm_precomp"  # its train list holds test images of the other
        for name in read_names(data / lists, "train")
    }
    assert set(seen(data)) == wanted and len(wanted) == 9828 + 1680


@pytest.mark.parametrize("lists", LISTS)
def test_no_test_image_was_seen_by_name_or_by_content(data: Path, lists: str) -> None:
    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    folder = data / LISTS[lists] / "images"
    tested = [folder / name for name in dict.fromkeys(read_names(data / lists, "test"))]
    trained = seen(data)
    assert tested and not {(path.parent, whole_stem(path.name)) for path in tested} & {
        (path.parent, whole_stem(path.name)) for path in trained
    }
    assert not set(map(digest, tested)) & set(map(digest, trained))


def test_the_box_is_a_whole_model_folder_of_at_most_16_mib() -> None:
    pytest.importorskip("safetensors", reason="pip install -r requirements-search.txt")
    from util.model_folder import CARD, folder_options, read_state

    assert sum(path.stat().st_size for path in BOX.iterdir()) <= 16 * 2**20
    assert folder_options(BOX).dataset.image_size == 192 and len(read_state(BOX)["words"]) > 1000
    assert (BOX / CARD).read_text(encoding="utf-8").startswith("---\nlicense: ")
