"""Files from strangers: nothing in them is executed, nothing leads out of the data, nothing fills the memory.

Every hostile file would make a canary file; the tests look for it, and first show that the file would make it if it
were read carelessly.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml

from util.pickles import load_pickled_npy
from util.regions.local_features import load_local
from util.weights import load_torch
from utils import InputError, read_text

pytestmark = pytest.mark.usefixtures("short_trunk")
CANARY = "canary"
TRAIN = "train.py --path_opt tiny.yaml"
RERANK = "-m postprocessing.rerank --sims sims.npy"


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


class Custom:
    """A class of the file's own making, as a torch checkpoint may hold one; its state is a call."""

    def __init__(self) -> None:
        self.harm = Call(os.system, f"touch {CANARY}")


def nested_array() -> np.ndarray:
    array = np.empty(2, object)
    array[:] = Call(os.system, f"touch {CANARY}"), {"a": [Call(exec, f"open({CANARY!r}, 'w')")]}
    return array


PICKLES = {
    "os.system through reduce": lambda: Call(os.system, f"touch {CANARY}"),
    "a nested builtin": lambda: {"local_rep": {"a.txt": [[1.0, Call(exec, f"open({CANARY!r}, 'w')")]]}},
    "getattr of a builtin": lambda: Call(getattr, Call(__import__, "os"), "system"),
    "a numpy object array of calls": nested_array,
    "a custom class": Custom,
}


@pytest.fixture(params=PICKLES)
def hostile(request, work) -> Any:
    """A hostile object, which makes the canary where a careless reader loads it."""
    raw = pickle.dumps(PICKLES[request.param]())
    pickle.loads(raw)
    assert (work / CANARY).exists() == (request.param != "getattr of a builtin")  # which names, and does not call
    (work / CANARY).unlink(missing_ok=True)
    return PICKLES[request.param]()


def check(outcome, folder: Path, *tells: str) -> None:
    assert outcome.status == 2 and all(word in outcome.message for word in tells), outcome
    assert not (folder / CANARY).exists()


@pytest.mark.parametrize(
    ("path", "command"),
    [
        ("bad.pth", "test_single.py --path_opt tiny.yaml --resume bad.pth"),
        ("bad.pth", f"{TRAIN} --set optim.resume=bad.pth"),
        ("bad.pth", f"{TRAIN} --set model.pretrained=bad.pth"),
        ("bad.pth", "-m util.detect --image_path data/images --weights bad.pth --out new"),
        ("checkpoint/tiny/0/last.pth.tar", f"{TRAIN} --resume"),
    ],
)
def test_a_hostile_file_of_weights_runs_nothing(path, command, hostile, work, run) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    for pack in (True, False):  # the archive of today, and the bare pickle of old
        torch.save({"model": {"a": hostile}, "rows": hostile}, path, _use_new_zipfile_serialization=pack)
        check(run(command), work, Path(path).name)


def test_the_message_names_what_was_in_the_file_and_gives_no_unsafe_advice(work) -> None:
    torch.save({"model": Custom()}, work / "bad.pth")
    with pytest.raises(InputError, match=r"test_hostile\.Custom") as error:
        load_torch(work / "bad.pth", "checkpoint")
    assert "weights_only" not in str(error.value)


def test_hostile_local_features_run_nothing(hostile, work, run) -> None:
    command = f"{TRAIN} --set dataset.local_path=data/local.npy"
    np.save(work / "data/local.npy", np.array({"local_rep": hostile}, object))
    check(run(command), work, "local.npy", "neither an array nor")
    (work / "data/local.npy").write_bytes(pickle.dumps(hostile))
    check(run(command), work, "local.npy")


def test_a_hostile_similarity_matrix_runs_nothing(hostile, work, run) -> None:
    np.save(work / "sims.npy", np.array([[hostile, 1]], object))
    check(run(RERANK), work, "sims.npy")
    np.save(work / "sims.npy", np.eye(2))
    np.save(work / "sims_images.npy", np.array([hostile, 1], object))
    check(run(RERANK), work, "sims_images.npy")


def test_hostile_skip_thoughts_files_run_nothing(hostile, work, run) -> None:
    folder, bad, plain = work / "seq2vec", np.array([hostile], object), np.zeros((1, 8), np.float32)
    folder.mkdir()
    (folder / "dictionary.txt").write_text("UNK\n")
    for name, table, matrix in (("utable.npy", bad, plain), ("uni_skip.npz", plain, bad)):
        np.save(folder / "utable.npy", table)
        np.savez(folder / "uni_skip.npz", encoder_W=matrix)
        check(run(f"{TRAIN} --set model.seq2vec.pretrained=true"), work, name)


