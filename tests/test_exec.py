"""The run scripts: the environment that they choose, the paths that they take from the options, jobs side by side."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT

from exec import fold_jobs
from utils import InputError


def script(text: str, environment: dict[str, str]) -> subprocess.CompletedProcess:
    env = {key: value for key, value in os.environ.items() if key not in ("GALR_VENV", "NEEDS")} | environment
    return subprocess.run(["bash", "-c", text], cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def program(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file


def test_the_active_environment_is_used_if_it_has_what_is_needed(tmp_path) -> None:
    program(tmp_path / "bin/python", f'exec {sys.executable} "$@"')
    path = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    done = script("source exec/environment.sh; command -v python", path)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, f"{tmp_path}/bin/python", "")


@pytest.mark.parametrize("lacking", ["no-such-package-of-anyone>=1", "numpy>=999"])
def test_an_environment_is_made_and_said_if_the_active_one_lacks_something(tmp_path, lacking) -> None:
    (tmp_path / "needs.txt").write_text(f"pytest>=8  # there\n{lacking}\n")
    program(tmp_path / "bin/python", f'exec {sys.executable} "$@"')
    made = program(
        tmp_path / "python3", f'[ "$1" = -c ] || {{ mkdir -p "$3/bin"; cp {tmp_path}/pip "$3/bin/python"; }}'
    )
    program(tmp_path / "pip", f'case "$*" in *pip*) echo "$*" >> {tmp_path}/calls;; *) exit 1;; esac')
    needs = {"NEEDS": str(tmp_path / "needs.txt"), "PYTHON3": str(made), "GALR_VENV": str(tmp_path / "venv")}
    done = script("source exec/environment.sh; command -v python", needs)
    said, python = done.stdout.splitlines()
    assert f"installing them in {tmp_path}/venv" in said and python == f"{tmp_path}/venv/bin/python"
    assert (tmp_path / "calls").read_text().split()[-4:] == ["-c", "constraints.txt", "-r", needs["NEEDS"]]


@pytest.fixture
def recorded(tmp_path: Path):
    """Run a script with a Python that reads options in earnest and only notes other commands; return end and notes."""
    calls = tmp_path / "calls"
    text = f'case "$*" in *"-m option"*) exec {sys.executable} "$@";; *) echo "$*" >> {calls};; esac'
    program(tmp_path / "venv/bin/python", text)

    def run(text: str, **environment: str) -> tuple[subprocess.CompletedProcess, list[str]]:
        calls.write_text("")
        done = script(text, {"GALR_VENV": str(tmp_path / "venv"), "CUDA_VISIBLE_DEVICES": "", **environment})
        return done, [line for line in calls.read_text().splitlines() if "satisfies" not in line]

    return run


def test_the_vocabulary_comes_from_the_data_that_the_options_name(recorded, tmp_path) -> None:
    data, vocab = tmp_path / "rsitmd", tmp_path / "vocab.json"
    keys = f"--set dataset.data_path={data} dataset.vocab_path={vocab}"
    done, (vocabulary, train, test) = recorded(f"bash exec/train_and_test.sh RSITMD AMFMN {keys}")
    assert done.returncode == 0, done.stderr
    assert vocabulary == f"vocab.py --data_path {data} --data_name rsitmd_precomp --out {vocab}"
    assert train.startswith("train.py --path_opt option/RSITMD/RSITMD_AMFMN.yaml --resume --set")
    assert test.startswith("test.py --path_opt option/RSITMD/RSITMD_AMFMN.yaml --rerank --set")
    vocab.touch()
    _, calls = recorded(f"bash exec/train_and_test.sh RSITMD {keys}")
    assert [call.split()[0] for call in calls] == ["train.py", "test.py"]


def test_a_wrong_option_ends_the_script_before_anything_runs(recorded) -> None:
    done, calls = recorded("bash exec/train_and_test.sh RSITMD --set optim.lrr=1")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "unknown key optim.lrr" in done.stderr
    assert not calls


def test_the_last_tables_are_those_of_the_folders_that_the_options_name(recorded, tmp_path) -> None:
    runs, matrices, vocab = (tmp_path / name for name in ("runs", "matrices", "vocab.json"))
    vocab.touch()
    folders = f"--set logs.ckpt_save_path={runs} logs.matrices={matrices} dataset.vocab_path={vocab}"
    _, calls = recorded(f"bash exec/compare.sh DEMO GaLR {folders}")
    assert calls[-1].endswith(f"DEMO GaLR --seeds 1 --runs {runs} --matrices {matrices}")
    _, calls = recorded(f"bash exec/ablation.sh DEMO proposals {folders}", ROWS="zeros no_mvsa", BUILD="")
    assert calls[-1] == f"-m postprocessing.tables {runs}/DEMO_zeros {runs}/DEMO_proposals_no_mvsa"


def test_without_a_choice_the_gpus_with_the_most_free_memory_are_taken(tmp_path, monkeypatch) -> None:
    program(tmp_path / "nvidia-smi", 'printf "0, 100\\n1, 900\\n2, 800\\n"')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert fold_jobs.chosen_gpus("2", None) == ["1", "2"] and fold_jobs.chosen_gpus("1", "0,2") == ["0"]
    with pytest.raises(InputError, match="GPUS=4, but nvidia-smi finds 3"):
        fold_jobs.chosen_gpus("4", None)
    program(tmp_path / "nvidia-smi", "exit 9")  # not known: the first
    assert fold_jobs.chosen_gpus("2", None) == ["0", "1"]


@pytest.mark.parametrize(("number", "visible"), [("3", "0,1"), ("1", ""), ("0", None), ("two", None)])
def test_gpus_that_are_not_there_are_an_input_error(number, visible) -> None:
    with pytest.raises(InputError, match="GPUS"):
        fold_jobs.chosen_gpus(number, visible)


@pytest.fixture
def started(monkeypatch) -> Iterator[Callable[[str], None]]:
    """Let folds run a line of shell, with the fold and the number of its GPUs; put the handlers of signals back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(text: str) -> None:
        words = ["sh", "-c", text, "sh"]
        monkeypatch.setattr(fold_jobs, "command", lambda fold, each, _: [*words, str(fold), str(each)])

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("folds", "gpus", "waves"),
    [
        (range(3), ["0", "1"], ["0:0x1", "1:1x1", "2:0x1"]),  # in turns
        (range(1, 3), ["4", "5", "6", "7"], ["1:4,5x2", "2:6,7x2"]),  # two processes a fold
    ],
)
def test_folds_share_the_gpus(tmp_path, started, folds, gpus, waves) -> None:
    started(f'echo "$1:${{CUDA_VISIBLE_DEVICES}}x$2" >> {tmp_path}/jobs')
    assert fold_jobs.run_folds(folds, gpus, []) == 0
    assert sorted((tmp_path / "jobs").read_text().split()) == waves


