"""Model folders of strangers and damaged ones: one line each, nothing outside of the folder is opened."""

from __future__ import annotations

import json
import os
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("safetensors", reason="pip install -r requirements-extra.txt")

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_share import shared as shared

from engine import load_pretrained
from utils import InputError, read_json, write_json

pytestmark = pytest.mark.usefixtures("short_trunk")
FOLDER, WEIGHTS = Path("models/tiny"), Path("models/tiny/model.safetensors")
SINGLE = "test_single.py --resume models/tiny"


def change_weights(change: Callable[[dict], dict]) -> None:
    """Write the weights anew after a change, with the header of before."""
    with safe_open(WEIGHTS, "pt") as file:
        about = file.metadata()
    save_file(change(load_file(WEIGHTS)), WEIGHTS, about)


def change_options(**blocks: dict) -> None:
    """Set keys of blocks of options.yaml; a block of another model takes the place of the model's."""
    tree = yaml.safe_load((FOLDER / "options.yaml").read_text())
    tree |= {block: keys if "name" in keys else tree.get(block, {}) | keys for block, keys in blocks.items()}
    (FOLDER / "options.yaml").write_text(yaml.safe_dump(tree))


def other_vocabulary() -> None:
    tree = read_json(FOLDER / "vocab.json", "vocabulary")
    first, second = list(tree["word2idx"])[:2]  # of the same size: the shapes of the weights do not tell
    tree["word2idx"] |= {first: tree["word2idx"][second], second: tree["word2idx"][first]}
    write_json(FOLDER / "vocab.json", tree)


def change_rules(**keys: object) -> None:
    tree = json.loads((FOLDER / "local_rules.json").read_text())
    write_json(FOLDER / "local_rules.json", tree | keys)


def replace(name: str, put: Callable[[Path], object]) -> None:
    (FOLDER / name).unlink()
    put(FOLDER / name)


def spoilt(weights: dict) -> dict:
    name = next(name for name, tensor in weights.items() if tensor.ndim > 1)
    weights[name][0] = torch.nan
    return weights


