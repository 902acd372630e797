"""Fuzzing the readers: mutated and random files, of which each must be read or refused with the project's own error.

    python tests/fuzz.py --minutes 10

Each reader gets its share of the time in a process of its own, which may not take more than 4 GiB. Half of the inputs
are valid files with bytes, numbers, lines or whole parts changed; the others are valid containers (YAML, JSON, pickles,
HDF5, archives of torch.save) with odd things in them. Anything but InputError and RunError is a fault, and so is
a crash, a hang, or memory without end. Prints the number of inputs for each reader; faulty inputs are kept in --faults.
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
from mutations import ODD_VALUES, mutate, odd, odd_array
from PIL import Image
from stand_ins import python_2_table

import util.images
import vocab
from data import read_split
from layers.text_encoder import TextEncoder
from option import load_options
from option.models import Seq2Vec
from postprocessing.matrices import load
from postprocessing.rerank import rerank_recall
from util.checkpoint import load_weights, newest_checkpoint, read_checkpoint, resumable
from util.convert_captions import lists, read_images
from util.lists import read_names, safe_paths, validation_names
from util.regions.detections import to_regions
from util.regions.local_features import load_local
from util.regions.readers import read_detections
from util.skipthoughts import load_skipthoughts
from utils import InputError, RunError

LONGEST = 20  # seconds for one input
MEMORY = 4 * 2**30


class Hang(BaseException):
    """An input took longer than LONGEST."""


# ---------------------------------------------------------------- readers: (folder, rng) -> reads one odd input


def options(folder: Path, rng: random.Random) -> None:
    path, text = folder / "fuzzed.yaml", (folder / "tiny.yaml").read_bytes()
    overrides = []
    if rng.random() < 0.4:
        path.write_bytes(mutate(text, rng))
    elif rng.random() < 0.7:
        tree = odd(yaml.safe_load(text), rng, [value for value in ODD_VALUES if value != 10**400])
        path.write_text(yaml.safe_dump(tree, allow_unicode=True), errors="replace")
    else:
        path.write_bytes(text)
        override = mutate(rng.choice([b"optim.lr=1e-4", b"k_fold.nums=3", b"model.seq2vec.type=BiSkip"]), rng)
        overrides = [override.decode("utf-8", "surrogateescape")]
    load_options(path, overrides)


def captions_and_lists(folder: Path, rng: random.Random) -> None:
    split = rng.choice(("train", "test"))
    name = f"{split}_{rng.choice(('caps', 'filename'))}.txt"
    with changed(folder / "data" / name, mutate((folder / "data" / name).read_bytes(), rng)):
        found = read_split(folder / "data", split)
        safe_paths(folder / "data/images", found.images)
        vocab.build(found.captions)


def vocabularies(folder: Path, rng: random.Random) -> None:
    raw = (folder / "vocab.json").read_bytes()
    raw = mutate(raw, rng) if rng.random() < 0.5 else json.dumps(odd(json.loads(raw), rng)).encode()
    (folder / "fuzzed.json").write_bytes(raw)
    vocab.encode("a red ship", vocab.load(folder / "fuzzed.json").index)


KARPATHY = {
    "dataset": "small",
    "images": [
        {"filename": f"{name}.jpg", "imgid": 1, "split": split, "sentences": [{"raw": "a ship .", "sentid": 2}] * 2}
        for name, split in (("a", "train"), ("b", "val"), ("c", "test"))
    ],
}


def captions_as_json(folder: Path, rng: random.Random) -> None:
    raw = json.dumps(odd(KARPATHY, rng) if rng.random() < 0.5 else KARPATHY).encode()
    (folder / "fuzzed.json").write_bytes(raw if rng.random() < 0.5 else mutate(raw, rng))
    place = folder / "lists"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for name, text in lists(read_images([folder / "fuzzed.json"])).items():
        (place / name).write_text(text, errors="backslashreplace")
    for split in ("train", "test"):
        read_split(place, split)
    if (place / "val_filename.txt").exists():
        validation_names(place / "val_filename.txt", read_names(place, "train"))


DOTA = "1.5 1 9 1 9 9 1 9 large-vehicle -1\n1 1 9 1 9 9 1 9 ship\n" * 2
COCO_RESULT = {"image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5.5], "score": 0.5}
COCO_POLY = {"image_id": "a", "category_id": 1, "poly": [1, 1, 5, 1, 5, 5.5, 1, 5], "rbox": [3, 3, 4, 4, 0], "score": 1}
COCO_NAMES = {
    "images": [{"id": 1, "file_name": "a.png", "width": 9, "height": 9}, {"id": 2, "file_name": "b.png"}],
    "categories": [{"id": 1, "name": "plane"}, {"id": 2, "name": "ship"}],
}
DETECTIONS = [
    ("dota", {"a.txt": f"imagesource:GoogleEarth\ngsd:0.1\n{DOTA}gsd:1\n"}),
    ("dota-result", {"Task1_plane.txt": "a 0.9 1 1 9 1 9 9 1 9\n" * 2, "Task2_ship.txt": "b 1 1 1 9 9\n"}),
    ("dota-result", {"Task1_plane.txt": "a__2__1___0 0.9 1 1 9 1 9 9 1 9\n", "boat.txt": "b__0.5__3___10 1 1 1 9 9\n"}),
    ("yolo-obb", {"a.txt": "0 0.1 0.1 0.9 0.1 0.9 0.9 0.1 0.9 0.75\n" * 3, "b.txt": "14 0 0 1 0 1 1 0 1 1\n"}),
    ("yolo-obb", {"a.txt": "1 0 0 2.3 0 1 1 0 1 1 7\n" * 2, "classes.txt": "airplane\nboat\n"}),
    ("coco", {"results.json": json.dumps([COCO_RESULT] * 2), "images.json": json.dumps(COCO_NAMES)}),
    ("coco", {"results.json": json.dumps([COCO_POLY] * 2)}),
    ("coco", {"results.json": json.dumps([COCO_POLY] * 2), "images.json": json.dumps(COCO_NAMES)}),
    ("coco", {"results.json": json.dumps({**COCO_NAMES, "annotations": [COCO_RESULT]})}),
]


def detections(folder: Path, rng: random.Random) -> None:
    form, files = rng.choice(DETECTIONS)
    place = folder / "detections"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    spoilt = rng.choice(list(files))
    for name, text in files.items():
        raw = text.encode()
        if name == spoilt:
            by_tree = name.endswith("json") and rng.random() < 0.5
            raw = json.dumps(odd(json.loads(raw), rng)).encode() if by_tree else mutate(raw, rng)
        (place / name).write_bytes(raw)
    source = place / "results.json" if form == "coco" else place
    beside = place / "images.json" if "images.json" in files else None
    found, _ = read_detections(source, rng.choice(("auto", form)), coco_images=beside)
    to_regions(found, ["a", "b"], lambda _: (9, 9), allow_missing=rng.random() < 0.5)


def local_features_hdf5(folder: Path, rng: random.Random) -> None:
    path = folder / "fuzzed.h5"
    if rng.random() < 0.6:
        path.write_bytes(mutate((folder / "data/local.h5").read_bytes(), rng))
    else:
        path.unlink(missing_ok=True)
        with h5py.File(path, "w") as file:
            for key in ("name", "local_rep", "local_adj"):
                if rng.random() < 0.7:
                    file[key] = [b"a", b"b"] if key == "name" else np.zeros((2, 20, 20), np.float32)
                elif rng.random() < 0.8:
                    with contextlib.suppress(TypeError):  # HDF5 has no such type
                        file[key] = odd_array(rng, [(2, 20, 20), (2, 20, 19), (2,)])
                elif rng.random() < 0.5:
                    file.create_group(key)
    load_local(path, ["a", "b"] if rng.random() < 0.5 else ["demo_0000.png"])


def published_local_features(folder: Path, rng: random.Random) -> None:
    table = [[0.5] * 20 for _ in range(20)]
    tree: Any = {
        "local_rep": {"a.txt": table, "b.txt": np.zeros((20, 20))},
        "adj_matrix": {"a.txt": table, "b.txt": table},
    }
    by_tree = rng.random() < 0.5
    if by_tree:
        arrays = [odd_array(rng, [(20, 20), (20,), (20, 20, 2)]), np.float64(1), np.array([None, 1], object)]
        tree = odd(tree, rng, ODD_VALUES + arrays)
    file = io.BytesIO()
    np.save(file, np.array(tree, object) if rng.random() < 0.9 or by_tree else np.zeros(3))
    (folder / "fuzzed.npy").write_bytes(file.getvalue() if by_tree else mutate(file.getvalue(), rng))
    load_local(folder / "fuzzed.npy", ["a", "b"])


def similarity_matrices(folder: Path, rng: random.Random) -> None:
    sims, owner = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32), np.arange(8) // 2
    spoilt = rng.randrange(2)
    for i, (name, array) in enumerate((("fuzzed.npy", sims), ("fuzzed_images.npy", owner))):
        file = io.BytesIO()
        by_array = i == spoilt and rng.random() < 0.5
        np.save(file, odd_array(rng, [(4, 8), (8,), (8, 4), (5, 8)]) if by_array else array)
        (folder / name).write_bytes(mutate(file.getvalue(), rng) if i == spoilt and not by_array else file.getvalue())
    if rng.random() < 0.3:
        (folder / "fuzzed_images.npy").unlink()
    rerank_recall(*load(folder / "fuzzed.npy"))


SEQ2VEC = Seq2Vec(dir_st="seq2vec", embedding_dim=4, hidden_dim=6, type="UniSkip")
SKIP_THOUGHTS = {"W": (4, 12), "Wx": (4, 6), "U": (6, 12), "Ux": (6, 6), "b": (12,), "bx": (6,)}


def skip_thoughts(folder: Path, rng: random.Random) -> None:
    place = folder / "seq2vec"
    place.mkdir(exist_ok=True)
    arrays = {f"encoder_{key}": np.zeros(shape, np.float32) for key, shape in SKIP_THOUGHTS.items()}
    files = {"dictionary.txt": b"ship\nplane\nUNK\n"}
    table = np.zeros((3, 4), np.float32)
    spoilt = rng.choice(("dictionary.txt", "utable.npy", "uni_skip.npz"))
    by_array = rng.random() < 0.4
    if by_array and spoilt == "utable.npy":
        table = odd_array(rng, [(3, 4), (4, 3)])
    if by_array and spoilt == "uni_skip.npz":
        key = rng.choice(list(arrays))
        arrays[key] = odd_array(rng, [arrays[key].shape])
    published = rng.random() < 0.5 and not by_array
    writers = {
        "utable.npy": lambda f: f.writelines(python_2_table(table, 3)) if published else np.save(f, table),
        "uni_skip.npz": lambda f: np.savez(f, **arrays),
    }
    for name, save in writers.items():
        file = io.BytesIO()
        save(file)
        files[name] = file.getvalue()
    if not by_array:
        files[spoilt] = mutate(files[spoilt], rng)
    for name, raw in files.items():
        (place / name).write_bytes(raw)
    seq2vec = SEQ2VEC.model_copy(update={"dir_st": str(place)})
    load_skipthoughts(TextEncoder(seq2vec, 2, 8), seq2vec, ["ship", "<unk>"])
    for kept in place.glob(".utable_rows_*"):
        kept.unlink()


def checkpoints(folder: Path, rng: random.Random) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    weights = rng.choice((model, torch.nn.DataParallel(model))).state_dict()
    state = {
        "epoch": 1,
        "arch": "GaLR",
        "best_rsum": np.float64(1),
        "Eiters": 3,
        "model": weights,
        "options": {"optim": {"lr": 0.1}},
        "words": ["ship", "<unk>"],
        "optimizer": {"state": {}, "param_groups": []},
        "progress": {"epoch": 1, "batch": 0, "steps": 3, "best_rsum": 1.0, "window": [0.5]},
        "rows": [{"step": 1}],
    }
    by_tree = rng.random() < 0.4
    tensors = [torch.zeros(0), torch.full((3,), math.nan), torch.zeros(2, 2, dtype=torch.int8), torch.tensor(1 + 1j)]
    tensors += [torch.zeros(2, 2).to_sparse(), torch.zeros(1, dtype=torch.bool)]
    file = io.BytesIO()
    tree = odd(state, rng, ODD_VALUES + tensors) if by_tree else state
    with contextlib.suppress(UnicodeEncodeError):
        torch.save(tree, file, _use_new_zipfile_serialization=rng.random() < 0.8)
    (folder / "last.pth.tar").write_bytes(file.getvalue() if by_tree else mutate(file.getvalue(), rng))
    if rng.random() < 0.5:
        load_weights(model, read_checkpoint(folder / "last.pth.tar"), state["words"])
    elif found := newest_checkpoint(folder / "last.pth.tar"):
        resumable(found)


def images(folder: Path, rng: random.Random) -> None:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8)
    Image.fromarray(pixels).save(file, rng.choice(("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP")))
    path = folder / "fuzzed.png"
    path.write_bytes(mutate(file.getvalue(), rng))
    util.images.check_images([str(path)], 1, truncated := rng.choice(("error", "allow")))
    util.images.decode(str(path), 16, truncated)
    assert util.images.open_image(path, truncated).size == util.images.image_size(path)


READERS = (
    options,
    captions_and_lists,
    captions_as_json,
    vocabularies,
    detections,
    local_features_hdf5,
    published_local_features,
    similarity_matrices,
    skip_thoughts,
    checkpoints,
    images,
)


@contextlib.contextmanager
def changed(path: Path, raw: bytes) -> Any:
    """A file with another content for a while."""
    before = path.read_bytes()
    path.write_bytes(raw)
    try:
        yield
    finally:
        path.write_bytes(before)


# ---------------------------------------------------------------- the loop


def attempt(reader: Callable, folder: Path, rng: random.Random) -> str:
    """Try one input -> what was wrong, or nothing."""
    signal.alarm(LONGEST)
    try:
        reader(folder, rng)
    except (InputError, RunError):
        return ""
    except BaseException:  # everything else is a fault
        return traceback.format_exc()
    finally:
        signal.alarm(0)
    return ""


def hang(*_: object) -> None:
    raise Hang(f"more than {LONGEST} seconds")


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
            fault = attempt(reader, folder, random.Random(f"{seed} {count.value}"))
            count.value += 1
            if fault:
                wrong.value += 1
                if wrong.value <= 20:
                    faults.mkdir(parents=True, exist_ok=True)
                    (faults / f"{reader.__name__}_{seed}_{count.value - 1}.txt").write_text(fault, errors="replace")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="in all (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other inputs (default 0)")
    parser.add_argument("--readers", nargs="+", choices=[reader.__name__ for reader in READERS], help="default: all")
    parser.add_argument("--faults", type=Path, default=Path("faults"), help="folder for what went wrong")
    parser.add_argument("--repeat", type=int, metavar="N", help="try input N of --readers alone, here, and show it")
    arguments = parser.parse_args()
    readers = [reader for reader in READERS if not arguments.readers or reader.__name__ in arguments.readers]
    with tempfile.TemporaryDirectory() as temporary:
        template = Path(temporary) / "template"
        make_demo_folder(template, images=5)
        if arguments.repeat is not None:
            readers[0](template, random.Random(f"{arguments.seed} {arguments.repeat}"))
            return
        sys.exit(fuzz(readers, template, arguments))


def fuzz(readers: list[Callable], template: Path, arguments: argparse.Namespace) -> int:
    context = multiprocessing.get_context("fork")
    total = bad = 0
    for reader in readers:
        count, wrong = context.Value("q"), context.Value("q")
        seconds = 60 * arguments.minutes / len(readers)
        parts = reader, template, arguments.faults.absolute(), seconds, arguments.seed, count, wrong
        process = context.Process(target=work, args=parts)
        process.start()
        process.join(seconds + 3 * LONGEST)
        process.kill()  # if it hangs where no signal is heeded
        process.join()
        if process.exitcode:
            wrong.value += 1
            print(f"{reader.__name__}: input {count.value} ended the process with status {process.exitcode}")
        print(f"{reader.__name__}: {count.value} inputs, {wrong.value} faults", flush=True)
        total, bad = total + count.value, bad + wrong.value
    print(f"all readers: {total} inputs, {bad} faults" + (f"; see {arguments.faults}" if bad else ""))
    return int(bad > 0)


if __name__ == "__main__":
    main()
