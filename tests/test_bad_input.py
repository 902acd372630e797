"""Bad input, as a user would meet it: exit status 2, one line that says what is wrong, and nothing written.

Each row of the table is a fault in a working folder with the tiny demonstration set, and a command line. A few rows
are run again in processes of their own, which must end just alike.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import listing, run_process
from interrupted import flipped
from PIL import Image

pytestmark = pytest.mark.usefixtures("short_trunk")
TRAIN = "train.py --path_opt tiny.yaml"
TEST = "test.py --path_opt tiny.yaml"
SINGLE = "test_single.py --path_opt tiny.yaml --resume checkpoint/tiny/0/GaLR_best.pth.tar"
VOCAB = "vocab.py --data_path data --data_name demo_precomp --out new.json"
LOCAL = "-m util.build_local --data_path data --image_path data/images --regions data/boxes --out new.h5"
DETECT = "-m util.detect --image_path data/images --weights weights.pth --out new"
CONVERT = "-m util.convert_captions --out new"
RERANK = "-m postprocessing.rerank --sims sims.npy"
FIGURES = "-m postprocessing.figures --run run"
FOLD = Path("checkpoint/tiny/0")
BEST, LAST, SPLIT = (FOLD / name for name in ("GaLR_best.pth.tar", "last.pth.tar", "split.json"))
Spoil = Callable[[], object]


class Bad(NamedTuple):
    """Hold what is wrong, a command line, a word of its message, and what spoils the current folder.

    trained: a fold that has been trained is there; it is spoilt, too, if at all.
    """

    what: str
    command: str
    tells: str
    spoil: Spoil = lambda: None
    trained: bool = False


def raw(content: bytes | str) -> bytes:
    return content.encode() if isinstance(content, str) else content


def write(name: str | Path, content: bytes | str) -> Spoil:
    return lambda: (Path(name).parent.mkdir(parents=True, exist_ok=True), Path(name).write_bytes(raw(content)))


def add(name: str, content: bytes | str) -> Spoil:
    return lambda: Path(name).write_bytes(Path(name).read_bytes() + raw(content))


def change(name: str, old: str, new: str) -> Spoil:
    """Replace the first match of a regular expression in a text file."""

    def spoil() -> None:
        text, count = re.subn(old, new, Path(name).read_text(), count=1, flags=re.MULTILINE)
        assert count == 1
        Path(name).write_text(text)

    return spoil


def cut(name: str | Path) -> Spoil:
    """Keep the first half of a file."""
    return lambda: os.truncate(name, os.path.getsize(name) // 2)  # noqa: PTH202


def flip(name: Path) -> Spoil:
    """Turn over a bit in the middle of a file."""
    return lambda: name.write_bytes(flipped(name.read_bytes()))


def image(put: Callable[[Path], object]) -> Spoil:
    """Take the first train image away, and put something else in its place."""

    def spoil() -> None:
        path = Path("data/images", Path("data/train_filename.txt").read_text().split()[0])
        path.rename("away.png")
        put(path)

    return spoil


def content(raw: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(raw)


def bomb() -> bytes:
    """A PNG of a few bytes that promises 100 000 x 100 000 pixels."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)), (b"IEND", b""))
    )


def named(name: str) -> Spoil:
    """Give the first train image another name in the list."""
    return change("data/train_filename.txt", r"\A.*$", name)


def sims(array: object, *images: object) -> Spoil:
    return lambda: [np.save(f"sims{end}.npy", one) for end, one in zip(("", "_images"), (array, *images), strict=False)]


def saved(name: str | Path, state: object) -> Spoil:
    """A file of torch.save."""
    return lambda: (Path(name).parent.mkdir(parents=True, exist_ok=True), torch.save(state, name))


def weights(change: Callable[[dict], object]) -> Spoil:
    """Checkpoints of the trained fold that hold something else."""

    def spoil() -> None:
        state = torch.load(BEST, weights_only=True)
        change(state)
        for path in (BEST, LAST):
            torch.save(state, path)

    return spoil


SIMS = np.arange(12, dtype=np.float32).reshape(3, 4)

