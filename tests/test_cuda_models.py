"""CLIP and transformers on a GPU that is not there (see test_cuda_runs.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
from pretended import check_case, pretended, run_case  # noqa: F401 - a fixture
from test_clip import arch_in
from test_other_encoders import write_transformer

pytestmark = pytest.mark.usefixtures("short_trunk", "without_pictures")


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["CLIP", "transformer"])
def test_a_run_mixes_no_devices_and_no_step_waits(name, precision, pretended) -> None:  # noqa: F811
    arch_in(Path("arch"), "vit")
    write_transformer(Path())
    run_case(pretended, name, precision)
    check_case(pretended)
