"""Several processes give what one gives: training, masks, statistics, evaluation, stops."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import several
import torch
import yaml
from conftest import OPTIONS, ROOT, Outcome, run_process
from PIL import Image
from several import Trained
from torch import Tensor

NO_DROPOUT = "model.seq2vec.dropout=0 model.fusion.mca_DROPOUT_R=0 model.fusion.dynamic_fusion_drop=0"
TEXT = {"pretrained": False, "embedding_dim": 8, "hidden_dim": 16}
AMFMN = {"name": "AMFMN", "pretrained": "none", "seq2vec": TEXT, "embed": {"embed_dim": 32}}
# 60 pairs of 12 images. Batches of 29 end in one of 2, fewer than 3 processes; of 7 images in one of 5.
CASES = [
    f"tiny.yaml dataset.batch_size=29 optim.lr=1e-5 {NO_DROPOUT}",
    "tiny.yaml dataset.batch_size=29 optim.lr=1e-5 optim.grad_clip=2",
    "amfmn.yaml dataset.batch_size=7 optim.lr=1e-5 optim.loss=infonce dataset.captions_per_image=2",
]
STEPS = 4


@pytest.fixture(scope="module")
def runs(demo, tmp_path_factory) -> list[tuple[list[Trained], Trained]]:
    """Train the cases in three processes, and in one."""
    folder = tmp_path_factory.mktemp("several")
    for name in ("vocab.json", "tiny.yaml"):
        (folder / name).symlink_to(demo / name)
    shutil.copytree(demo / "data", folder / "data")
    rng = np.random.default_rng(0)  # pictures of noise: gradients of drawn scenes are lost in rounding here
    for path in sorted((folder / "data" / "images").iterdir()):
        Image.fromarray(rng.integers(256, size=(70, 70, 3), dtype=np.uint8)).save(path)
    (folder / "amfmn.yaml").write_text(yaml.safe_dump(yaml.safe_load(OPTIONS) | {"model": AMFMN}))
    words = [f"{Path(several.__file__)}", "out", str(STEPS), "short", "float32", *" -- ".join(CASES).split()]
    processes = several.start(3, words, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        alone = [several.train(path, overrides, STEPS, short=True) for path, *overrides in map(str.split, CASES)]
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    together = [
        [Trained(*torch.load(folder / f"out.{number}.{rank}", weights_only=True)) for rank in range(3)]
        for number in range(len(CASES))
    ]
    return list(zip(together, alone, strict=True))


def apart(tensors: dict[str, Tensor], others: dict[str, Tensor]) -> dict[str, float]:
    """Return the relative difference of each tensor: the length of the difference over the length."""
    assert tensors.keys() == others.keys()
    return {
        name: float((tensor.double() - others[name].double()).norm() / others[name].double().norm().clamp(min=1e-30))
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize("case", range(len(CASES)), ids=["no dropout", "dropout and clipping", "AMFMN, InfoNCE"])
def test_three_processes_train_as_one(runs, case) -> None:
    """Every pair of the global batch counts, in uneven batches too; dropout and statistics are those of one process."""
    (together, *_), alone = runs[case]
    assert together.losses == pytest.approx(alone.losses, rel=1e-5)
    # the gradient of each parameter counts once: the encoders', the similarity's, the temperature's
    largest = max(float(gradient.norm()) for gradient in alone.gradients.values())
    counted = {name for name, gradient in alone.gradients.items() if gradient.norm() > 1e-6 * largest}
    found = apart(together.gradients, alone.gradients)
    assert len(counted) > 20 and {name: found[name] for name in counted if found[name] > 5e-4} == {}
    if case == 2:
        assert counted >= {"loss.log_scale", "attention.gate.weight", "global_branch.trunk.net.conv1.weight"}
    # running mean and variance are of the global batch, the unbiased count too
    found = apart(together.state, alone.state)
    statistics = {name: found[name] for name in found if "running_" in name}
    assert len(statistics) == 2 and max(statistics.values()) < 1e-5


def test_evaluation_is_shared_out_and_every_process_has_all_vectors(runs) -> None:
    """Each of 12 images in batches of 2 is encoded by one of the processes, each distinct caption too."""
    for together, alone in runs:
        assert [one.encoded[0] for one in together] == [4, 4, 4] and alone.encoded[0] == 12
        assert sum(one.encoded[1] for one in together) == alone.encoded[1] > 0
        for one in together:
            assert torch.equal(one.vectors, together[0].vectors)
        torch.testing.assert_close(together[0].vectors, alone.vectors, rtol=0, atol=0.02 * alone.vectors.abs().max())


def torchrun(number: int, command: str, folder: Path) -> Outcome:
    """Run a command line in several processes of torchrun, from the tests' folder or the root."""
    name, _, arguments = command.partition(" ")
    path = next(path for path in (ROOT / name, ROOT / "tests" / name) if path.is_file())
    return run_process(f"-m torch.distributed.run --standalone --nproc_per_node={number} {path} {arguments}", folder)