def test_a_fold_that_fails_gives_the_status_and_no_more_are_started(tmp_path, started) -> None:
    started(f"echo $1 >> {tmp_path}/jobs; exit 3")
    assert fold_jobs.run_folds(range(3), ["0"], []) == 3
    assert (tmp_path / "jobs").read_text().split() == ["0"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_tells_every_fold_once_to_stop_and_waits_for_them(tmp_path, started, number) -> None:
    started(f'trap "echo $1 >> {tmp_path}/told; sleep 0.3; exit 143" TERM; touch {tmp_path}/at_$1; sleep 60 & wait')
    watcher = (
        "import os, pathlib, time\n"
        f"while len(list(pathlib.Path({str(tmp_path)!r}).glob('at_*'))) < 2: time.sleep(0.05)\n"
        f"for _ in range(2): os.kill({os.getpid()}, {int(number)}); time.sleep(0.1)"
    )
    with subprocess.Popen([sys.executable, "-c", watcher]):
        start = time.monotonic()
        assert fold_jobs.run_folds(range(4), ["0", "1"], []) == 143
    assert time.monotonic() - start < 30 and sorted((tmp_path / "told").read_text().split()) == ["0", "1"]


def test_a_fold_on_several_gpus_is_started_by_torchrun() -> None:
    alone = fold_jobs.command(2, 1, ["--path_opt", "a.yaml"])
    assert alone[1:] == "train.py --path_opt a.yaml --fold 2 --resume".split()
    assert "torch.distributed.run --standalone --nproc_per_node 3 train.py" in " ".join(fold_jobs.command(0, 3, []))


@pytest.mark.parametrize(
    ("ends", "status", "tested"), [("exit 0", 0, True), ("exit 3", 3, False), ("sleep 60 & wait", 143, False)]
)
def test_the_script_waits_for_the_folds_and_passes_a_signal_on(tmp_path, ends, status, tested) -> None:
    calls, started = tmp_path / "calls", tmp_path / "started"
    calls.touch()
    folds = f'trap "sleep 0.3; echo saved >> {calls}; exit 143" TERM; touch {started}; {ends}'
    answers = f'*satisfies*) exit 0;; *--get*) printf "none\\nx\\n";; *fold_jobs*) {folds};;'
    program(tmp_path / "venv/bin/python", f'case "$*" in {answers} *) echo "$*" >> {calls};; esac')
    environment = os.environ | {"GALR_VENV": str(tmp_path / "venv"), "GPUS": "2"}
    with subprocess.Popen(["bash", "exec/train_and_test.sh", "RSITMD"], cwd=ROOT, env=environment) as running:
        while not started.exists():
            time.sleep(0.02)
        if status == 143:
            time.sleep(0.2)
            running.terminate()
    assert running.returncode == status and calls.read_text().startswith("test.py") is tested
    assert ("saved" in calls.read_text()) is (status == 143)
