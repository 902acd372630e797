"""Files of weights as people hold them: each loads, by PyTorch's own rules, and nothing in it is executed."""

from __future__ import annotations

import argparse
import datetime
import os
import pickle
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from test_hostile import Call
from tiny import Block
from torch import nn
from torchvision.models import resnet18

from layers.backbone import ResNet18
from layers.published import load_state
from util.checkpoint import load_weights, newest_checkpoint, previous, read_checkpoint, save_checkpoint
from util.starting_weights import load_backbone
from util.weights import load_torch, read_weights, weights_of
from utils import InputError


def without(*parts: str) -> Callable[[dict], dict]:
    """Return a state dict without names that hold one of the parts."""
    return lambda state: {name: value for name, value in state.items() if not any(part in name for part in parts)}


without_counters = without("num_batches_tracked")


def wrapped(*wrappers: str) -> Callable[[dict], dict]:
    return lambda state: {"".join(wrappers) + name: value for name, value in state.items()}


def with_versions(state: OrderedDict) -> OrderedDict:
    """Without counters, and yet PyTorch's note that this version of the module has them."""
    kept = OrderedDict(without_counters(state))
    kept._metadata = state._metadata
    return kept


FORMS = {
    "as it is": lambda state: state,
    "without the counters of batch normalisation": without_counters,
    "without counters, of a version that has them": with_versions,
    "without fc": without("fc."),
    "with an fc of 30 classes": lambda state: state | {"fc.weight": torch.zeros(30, 512), "fc.bias": torch.zeros(30)},
    "of DataParallel": wrapped("module."),
    "of both, whichever came first": wrapped("_orig_mod.", "module."),
    "of PyTorch's ImageNet example": lambda state: {
        "epoch": 90,
        "arch": "resnet18",
        "best_acc1": torch.tensor(69.8),
        "state_dict": wrapped("module.")(state),
    },
    "of GaLR, trained here": lambda state: {
        "epoch": 3,
        "model": wrapped("global_branch.", "trunk.net.")(state) | {"global_branch.solo.weight": torch.zeros(8, 512)},
    },
    "under model_state_dict": lambda state: {"model_state_dict": state, "average": {"conv1.weight": torch.zeros(1)}},
    "under a key of its own": lambda state: {"epoch": 3, "student": state, "config": {"lr": 0.1}},
    "with settings beside it": lambda state: {
        "state_dict": state,
        "args": argparse.Namespace(lr=0.1, out=Path("runs"), at=datetime.datetime(2026, 1, 1)),
    },
    "with numbers and texts among the weights": lambda state: state | {"epoch": 3, "arch": "resnet18", "best": 0.5},
    "of Lightning": lambda state: {"state_dict": wrapped("model.")(state), "hyper_parameters": {"lr": 0.1}},
    "of a larger network": lambda state: {
        "state_dict": wrapped("module.", "encoder_q.")(without("fc.")(state)) | {"module.queue": torch.zeros(8, 512)}
    },
    "of VSE++, trained here": lambda state: {
        "model": wrapped("trunk.net.")(state) | {"image_out.bias": torch.zeros(8)}
    },
}


@pytest.mark.parametrize(("form", "archive"), [*((form, True) for form in FORMS), ("of DataParallel", False)])
def test_every_form_of_a_resnet_18_file_loads(form, archive, tmp_path) -> None:
    torch.manual_seed(0)
    source = resnet18()
    for name, value in source.named_buffers():
        value.fill_(3 if name.endswith("num_batches_tracked") else 0.5)
    expected = {name: value.clone() for name, value in source.state_dict().items()}
    torch.save(FORMS[form](source.state_dict()), tmp_path / "resnet18.pth", _use_new_zipfile_serialization=archive)
    trunk = ResNet18()
    load_backbone(trunk, str(tmp_path / "resnet18.pth"))
    for name, value in trunk.net.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert value == (0 if "counters" in form else 3)
        elif not name.startswith("fc."):
            assert torch.equal(value, expected[name]), name


def test_a_prefix_that_is_taken_off_is_said_and_two_networks_in_one_file_are_refused(tmp_path, capsys) -> None:
    state, path = resnet18().state_dict(), tmp_path / "a.pth"
    torch.save(wrapped("backbone.")(state) | {"head.weight": torch.zeros(2)}, path)
    load_backbone(ResNet18(), str(path))
    assert "a.pth: taken from backbone.*; 1 other tensors are left out" in capsys.readouterr().out
    torch.save(wrapped("encoder_q.")(state) | wrapped("encoder_k.")(state), path)
    with pytest.raises(InputError, match=r"a\.pth: .* under encoder_q\. and encoder_k\.; save one"):
        load_backbone(ResNet18(), str(path))
    torch.save({"generator": state, "critic": state}, path)
    with pytest.raises(InputError, match="not a table of names and tensors, but generator, critic"):
        load_backbone(ResNet18(), str(path))


