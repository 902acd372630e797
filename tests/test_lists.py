"""Check how names of images are found among the keys of another file."""

from __future__ import annotations

import re

import pytest

from util.lists import match, note_validation_list, safe_paths, unique_keys
from utils import InputError


@pytest.mark.parametrize(
    ("names", "keys", "found"),
    [
        (["a.tif", "b.tif"], ["b.txt", "a.txt"], ["a.txt", "b.txt"]),
        (["a.x.tif"], ["a.txt"], ["a.txt"]),  # the published files: up to the first dot
        (["a.tif"], ["a.x.txt"], ["a.x.txt"]),
        (["a.1.tif", "a.2.tif"], ["a.2.txt", "a.1.txt"], ["a.1.txt", "a.2.txt"]),  # the whole stem comes first
        (["a.1.tif"], ["a", "a.1"], ["a.1"]),
        (["P__0.5__0___0.png"], ["P__0.5__0___512.txt", "P__0.5__0___0.txt"], ["P__0.5__0___0.txt"]),
        (["folder/a.tif"], ["a"], ["a"]),
        (["a.tif", "é.tif"], ["é.txt"], [None, "é.txt"]),
        ([], ["a.txt"], []),
    ],
)
def test_names_are_found_by_the_whole_stem_and_then_up_to_the_first_dot(names, keys, found) -> None:
    assert match(names, keys, "file") == found


@pytest.mark.parametrize(
    ("names", "keys", "both"),
    [
        (["a.tif"], ["a.1.txt", "a.2.txt"], "a.1.txt and a.2.txt both stand for a.tif"),
        (["a.3.tif"], ["a.1.txt", "a.2.txt"], "a.1.txt and a.2.txt both stand for a.3.tif"),
        (["a.1.tif", "a.2.tif"], ["a.txt"], "a.txt stands for both a.1.tif and a.2.tif"),
        (["a.tif", "a.jpg"], ["a.txt"], "a.txt stands for both a.tif and a.jpg"),
    ],
)
def test_what_two_keys_or_two_names_share_is_an_error_that_names_both(names, keys, both) -> None:
    with pytest.raises(InputError, match=f"^file: {re.escape(both)}"):
        match(names, keys, "file")


def test_images_are_kept_under_their_short_stem_where_that_is_their_own() -> None:
    assert unique_keys(["a.x.tif", "b.1.tif", "b.2.tif"], "list") == ["a", "b.1", "b.2"]


@pytest.mark.parametrize(
    ("names", "says"), [(["a.tif", "b/a.jpg"], "a.tif and b/a.jpg share a name"), ([".tif"], "no name before")]
)
def test_images_that_no_key_tells_apart_are_an_error(names, says) -> None:
    with pytest.raises(InputError, match=says):
        unique_keys(names, "list")


def test_images_are_found_by_their_stem_under_another_suffix_or_without_their_folder(tmp_path, capsys) -> None:
    for name in ("a.JPG", "b.tif", "c.jpeg", "c.txt", "sub/d.png", "e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = ["a.tif", "b.tif", "c.tif", "sub/d.tif", "train/e.png", "gone.tif"]
    for _ in range(2):
        found = [str(tmp_path / name) for name in ("a.JPG", "b.tif", "c.jpeg", "sub/d.png", "e.png", "gone.tif")]
        assert safe_paths(tmp_path, names) == found
    assert capsys.readouterr().out.count("4 of 6 images have other names there: a.tif is") == 1
    with pytest.raises(InputError, match=r"e\.png stands for both images train/e\.png and test/e\.tif"):
        safe_paths(tmp_path, ["train/e.png", "test/e.tif"])
    (tmp_path / "a.png").touch()
    with pytest.raises(InputError, match=r"a\.JPG and .*a\.png both stand for the image a\.tif"):
        safe_paths(tmp_path, names)


@pytest.mark.parametrize(
    ("listed", "says"), [("a\nb\n", "not random folds"), ("a\nc\nd\n", "2 of 3 images are not in the train list")]
)
def test_a_validation_list_beside_the_train_list_is_not_passed_over_in_silence(listed, says, tmp_path, capsys) -> None:
    (tmp_path / "train_filename.txt").write_text("a\nb\n")
    note_validation_list(tmp_path)
    assert capsys.readouterr() == ("", "")
    (tmp_path / "val_filename.txt").write_text(listed)
    note_validation_list(tmp_path)
    out, err = capsys.readouterr()
    assert says in out + err and f"dataset.val_list={tmp_path}" in out + err
