"""Several processes give what one gives: training, masks, statistics, evaluation, stops."""

from __future__ import annotations

from pathlib import Path

import pytest
import several
import torch
import yaml
from conftest import OPTIONS
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
def trained(demo, tmp_path_factory) -> list[tuple[Trained, Trained]]:
    """The cases in three processes and in one."""
    folder = tmp_path_factory.mktemp("several")
    for name in ("data", "vocab.json", "tiny.yaml"):
        (folder / name).symlink_to(demo / name)
    (folder / "amfmn.yaml").write_text(yaml.safe_dump(yaml.safe_load(OPTIONS) | {"model": AMFMN}))
    words = [f"{Path(several.__file__)}", "out", str(STEPS), "short", "float32", *" -- ".join(CASES).split()]
    processes = several.start(3, words, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        alone = [several.train(path, overrides, STEPS, short=True) for path, *overrides in map(str.split, CASES)]
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    together = [Trained(*torch.load(folder / f"out.{number}", weights_only=True)) for number in range(len(CASES))]
    return list(zip(together, alone, strict=True))


def apart(tensors: dict[str, Tensor], others: dict[str, Tensor]) -> dict[str, float]:
    """The relative difference of each tensor: the length of the difference over the length."""
    assert tensors.keys() == others.keys()
    return {
        name: float((tensor.double() - others[name].double()).norm() / others[name].double().norm().clamp(min=1e-30))
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize("case", range(len(CASES)), ids=["no dropout", "dropout and clipping", "AMFMN, InfoNCE"])
def test_three_processes_find_the_losses_of_one(trained, case) -> None:
    """Every pair of the whole batch counts, in uneven batches too; dropout is that of one process."""
    together, alone = trained[case]
    assert together.losses == pytest.approx(alone.losses, rel=1e-5)


@pytest.mark.parametrize("case", range(len(CASES)), ids=["no dropout", "dropout and clipping", "AMFMN, InfoNCE"])
def test_three_processes_find_the_gradients_of_one(trained, case) -> None:
    """Each parameter's counts once: the encoders', the similarity's, the temperature's."""
    together, alone = trained[case]
    largest = max(float(gradient.norm()) for gradient in alone.gradients.values())
    counted = {name for name, gradient in alone.gradients.items() if gradient.norm() > 1e-6 * largest}
    found = apart(together.gradients, alone.gradients)
    assert len(counted) > 20 and {name: found[name] for name in counted if found[name] > 1e-3} == {}
    if case == 2:
        assert counted >= {"loss.log_scale", "attention.gate.weight", "global_branch.trunk.net.conv1.weight"}


@pytest.mark.parametrize("case", range(len(CASES)), ids=["no dropout", "dropout and clipping", "AMFMN, InfoNCE"])
def test_three_processes_keep_the_statistics_of_one(trained, case) -> None:
    """Running mean and variance are of the whole batch, the unbiased count too."""
    together, alone = trained[case]
    found = apart(together.state, alone.state)
    statistics = {name: found[name] for name in found if "running_" in name}
    assert len(statistics) == 2 and max(statistics.values()) < 1e-5