TABLE = [
    Bad("option file not there", "train.py --path_opt nowhere.yaml", "nowhere.yaml"),
    Bad("option file is a folder", "train.py --path_opt data", "data is a folder"),
    Bad("option file not YAML", TRAIN, "tiny.yaml, line 2", write("tiny.yaml", "model: [\n")),
    Bad("option file with an unprintable character", TRAIN, "tiny.yaml", add("tiny.yaml", b"# \x07\n")),
    Bad("option file with a nonsense time", TRAIN, "tiny.yaml", add("tiny.yaml", "seed: !!timestamp soon\n")),
    Bad("option file nested too deeply", TRAIN, "tiny.yaml", add("tiny.yaml", f"seed: {'[' * 3000}\n")),
    Bad("a key is missing", TRAIN, "vocab_path is missing", change("tiny.yaml", r"^.*vocab_path.*\n", "")),
    Bad("an unknown key beside unused ones", TRAIN, "colour", add("tiny.yaml", "global_local_weight: 1\ncolour: 1\n")),
    Bad("an endless number", f"{TRAIN} --set optim.epochs={'9' * 5000}", "optim.epochs"),
    Bad("the last batch has one", f"{TRAIN} --set dataset.batch_size=1", "dataset.batch_size"),
    Bad("a path with a NUL byte", TRAIN, "ckpt_save_path", change("tiny.yaml", "checkpoint,", '"a\\\\0b",')),
    Bad("an empty path", f"{TRAIN} --set dataset.image_path=''", "dataset.image_path is missing"),
    Bad("checkpoints go below a file", f"{TRAIN} --set logs.ckpt_save_path=vocab.json", "vocab.json"),
    Bad("logs go below a file", f"{TRAIN} --set logs.logger_name=vocab.json/x", "vocab.json"),
    Bad("an unknown argument", f"{TRAIN} --lr 1", "--lr"),
    Bad("a fold that is not there", f"{TRAIN} --fold 7", "--fold 7"),
    Bad("test of a run that is not trained", TEST, "folds [0]"),
    Bad("a matrix that is no .npy", f"{SINGLE} --sims out.txt", "--sims out.txt", trained=True),
    Bad("a matrix below a file", f"{SINGLE} --sims vocab.json/out.npy", "vocab.json", trained=True),
    Bad("vocab with a threshold of 0", f"{VOCAB} --threshold 0", "--threshold must be 1 or more, got 0"),
    Bad(
        "vocab with a name that is a path", "vocab.py --data_path data --data_name ../x", "--data_name may hold letters"
    ),
    Bad("demo of too few images", "-m util.make_demo --out new --images 2", "--images must be from 5"),
    Bad("local features with a nonsense threshold", f"{LOCAL} --similarity-threshold nan", "threshold"),
    Bad("local features into a folder", f"{LOCAL} --out data", "data"),
    Bad("detection without weights", DETECT, "weights.pth"),
    Bad("detection in no such folder", DETECT.replace("data/images", "nowhere"), "nowhere"),
    Bad("figures of no such run", FIGURES, "run is not there"),
    Bad("captions not there", TRAIN, "train_caps.txt", Path("data/train_caps.txt").unlink),
    Bad("list not there", TRAIN, "train_filename.txt", Path("data/train_filename.txt").unlink),
    Bad("captions all blank", TRAIN, "train_caps.txt is empty", write("data/train_caps.txt", "\n \n\t\n")),
    Bad("an image too many", TRAIN, "17 lines", add("data/train_filename.txt", "one_more.png\n")),
    Bad("list with a blank line", TRAIN, "line 17: blank", add("data/train_filename.txt", "\nx.png\n")),
    Bad("a name too long for a file", TRAIN, "File name too long", named("a" * 300 + ".png")),
    Bad("no validation image", f"{TRAIN} --set k_fold.val_fraction=0.01", "no validation image"),
    Bad("test list not there", TEST, "test_caps.txt", Path("data/test_caps.txt").unlink, trained=True),
    Bad("vocab of no such folder", "vocab.py --data_path nowhere --data_name x", "nowhere"),
    Bad("a list of validation images that is not there", f"{TRAIN} --set dataset.val_list=nowhere.txt", "nowhere.txt"),
    Bad("captions to convert of another form", f"{CONVERT} --json vocab.json", "vocab.json: none of the forms"),
    Bad("two images of one stem", LOCAL, "share a name", named("demo_0001.tif")),
    Bad("image folder not there", f"{TRAIN} --set dataset.image_path=nowhere", "nowhere"),
    Bad("image not there", TRAIN, "1 of 20 images", image(lambda path: None)),
    Bad("image not there, decoded anew", f"{TRAIN} --set dataset.cache=none", "is not there", image(lambda path: None)),
    Bad("image empty", TRAIN, "cannot be decoded", image(content(b""))),
    Bad("image of absurd size", TRAIN, "more than is allowed", image(content(bomb()))),
    Bad("image of 16 bits", TRAIN, "mode I;16", image(Image.fromarray(np.zeros((64, 64), np.uint16)).save)),
    Bad("image a folder", TRAIN, "is not a file", image(Path.mkdir)),
    Bad("image a pipe", TRAIN, "is not a file", image(os.mkfifo)),
    Bad("image a link in a circle", TRAIN, "lead out of", image(lambda path: path.symlink_to(path.name))),
    Bad("image a dangling link", TRAIN, "is not a", image(lambda path: path.symlink_to("nothing.png"))),
    Bad("image not there for the test", TEST, "is not there", image(lambda path: None), trained=True),
    Bad("local features not there", TRAIN, "data/local.h5", Path("data/local.h5").unlink),
    Bad(
        "a published file that is none",
        f"{TRAIN} --set dataset.local_path=data/local.npy",
        "local_rep",
        lambda: np.save("data/local.npy", np.array(5, object)),
    ),
    Bad("no such detections", LOCAL.replace("data/boxes", "nowhere"), "nowhere"),
    Bad("an image without detections", LOCAL, "no regions for 1", Path("data/boxes/demo_0000.txt").unlink),
    Bad("vocabulary not there", TRAIN, "vocab.json", Path("vocab.json").unlink),
    Bad("vocabulary not JSON", TRAIN, "vocab.json, line 1", write("vocab.json", "{")),
    Bad("vocabulary nested too deeply", TRAIN, "vocab.json", write("vocab.json", "[" * 100_000)),
    Bad("checkpoint with a byte turned over", TEST, "checksum", flip(BEST), trained=True),
    Bad("checkpoint of something else", SINGLE, "'model'", saved(BEST, {"weights": 1})),
    Bad("checkpoint of another width", f"{SINGLE} --set model.seq2vec.hidden_dim=32", "misshapen", trained=True),
    Bad("checkpoint with words that are none", SINGLE, "words", weights(lambda s: s.update(words=5)), trained=True),
    Bad("a loss that is not there", f"{TRAIN} --set optim.loss=huber", "must be one of triplet, infonce, got huber"),
    Bad("a frozen part that is not there", f"{TRAIN} --set optim.freeze=[trunk,visual]", "model has no part visual"),
    Bad("resume with another split", f"{TRAIN} --resume", "split.json", trained=True),
    Bad(
        "resume of a published checkpoint",
        f"{TRAIN} --resume",
        "no progress",
        weights(lambda s: s.pop("progress")),
        trained=True,
    ),
    Bad("ResNet weights not there", f"{TRAIN} --set model.pretrained=nowhere.pth", "nowhere.pth"),
    Bad(
        "ResNet weights of something else",
        f"{TRAIN} --set model.pretrained=w.pth",
        "model.pretrained",
        saved("w.pth", {"fc.weight": torch.zeros(2)}),
    ),
    Bad("skip-thoughts files not there", f"{TRAIN} --set model.seq2vec.pretrained=true", "dictionary.txt"),
    Bad("the split of a fold not there", f"{SINGLE} --split val", "split.json", SPLIT.unlink, trained=True),
    Bad("the split of a fold of other images", TEST, "split.json", write(SPLIT, '{"val": ["x.png", 7]}'), trained=True),
    Bad("detector weights of something else", DETECT, "weights.pth", saved("weights.pth", {"model": [1]})),
    Bad("matrix a text", RERANK, "sims.npy", write("sims.npy", "0.1 0.2\n")),
    Bad("matrix cut off", RERANK, "sims.npy", lambda: (sims(SIMS)(), cut("sims.npy")())),
    Bad("matrix with NaN", RERANK, "nan", sims([[0.5, np.nan]])),
    Bad("matrix whose captions have no image", RERANK, "4 captions do not share 3 images", sims(SIMS)),
    Bad("matrix with owners that are not there", RERANK, "image 9", sims(SIMS, [0, 1, 2, 9])),
    Bad("figures of damaged results", FIGURES, "results.json", write("run/results.json", '{"folds": 3}')),
]


