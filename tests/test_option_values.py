"""Values of options as people write them: paths with `~` and variables, `null`, names of other programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from option import load_options
from utils import InputError, Parser

DEMO = "option/DEMO/DEMO_GaLR.yaml"


def test_home_and_environment_variables_in_paths_are_filled_in(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("RS_DATA", "/data/rs")
    monkeypatch.setenv("HOME", "/home/someone")
    (tmp_path / "o.yaml").write_text(Path(DEMO).read_text().replace("data/demo_precomp/images", "$RS_DATA/images"))
    options = load_options(tmp_path / "o.yaml", ["dataset.data_path=${RS_DATA}/demo", "model.pretrained=~/r18.pth"])
    assert (options.dataset.image_path, options.dataset.data_path) == ("/data/rs/images/", "/data/rs/demo")
    assert options.model.pretrained == "/home/someone/r18.pth"
    with pytest.raises(InputError, match=r"data_path: .*the environment variable GONE_DATA is not set"):
        load_options(DEMO, ["dataset.data_path=$GONE_DATA/demo"])


def test_home_and_environment_variables_on_a_command_line_are_filled_in(monkeypatch) -> None:
    monkeypatch.setenv("RS_DATA", "/data/rs")
    monkeypatch.setenv("HOME", "/home/someone")
    parser = Parser()
    for name in ("--out", "--json", "--text"):
        parser.add_argument(name)
    found = parser.parse_args(["--out=~/x", "--json", "$RS_DATA/a.json", "--text", "a $5 bill ~ $RS_DATA"])
    assert vars(found) == {"out": "/home/someone/x", "json": "/data/rs/a.json", "text": "a $5 bill ~ $RS_DATA"}


@pytest.mark.parametrize("nothing", ["null", "None", "~", ""])
def test_null_means_none_where_a_key_can_be_none_and_else_the_default(nothing) -> None:
    keys = "model.pretrained", "model.seq2vec.pretrained", "model.fusion.gate", "dataset.cache", "optim.lr"
    options = load_options(DEMO, [f"{key}={nothing}" for key in keys])
    assert (options.model.pretrained, options.model.seq2vec.pretrained) == ("none", False)
    assert (options.model.fusion.gate, options.dataset.cache, options.optim.lr) == ("none", "none", 2e-4)


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("optim.learning_rate", "(here it is optim.lr)"),
        ("model.backbone", "(here it is model.trunk)"),
        ("optim.amp", "(here it is optim.precision)"),
        ("optim.momentum", "(known keys: "),
        ("dataset.num_workers", "(nearest known key: dataset.workers)"),
        ("optim.weightdecay", "(nearest known key: optim.weight_decay)"),
    ],
)
def test_only_a_near_key_is_suggested(key, says) -> None:
    with pytest.raises(InputError) as refused:
        load_options(DEMO, [f"{key}=1"])
    assert f"unknown key {key} {says}" in str(refused.value)
