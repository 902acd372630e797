"""Lists and words: names found among the keys of another file, captions as tokens, the published vocabularies."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from conftest import run_process

import vocab
from util.lists import match, note_validation_list, read_captions, safe_paths, unique_keys
from utils import InputError, write_text


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


PUBLISHED = (Path(__file__).parent / "golden/rsitmd_vocab_words.txt").read_text(encoding="utf-8").split()


@pytest.mark.skipif("GALR_TEST_DATA" not in os.environ, reason="GALR_TEST_DATA is not set: no real captions")
def test_published_vocabularies_word_for_word() -> None:
    words = {}
    for name in ("rsitmd", "rsicd"):
        folder = Path(os.environ["GALR_TEST_DATA"], f"{name}_precomp")
        words[name] = vocab.build(read_captions(folder, "train") + read_captions(folder, "test")).words
    assert list(words["rsitmd"]) == PUBLISHED and len(words["rsicd"]) == 1225


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("Two Ships, moored; (gray) port.", "two ships moored gray port"),
        ("there is a river. the trees are green .", "there is a river the trees are green"),
        ("it isn't a T-shaped harbor", "it is n't a t-shaped harbor"),
        (" . ", ""),
    ],
)
def test_tokens_are_lower_case_words_without_marks_sentence_ends_split_off(caption, tokens) -> None:
    assert vocab.tokenize(caption) == tokens.split()


@pytest.mark.parametrize(
    ("written", "typed"),
    [
        ("two\u00a0ships at the water\u2019s edge", "two ships at the water's edge"),
        ("\uff34wo cafe\u0301s, \ufb01elds", "two caf\u00e9s, fields"),
        ("a \u201cred\u201d t\u2010shaped har\u00adbor\ufeff", 'a "red" t-shaped harbor'),
    ],
)
def test_words_are_the_same_however_unicode_spells_them(written, typed) -> None:
    assert vocab.tokenize(written) == vocab.tokenize(typed)


def test_entities_of_html_in_a_list_of_captions_are_their_characters(tmp_path) -> None:
    (tmp_path / "test_caps.txt").write_text("roads &amp; trees\nit&#39;s R&D; &lt 5 caf&eacute;\n")
    assert read_captions(tmp_path, "test") == ["roads & trees", "it's R&D; &lt 5 caf\u00e9"]


@pytest.mark.parametrize("line", ["a_1.tif#0\ta ship", "1000_7#4\ta ship", "a.JPG,a ship", "train/a.png\ta ship"])
def test_a_list_of_names_with_captions_is_refused_and_the_way_named(line, tmp_path) -> None:
    (tmp_path / "test_caps.txt").write_text(f"\n{line}\n")
    way = r"test_caps\.txt: .* python -m util.convert_captions --json \S*test_caps\.txt"
    with pytest.raises(InputError, match=way):
        read_captions(tmp_path, "test")


def test_words_in_order_of_first_appearance_from_the_threshold_on_unknown_last() -> None:
    built = vocab.build(["road ship the"] * 4 + ["ship quay"], threshold=5)
    assert built.words == ("ship", "<unk>")
    assert vocab.build(["road ship the"] * 5, threshold=5).words == ("road", "ship", "<unk>")
    assert vocab.build(["road ship the"] * 5, 5, keep_stopwords=True).words == ("road", "ship", "the", "<unk>")


def test_unknown_words_and_empty_captions_encode_as_unknown() -> None:
    index = vocab.Vocabulary(("ship", "<unk>")).index
    assert vocab.encode("Ship near ship", index) == [1, 2, 1]
    assert vocab.encode("", index) == [2]


def test_file_form_is_the_published_one_and_loads_again(tmp_path) -> None:
    vocabulary = vocab.Vocabulary(("ship", "plane", "<unk>"))
    vocab.save(vocabulary, tmp_path / "v.json")
    assert json.loads((tmp_path / "v.json").read_text()) == {
        "word2idx": {"ship": 1, "plane": 2, "<unk>": 3},
        "idx2word": {"1": "ship", "2": "plane", "3": "<unk>"},
        "idx": 4,
    }
    assert vocab.load(tmp_path / "v.json") == vocabulary


INDICES = ({}, {"a": 1}, {"a": 1, "<unk>": 3}, {"a": "1", "<unk>": 2}, {"a": 1, "<unk>": True})


@pytest.mark.parametrize("tree", [[], {}, *({"word2idx": index} for index in INDICES)])
def test_files_that_are_no_vocabulary_are_refused_by_name(tmp_path, tree) -> None:
    (tmp_path / "v.json").write_text(json.dumps(tree))
    with pytest.raises(InputError, match=r"v\.json"):
        vocab.load(tmp_path / "v.json")


def test_splits_train_does_not_see_the_test_captions_and_no_download_is_needed(tmp_path, run, monkeypatch) -> None:
    monkeypatch.setenv("NLTK_DATA", "/nowhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    for split, words in (("train", "red ship"), ("test", "blue plane")):
        write_text(tmp_path / f"{split}_caps.txt", f"{words}\n" * 5)
    command = f"vocab.py --data_path {tmp_path} --data_name x_precomp --out {tmp_path}/v.json --splits"
    assert run(f"{command} train").status == 0
    assert vocab.load(tmp_path / "v.json").words == ("red", "ship", "<unk>")
    assert run_process(f"{command} train test", tmp_path).status == 0
    assert vocab.load(tmp_path / "v.json").words == ("red", "ship", "blue", "plane", "<unk>")


@pytest.mark.parametrize("data_path", [".", "small_precomp"])
def test_the_published_command_line_names_the_folder_of_the_data_set(data_path, tmp_path, run, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for split in ("train", "test"):
        write_text(f"small_precomp/{split}_caps.txt", "red ship\n" * 5)
    assert run(f"vocab.py --data_path {data_path} --data_name small_precomp").status == 0
    assert vocab.load(tmp_path / "vocab/small_vocab.json").words == ("red", "ship", "<unk>")