@pytest.fixture
def spoilt(work, checkpoint) -> Callable[[Bad], dict]:
    """Spoil a working folder as a row of the table says -> what is in it."""

    def spoil(bad: Bad) -> dict:
        if bad.trained:
            FOLD.mkdir(parents=True)
            for source, path in ((checkpoint, BEST), (checkpoint, LAST), (checkpoint.with_name("split.json"), SPLIT)):
                shutil.copy(source, path)
        bad.spoil()
        return listing(work)

    return spoil


def check(outcome, bad: Bad, before: dict, after: dict) -> None:
    assert outcome.status == 2, outcome
    assert outcome.message.startswith("error: ") and bad.tells in outcome.message
    assert after == before


@pytest.mark.parametrize("bad", TABLE, ids=lambda bad: bad.what)
def test_bad_input_is_one_line_exit_status_2_and_writes_nothing(bad: Bad, spoilt, work, run) -> None:
    before = spoilt(bad)
    check(run(bad.command), bad, before, listing(work))


OWN_PROCESS = "image not there", "checkpoint with a byte turned over", "matrix with NaN", "demo of too few images"


@pytest.mark.parametrize("bad", [bad for bad in TABLE if bad.what in OWN_PROCESS], ids=lambda bad: bad.what)
def test_a_process_of_its_own_ends_just_alike(bad: Bad, spoilt, work) -> None:
    before = spoilt(bad)
    check(run_process(bad.command, work), bad, before, listing(work))
