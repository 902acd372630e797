"""The published run on RSITMD, rehearsed with stand-ins of every file that it needs; prints what it took.

    python tests/rehearsal.py --out DIR --lists DIR/rsitmd_precomp [--full]

The folder is laid out as this repository's root, its code being links: the real captions and lists; TIFF pictures of
256 pixels under the real names; a published `.npy` of local features; ResNet-18 weights where torchvision keeps its
downloads, without counters; the five skip-thoughts files, their tables as Python 2 pickled them; the option file in the
published layout. Pictures and weights are random: the scores say nothing. --full takes the real sizes: 6 GB, and a
machine to itself for some minutes. The suite rehearses it in small (tests/test_rehearsal.py).
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script has this folder alone

import numpy as np
import torch
import torchvision
from PIL import Image

from util.lists import read_pairs, stem
from util.skipthoughts import gru_shapes
from utils import ROOT, Bar, write_text

CODE = ("utils.py", "train.py", "test.py", "vocab.py", "exec", "constraints.txt")
SIDE = 256
OPTIONS = """\
model:
    name: GaLR
    multiscale: {multiscale_input_channel: 3, multiscale_output_channel: 1}
    cross_attention: {att_type: soft_att}
    seq2vec: {arch: skipthoughts, type: BayesianUniSkip, dir_st: seq2vec, dropout: 0.25, fixed_emb: False}
    fusion: {correct_local_hidden_dim: 512, correct_local_drop: 0.2, supplement_global_hidden_dim: 512,
             supplement_global_drop: 0.2, dynamic_fusion_dim: 512, dynamic_fusion_drop: 0.2, mca_DROPOUT_R: 0.1,
             mca_HIDDEN_SIZE: 512, mca_FF_SIZE: 1024, mca_MULTI_HEAD: 8, mca_HIDDEN_SIZE_HEAD: 64}
    global_local_weight: {global: None, local: None}
    embed: {embed_dim: 512}
dataset: {datatype: rsitmd, data_split: test, data_path: data/rsitmd_precomp/,
          image_path: data/rsitmd_precomp/images/, vocab_path: vocab/rsitmd_vocab.json,
          local_path: data/rsitmd_precomp/rsitmd_local.npy, batch_size: 100, batch_size_val: 70, workers: 3}
optim: {epochs: 20, lr: 0.0002, lr_decay_param: 0.7, lr_update_epoch: 20, grad_clip: 0, max_violation: 0, margin: 0.2,
        resume: False}