def test_hostile_yaml_runs_nothing(work, run) -> None:
    value = f"!!python/object/apply:os.system ['touch {CANARY}']"
    yaml.unsafe_load(value)
    (work / CANARY).unlink()
    (work / "bad.yaml").write_text((work / "tiny.yaml").read_text() + f"seed: {value}\n")
    check(run("train.py --path_opt bad.yaml"), work, "bad.yaml")
    check(run(f"""{TRAIN} --set "seed={value}" """), work, "--set seed")


def test_a_yaml_of_aliases_that_unfolds_without_end_is_refused_at_once(work, run) -> None:
    lines = ["a0: &a0 {x: 1}", *(f"a{i}: &a{i} {{l: *a{i - 1}, r: *a{i - 1}}}" for i in range(1, 60))]
    (work / "bad.yaml").write_text("\n".join(lines))
    check(run("train.py --path_opt bad.yaml"), work, "bad.yaml", "alias")


# ---------------------------------------------------------------- arrays that are not what they claim


def save_pickle(path: Path, raw: bytes) -> None:
    """A .npy of one pickled object, whose pickle is given."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        file.write(raw)


ADDRESS = b"A" * 8  # bytes that NumPy would take for the address of an object


def array_of_addresses() -> Any:
    return Call(np.ndarray, (1,), np.dtype(object), ADDRESS)


class LyingType:
    """A type that says it holds no objects, yet has a field of them: NumPy believes a pickle in this."""

    def __reduce__(self) -> tuple:
        fields = {"a": (np.dtype(object), 0)}
        return np.dtype, ("V8", False, True), (3, "|", None, ("a",), fields, 8, 1, 16)


class LyingArray:
    def __reduce__(self) -> tuple:
        make = np.array(0).__reduce__()[0]
        return make, (np.ndarray, (0,), b"b"), (1, (1,), LyingType(), False, ADDRESS)


@pytest.mark.parametrize("value", [array_of_addresses, LyingArray], ids=["a buffer", "a type"])
def test_bytes_are_never_taken_for_the_address_of_an_object(value, tmp_path) -> None:
    """NumPy's own functions do so where a pickle asks them to: Python then crashes, or worse."""
    path = tmp_path / "local.npy"
    save_pickle(path, pickle.dumps({"local_rep": {"a.txt": value()}, "adj_matrix": {}}))
    with pytest.raises(InputError, match=r"local\.npy"):
        load_local(path, ["a"])


@pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_in_a_published_file_are_read_as_numpy_would_have(protocol, order, tmp_path) -> None:
    rng = np.random.default_rng(0)
    for kind in ("f8", ">f4", "i4", "u1", "f2"):
        rep = np.asarray(rng.integers(0, 99, (20, 20)), kind, order=order)
        rows = [row.copy() for row in rep]
        scalars = [list(row) for row in rep]  # of NumPy
        tree = {"local_rep": {"a.txt": rep, "b.txt": rows}, "adj_matrix": {"a.txt": scalars, "b.txt": rep}}
        save_pickle(tmp_path / "local.npy", pickle.dumps(tree, protocol))
        ours = load_local(tmp_path / "local.npy", ["a", "b"])
        assert all(np.array_equal(array, np.float32([rep, rep])) for array in ours)


def test_lists_that_hold_one_another_many_times_or_themselves_are_refused_at_once(tmp_path) -> None:
    table, itself = [1.0] * 20, []
    for _ in range(40):
        table = [table] * 20
    itself.append(itself)
    for hostile in (table, itself * 20):
        save_pickle(tmp_path / "local.npy", pickle.dumps({"local_rep": {"a.txt": hostile}, "adj_matrix": {}}))
        with pytest.raises(InputError, match=r"a\.txt: "):
            load_local(tmp_path / "local.npy", ["a"])


def test_an_array_that_claims_to_be_huge_is_refused(tmp_path) -> None:
    raw = pickle.dumps(np.zeros(3)).replace(b"K\x03\x85", huge := b"J\xff\xff\xff\x7f\x85")
    assert huge in raw
    save_pickle(tmp_path / "local.npy", raw)
    with pytest.raises(InputError, match=r"local\.npy"):
        load_pickled_npy(tmp_path / "local.npy")


