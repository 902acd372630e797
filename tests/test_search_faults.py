"""search.index under kills, a full disk, vanishing files: nothing lost, nothing doubled. Real processes, real trunk."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import vocab
from layers import build_model
from option import load_options
from search.store import open_index
from tests.conftest import Outcome, command_line, environment, run_process
from tests.searching import vectors

pytestmark = pytest.mark.slow
COPIES = 20  # of each of the 20 images
KILLS = int(os.environ.get("GALR_KILLS", "20"))


@pytest.fixture
def folder(work: Path) -> Path:
    """Make the demonstration set, a checkpoint of the real trunk, and 400 images in `many`."""
    options, words = load_options("tiny.yaml"), vocab.load("vocab.json").words
    torch.manual_seed(0)
    torch.save({"model": build_model(options, words).state_dict(), "words": list(words)}, "model.pth.tar")
    for path in sorted(Path("data/images").iterdir()):
        for copy in range(COPIES):
            (work / f"many/{copy}").mkdir(parents=True, exist_ok=True)
            shutil.copy(path, work / f"many/{copy}/{path.name}")
    return work


def command(out: str, images: str = "many") -> str:
    return (
        f"-m search.index --path_opt tiny.yaml --resume model.pth.tar --images {images} --regions none "
        f"--out {out} --add --device cpu --workers 0"
    )


def start(line: str, folder: Path, sign: str) -> subprocess.Popen[str]:
    """Start a command, and wait until it has made the file `sign`, has ended, or a minute is over."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command_line(line), cwd=folder, env=environment(), **quiet)
    latest = time.monotonic() + 60
    while not Path(sign).exists() and process.poll() is None and time.monotonic() < latest:
        time.sleep(0.02)
    return process


def assert_equal(index: str, whole: dict[str, np.ndarray]) -> None:
    found = vectors(index)
    assert found.keys() == whole.keys()
    for path, vector in whole.items():
        np.testing.assert_allclose(found[path], vector, atol=1e-5, err_msg=path)


def test_kills_lose_nothing_and_double_nothing(folder):
    assert run_process(command("whole.db"), folder).status == 0
    whole = vectors("whole.db")
    assert len(whole) == 20 * COPIES
    rng, counts = random.Random(0), []
    for _ in range(KILLS):
        with start(command("i.db"), folder, "i.db/LOCK") as process:
            time.sleep(rng.uniform(0, 8) if not counts or counts[-1] < 350 else rng.uniform(0, 3))
            process.send_signal(signal.SIGKILL)
        if (folder / "i.db").exists():
            with open_index("i.db", create=True) as opened:
                counts.append(opened.count() if opened.mark else 0)
        if counts and counts[-1] == len(whole):
            shutil.rmtree("i.db")  # it had finished: anew
            counts.append(0)
    assert any(0 < count < len(whole) for count in counts)
    assert run_process(command("i.db"), folder).status == 0
    assert_equal("i.db", whole)


def run_after(preparation: str, line: str, folder: Path) -> Outcome:
    """Run a command in a process that does this first; done between fork and exec, it would meet gRPC's threads."""
    code = f"import ctypes, os, resource, sys; {preparation}; os.execv(sys.argv[1], sys.argv[1:])"
    words = [sys.executable, "-c", code, *command_line(line)]
    done = subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(folder):
    assert run_process(command("whole.db"), folder).status == 0
    ended = run_after("resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))", command("i.db"), folder)
    assert ended.status == 3, ended.err
    assert "make room if the disk is full" in ended.message and "i.db" in ended.message
    assert run_process(command("i.db"), folder).status == 0
    assert_equal("i.db", vectors("whole.db"))


def test_files_that_vanish_meanwhile_are_counted_and_stop_nothing(folder):
    with start(command("i.db"), folder, "i.db/collections/galr") as process:
        for copy in range(10, COPIES):
            shutil.rmtree(f"many/{copy}")
        _, error = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in error, error
    assert run_process(command("i.db"), folder).status == 0
    assert len(vectors("i.db")) == 200


# Mind the modes of files, as plain users' processes do, though root starts it: linux/prctl.h, linux/capability.h
OBEY_MODES = "ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)"  # drop from the bounding set: dac_override


def test_a_folder_that_is_read_only_is_named(folder):
    assert run_process(command("i.db"), folder).status == 0
    Path("i.db").chmod(0o500)
    for line in (command("i.db"), "-m search.query --index i.db --text plane"):
        ended = run_after(OBEY_MODES, line, folder)
        assert ended.status == 2 and "i.db" in ended.message and "that you may write to" in ended.message
