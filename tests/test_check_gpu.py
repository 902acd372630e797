"""exec/check_gpu.sh, rehearsed on a CPU: every section of its report is there and none has failed."""

from __future__ import annotations

import subprocess

import pytest
from conftest import ROOT, environment

from bench import check_gpu


@pytest.mark.slow
def test_the_check_runs_to_its_end_without_a_card_and_writes_its_report(tmp_path) -> None:
    out = tmp_path / "check_gpu.md"
    command = ["bash", "exec/check_gpu.sh", "--device", "cpu", "--small", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = out.read_text()
    titles = ["Machine", "Tests", "Speed and memory", "Precisions against float32", "Determinism", "Two processes"]
    assert [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")] == titles
    assert "failed" not in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    for precision in ("fp32", "tf32", "bf16", "fp16"):
        assert [row[0] for row in rows].count(precision) == 2  # speed, agreement
    apart = {row[0]: row[1:] for row in rows}
    assert float(apart["fp32"][0]) == 0 and 0 < float(apart["bf16"][0]) < 0.1 and float(apart["fp16"][1]) < 0.1
    assert [row for row in rows if row[0] == "true"] == [["true", "yes"]]  # determinism
    assert '"processes": 2' in text


def test_a_section_that_fails_says_why_and_the_next_one_runs() -> None:
    def broken() -> str:
        raise RuntimeError("CUDA error: an illegal memory access\nwas encountered")

    text = "\n".join(check_gpu.report({"Speed": broken, "Determinism": lambda: "yes"}))
    assert "**failed**: RuntimeError: CUDA error: an illegal memory access was encountered" in text
    assert text.rstrip().endswith("## Determinism\n\nyes")
