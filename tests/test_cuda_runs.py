"""Whole commands on a GPU that is not there: nothing mixes devices, and no training step waits for the GPU."""

from __future__ import annotations

import pytest
import torch
from pretend_gpu import PretendGPU
from pretended import CASES, check_case, pretended, run_case  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("short_trunk", "without_pictures")
QUICK = [("GaLR", "bf16"), ("GaLR, all of it", "fp32"), ("gru, mean", "fp32"), ("AMFMN, soft_att", "bf16")]
QUICK += [("VSE++, last", "fp32")]
ALL = [(name, precision) for name in CASES if name not in ("CLIP", "transformer") for precision in ("fp32", "bf16")]


def mark_slow(case: tuple[str, str]) -> object:
    return pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow)


@pytest.mark.parametrize(("name", "precision"), [mark_slow(case) for case in ALL])
def test_a_run_mixes_no_devices_and_no_step_waits(name, precision, pretended) -> None:  # noqa: F811
    """Training, validation, a checkpoint, and test.py with rerank and query bank."""
    run_case(pretended, name, precision)
    check_case(pretended)


def test_the_pretended_gpu_sees_what_is_amiss() -> None:
    gpu, numbers = PretendGPU(), torch.tensor([1.0, 2.0])
    with gpu:
        there = numbers.to("cuda:0")
        assert there.device == torch.device("cuda", 0) and not numbers.is_cuda
        numbers.pin_memory().to("cuda:0", non_blocking=True)
        there + numbers
        there[torch.tensor([0])], there[there > 1]
        float(there.sum()), there.tolist(), there.cpu(), there.nonzero()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
    assert {event[1] for event in gpu.found("mixed")} == {"add"} and sum(gpu.found("copy").values()) == 1
    assert {event[1] for event in gpu.found("wait")} == {
        "copy to the GPU, not from pinned memory",
        "copy to the CPU",
        "index by an index on the CPU",
        "index by a mask",
        "_local_scalar_dense",
        "tolist",
        "nonzero",
    }