# ---------------------------------------------------------------- archives, names, encodings


def test_a_packed_checkpoint_that_would_unfold_to_gigabytes_is_refused(work, run) -> None:
    with zipfile.ZipFile(work / "bad.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bad/data.pkl", pickle.dumps({}))
        archive.writestr("bad/data/0", bytes(50 * 2**20))
    assert (work / "bad.pth").stat().st_size < 2**20
    check(run("test_single.py --path_opt tiny.yaml --resume bad.pth"), work, "bad.pth", "packed")


@pytest.mark.parametrize("name", ["../outside.png", "sub/../../outside.png", "/outside.png", "link.png", "away/a.png"])
@pytest.mark.parametrize("command", [TRAIN, "-m util.cache_images --path_opt tiny.yaml"])
def test_names_cannot_leave_the_image_folder(name, command, work, run) -> None:
    images, names = work / "data/images", work / "data/train_filename.txt"
    for path in (work / "data/outside.png", work / "a.png"):
        shutil.copy(next(images.iterdir()), path)
    (images / "link.png").symlink_to("../outside.png")
    (images / "away").symlink_to(work)
    names.write_text("\n".join([*names.read_text().split()[:-1], name]) + "\n")
    check(run(command), work, "lead out of data/images")


def test_links_within_the_image_folder_are_welcome(work, run) -> None:
    first = work / "data/images" / (work / "data/train_filename.txt").read_text().split()[0]
    first.with_name("sub").mkdir()
    first.rename(first.with_name("sub") / "a.png")
    first.symlink_to("sub/a.png")
    assert run("-m util.cache_images --path_opt tiny.yaml").status == 0


@pytest.mark.parametrize("raw", ["\ufeffa ship\nan é\n", "a ship\r\nan é\r\n", "a ship\ran é\r", "a ship\r\nan é\n"])
def test_byte_order_marks_and_line_ends_are_handled(raw, tmp_path) -> None:
    (tmp_path / "a.txt").write_bytes(raw.encode())
    assert read_text(tmp_path / "a.txt", "captions") == "a ship\nan é\n"


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ("a ship\n".encode("utf-16"), "UTF-16"),
        ("a ship\n".encode("utf-16-le"), "line 1: a NUL byte"),
        ("a ship\nan é\n".encode("latin-1"), "line 2: not UTF-8 (byte 0xe9)"),
        (b"\xed\xa0\x80\n", "line 1: not UTF-8"),
    ],
)
def test_other_encodings_are_refused_by_name_and_line(raw, says, tmp_path) -> None:
    (tmp_path / "a.txt").write_bytes(raw)
    with pytest.raises(InputError, match=rf"a\.txt.*{re.escape(says)}"):
        read_text(tmp_path / "a.txt", "captions")


@pytest.mark.parametrize("way", ["link", "storage", "virtual"])
def test_an_hdf5_file_that_points_elsewhere_gives_no_foreign_data(way, work, run) -> None:
    """HDF5 knows three ways to take data from other files; local features have no need of them."""
    shape, kind = (20, 20, 20), np.float32
    (work / "secret.raw").write_bytes(bytes(4 * 20**3))
    with h5py.File(work / "secret.h5", "w") as file:
        file["a"] = np.zeros(shape, kind)
    with h5py.File(work / "data/local.h5", "a") as file:
        del file["local_rep"]
        if way == "link":
            file["local_rep"] = h5py.ExternalLink(str(work / "secret.h5"), "a")
        elif way == "storage":
            file.create_dataset("local_rep", shape, kind, external=[(str(work / "secret.raw"), 0, 4 * 20**3)])
        else:
            layout = h5py.VirtualLayout(shape, kind)
            layout[:] = h5py.VirtualSource(str(work / "secret.h5"), "a", shape)
            file.create_virtual_dataset("local_rep", layout)
    check(run(TRAIN), work, "local.h5", "elsewhere")


def test_local_features_that_claim_to_fill_the_memory_are_refused(tmp_path) -> None:
    with h5py.File(tmp_path / "local.h5", "w") as file:
        file.create_dataset("name", (10**10,), h5py.string_dtype(), chunks=(1000,))
    assert (tmp_path / "local.h5").stat().st_size < 10_000
    with pytest.raises(InputError, match="more than the file can hold"):
        load_local(tmp_path / "local.h5", ["a"])
