"""The README's lines of Python run, on the model in the box where it is, else on a tiny one in its place."""

from __future__ import annotations

import doctest
import logging
import re
from pathlib import Path

import pytest

pytest.importorskip("safetensors", reason="pip install -r requirements-search.txt")

from conftest import ROOT

EXAMPLE = re.search(r"```python\n(>>> .*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]


def run_example() -> doctest.TestResults:
    """Run the example in the current folder."""
    logging.getLogger("galr").setLevel(logging.WARNING)  # as in a program of one's own, which logs nothing
    test = doctest.DocTestParser().get_doctest(EXAMPLE, {}, "README.md", "README.md", 0)
    return doctest.DocTestRunner().run(test)


@pytest.mark.usefixtures("short_trunk")
def test_the_example_runs_on_a_model_in_the_place_of_the_box(scored_run: Path, run) -> None:
    assert run("-m util.share --run checkpoint/tiny --out models/rs_lite").status == 0
    (scored_run / "docs").symlink_to(ROOT / "docs")
    assert run_example() == (0, 3)


def test_the_example_runs_on_the_box(monkeypatch) -> None:
    pytest.importorskip("timm", reason="pip install -r requirements-search.txt")
    if not (ROOT / "models/rs_lite").is_dir():
        pytest.skip("models/rs_lite is not there")
    monkeypatch.chdir(ROOT)
    assert run_example() == (0, 3)
