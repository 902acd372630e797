"""Fuzzing the readers: mutated and random files, of which each must be read or refused with the project's own error.

    python tests/fuzz.py --minutes 10

Each reader gets its share of the time in a process of its own, which may not take more than 4 GiB. One of its files is
spoilt: bytes and words of it are changed, or it is a valid container (YAML, JSON, pickle, HDF5, archive of torch.save)
with odd things in it. Anything but InputError and RunError is a fault, and so is a crash, a hang, or memory without
end; tracebacks are kept in --faults. tests/test_regions.py draws detections, by hypothesis.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import h5py
import numpy as np
import torch
import yaml
from conftest import make_demo_folder
from PIL import Image
from rehearsal import python_2_table

import util.images
import vocab
from data import read_split
from layers.text_encoder import TextEncoder
from option import load_options
from option.options import Seq2Vec
from postprocessing.matrices import load
from postprocessing.rerank import rerank_recall
from util.checkpoint import load_weights, newest_checkpoint, read_checkpoint, resumable
from util.convert_captions import lists, read_images
from util.lists import read_names, safe_paths, validation_names
from util.regions.local_features import load_local
from util.skipthoughts import load_skipthoughts
from utils import InputError, RunError

LONGEST = 20  # seconds for one input
MEMORY = 4 * 2**30
ODD_WORDS = [word.encode() for word in "nan -inf 1e999 -1 0 ../ / é 🚢 { \" ' % true null 0x7fffffffffffffff".split()]
ODD_WORDS += [b"9" * 400, b"[" * 50, b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b"\n\n", b"\xff" * 4, b"\x80\x05."]
ODD_WORDS += [b"&a *a", b": ", b"- ", b"!!python/name:os"]
ODD_VALUES = [None, True, -1, 0, 10**30, 10**400, 0.5, math.nan, math.inf, "", "x", "\0", "../x", "9" * 5000, "\ud800"]
ODD_VALUES += [[], [[]], {}, {"x": {}}, [1, "a", None], {"": 0}]
ODD_TENSORS = [torch.zeros(0), torch.full((3,), math.nan), torch.zeros(2, 2, dtype=torch.int8), torch.tensor(1 + 1j)]
ODD_TENSORS += [torch.zeros(2, 2).to_sparse(), torch.zeros(1, dtype=torch.bool)]


class Hang(BaseException):
    """An input took longer than LONGEST."""


def hang(*_: object) -> None:
    raise Hang


# ---------------------------------------------------------------- what is changed


def mutate(raw: bytes, rng: random.Random) -> bytes:
    """Return bytes with a few random changes of bytes, words, lines and parts; now and then random bytes alone."""
    if rng.random() < 0.02:
        return rng.randbytes(rng.randrange(300))
    raw = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(raw) + 1)
        to = min(len(raw), at + rng.choice((1, 1, 2, 4, 8, 50, 500)))
        match rng.randrange(7):
            case 0 if at < len(raw):
                raw[at] ^= 1 << rng.randrange(8)
            case 1:
                raw[at:to] = rng.randbytes(to - at)
            case 2:
                del raw[at:to]
            case 3:
                raw[at:at] = raw[at:to] * rng.choice((1, 2, 20))
            case 4 | 5 as kind:
                raw[at : to if kind == 5 else at] = rng.choice(ODD_WORDS)
            case _ if rng.random() < 0.3:
                del raw[at:]
    return bytes(raw)


def odd(tree: Any, rng: random.Random, extra: list) -> Any:
    """Return a tree of dicts, lists and arrays with one of its parts replaced, dropped, doubled or renamed."""
    kind = rng.random()
    if isinstance(tree, np.ndarray) and kind < 0.8:
        return odd_array(rng, [tree.shape, tree.shape[::-1], tree.shape[:1], tree[..., :-1].shape])
    if isinstance(tree, dict) and tree and kind < 0.85:
        key = rng.choice(list(tree))
        if kind < 0.07:
            return {k: v for k, v in tree.items() if k != key}
        if kind < 0.14:
            return tree | {rng.choice(["", "x", "\0", f"{key}x", str(rng.random())]): tree[key]}
        return tree | {key: odd(tree[key], rng, extra)}
    if isinstance(tree, list) and tree and kind < 0.85:
        at = rng.randrange(len(tree))
        if kind < 0.14:
            return tree[:at] + tree[at + 1 :] if kind < 0.07 else tree + tree[at:]
        return [*tree[:at], odd(tree[at], rng, extra), *tree[at + 1 :]]
    return rng.choice(extra)


def odd_array(rng: random.Random, shapes: list[tuple]) -> np.ndarray:
    """Return random numbers of a random type, in one of these shapes or an odd one."""
    shape = rng.choice([*shapes, (), (0,), (1,), (3, 0), (2, 2, 2)])
    kind = rng.choice("f4 f4 f4 f8 f2 i8 u1 ? c8 S3 U2 M8[s] V4 >f4".split())
    array = np.frombuffer(rng.randbytes(max(1, math.prod(shape)) * np.dtype(kind).itemsize), kind)
    array = array[: math.prod(shape)].reshape(shape)
    return np.nan_to_num(array) if kind.endswith(("f4", "f8")) and rng.random() < 0.5 else array


def dump(suffix: str, value: Any, rng: random.Random) -> bytes:
    """Return what a file of this kind holds of a value."""
    if isinstance(value, bytes):
        return value
    file = io.BytesIO()
    match suffix:
        case ".json":
            file.write(json.dumps(value).encode())
        case ".yaml":
            file.write(yaml.safe_dump(value, allow_unicode=True).encode(errors="replace"))
        case ".npy":
            np.save(file, value if isinstance(value, np.ndarray) else np.array(value, object))
        case ".npz":
            np.savez(file, **value)
        case ".tar":
            torch.save(value, file, _use_new_zipfile_serialization=rng.random() < 0.8)
        case ".h5":
            with h5py.File(file, "w") as tree:
                for key, array in value.items():
                    tree[key] = array
    return file.getvalue()


def write_spoilt(folder: Path, files: dict[str, Any], rng: random.Random) -> None:
    """Write files, one of them spoilt: the bytes of it, or a part of its value."""
    spoilt, by_value = rng.choice(list(files)), rng.random() < 0.5
    for name, value in files.items():
        suffix, raw = Path(name).suffix, dump(Path(name).suffix, value, rng)
        if name == spoilt:
            raw = mutate(raw, rng)
            if by_value and not isinstance(value, bytes):
                arrays = [odd_array(rng, [(20, 20)]), np.float64(1), np.array([None, 1], object)]
                extra = {".npy": arrays, ".h5": arrays, ".npz": arrays, ".tar": ODD_TENSORS}.get(suffix, [])
                with contextlib.suppress(UnicodeEncodeError, TypeError, ValueError, OverflowError, AttributeError):
                    raw = dump(suffix, odd(value, rng, ODD_VALUES + extra), rng)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(raw)


# ---------------------------------------------------------------- readers: (folder, rng) -> reads one odd input


def options(folder: Path, rng: random.Random) -> None:
    text = (folder / "tiny.yaml").read_bytes()
    (folder / "fuzzed.yaml").write_bytes(text)
    if rng.random() < 0.2:
        override = mutate(rng.choice([b"optim.lr=1e-4", b"k_fold.nums=3", b"model.seq2vec.type=BiSkip"]), rng)
        load_options(folder / "fuzzed.yaml", [override.decode("utf-8", "surrogateescape")])
    write_spoilt(folder, {"fuzzed.yaml": rng.choice([text, yaml.safe_load(text)])}, rng)
    load_options(folder / "fuzzed.yaml")


def captions_and_lists(folder: Path, rng: random.Random) -> None:
    names = [f"{split}_{kind}.txt" for split in ("test", "train") for kind in ("caps", "filename")]
    write_spoilt(folder, {f"lists/{name}": (folder / "data" / name).read_bytes() for name in names}, rng)
    for split in ("train", "test"):
        found = read_split(folder / "lists", split)
        safe_paths(folder / "data/images", found.images)
        vocab.build(found.captions)


def vocabularies(folder: Path, rng: random.Random) -> None:
    write_spoilt(folder, {"fuzzed.json": json.loads((folder / "vocab.json").read_bytes())}, rng)
    vocab.encode("a red ship", vocab.load(folder / "fuzzed.json").index)


SENTENCES = [{"raw": "a ship .", "sentid": 2}] * 2
KARPATHY = {
    "dataset": "small",
    "images": [
        {"filename": f"{split}.jpg", "imgid": 1, "split": split, "sentences": SENTENCES}
        for split in ("train", "val", "test")
    ],
}


def captions_as_json(folder: Path, rng: random.Random) -> None:
    write_spoilt(folder, {"fuzzed.json": KARPATHY}, rng)
    place = folder / "lists"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for name, text in lists(read_images([folder / "fuzzed.json"])).items():
        (place / name).write_text(text, errors="backslashreplace")
    for split in ("train", "test"):
        read_split(place, split)
    if (place / "val_filename.txt").exists():
        validation_names(place / "val_filename.txt", read_names(place, "train"))


def local_features_hdf5(folder: Path, rng: random.Random) -> None:
    arrays = {"name": np.array([b"a", b"b"]), "local_rep": np.zeros((2, 20, 20), np.float32)}
    write_spoilt(folder, {"fuzzed.h5": arrays | {"local_adj": arrays["local_rep"]}}, rng)
    load_local(folder / "fuzzed.h5", ["a", "b"])


def published_local_features(folder: Path, rng: random.Random) -> None:
    table = [[0.5] * 20 for _ in range(20)]
    tree = {"local_rep": {"a.txt": table, "b.txt": np.zeros((20, 20))}, "adj_matrix": {"a.txt": table, "b.txt": table}}
    write_spoilt(folder, {"fuzzed.npy": tree}, rng)
    load_local(folder / "fuzzed.npy", ["a", "b"])


def similarity_matrices(folder: Path, rng: random.Random) -> None:
    sims = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    write_spoilt(folder, {"fuzzed.npy": sims, "fuzzed_images.npy": np.arange(8) // 2}, rng)
    if rng.random() < 0.3:
        (folder / "fuzzed_images.npy").unlink()
    rerank_recall(*load(folder / "fuzzed.npy"))


SEQ2VEC = Seq2Vec(dir_st="seq2vec", embedding_dim=4, hidden_dim=6, type="UniSkip")
SKIP_THOUGHTS = {"W": (4, 12), "Wx": (4, 6), "U": (6, 12), "Ux": (6, 6), "b": (12,), "bx": (6,)}


def skip_thoughts(folder: Path, rng: random.Random) -> None:
    table, place = np.zeros((3, 4), np.float32), folder / "seq2vec"
    files = {
        "seq2vec/dictionary.txt": b"ship\nplane\nUNK\n",
        "seq2vec/utable.npy": b"".join(python_2_table(table, 3)) if rng.random() < 0.5 else table,
        "seq2vec/uni_skip.npz": {f"encoder_{key}": np.zeros(shape, "f4") for key, shape in SKIP_THOUGHTS.items()},
    }
    write_spoilt(folder, files, rng)
    seq2vec = SEQ2VEC.model_copy(update={"dir_st": str(place)})
    load_skipthoughts(TextEncoder(seq2vec, 2, 8), seq2vec, ["ship", "<unk>"])
    for kept in place.glob(".utable_rows_*"):
        kept.unlink()


def checkpoints(folder: Path, rng: random.Random) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    state = {
        "epoch": 1,
        "arch": "GaLR",
        "best_rsum": np.float64(1),
        "model": rng.choice((model, torch.nn.DataParallel(model))).state_dict(),
        "options": {"optim": {"lr": 0.1}},
        "words": ["ship", "<unk>"],
        "optimizer": {"state": {}, "param_groups": []},
        "progress": {"epoch": 1, "batch": 0, "steps": 3, "best_rsum": 1.0, "window": [0.5]},
        "rows": [{"step": 1}],
    }
    write_spoilt(folder, {"last.pth.tar": state}, rng)
    if rng.random() < 0.5:
        load_weights(model, read_checkpoint(folder / "last.pth.tar"), state["words"])
    elif found := newest_checkpoint(folder / "last.pth.tar"):
        resumable(found)


def images(folder: Path, rng: random.Random) -> None:
    file, path, truncated = io.BytesIO(), folder / "fuzzed.png", rng.choice(("error", "allow"))
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8)
    Image.fromarray(pixels).save(file, rng.choice(("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP")))
    write_spoilt(folder, {"fuzzed.png": file.getvalue()}, rng)
    util.images.check_images([str(path)], 1, truncated)
    util.images.decode(str(path), 16, truncated)
    assert util.images.open_image(path, truncated).size == util.images.image_size(path)


READERS = (
    *(options, captions_and_lists, captions_as_json, vocabularies, local_features_hdf5),
    *(published_local_features, similarity_matrices, skip_thoughts, checkpoints, images),
)

# ---------------------------------------------------------------- the loop


def work(reader: Callable, template: Path, faults: Path, seconds: float, seed: int, count: Any, wrong: Any) -> None:
    """Fuzz one reader in this process. Input n is made from (seed, n), so that a fault can be made again."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "work"
        shutil.copytree(template, folder)
        os.chdir(folder)
        silence = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(silence, stream)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
        signal.signal(signal.SIGALRM, hang)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            signal.alarm(LONGEST)
            try:
                reader(folder, random.Random(f"{seed} {count.value}"))
            except (InputError, RunError):
                pass
            except BaseException:  # everything else is a fault
                wrong.value += 1
                faults.mkdir(parents=True, exist_ok=True)
                path = faults / f"{reader.__name__}_{seed}_{count.value}.txt"
                path.write_text(traceback.format_exc(), errors="replace")
            finally:
                signal.alarm(0)
            count.value += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="in all (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other inputs (default 0)")
    parser.add_argument("--readers", nargs="+", choices=[reader.__name__ for reader in READERS], help="default: all")
    parser.add_argument("--faults", type=Path, default=Path("faults"), help="folder for what went wrong")
    parser.add_argument("--repeat", type=int, metavar="N", help="try input N of --readers alone, here, and show it")
    given = parser.parse_args()
    readers = [reader for reader in READERS if not given.readers or reader.__name__ in given.readers]
    context, bad = multiprocessing.get_context("fork"), 0
    with tempfile.TemporaryDirectory() as temporary:
        template = Path(temporary) / "template"
        make_demo_folder(template, images=5)
        if given.repeat is not None:
            readers[0](template, random.Random(f"{given.seed} {given.repeat}"))
            return 0
        for reader in readers:
            count, wrong = context.Value("q"), context.Value("q")
            seconds = 60 * given.minutes / len(readers)
            parts = reader, template, given.faults.absolute(), seconds, given.seed, count, wrong
            process = context.Process(target=work, args=parts)
            process.start()
            process.join(seconds + 3 * LONGEST)
            process.kill()  # if it hangs where no signal is heeded
            process.join()
            if process.exitcode:
                wrong.value += 1
                print(f"{reader.__name__}: input {count.value} ended the process with status {process.exitcode}")
            print(f"{reader.__name__}: {count.value} inputs, {wrong.value} faults", flush=True)
            bad += wrong.value
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
