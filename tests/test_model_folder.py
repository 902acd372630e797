"""Model folders of strangers and damaged ones are one line each; the one in the box, models/rs_lite, is whole."""

from __future__ import annotations

import hashlib
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
from conftest import ROOT

from util.lists import read_names, whole_stem
from util.model_folder import CARD, folder_options, read_state
from utils import read_json

pytest.importorskip("safetensors", reason="pip install -r requirements-extra.txt")

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_share import shared as shared

from engine import load_pretrained
from utils import InputError, write_json

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


def link(name: str, target: str) -> None:
    (FOLDER / name).unlink()
    (FOLDER / name).symlink_to(target)


def pipe() -> None:
    (FOLDER / "options.yaml").unlink()
    os.mkfifo(FOLDER / "options.yaml")


def odd(weights: dict) -> dict:
    return weights | {"a": torch.ones(2).to(torch.float8_e5m2)}


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
    "weights of an odd type": (lambda: change_weights(odd), "is of type torch.float8_e5m2"),
    "another vocabulary": (other_vocabulary, "is not what the model was made with"),
    "options that are none": (lambda: (FOLDER / "options.yaml").write_text("- a\n"), "expected blocks"),
    "data elsewhere": (lambda: change_options(dataset={"data_path": "/etc"}), "dataset.data_path must lead below"),
    "a text encoder elsewhere": (lambda: change_options(model=TRANSFORMER), "no file transformer/config.json"),
    "an architecture elsewhere": (lambda: change_options(model=CLIP), "must be a name of open_clip"),
    "a link out of the folder": (lambda: link("vocab.json", "/etc/hostname"), "vocab.json is a link that leads out"),
    "weights that are a device": (lambda: link(WEIGHTS.name, "/dev/zero"), "no file model.safetensors"),
    "options that are a pipe": (pipe, "no file options.yaml"),
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
TRANSFORMER = {"seq2vec": {"arch": "transformer", "path": "/tmp/x"}}
CLIP = {"name": "CLIP", "clip": {"arch": "local-dir:/tmp/x"}}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_folder_is_one_line(what, shared, run) -> None:
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


@pytest.mark.parametrize("name", ["models/absent", "absent", "a/b/c", "data/images", "../x/y"])
def test_a_name_of_no_folder_is_not_looked_up_on_the_hub(name, shared, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"is not there|no file options\.yaml"):
        load_pretrained(name, "cpu")


def test_a_hub_name_loads_what_the_hub_gives(shared, monkeypatch) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="pip install -r requirements-extra.txt")
    cache = Path("cache/models--someone--tiny")  # as the hub's library lays it out: links into blobs
    (cache / "snapshots/1").mkdir(parents=True)
    FOLDER.rename(cache / "blobs")
    for path in (cache / "blobs").iterdir():
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


@pytest.mark.parametrize("split", ["test", "val"])
def test_test_single_scores_a_folder_as_its_checkpoint(shared, run, split) -> None:
    checkpoint = "test_single.py --path_opt tiny.yaml --resume checkpoint/tiny/0/GaLR_best.pth.tar"
    ended = [run(f"{command} --split {split}") for command in (SINGLE, checkpoint)]
    ours, theirs = ([line for line in one.out.splitlines() if line.startswith("| fold")] for one in ended)
    assert [one.status for one in ended] == [0, 0] and ours == theirs and len(ours) >= 2


def test_an_option_file_goes_with_a_checkpoint_and_not_with_a_folder(shared, run) -> None:
    assert "has options; change them by --set" in run(f"{SINGLE} --path_opt tiny.yaml").message
    ended = run("test_single.py --resume checkpoint/tiny/0/GaLR_best.pth.tar")
    assert ended.status == 2 and "--path_opt is missing" in ended.message


def test_training_starts_from_a_folder_and_knows_its_train_images(shared, run) -> None:
    keys = "optim.resume=models/tiny k_fold.experiment_name=tuned optim.epochs=1 k_fold.seed=3"
    ended = run(f"train.py --path_opt tiny.yaml --device cpu --set {keys}")
    assert ended.status == 0 and "was trained on" in ended.err


BOX = ROOT / "models/rs_lite"
LISTS = {"ucm_precomp": "ucm_precomp", "ucm_amfmn_precomp": "ucm_precomp", "rsicd_precomp": "rsicd_precomp"}


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
    def known(paths: list[Path]) -> set:
        digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
        return digests | {(path.parent, whole_stem(path.name)) for path in paths}

    tested = [data / LISTS[lists] / "images" / name for name in dict.fromkeys(read_names(data / lists, "test"))]
    assert tested and not known(tested) & known(seen(data))


def test_the_box_is_a_whole_model_folder_of_at_most_16_mib() -> None:
    assert sum(path.stat().st_size for path in BOX.iterdir()) <= 16 * 2**20
    assert folder_options(BOX).dataset.image_size == 192 and len(read_state(BOX)["words"]) > 1000
    assert (BOX / CARD).read_text(encoding="utf-8").startswith("---\nlicense: ")
