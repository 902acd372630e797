"""The README's lines of Python run on the pretrained model, models/rs_lite."""

from __future__ import annotations

import doctest
import logging
import re

import pytest
from conftest import ROOT

for package in ("safetensors", "timm"):
    pytest.importorskip(package, reason="pip install -r requirements-search.txt")


def test_the_example_runs_on_the_box(monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    logging.getLogger("galr").setLevel(logging.WARNING)  # as in a program of one's own, which logs nothing
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(>>> .*?)```", readme, re.DOTALL)[1]
    test = doctest.DocTestParser().get_doctest(example, {}, "README.md", "README.md", 0)
    assert doctest.DocTestRunner().run(test) == (0, 3)
