"""Vocabulary: the published ones word for word, tokens as the released code makes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vocab
from util.lists import read_captions
from utils import InputError

PUBLISHED = (Path(__file__).parent / "golden/rsitmd_vocab_words.txt").read_text(encoding="utf-8").split()


@pytest.mark.skipif("GALR_TEST_DATA" not in os.environ, reason="GALR_TEST_DATA is not set: no real captions")
def test_published_vocabularies_word_for_word() -> None:
    words = {}
    for name in ("rsitmd", "rsicd"):
        folder = Path(os.environ["GALR_TEST_DATA"], f"{name}_precomp")
        words[name] = vocab.build(read_captions(folder, "train") + read_captions(folder, "test")).words
    assert list(words["rsitmd"]) == PUBLISHED and len(words["rsicd"]) == 1225


def test_there_are_179_stop_words_and_the_published_vocabulary_has_none() -> None:
    assert len(vocab.STOP_WORDS) == 179
    assert not vocab.STOP_WORDS & set(PUBLISHED)


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("Two Ships, moored; (gray) port.", ["two", "ships", "moored", "gray", "port"]),
        ("there is a river. the trees are green .", ["there", "is", "a", "river", "the", "trees", "are", "green"]),
        ("it isn't a T-shaped harbor", ["it", "is", "n't", "a", "t-shaped", "harbor"]),
        ("", []),
        (" . ", []),
    ],
)
def test_tokens_are_lower_case_words_without_marks_sentence_ends_split_off(caption, tokens) -> None:
    assert vocab.tokenize(caption) == tokens


@pytest.mark.parametrize(
    ("written", "typed"),
    [
        ("the water\u2019s edge", "the water's edge"),
        ("two\u00a0ships", "two ships"),
        ("a cafe\u0301", "a caf\u00e9"),
        ("\uff34wo ships, \ufb01elds", "two ships, fields"),
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


def test_splits_train_does_not_see_the_test_captions_and_no_download_is_needed(tmp_path, run) -> None:
    (tmp_path / "train_caps.txt").write_text("red ship\n" * 5)
    (tmp_path / "test_caps.txt").write_text("blue plane\n" * 5)
    out = tmp_path / "v.json"
    command = f"vocab.py --data_path {tmp_path} --data_name x_precomp --out {out}"
    assert run(f"{command} --splits train").status == 0
    assert vocab.load(out).words == ("red", "ship", "<unk>")
    environment = os.environ | {"NLTK_DATA": "/nowhere", "HOME": str(tmp_path)}
    subprocess.run([sys.executable, *command.split(), "--splits", "train", "test"], check=True, env=environment)
    assert vocab.load(out).words == ("red", "ship", "blue", "plane", "<unk>")


@pytest.mark.parametrize("data_path", [".", "small_precomp"])
def test_the_published_command_line_names_the_folder_of_the_data_set(data_path, tmp_path, run, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small_precomp").mkdir()
    for split in ("train", "test"):
        Path(f"small_precomp/{split}_caps.txt").write_text("red ship\n" * 5)
    assert run(f"vocab.py --data_path {data_path} --data_name small_precomp").status == 0
    assert vocab.load(tmp_path / "vocab/small_vocab.json").words == ("red", "ship", "<unk>")
