"""Bad input, as a user would meet it: exit status 2, one line that says what is wrong, and nothing written.

Each row of the table is a fault in a working folder with the tiny demonstration set, and a command line. A few rows
are run again in processes of their own, which must end just alike.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import listing, run_process
from spoiling import (
    BEST,
    CACHE,
    CONVERT,
    DEMO,
    DETECT,
    FIGURES,
    LAST,
    LINE,
    LOCAL,
    RERANK,
    SIMS,
    SINGLE,
    SPLIT,
    TEST,
    TRAIN,
    VOCAB,
    Bad,
    add,
    bomb,
    both,
    change,
    cut,
    deep_image,
    features,
    first_image,
    flip,
    image,
    link_folder_out,
    link_out,
    named,
    no_image,
    not_finite,
    published,
    remove,
    saved,
    sims,
    trained,
    vocabulary,
    weights,
    write,
)

pytestmark = pytest.mark.usefixtures("short_trunk")
OPTIONS = [
    Bad("option file not there", "train.py --path_opt nowhere.yaml", "nowhere.yaml"),
    Bad("option file is a folder", "train.py --path_opt data", "data is a folder"),
    Bad("option file empty", TRAIN, "tiny.yaml", write("tiny.yaml", "")),
    Bad("option file not YAML", TRAIN, "tiny.yaml, line 2", write("tiny.yaml", "model: [\n")),
    Bad("option file a list", TRAIN, "tiny.yaml", write("tiny.yaml", "- model\n- dataset\n")),
    Bad("option file in UTF-16", TRAIN, "UTF-16", write("tiny.yaml", "model: {}".encode("utf-16"))),
    Bad("option file in Latin-1", TRAIN, "not UTF-8", add("tiny.yaml", "# caf\xe9\n".encode("latin-1"))),
    Bad("option file with a NUL byte", TRAIN, "NUL", add("tiny.yaml", b"\0")),
    Bad("option file with an unprintable character", TRAIN, "tiny.yaml", add("tiny.yaml", b"# \x07\n")),
    Bad("option file with a key twice", TRAIN, "given twice", add("tiny.yaml", "seed: 1\nseed: 2\n")),
    Bad("option file with a Python object", TRAIN, "tiny.yaml", add("tiny.yaml", "seed: !!python/name:os.system\n")),
    Bad("option file with a tree in itself", TRAIN, "alias", add("tiny.yaml", "more: &a {b: *a}\n")),
    Bad("option file with a nonsense time", TRAIN, "tiny.yaml", add("tiny.yaml", "seed: !!timestamp soon\n")),
    Bad("option file nested too deeply", TRAIN, "tiny.yaml", add("tiny.yaml", f"seed: {'[' * 3000}\n")),
    Bad("a key is missing", TRAIN, "vocab_path is missing", change("tiny.yaml", r"^.*vocab_path.*\n", "")),
    Bad("a misspelt key", f"{TRAIN} --set optim.lrr=1", "optim.lr)"),
    Bad("a misspelt block", TRAIN, "optimm", change("tiny.yaml", "^optim:", "optimm:")),
    Bad("an unknown key beside unused ones", TRAIN, "colour", add("tiny.yaml", "global_local_weight: 1\ncolour: 1\n")),
    Bad("a word for a number", f"{TRAIN} --set optim.lr=fast", "optim.lr = 'fast'"),
    Bad("a negative rate", f"{TRAIN} --set optim.lr=-1", "optim.lr"),
    Bad("a rate that is no number", f"{TRAIN} --set optim.lr=.nan", "optim.lr"),
    Bad("no epochs", f"{TRAIN} --set optim.epochs=0", "optim.epochs"),
    Bad("an endless number", f"{TRAIN} --set optim.epochs={'9' * 5000}", "optim.epochs"),
    Bad("a hexadecimal number without end", f"{TRAIN} --set optim.epochs=-0x{'f' * 9000}", "optim.epochs"),
    Bad("an odd image size", f"{TRAIN} --set dataset.image_size=100", "dataset.image_size"),
    Bad("the last batch has one", f"{TRAIN} --set dataset.batch_size=1", "dataset.batch_size"),
    Bad("an unknown precision", f"{TRAIN} --set optim.precision=fp8", "optim.precision"),
    Bad("widths that do not fit", f"{TRAIN} --set model.embed.embed_dim=64", "mca_HIDDEN_SIZE"),
    Bad("a value for a block", f"{TRAIN} --set model.fusion=3", "fusion"),
    Bad("a block for a value", f"{TRAIN} --set optim.lr.fast=1", "--set optim.lr.fast=1"),
    Bad("an override without a value", f"{TRAIN} --set optim.lr", "KEY=VALUE"),
    Bad("an experiment name that leaves the folder", f"{TRAIN} --set k_fold.experiment_name=../x", "experiment_name"),
    Bad("a path with a NUL byte", TRAIN, "ckpt_save_path", change("tiny.yaml", "checkpoint,", '"a\\\\0b",')),
    Bad("an empty path", f"{TRAIN} --set dataset.image_path=''", "dataset.image_path is missing"),
    Bad("no folds", f"{TRAIN} --set k_fold.nums=0", "k_fold.nums"),
    Bad("a first fold beyond the last", f"{TRAIN} --set k_fold.current_num=1", "k_fold.current_num"),
    Bad("one fold of disjoint ones", f"{TRAIN} --set k_fold.mode=disjoint", "disjoint"),
    Bad("checkpoints go below a file", f"{TRAIN} --set logs.ckpt_save_path=vocab.json", "vocab.json"),
    Bad("logs go below a file", f"{TRAIN} --set logs.logger_name=vocab.json/x", "vocab.json"),
]

COMMANDS = [
    Bad("no option file", "train.py", "--path_opt"),
    Bad("an unknown argument", f"{TRAIN} --lr 1", "--lr"),
    Bad("an unknown device", f"{TRAIN} --device tpu", "--device"),
    Bad("a fold that is no number", f"{TRAIN} --fold x", "--fold"),
    Bad("a fold that is not there", f"{TRAIN} --fold 7", "--fold 7"),
    Bad("test of a run that is not trained", TEST, "folds [0]"),
    Bad("test with an unknown argument", f"{TEST} --folds 2", "--folds"),
    Bad("test_single without a checkpoint", "test_single.py --path_opt tiny.yaml", "--resume"),
    Bad("test_single of no such split", f"{SINGLE} --split train", "--split"),
    Bad("a matrix that is no .npy", f"{SINGLE} --sims out.txt", "--sims out.txt", trained),
    Bad("a matrix below a file", f"{SINGLE} --sims vocab.json/out.npy", "vocab.json", trained),
    Bad("vocab without a name", "vocab.py --data_path data", "--data_name"),
    Bad("vocab with a threshold of 0", f"{VOCAB} --threshold 0", "--threshold must be 1 or more, got 0"),
    Bad(
        "vocab with a name that is a path", "vocab.py --data_path data --data_name ../x", "--data_name may hold letters"
    ),
    Bad("vocab of words that are too rare", f"{VOCAB} --threshold 9999", "--threshold"),
    Bad("vocab of no such split", f"{VOCAB} --splits dev", "--splits"),
    Bad("demo of too few images", f"{DEMO} --images 2", "--images 2"),
    Bad("demo of too small images", f"{DEMO} --size 8", "--size 8"),
    Bad("demo with a negative seed", f"{DEMO} --seed -1", "--seed -1"),
    Bad("demo into a file", "-m util.make_demo --out vocab.json", "vocab.json"),
    Bad("demo into a folder of other things", "-m util.make_demo --out .", "holds other files"),
    Bad("demo over a demo of other arguments", "-m util.make_demo --out data --seed 5", "data holds"),
    Bad("local features with no worker", f"{LOCAL} --workers 0", "--workers"),
    Bad("local features with a nonsense threshold", f"{LOCAL} --similarity-threshold nan", "threshold"),
    Bad("local features into a folder", f"{LOCAL} --out data", "data"),
    Bad("detection with a threshold of 2", f"{DETECT} --threshold 2", "threshold must be from 0 to 1, got 2"),
    Bad("detection of no image at a time", f"{DETECT} --batch_size 0", "batch_size must be"),
    Bad("detection without weights", DETECT, "weights.pth"),
    Bad("detection in no such folder", DETECT.replace("data/images", "nowhere"), "nowhere"),
    Bad("cache without an option file", "-m util.cache_images", "--path_opt"),
    Bad("rerank without a matrix", "-m postprocessing.rerank", "--sims"),
    Bad("rerank of no candidates", f"{RERANK} --k 0", "k must be", sims(SIMS)),
    Bad("rerank with a weight that is no number", f"{RERANK} --w_reverse nan", "w_reverse", sims(SIMS)),
    Bad("rerank with a cut-off that it has not", f"{RERANK} --l 5", "--l", sims(SIMS)),
    Bad("rerank with validation but no search", f"{RERANK} --val sims.npy", "--val", sims(SIMS)),
    Bad("rerank search on the test matrix", f"{RERANK} --search --val sims.npy", "sims.npy", sims(SIMS)),
    Bad("figures of no such run", FIGURES, "run is not there"),
    Bad("figures of an empty run", FIGURES, "nothing to draw", lambda folder: (folder / "run").mkdir()),
]

LISTS = [
    Bad("captions not there", TRAIN, "train_caps.txt", remove("data/train_caps.txt")),
    Bad("list not there", TRAIN, "train_filename.txt", remove("data/train_filename.txt")),
    Bad("data folder not there", f"{TRAIN} --set dataset.data_path=nowhere", "nowhere"),
    Bad("captions empty", TRAIN, "train_caps.txt is empty", write("data/train_caps.txt", "")),
    Bad("captions all blank", TRAIN, "train_caps.txt is empty", write("data/train_caps.txt", "\n \n\t\n")),
    Bad("list empty", TRAIN, "train_filename.txt is empty", write("data/train_filename.txt", "")),
    Bad("a caption too many", TRAIN, "81 captions", add("data/train_caps.txt", "one more\n")),
    Bad("an image too many", TRAIN, "17 lines", add("data/train_filename.txt", "one_more.png\n")),
    Bad("captions in UTF-16", TRAIN, "UTF-16", write("data/train_caps.txt", "a ship\n".encode("utf-16"))),
    Bad("captions in Latin-1", TRAIN, "train_caps.txt, line 81", add("data/train_caps.txt", b"caf\xe9\n")),
    Bad("captions with a NUL byte", TRAIN, "train_caps.txt, line 81", add("data/train_caps.txt", b"a\0b\n")),
    Bad("list with a NUL byte", TRAIN, "train_filename.txt, line 17", add("data/train_filename.txt", b"a\0.png\n")),
    Bad("list with a blank line", TRAIN, "line 17: blank", add("data/train_filename.txt", "\nx.png\n")),
    Bad("a name that climbs out", TRAIN, "lead out of", named("../images/a.png")),
    Bad("a name that is absolute", TRAIN, "lead out of", named("/etc/passwd")),
    Bad("a link that leads out", TRAIN, "lead out of", link_out),
    Bad("a linked folder that leads out", TRAIN, "lead out of", link_folder_out),
    Bad("a name too long for a file", TRAIN, "too long for a file", named("a" * 300 + ".png")),
    Bad("no validation image", f"{TRAIN} --set k_fold.val_fraction=0.01", "no validation image"),
    Bad("no train image", f"{TRAIN} --set k_fold.val_fraction=0.99", "no train image"),
    Bad("more folds than images", f"{TRAIN} --set k_fold.mode=disjoint k_fold.nums=17", "no validation image"),
    Bad("test list not there", TEST, "test_caps.txt", both(trained, remove("data/test_caps.txt"))),
    Bad("test captions empty", SINGLE, "test_caps.txt is empty", both(trained, write("data/test_caps.txt", ""))),
    Bad("test counts do not fit", TEST, "21 captions", both(trained, add("data/test_caps.txt", "one more\n"))),
    Bad("vocab of no such folder", "vocab.py --data_path nowhere --data_name x", "nowhere"),
    Bad("vocab of captions in UTF-16", VOCAB, "UTF-16", write("data/test_caps.txt", "a ship".encode("utf-16"))),
    Bad("cache of a list that climbs out", CACHE, "lead out of", named("../a.png")),
    Bad("a list of validation images that is not there", f"{TRAIN} --set dataset.val_list=nowhere.txt", "nowhere.txt"),
    Bad(
        "a validation image that is no train image",
        f"{TRAIN} --set dataset.val_list=data/test_filename.txt",
        "images are not in the train list",
    ),
    Bad("captions to convert that are not there", f"{CONVERT} --json nowhere.json", "nowhere.json"),
    Bad("captions to convert of another form", f"{CONVERT} --json vocab.json", "vocab.json: none of the forms"),
    Bad("a class map of no class", f"{LOCAL} --class-map ship=crane", "ship=crane"),
    Bad("two images of one stem", LOCAL, "share a name", named("demo_0001.tif")),
]

IMAGES = [
    Bad("image folder not there", f"{TRAIN} --set dataset.image_path=nowhere", "nowhere"),
    Bad("image not there", TRAIN, "1 of 20 images", no_image()),
    Bad("image not there, decoded anew", f"{TRAIN} --set dataset.cache=none", "is not there", no_image()),
    Bad("image not there, in a file", f"{TRAIN} --set dataset.cache=disk", "is not there", no_image()),
    Bad("image not there for the cache", CACHE, "is not there", no_image()),
    Bad("image empty", TRAIN, "cannot be decoded", image(b"")),
    Bad("image a text", TRAIN, "cannot be decoded", image(b"not an image")),
    Bad("image cut off", TRAIN, "cut short: data/images/", lambda f: cut(str(first_image(f).relative_to(f)))(f)),
    Bad("image of absurd size", TRAIN, "more than is allowed", image(bomb())),
    Bad("image of absurd size for the cache", CACHE, "more than is allowed", image(bomb())),
    Bad("image of 16 bits", TRAIN, "mode I;16", image(deep_image())),
    Bad("image a folder", TRAIN, "is not a file", no_image(Path.mkdir)),
    Bad("image a pipe", TRAIN, "is not a file", no_image(os.mkfifo)),
    Bad("image a link in a circle", TRAIN, "lead out of", no_image(lambda path: path.symlink_to(path.name))),
    Bad("image a dangling link", TRAIN, "is not a", no_image(lambda path: path.symlink_to("nothing.png"))),
    Bad("image not there for the test", TEST, "is not there", both(trained, no_image())),
]

REGIONS = [
    Bad("local features not there", TRAIN, "data/local.h5", remove("data/local.h5")),
    Bad("local features a folder", f"{TRAIN} --set dataset.local_path=data", "data is a folder"),
    Bad("local features a text", TRAIN, "data/local.h5", write("data/local.h5", "x" * 5000)),
    Bad("local features cut off", TRAIN, "data/local.h5", cut("data/local.h5")),
    Bad("local features without arrays", TRAIN, "local_adj", features("local_adj", lambda array: None)),
    Bad("local features with NaN", TRAIN, "not finite", features("local_rep", not_finite)),
    Bad("local features of 19 columns", TRAIN, "(20, 20, 19)", features("local_rep", lambda a: a[:, :, :19])),
    Bad("local features of texts", TRAIN, "data/local.h5", features("local_rep", lambda a: a.astype("S8"))),
    Bad("images without features", TRAIN, "10 of 12 images", features("name", lambda a: [*a[:2], *[b"x"] * 18])),
    Bad("a published file that is none", f"{TRAIN} --set dataset.local_path=data/local.npy", "local_rep", published(5)),
    Bad(
        "a published file of one table",
        f"{TRAIN} --set dataset.local_path=data/local.npy",
        "'local_rep'",
        published({"adj_matrix": {}}),
    ),
    Bad(
        "a published file without the images",
        f"{TRAIN} --set dataset.local_path=data/local.npy",
        "12 of 12 images",
        published({"local_rep": {}, "adj_matrix": {}}),
    ),
    Bad(
        "a plain array for a published file",
        f"{TRAIN} --set dataset.local_path=data/local.npy",
        "local.npy",
        lambda folder: np.save(folder / "data/local.npy", np.zeros(3)),
    ),
    Bad("no such detections", LOCAL.replace("data/boxes", "nowhere"), "nowhere"),
    Bad("a detection of seven corners", LOCAL, ".txt, line 1", write("data/boxes/demo_0000.txt", LINE[2:])),
    Bad(
        "a detection with a word for a number",
        LOCAL,
        ".txt, line 2",
        write("data/boxes/demo_0000.txt", LINE + LINE.replace("9", "x", 1)),
    ),
    Bad("an image without detections", LOCAL, "no regions for 1", remove("data/boxes/demo_0000.txt")),
    Bad("detections in UTF-16", LOCAL, "UTF-16", write("data/boxes/demo_0000.txt", LINE.encode("utf-16"))),
]

VOCABULARIES = [
    Bad("vocabulary not there", TRAIN, "vocab.json", remove("vocab.json")),
    Bad("vocabulary not JSON", TRAIN, "vocab.json, line 1", write("vocab.json", "{")),
    Bad("vocabulary a list", TRAIN, "word2idx", write("vocab.json", "[]")),
    Bad("vocabulary nested too deeply", TRAIN, "vocab.json", write("vocab.json", "[" * 100_000)),
    Bad("vocabulary empty", TRAIN, "word2idx", vocabulary({})),
    Bad("vocabulary with a gap", TRAIN, "1 to 2", vocabulary({"ship": 1, "<unk>": 3})),
    Bad("vocabulary with an index twice", TRAIN, "1 to 2", vocabulary({"ship": 1, "<unk>": 1})),
    Bad("vocabulary of broken numbers", TRAIN, "integers", vocabulary({"ship": 1.5, "<unk>": 2})),
    Bad("vocabulary without <unk>", TRAIN, "<unk>", vocabulary({"ship": 1})),
    Bad("vocabulary of another run", SINGLE, "does not match", both(trained, vocabulary({"ship": 1, "<unk>": 2}))),
]

CHECKPOINTS = [
    Bad("checkpoint not there", SINGLE, "GaLR_best.pth.tar"),
    Bad("checkpoint a text", SINGLE.replace("checkpoint/tiny/0/GaLR_best.pth.tar", "vocab.json"), "vocab.json"),
    Bad("checkpoint cut off", SINGLE, "damaged", both(trained, cut(BEST))),
    Bad("checkpoint with a byte turned over", TEST, "checksum", both(trained, flip(BEST))),
    Bad("checkpoint empty", TEST, "damaged", both(trained, cut(BEST, 0))),
    Bad("checkpoint of something else", SINGLE, "'model'", saved(BEST, {"weights": 1})),
    Bad("checkpoint of weights that are none", SINGLE, "'model'", saved(BEST, {"model": {"a": 1}})),
    Bad("checkpoint without most weights", SINGLE, "missing", saved(BEST, {"model": {"a": torch.zeros(1)}})),
    Bad("checkpoint of another width", f"{SINGLE} --set model.seq2vec.hidden_dim=32", "misshapen", trained),
    Bad("checkpoint with NaN", SINGLE, "not finite", weights(lambda s: next(iter(s["model"].values())).fill_(np.nan))),
    Bad("checkpoint with words that are none", SINGLE, "words", weights(lambda s: s.update(words=5))),
    Bad("a run is there already", TRAIN, "--resume", trained),
    Bad(
        "resume of damaged checkpoints",
        f"{TRAIN} --resume",
        "no usable checkpoint",
        both(trained, cut(LAST), lambda f: (f / f"{LAST}.previous").write_bytes(b"")),
    ),
    Bad("resume with other options", f"{TRAIN} --resume --set optim.lr=0.1", "optim.lr: 0.0005 -> 0.1", trained),
    Bad("resume with another split", f"{TRAIN} --resume", "split.json", trained),
    Bad("resume of a published checkpoint", f"{TRAIN} --resume", "no progress", weights(lambda s: s.pop("progress"))),
    Bad("fine-tuning from nothing", f"{TRAIN} --set optim.resume=nowhere.pth", "nowhere.pth"),
    Bad("ResNet weights not there", f"{TRAIN} --set model.pretrained=nowhere.pth", "nowhere.pth"),
    Bad(
        "ResNet weights of something else",
        f"{TRAIN} --set model.pretrained=w.pth",
        "model.pretrained",
        saved("w.pth", {"fc.weight": torch.zeros(2)}),
    ),
    Bad(
        "ResNet weights with NaN",
        f"{TRAIN} --set model.pretrained=w.pth",
        "w.pth: weights that are not finite",
        saved("w.pth", {"conv1.weight": torch.full((64, 3, 7, 7), torch.nan)}),
    ),
    Bad("skip-thoughts files not there", f"{TRAIN} --set model.seq2vec.pretrained=true", "dictionary.txt"),
    Bad("the split of a fold not there", f"{SINGLE} --split val", "split.json", both(trained, remove(SPLIT))),
    Bad("the split of a fold without names", TEST, "split.json", both(trained, write(SPLIT, "[1]"))),
    Bad(
        "the split of a fold of other images", TEST, "split.json", both(trained, write(SPLIT, '{"val": ["x.png", 7]}'))
    ),
    Bad("detector weights of something else", DETECT, "weights.pth", saved("weights.pth", {"model": [1]})),
]

MATRICES = [
    Bad("matrix not there", RERANK, "sims.npy"),
    Bad("matrix a text", RERANK, "sims.npy", write("sims.npy", "0.1 0.2\n")),
    Bad("matrix cut off", RERANK, "sims.npy", both(sims(SIMS), cut("sims.npy", 0.9))),
    Bad("matrix with NaN", RERANK, "nan", sims([[0.5, np.nan]])),
    Bad("matrix with infinity", RERANK, "inf", sims([[0.5, np.inf]])),
    Bad("matrix of one dimension", RERANK, "two dimensions", sims([0.5, 0.25])),
    Bad("matrix empty", RERANK, "two dimensions", sims(np.zeros((0, 5)))),
    Bad("matrix of texts", RERANK, "real numbers", sims([["a", "b"]])),
    Bad("matrix of complex numbers", RERANK, "real numbers", sims([[1j, 2j]])),
    Bad("matrix of objects", RERANK, "sims.npy", sims(np.array([[None, {}]]))),
    Bad("matrix whose captions have no image", RERANK, "4 captions do not share 3 images", sims(SIMS)),
    Bad("matrix with too few owners", RERANK, "sims_images.npy", sims(SIMS, [0, 1])),
    Bad("matrix with owners that are not there", RERANK, "image 9", sims(SIMS, [0, 1, 2, 9])),
    Bad(
        "matrix an archive", RERANK, "two dimensions", lambda folder: np.savez((folder / "sims.npy").open("wb"), a=SIMS)
    ),
    Bad(
        "figures of damaged results",
        FIGURES,
        "results.json",
        both(lambda folder: (folder / "run").mkdir(), write("run/results.json", '{"folds": 3}')),
    ),
    Bad(
        "figures of a history that is none",
        FIGURES,
        "history.json",
        both(lambda folder: (folder / "run/0").mkdir(parents=True), write("run/0/history.json", "[]")),
    ),
]

TABLE = [*OPTIONS, *COMMANDS, *LISTS, *IMAGES, *REGIONS, *VOCABULARIES, *CHECKPOINTS, *MATRICES]


def test_the_table_has_at_least_60_rows_of_different_names() -> None:
    assert len({bad.what for bad in TABLE}) == len(TABLE) >= 60


@pytest.fixture
def spoilt(work, checkpoint, monkeypatch) -> Callable[[Bad], Path]:
    """Spoil a working folder as a row of the table says."""
    monkeypatch.setenv("GALR_TEST_CHECKPOINT", str(checkpoint))

    def spoil(bad: Bad) -> Path:
        bad.spoil(work)
        return work

    return spoil


def check(outcome, bad: Bad, before: dict, after: dict) -> None:
    assert outcome.status == 2, outcome
    assert outcome.message.startswith("error: ") and bad.tells in outcome.message
    assert after == before


@pytest.mark.parametrize("bad", TABLE, ids=lambda bad: bad.what)
def test_bad_input_is_one_line_exit_status_2_and_writes_nothing(bad: Bad, spoilt, run) -> None:
    folder = spoilt(bad)
    before = listing(folder)
    check(run(bad.command), bad, before, listing(folder))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("command", [TRAIN, TEST, SINGLE, DETECT])
def test_a_gpu_that_is_not_there_is_said(command: str, work, run) -> None:
    before = listing(work)
    check(run(f"{command} --device cuda"), Bad("", "", "--device cuda"), before, listing(work))


OWN_PROCESS = (
    "image not there",
    "vocab of captions in UTF-16",
    "checkpoint with a byte turned over",
    "matrix with NaN",
    "demo of too few images",
)


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(bad, marks=[pytest.mark.slow] if bad.what in OWN_PROCESS[:2] else [])
        for bad in TABLE
        if bad.what in OWN_PROCESS
    ],
    ids=lambda bad: bad.what,
)
def test_a_process_of_its_own_ends_just_alike(bad: Bad, spoilt) -> None:
    folder = spoilt(bad)
    before = listing(folder)
    check(run_process(bad.command, folder), bad, before, listing(folder))
