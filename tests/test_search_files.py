"""search.index over folders as people have them: hostile, damaged, moved and oddly named files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio

from search.store import open_index
from tests.searching import SENTENCE, rows, write, write_scene

pytestmark = pytest.mark.usefixtures("short_trunk")


@pytest.fixture
def mine(work: Path) -> Path:
    """Make a folder of one good picture."""
    (work / "mine").mkdir()
    shutil.copy(work / "data/images/demo_0000.png", work / "mine/good.png")
    return work / "mine"


def test_hostile_files_are_counted_and_stop_nothing(index, work, mine):
    (mine / "reads_others.tif").write_text(
        '<VRTDataset rasterXSize="9" rasterYSize="9"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        "<SourceFilename>/etc/passwd</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    huge = {"driver": "GTiff", "count": 3, "dtype": "uint8", "tiled": True}
    tiles = {"sparse_ok": True, "blockxsize": 4096, "blockysize": 4096}
    with rasterio.open(mine / "promises.tif", "w", height=60_000, width=60_000, **huge | tiles):
        pass
    block = {"compress": "deflate", "blockxsize": 9600, "blockysize": 9600}
    with rasterio.open(mine / "one_block.tif", "w", height=9600, width=9600, **huge | block) as file:
        file.write(np.zeros((3, 16, 16), np.uint8), window=rasterio.windows.Window(0, 0, 16, 16))
    write(mine / "complex.tif", np.zeros((1, 9, 9), np.complex64))
    (mine / "cut.tif").write_bytes((mine / "complex.tif").read_bytes()[:200])
    (mine / "outside.png").symlink_to(work / "data/images/demo_0001.png")
    (mine / "nowhere.png").symlink_to("nothing.png")
    ended = index("", "mine", "none")
    assert ended.status == 0
    assert "7 files were not read" in ended.message
    assert rows().keys() == {"good.png"}


def test_of_a_scene_that_is_damaged_in_part_no_window_is_kept(index, mine):
    path = write_scene(mine / "scene.tif", bands=3, dtype="uint8")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    ended = index("--scales 64", "mine", "none")
    assert ended.status == 0 and "1 files were not read" in ended.err and "scene.tif" in ended.err
    assert rows().keys() == {"good.png"}
    assert "scene.tif" in Path("i.log").read_text()


def test_a_folder_that_was_moved_is_named_and_nothing_is_encoded_again(index, work):
    assert index().status == 0
    (work / "data/images").rename(work / "elsewhere")
    refused = index("--add", "elsewhere")
    assert refused.status == 2 and "--moved" in refused.message and str(work / "data/images") in refused.message
    ended = index("--add --moved", "elsewhere")
    assert ended.status == 0 and "0 files new or changed, 0 gone" in ended.out
    with open_index("i.db") as opened:
        assert opened.mark.images == str(work / "elsewhere")


def test_what_is_left_out_is_counted_and_named(index, work, mine):
    for name in ("a.heic", "b.heic", "notes.txt"):
        (mine / name).write_bytes(b"x")
    (mine / "linked").symlink_to(work / "data/images")
    ended = index("", "mine", "none")
    assert "2 .heic, 1 .txt" in ended.out
    assert "1 files were not read" in ended.err and "linked" in ended.err
    assert rows().keys() == {"good.png"}
    assert "give its folder" in index("--add", "mine/good.png", "none").message


def test_control_characters_of_a_name_are_escaped(index, run, mine):
    names = ["new\nline.png", "\x1b[31mRED.png", "\x9b31m.png", "right\u202eleft.png"]
    for name in names:
        shutil.copy(mine / "good.png", mine / name)
    (mine / "\x1b[2Jbad.png").write_bytes(b"x")
    made = index("", "mine", "none")
    query = f"-m search.query --index i.db --text '{SENTENCE}' --device cpu"
    shown, as_json = run(query), run(f"{query} --json")
    for text in (made.out, made.err, shown.out, as_json.out):
        assert not set(text) & {"\x1b", "\x9b", "\u202e"}
    assert len([line for line in shown.out.splitlines() if line[:4].strip().isdigit()]) == 5
    assert "new\\nline.png" in shown.out and "\\x1b[2Jbad.png" in made.err
    assert {one["path"] for one in json.loads(as_json.out)} == {"good.png", *names}
    refused = run("-m search.query --index i.db --image '\x1b[31mno.png' --device cpu")
    assert "\\x1b[31mno.png" in refused.message and "\x1b" not in refused.message
