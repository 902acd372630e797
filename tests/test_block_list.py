"""Validation lists of blocks of neighbours."""

from __future__ import annotations

import pytest

from util.block_list import block_of_each_class
from utils import InputError


def test_a_block_holds_neighbours_by_number_of_every_class() -> None:
    names = [f"{kind}_{number}.jpg" for kind in ("park", "port") for number in (10, 9, 2, 1, 4, 3)]
    assert block_of_each_class(names, 3, 2) == ["park_9.jpg", "park_10.jpg", "port_9.jpg", "port_10.jpg"]


def test_classes_of_names_that_are_numbers_alone_are_counted_off() -> None:
    names = [f"{number}.jpg" for number in range(1, 201)]
    assert block_of_each_class(names, 10, 7, 100) == [f"{n}.jpg" for n in (*range(71, 81), *range(171, 181))]


def test_blocks_share_no_image_and_leave_none_out() -> None:
    names = [f"a{number}.tif" for number in range(23)] + [f"b{number}.tif" for number in range(11)]
    together = [name for block in range(4) for name in block_of_each_class(names, 4, block)]
    assert sorted(together) == sorted(names)


@pytest.mark.parametrize(("names", "blocks", "said"), [(["park.jpg"], 2, "no number"), (["a1.jpg"], 5, "empty")])
def test_what_gives_no_block_is_named(names: list[str], blocks: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        block_of_each_class(names, blocks, blocks - 1)