BAD = {
    "no weights": (lambda: WEIGHTS.unlink(), "no file model.safetensors"),
    "no rules": (lambda: (FOLDER / "local_rules.json").unlink(), "no file local_rules.json"),
    "weights cut in the header": (lambda: WEIGHTS.write_bytes(WEIGHTS.read_bytes()[:100]), "a damaged file"),
    "a pickle": (lambda: WEIGHTS.write_bytes(pickle.dumps({"a": 1})), "or not of safetensors"),
    "a foreign safetensors file": (lambda: save_file({"a": torch.ones(1)}, WEIGHTS), "does not say galr"),
    "weights that are not finite": (lambda: change_weights(spoilt), "not finite in 1 tensors"),
    "weights of another model": (lambda: change_weights(lambda _: {"a": torch.ones(2)}), "do not fit this model"),
    "weights of an odd type": (
        lambda: change_weights(lambda x: x | {"a": torch.ones(2).to(torch.float8_e5m2)}),
        "is of type torch.float8_e5m2",
    ),
    "another vocabulary": (other_vocabulary, "is not what the model was made with"),
    "options that are none": (lambda: (FOLDER / "options.yaml").write_text("- a\n"), "expected blocks"),
    "data elsewhere": (lambda: change_options(dataset={"data_path": "/etc"}), "dataset.data_path must lead below"),
    "a text encoder elsewhere": (
        lambda: change_options(model={"seq2vec": {"arch": "transformer", "path": "/tmp/x"}}),
        "no file transformer/config.json",
    ),
    "an architecture elsewhere": (
        lambda: change_options(model={"name": "CLIP", "clip": {"arch": "local-dir:/tmp/x"}}),
        "must be a name of open_clip",
    ),
    "a link out of the folder": (
        lambda: replace("vocab.json", lambda path: path.symlink_to("/etc/hostname")),
        "vocab.json is a link that leads out",
    ),
    "weights that are a device": (
        lambda: replace("model.safetensors", lambda path: path.symlink_to("/dev/zero")),
        "no file model.safetensors",
    ),
    "options that are a pipe": (lambda: replace("options.yaml", os.mkfifo), "no file options.yaml"),
    "rules without prototypes": (lambda: change_rules(source="proposals"), "proposals need proposals and prototypes"),
    "rules of another kind": (lambda: change_rules(command="rm"), "Extra inputs are not permitted"),
    "rules of other nodes": (lambda: change_rules(drea={"nodes": 21}), "20 nodes"),
    "rules that would take hours": (
        lambda: change_rules(
            source="proposals",
            proposals={"sigma": 1e6},
            prototypes={"centres": [[0.0] * 9], "mean": [0.0] * 9, "deviation": [1.0] * 9},
        ),
        "sigma from 0 to 20",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_folder_is_one_line(what, shared, run, monkeypatch) -> None:
    spoil, tells = BAD[what]
    spoil()
    with pytest.raises(InputError, match=re.escape(tells)) as error:
        load_pretrained("models/tiny", "cpu")
    assert "\n" not in str(error.value)
    if "rules" not in what:  # test_single.py reads local features from their file
        ended = run(SINGLE)
        assert ended.status == 2 and tells in ended.message


OPENED: list[str] = []
sys.addaudithook(lambda event, arguments: OPENED.append(str(arguments[0])) if event == "open" else None)


def test_a_split_that_is_a_link_out_of_the_folder_is_not_read(shared, run, tmp_path) -> None:
    split = FOLDER / "split.json"
    split.rename(tmp_path / "elsewhere.json")
    split.symlink_to(tmp_path / "elsewhere.json")
    ended = run(f"{SINGLE} --split val")
    assert ended.status == 2 and "split.json is a link that leads out" in ended.message


def test_what_options_name_is_not_opened(shared, run) -> None:
    Path("elsewhere").mkdir()
    for name in ("vocab.json", "weights.pt", "val.txt"):
        Path("elsewhere", name).write_bytes(b"{}")
    seq2vec = {"embedding_dim": 8, "hidden_dim": 16, "pretrained": True, "dir_st": "elsewhere"}
    change_options(
        dataset={"vocab_path": "elsewhere/vocab.json", "val_list": "elsewhere/val.txt"},
        model={"pretrained": "elsewhere/weights.pt", "seq2vec": seq2vec},
        optim={"resume": "elsewhere/weights.pt"},
        logs={"logger_name": "elsewhere/logs"},
    )
    OPENED.clear()
    load_pretrained("models/tiny", "cpu").images(["data/images/demo_0000.png"])
    assert run(SINGLE).status == 0
    assert any("model.safetensors" in path or "vocab.json" in path for path in OPENED)
    assert [path for path in OPENED if "elsewhere" in path] == []


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["models/absent", "absent", "a/b/c", "data/images", "../x/y"])
def test_a_name_of_no_folder_is_not_looked_up_on_the_hub(name, shared, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"is not there|no file options\.yaml"):
        load_pretrained(name, "cpu")


def test_a_hub_name_loads_what_the_hub_gives(shared, monkeypatch) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="pip install -r requirements-extra.txt")
    cache = Path("cache/models--someone--tiny")  # as the hub's library lays it out: links into blobs
    (cache / "snapshots/1").mkdir(parents=True)
    (cache / "blobs").mkdir()
    for path in FOLDER.iterdir():
        path.rename(cache / "blobs" / path.name)
        (cache / "snapshots/1" / path.name).symlink_to(f"../../blobs/{path.name}")
    asked = []
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **_: asked.append(name) or str(cache / "snapshots/1"))
    assert load_pretrained("someone/tiny", "cpu").images(["data/images/demo_0000.png"]).shape == (1, 32)
    assert asked == ["someone/tiny"]


def test_without_the_hubs_library_or_its_answer_a_hub_name_is_one_line(shared, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(InputError, match="needs the package huggingface_hub"):
            load_pretrained("someone/tiny", "cpu")
    hub = pytest.importorskip("huggingface_hub", reason="pip install -r requirements-extra.txt")

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network\nhere")

    monkeypatch.setattr(hub, "snapshot_download", refuse)
    with pytest.raises(InputError, match=r"none from the hub \(no network here\)"):
        load_pretrained("someone/tiny", "cpu")


# ---------------------------------------------------------------- test_single.py


def scores(text: str) -> list[str]:
    """Return the lines of the table."""
    return [line for line in text.splitlines() if line.startswith("| fold")]


@pytest.mark.parametrize("split", ["test", "val"])
def test_test_single_scores_a_folder_as_its_checkpoint(shared, run, split) -> None:
    ours = run(f"{SINGLE} --split {split}")
    theirs = run(f"test_single.py --path_opt tiny.yaml --resume checkpoint/tiny/0/GaLR_best.pth.tar --split {split}")
    assert ours.status == theirs.status == 0 and scores(ours.out) == scores(theirs.out) and len(scores(ours.out)) >= 2


def test_an_option_file_goes_with_a_checkpoint_and_not_with_a_folder(shared, run) -> None:
    assert "has options; change them by --set" in run(f"{SINGLE} --path_opt tiny.yaml").message
    ended = run("test_single.py --resume checkpoint/tiny/0/GaLR_best.pth.tar")
    assert ended.status == 2 and "--path_opt is missing" in ended.message


def test_training_starts_from_a_folder_and_knows_its_train_images(shared, run) -> None:
    keys = "optim.resume=models/tiny k_fold.experiment_name=tuned optim.epochs=1 k_fold.seed=3"
    ended = run(f"train.py --path_opt tiny.yaml --device cpu --set {keys}")
    assert ended.status == 0 and "was trained on" in ended.err
