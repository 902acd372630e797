"""Shared by the tests: a tiny demonstration set, and commands run in this process as a user would run them.

Importing PyTorch takes seconds, so a command's `main` is called here, with its command line, through the same
`utils.exit_status` that `run_command` uses; a few tests start real processes besides.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import drawn
import pytest
import torch
from matplotlib.figure import Figure
from tiny import OPTIONS as OPTIONS
from tiny import listing as listing
from tiny import make_demo_folder, shortened

import util.checkpoint
import utils
from util.background import Background

ROOT = Path(utils.__file__).parent
if importlib.util.find_spec("pymilvus") is None:
    collect_ignore_glob = ["test_search_*"]  # their packages: pip install -r requirements-search.txt
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers share the cores


@pytest.fixture(autouse=True)
def messages() -> None:
    """Print what the project logs, in tests that call its functions too."""
    utils.start_logging()


class Outcome(NamedTuple):
    """The end of a command: its exit status and its output."""

    status: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """Return the one line on standard error."""
        lines = self.err.splitlines()
        assert len(lines) == 1, f"{len(lines)} lines on standard error: {self.err}"
        return lines[0]


def _module(command: str) -> tuple[str, list[str]]:
    """`train.py --x` and `-m util.detect --x` -> the module's name, and its arguments."""
    words = shlex.split(command)
    return (words[1], words[2:]) if words[0] == "-m" else (words[0].removesuffix(".py"), words[1:])


@pytest.fixture
def run(capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Outcome]:
    """Run a command line such as `train.py --path_opt tiny.yaml` in this process and in the current folder."""

    def run(command: str) -> Outcome:
        name, arguments = _module(command)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        is_package = importlib.util.find_spec(name).submodule_search_locations is not None
        main = importlib.import_module(f"{name}.__main__" if is_package else name).main
        capfd.readouterr()
        status = utils.exit_status(main)
        return Outcome(status, *capfd.readouterr())

    return run


@pytest.fixture
def index(run: Callable[[str], Outcome], work: Path, checkpoint: Path) -> Callable[..., Outcome]:
    """Run search.index on the demonstration set's images into i.db, with further arguments."""

    def index(more: str = "", images: str = "data/images", regions: str = "data/boxes") -> Outcome:
        return run(
            f"-m search.index --path_opt tiny.yaml --resume {checkpoint} --images {images} --out i.db "
            f"--regions {regions} --device cpu --workers 0 {more}"
        )

    return index


def environment() -> dict[str, str]:
    """Return the environment of commands in processes of their own: the project's modules, one thread."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def command_line(command: str) -> list[str]:
    """Return the words that start a command in a process of its own."""
    name, arguments = _module(command)
    return [sys.executable, "-m", name, *arguments]


def run_process(command: str, folder: Path, **options) -> Outcome:
    """Run a command line in a process of its own."""
    done = subprocess.run(
        command_line(command), cwd=folder, env=environment(), capture_output=True, text=True, check=False, **options
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the folder of the tiny demonstration set, once; not to be written to (see `work`)."""
    folder = tmp_path_factory.mktemp("demo")
    make_demo_folder(folder)
    return folder


@pytest.fixture
def work(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the tiny demonstration set, and make the copy the current folder."""
    folder = tmp_path / "work"
    shutil.copytree(demo, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def drawn_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Draw the data set of drawn.py into a new folder, and make it the current one."""
    drawn.draw(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def short_trunk() -> Iterator[None]:
    """Shorten the backbone, for speed. Tests with processes of their own and tests/soak.py train the real one."""
    with shortened():
        yield


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Compute with one thread, so that sums keep their order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def checkpoint(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save the tiny model with random weights as train.py does, with its split.json. Short backbone."""
    import vocab
    from engine import make_criterion, make_optimizer
    from layers import build_model
    from option import load_options
    from util.train_state import TrainState

    options = load_options(demo / "tiny.yaml")
    words = vocab.load(demo / "vocab.json").words
    with shortened():
        model = build_model(options, words)
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny" / "0"
    criterion = make_criterion(options.optim, torch.device("cpu"))
    train_state = TrainState(model, criterion, make_optimizer(model, options.optim, criterion))
    state = train_state.for_resume(options, words, rows=[], inputs="")
    del state["inputs"]  # as in checkpoints of before it was kept
    util.checkpoint.save_checkpoint(state, folder / "GaLR_best.pth.tar")
    names = list(dict.fromkeys((demo / "data/train_filename.txt").read_text().split()))
    utils.write_json(folder / "split.json", {"train": names[4:], "val": names[:4]})
    return folder / "GaLR_best.pth.tar"


@pytest.fixture
def scored_run(work: Path, checkpoint: Path) -> Path:
    """Link the checkpoint as fold 0 of the run `tiny`; the work folder is the current one."""
    folder = work / "checkpoint/tiny/0"
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.symlink_to(checkpoint.parent)
    return work


@pytest.fixture(scope="module")
def without_pictures() -> Iterator[None]:
    """Draw no pictures for TensorBoard, for speed. Tests with processes of their own draw them."""
    import train

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "retrieval_grid", lambda *_: Figure())
        yield


@pytest.fixture(scope="session")
def whole(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train the fold of an uninterrupted run of two epochs: 8 steps, a checkpoint every 3 steps and every epoch."""
    import train

    folder = tmp_path_factory.mktemp("whole") / "work"
    shutil.copytree(demo, folder)
    with shortened(), contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", "train.py --path_opt tiny.yaml --device cpu".split())
        patch.setattr(train, "retrieval_grid", lambda *_: Figure())
        assert utils.exit_status(train.main) == 0
    return folder / "checkpoint/tiny/0"


@pytest.fixture
def written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the training loop wait for each checkpoint, so that none replaces one that waits."""
    real = Background.put
    monkeypatch.setattr(Background, "put", lambda self, *job: (real(self, *job), self.wait()))


@pytest.fixture
def part_way(work: Path, run: Callable[[str], Outcome], written_at_once: None) -> Path:
    """Stop a run after 5 steps: a checkpoint of step 5, and the one before it, of step 4."""
    from interrupted import LAST, TRAIN, at_step, steps, stop

    with at_step(5, stop(signal.SIGTERM)):
        assert run(TRAIN).status == 143
    assert steps(LAST) == 5 and steps(util.checkpoint.previous(LAST)) == 4
    return work