def test_weights_are_downloaded_where_torchvision_would_checked_by_digest_and_never_run(tmp_path, monkeypatch) -> None:
    asked, path = [], tmp_path / "hub/checkpoints/resnet18-f37072fd.pth"

    def download(url: str, path: str, hash_prefix: str, progress: bool) -> None:
        asked.append((url, hash_prefix))
        torch.save(without_counters(resnet18().state_dict()), path)

    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("torch.hub.download_url_to_file", download)
    for _ in range(2):
        load_backbone(trunk := ResNet18(), "imagenet")
    assert torch.equal(trunk.net.conv1.weight, torch.load(path)["conv1.weight"])
    assert asked == [("https://download.pytorch.org/models/resnet18-f37072fd.pth", "f37072fd")]
    torch.save({"conv1.weight": Call(os.system, f"touch {tmp_path}/canary")}, path)
    with pytest.raises(InputError, match=r"resnet18-f37072fd\.pth .* posix\.system"):
        load_backbone(ResNet18(), "imagenet")
    assert not (tmp_path / "canary").exists()


def small() -> nn.Module:
    return nn.Sequential(Block(3), nn.BatchNorm2d(1))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state | {"stranger": torch.zeros(1)}, "1 unexpected: stranger"),
        (lambda state: {k: v for k, v in state.items() if k != "1.weight"}, "1 missing: 1.weight"),
        (lambda state: state | {"1.bias": torch.zeros(2)}, r"1 misshapen: 1.bias \(2\) instead of \(1\)"),
    ],
)
def test_what_does_not_fit_is_named_and_the_module_is_as_it_was(change, says) -> None:
    module = small()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ValueError, match=says):
        load_state(module, change({name: value + 1 for name, value in before.items()}))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "old file"])
def test_numpys_numbers_in_a_checkpoint_come_as_pythons(archive, tmp_path) -> None:
    numbers = {"a": np.float64(1), "b": np.float32(1), "c": np.int64(1), "d": np.bool_(1), "epoch": np.int32(1)}
    torch.save(numbers | {"model": {"a": torch.ones(2)}}, tmp_path / "a.tar", _use_new_zipfile_serialization=archive)
    found = read_checkpoint(tmp_path / "a.tar")
    assert [type(found[name]) for name in numbers] == [float, float, int, bool, int]
    assert all(found[name] == 1 for name in numbers)


class Stateful(Call):
    def __reduce__(self) -> tuple:
        return (*self.call[:2], (3, "|", None, ("a",), {"a": (np.dtype(object), 0)}, 8, 1, 16))


def endless_type() -> OrderedDict:
    """NumPy looks for an attribute `dtype`, and in that again."""
    endless = OrderedDict()
    endless.dtype = endless
    return endless


MAKE_SCALAR = np.float64(1).__reduce__()[0]
HOSTILE = {
    "an object": lambda: Call(MAKE_SCALAR, np.dtype(object), b"A" * 8),
    "a structure that claims to hold no objects": lambda: Call(MAKE_SCALAR, Stateful(np.dtype, "V8"), b"A" * 8),
    "a type that is no name": lambda: Call(MAKE_SCALAR, Call(np.dtype, endless_type()), b"A" * 8),
    "a function of NumPy": lambda: Call(np.fromfile, "canary"),
}


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "old file"])
@pytest.mark.parametrize("what", HOSTILE)
def test_nothing_else_of_numpy_is_let_in(what, archive, tmp_path) -> None:
    """And NumPy's own functions are never called: our stand-ins are, which know numbers alone."""
    path = tmp_path / "a.pth.tar"
    torch.save({"model": {}, "best_rsum": HOSTILE[what]()}, path, _use_new_zipfile_serialization=archive)
    with pytest.raises(InputError, match=r"a\.pth\.tar"):
        load_torch(path, "checkpoint")


def test_a_table_of_weights_is_one_of_names_and_numbers_that_are_there() -> None:
    one = torch.ones(1)
    for tree in ({"a": 1}, {1: one}, {"a": one.to("meta")}, {"a": torch.eye(2).to_sparse()}, {}, [one], None):
        assert weights_of(tree) is None
    assert list(weights_of({"module.a": one, "b": one})) == ["module.a", "b"]  # not before all names: part of one


