"""Check the result files of long work: what is done, and what a changed or a foreign file makes of it."""

from __future__ import annotations

import pytest

from util.regions.finished import SETTINGS, Finished
from utils import InputError


def test_what_is_done_is_known_again_unless_the_file_has_changed(tmp_path) -> None:
    files = [tmp_path / name for name in ("a.png", "é.png")]
    for file in files:
        file.write_text("1")
    first = Finished(tmp_path / "new", {"threshold": 0.5})
    assert not (tmp_path / "new").exists()  # begun with the first result
    for file in files:
        first.add(file.stem, file, [1.5])
    again = Finished(tmp_path / "new", {"threshold": 0.5})
    assert again.results() == {"a": [1.5], "é": [1.5]} and all(again.has(file.stem, file) for file in files)
    files[0].write_text("2")  # as long as it was
    assert not again.has("a", files[0]) and not again.has("b", files[0])
    with pytest.raises(InputError, match="other weights or options"):
        Finished(tmp_path / "new", {"threshold": 0.6})


def test_two_images_that_are_there_cannot_share_a_name(tmp_path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_text("1")
    done = Finished(tmp_path / "new", {})
    done.add("a", tmp_path / "x/a.png", [])
    with pytest.raises(InputError, match=r"x/a.png and .*y/a.png share a name \(a\)"):
        done.has("a", tmp_path / "y/a.png")
    (tmp_path / "x/a.png").unlink()
    assert not done.has("a", tmp_path / "y/a.png")  # moved: done again


def test_names_with_folders_are_kept_apart(tmp_path) -> None:
    done = Finished(tmp_path / "new", {"shrink": (1, 2)})
    for key in ("x/a.png", "y/a.png"):
        file = tmp_path / key
        file.parent.mkdir()
        file.write_text("1")
        done.add(key, file, key)
    assert Finished(tmp_path / "new", {"shrink": (1, 2)}).results() == {"x/a.png": "x/a.png", "y/a.png": "y/a.png"}


@pytest.mark.parametrize("text", ["{", "5", "[]", '["a"]', '["a", 3, []]', "null"])
def test_a_damaged_result_is_a_clear_error(text, tmp_path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"result .*a\.json"):
        Finished(tmp_path, {}).results()
    (tmp_path / SETTINGS).write_text(text)
    with pytest.raises(InputError):
        Finished(tmp_path, {})