logs: {eval_step: 1, print_freq: 10, ckpt_save_path: checkpoint/, logger_name: logs/}
k_fold: {experiment_name: rsitmd_galr, nums: 3, current_num: 0}
"""


class Size(NamedTuple):
    """Hold the sizes of a rehearsal, and the settings with which the run takes three steps."""

    train: int | None  # images; None for as many as the lists name
    test: int | None
    dictionary: int  # words of the skip-thoughts tables
    embedding: int
    hidden: int
    settings: str


ONE_FOLD = "optim.epochs=1 k_fold.nums=1"
SMALL_SETTINGS = "dataset.batch_size=4 model.seq2vec.embedding_dim=62 model.seq2vec.hidden_dim=240"
SMALL = Size(4, 2, 500, 62, 240, f"{ONE_FOLD} k_fold.val_fraction=0.5 {SMALL_SETTINGS}")
FULL = Size(None, None, 930_911, 620, 2400, f"{ONE_FOLD} k_fold.val_fraction=0.986")


def make_rehearsal(out: Path, lists: Path, size: Size = SMALL) -> None:
    """Write the files into a new folder."""
    out.mkdir(parents=True)
    rng = np.random.default_rng(0)
    data = out / "data/rsitmd_precomp"
    captions, names = write_lists(data, lists, size)
    write_text(out / "option/RSITMD/RSITMD_GaLR.yaml", OPTIONS)
    needs = [file.name for file in ROOT.glob("requirements*.txt")]  # which exec/environment.sh reads
    modules = [f"option/{file.name}" for file in (ROOT / "option").glob("*.py")]
    for name in (*CODE, *needs, *modules):
        (out / name).symlink_to(ROOT / name)
    write_images(data / "images", names, rng)
    tables = {}  # the published form of local features, keyed by `STEM.txt`
    for what in ("local_rep", "adj_matrix"):
        tables[what] = {f"{stem(name)}.txt": rng.random((20, 20)).round(4).tolist() for name in names}
    np.save(data / "rsitmd_local.npy", np.array(tables, object), allow_pickle=True)
    weights = out / "torch/hub/checkpoints/resnet18-f37072fd.pth"
    weights.parent.mkdir(parents=True)
    state = torchvision.models.resnet18().state_dict()
    torch.save({name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}, weights)
    words = dict.fromkeys(word for caption in captions for word in re.findall("[a-z]+", caption.lower()))
    write_skipthoughts(out / "seq2vec", list(words), size, rng)


def write_lists(folder: Path, lists: Path, size: Size) -> tuple[list[str], list[str]]:
    """Write the first captions and names of each real list; return all captions written, and all images, each once."""
    all_captions: list[str] = []
    images: dict[str, None] = {}
    for split, most in (("train", size.train), ("test", size.test)):
        captions, names = read_pairs(lists, split)
        each = len(captions) // len(names)
        chosen = set(list(dict.fromkeys(names))[:most])
        kept = [name for name in names if name in chosen]
        write_text(folder / f"{split}_filename.txt", "".join(f"{name}\n" for name in kept))
        write_text(folder / f"{split}_caps.txt", "".join(f"{one}\n" for one in captions[: each * len(kept)]))
        all_captions += captions[: each * len(kept)]
        images |= dict.fromkeys(kept)
    return all_captions, list(images)


def write_images(folder: Path, names: list[str], rng: np.random.Generator) -> None:
    """Write a coloured TIFF picture of 256 pixels for each name: patches, and noise."""
    folder.mkdir(parents=True)
    for name in Bar(names, desc=f"drawing {folder}", unit="image"):
        patches = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((SIDE, SIDE))
        noise = rng.integers(0, 16, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(np.asarray(patches) // 2 + noise).save(folder / name, format="TIFF")


def write_skipthoughts(folder: Path, known: list[str], size: Size, rng: np.random.Generator) -> None:
    """Write the five files; the dictionary knows the given words, and more of its own."""
    folder.mkdir(parents=True)
    rows = size.dictionary
    words = [*known, *(f"word{i}" for i in range(rows - len(known) - 1))][: rows - 1]
    words = [words[i] for i in rng.permutation(len(words))] + ["UNK"]
    write_text(folder / "dictionary.txt", "".join(f"{word}{' ' * (i % 5 == 0)}\n" for i, word in enumerate(words)))
    for name in ("utable.npy", "btable.npy"):
        table = (rng.standard_normal(size.embedding, np.float32) for _ in range(rows))
        with (folder / name).open("wb") as file:
            file.writelines(Bar(python_2_table(table, rows), desc=f"writing {name}", total=rows, unit="row"))
    both, each = gru_shapes(size.embedding, size.hidden), gru_shapes(size.embedding, size.hidden // 2)
    np.savez(folder / "uni_skip.npz", **_gru(rng, both, "encoder_"))
    np.savez(folder / "bi_skip.npz", **_gru(rng, each, "encoder_"), **_gru(rng, each, "encoder_r_"))


def _gru(rng: np.random.Generator, shapes: dict[str, tuple[int, ...]], prefix: str) -> dict[str, np.ndarray]:
    return {prefix + key: rng.standard_normal(shape, np.float32) / 50 for key, shape in shapes.items()}


def python_2_table(rows: Iterable[np.ndarray], count: int, kind: str = "<f4") -> Iterator[bytes]:
    """Yield the parts of a NumPy file of an object array of rows, as `numpy.save` of Python 2 wrote it (protocol 2).

    Strings are Python 2's, and only what is there twice is memoised, since cPickle looked at the references. Every
    third row has the shape (1, n), the others (n,).
    """
    header = f"{{'descr': '|O', 'fortran_order': False, 'shape': ({count},), }}"
    yield b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + header.ljust(117).encode() + b"\n"
    yield b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87Rq\x03"
    yield b"(K\x01J" + struct.pack("<i", count) + b"\x85cnumpy\ndtype\nq\x04U\x02O8K\x00K\x01\x87Rq\x05"
    yield b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb\x89]q\x06"
    number = f"h\x04U\x02{kind[1:]}K\x00K\x01\x87Rq\x08(K\x03U\x01{kind[:1]}".encode("latin1")
    number += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    for i, row in enumerate(rows):
        data = row.astype(kind).tobytes()
        length = b"M" + struct.pack("<H", len(row))
        yield b"".join(
            (
                b"(" if i % 1000 == 0 else b"",
                b"h\x01h\x02K\x00\x85U\x01b\x87Rr" + struct.pack("<I", 7 if i == 0 else 8 + i),
                b"(K\x01" + (b"K\x01" + length + b"\x86" if i % 3 == 1 else length + b"\x85"),
                number if i == 0 else b"h\x08",
                b"\x89T" + struct.pack("<I", len(data)) + data + b"tb",
                b"e" if i % 1000 == 999 or i == count - 1 else b"",
            )
        )
    yield b"tb."


def command(size: Size) -> str:
    """Return the command line of the published run, three training steps of it, in the folder of a rehearsal."""
    where = f"GALR_VENV=${{GALR_VENV:-{ROOT}/.venv}} TORCH_HOME=$PWD/torch"
    return f"{where} bash exec/RSITMD/run_GaLR_rsitmd.sh --set {size.settings}"


def script_environment(folder: Path) -> dict[str, str]:
    """Return this environment as one of the scripts' own making, in `folder`: they install nothing."""
    python = folder / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    own = {"GALR_VENV": str(folder / "venv"), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return os.environ | own | {"PIP_NO_INDEX": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    parser.add_argument("--lists", type=Path, required=True, help="folder of RSITMD's captions and lists")
    parser.add_argument("--full", action="store_true", help="in the real size")
    given = parser.parse_args()
    size = FULL if given.full else SMALL
    make_rehearsal(given.out, given.lists, size)
    start, line = time.perf_counter(), ["bash", "-c", f"{command(size)} logs.print_freq=1"]
    with subprocess.Popen(line, cwd=given.out, stdout=subprocess.PIPE, text=True) as process:
        for said in process.stdout or ():
            print(f"{time.perf_counter() - start:7.1f} s  {said}", end="", flush=True)
    if process.returncode:
        sys.exit(process.returncode)
    print(f"largest process: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