class Shadowed:
    """Pickles as a table of weights with attributes in place of its methods."""

    def __reduce__(self) -> tuple:
        return OrderedDict, (), {"items": 5, "keys": 5, "_metadata": 5}, None, iter([("a", torch.ones(2))])


def test_a_hostile_table_whose_methods_are_data_is_read_all_the_same(tmp_path) -> None:
    torch.save({"model": Shadowed()}, tmp_path / "a.pth.tar")
    assert torch.equal(read_checkpoint(tmp_path / "a.pth.tar")["model"]["a"], torch.ones(2))


def test_a_checkpoint_of_another_vocabulary_is_refused_even_where_it_has_as_many_words() -> None:
    state = {"model": small().state_dict(), "words": ["ship", "plane"]}
    load_weights(small(), state, ["ship", "plane"])
    with pytest.raises(InputError, match="the vocabulary does not match the checkpoint"):
        load_weights(small(), state, ["plane", "ship"])


def test_the_second_newest_checkpoint_is_kept_beside_the_newest_only_where_that_is_asked_for(tmp_path) -> None:
    path = tmp_path / "new/last.pth.tar"
    for epoch, keep in enumerate((True, True, True, False)):
        save_checkpoint({"model": {"a": torch.ones(1)}, "epoch": epoch}, path, keep_previous=keep)
        assert newest_checkpoint(path)["epoch"] == epoch
    assert read_checkpoint(previous(path))["epoch"] == 1
    assert sorted(file.name for file in path.parent.iterdir()) == ["last.pth.tar", "last.pth.tar.previous"]
    assert newest_checkpoint(tmp_path / "nothing.pth.tar") is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_checkpoint_is_refused_where_any_of_its_weights_is_not_finite(value, tmp_path) -> None:
    state = {"a": torch.ones(2), "b": torch.tensor([[1.0, 2.0], [value, 3.0]]), "c": torch.ones(1)}
    torch.save({"model": state}, tmp_path / "a.pth.tar")
    with pytest.raises(InputError, match=r"not finite in 1 tensors: b$"):
        read_checkpoint(tmp_path / "a.pth.tar")


def test_weights_that_are_not_finite_are_refused_with_the_files_name(tmp_path) -> None:
    torch.save(resnet18().state_dict() | {"layer1.0.bn1.weight": torch.full((64,), torch.nan)}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"a\.pth: weights that are not finite in 1 tensors: layer1\.0\.bn1"):
        load_backbone(ResNet18(), str(tmp_path / "a.pth"))


def test_safetensors_are_known_by_their_content_not_by_their_name(tmp_path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file({"a": torch.ones(2)}, tmp_path / "a.pt")
    torch.save({"state_dict": {"module.a": torch.ones(2)}}, tmp_path / "b.safetensors")
    for name in ("a.pt", "b.safetensors"):
        state = read_weights(tmp_path / name, "weights")
        assert list(state) == ["a"] and torch.equal(state["a"], torch.ones(2))
    save_file({"a": torch.tensor([torch.inf])}, tmp_path / "c.pt")
    with pytest.raises(InputError, match=r"c\.pt: weights that are not finite"):
        read_weights(tmp_path / "c.pt", "weights")


def test_a_program_is_told_apart_from_damage_and_is_not_run(tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/constants.pkl", pickle.dumps(()))
        archive.writestr("a/data.pkl", pickle.dumps(Call(Path.touch, tmp_path / "canary"), protocol=2))
    (tmp_path / "b.pt").write_bytes(pickle.dumps({"a": 1})[:-3])
    for name, says in (("a.pt", "TorchScript program"), ("b.pt", r"b\.pt is damaged")):
        with pytest.raises(InputError, match=says):
            load_torch(tmp_path / name, "weights")
    assert not (tmp_path / "canary").exists()


def test_a_damaged_length_in_an_old_file_takes_no_memory(tmp_path) -> None:
    """A name of two gigabytes in a file of a few hundred bytes, from before PyTorch 1.6."""
    torch.save({"weight": torch.zeros(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    raw = (tmp_path / "old.pth").read_bytes()
    name = b"X\x06\0\0\0weight"
    assert name in raw
    (tmp_path / "old.pth").write_bytes(raw.replace(name, b"X\xff\xff\xff\x7fweight"))
    tracemalloc.start()
    with pytest.raises(InputError, match="damaged"):
        load_torch(tmp_path / "old.pth", "weights")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 * 2**20
