"""Validation lists of blocks of neighbours."""

from __future__ import annotations

from pathlib import Path

import pytest

from util.block_list import block_of_each_class
from utils import InputError


def test_a_block_holds_neighbours_by_number_of_every_class() -> None:
    names = [f"{kind}_{number}.jpg" for kind in ("park", "port") for number in (10, 9, 2, 1, 4, 3)]
    assert block_of_each_class(names, 3, 2) == ["park_9.jpg", "park_10.jpg", "port_9.jpg", "port_10.jpg"]


def test_classes_of_names_that_are_numbers_alone_are_counted_off() -> None:
    names = [f"{number}.jpg" for number in range(1, 201)]
    assert block_of_each_class(names, 10, 7, 100) == [f"{n}.jpg" for n in (*range(71, 81), *range(171, 181))]


@pytest.mark.parametrize(("names", "blocks", "said"), [(["park.jpg"], 2, "no number"), (["a1.jpg"], 5, "empty")])
def test_what_gives_no_block_is_named(names: list[str], blocks: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        block_of_each_class(names, blocks, blocks - 1)


@pytest.fixture
def lists(tmp_path, monkeypatch) -> Path:
    """A train list of names that are numbers alone, in published form: twice two classes of ten, a line per caption."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    numbers = [*range(120, 110, -1), *range(1, 11)]  # in any order
    Path("data/train_filename.txt").write_text("".join(f"{number}.tif\n" * 5 for number in numbers))
    return tmp_path


COMMAND = "-m util.block_list --data_path data --out new/val.txt"


def test_the_command_writes_the_block_of_each_class_each_image_once(lists, run) -> None:
    done = run(f"{COMMAND} --per_class 100 --blocks 5 --block 1")
    assert done.status == 0 and "4 of 20 images" in done.out + done.err
    assert Path("new/val.txt").read_text().split() == ["113.tif", "114.tif", "3.tif", "4.tif"]


@pytest.mark.parametrize("block", ["--block -1", "--block 10", "--block 0 --blocks 1"])
def test_a_block_that_is_not_there_is_an_error_and_nothing_is_written(block, lists, run) -> None:
    done = run(f"{COMMAND} {block}")
    assert done.status == 2 and "--block" in done.message
    assert not Path("new").exists()