def ours(outcome: Outcome) -> list[str]:
    """Return the project's lines on standard error; the rest is torchrun's."""
    return [line for line in outcome.err.splitlines() if line.startswith(("error: ", "warning: "))]


def last(folder: Path) -> dict:
    return torch.load(folder / "checkpoint/tiny/0/last.pth.tar", weights_only=True)


def recalls(folder: Path) -> dict:
    return json.loads((folder / "checkpoint/tiny/results.json").read_text())["folds"][0]


TRAIN = f"train.py --path_opt tiny.yaml --device cpu --set optim.lr=1e-5 {NO_DROPOUT}"
FAULTS = {  # what torchrun says of the processes, what we say, and how many steps are saved
    "SIGTERM": ("SIGTERM", "stopped by SIGTERM; saved in checkpoint/tiny/0", 5),
    "SIGINT": ("SIGINT", "stopped by SIGINT; saved in checkpoint/tiny/0", 5),
    "one": ("143", "stopped by SIGTERM; saved in checkpoint/tiny/0", 5),
    "SIGKILL": ("-9", "one of 2 processes is gone", 4),
    "nan": ("3", "the loss of batch 1 of epoch 1 is nan", 4),
    "error": ("3", "the second process met an error", 4),
    "full": ("3", "cannot be written", 4),
}


@pytest.fixture(scope="module")
def whole(demo, tmp_path_factory) -> Path:
    """Train two epochs in one process without interruption, and score them."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(demo, folder, dirs_exist_ok=True)
    assert run_process(TRAIN, folder).status == 0
    assert run_process("test.py --path_opt tiny.yaml --device cpu", folder).status == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_one_process_stops_all_and_any_number_goes_on_to_the_same_end(fault, work, whole) -> None:
    """Stopped under two, resumed under one or three, in the middle of an epoch."""
    status, said, saved = FAULTS[fault]
    every = 2 if fault == "full" else 3
    command = f"faulty.py {fault} 5 {TRAIN.removeprefix('train.py ')} logs.save_steps={every}"
    stopped = torchrun(2, command, work)
    assert stopped.status != 0
    assert [said in line for line in ours(stopped)] == [True], stopped.err
    name = f"got signal: {signal.Signals[status].value}" if status.startswith("SIG") else f"exitcode  : {status} "
    assert name in stopped.err
    assert last(work)["Eiters"] == saved
    resume = f"{TRAIN} --resume"
    resumed = torchrun(3, resume, work) if fault in ("SIGTERM", "nan") else run_process(resume, work)
    assert resumed.status == 0 and last(work)["epoch"] == 2
    found = apart(last(work)["model"], last(whole)["model"])
    assert max(found[name] for name in found if name.endswith("weight") and "bn" not in name) < 1e-4
    losses, expected = ([row["loss"] for row in last(folder)["rows"] if "loss" in row] for folder in (work, whole))
    assert losses == pytest.approx(expected, rel=1e-3)  # rounding grows; another batch or mask is 1e-1 away


@pytest.mark.slow
def test_scores_of_two_processes_are_those_of_one_digit_for_digit(work, whole) -> None:
    """Every batch is encoded as one process would encode it; nothing twice, nothing missing."""
    shutil.copytree(whole / "checkpoint", work / "checkpoint")
    (work / "checkpoint/tiny/results.json").unlink()
    scored = torchrun(2, "test.py --path_opt tiny.yaml --device cpu", work)
    assert scored.status == 0 and ours(scored) == []
    assert recalls(work) == recalls(whole)
    matrix = "postprocessing/file/tiny_0.npy"
    assert np.array_equal(np.load(work / matrix), np.load(whole / matrix))
    assert scored.out.count("test split:") == 1  # one process speaks
