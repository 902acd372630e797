"""The examples in docstrings of functions that people call from Python."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest
from conftest import ROOT

ROOMS = "layers", "option", "util", "postprocessing", "search"
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))] + sorted(ROOT.glob("*.py"))
WITH_EXAMPLES = [path.relative_to(ROOT) for path in FILES if "    >>> " in path.read_text()]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=str)
def test_the_examples_of_a_file_give_what_they_show(path: Path, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name} needs a package that is not installed: {error}")
    found = doctest.testmod(module)
    assert found.attempted and not found.failed


def test_the_functions_of_the_layers_that_people_call_have_examples() -> None:
    assert {Path("layers", name) for name in ("__init__.py", "drea.py", "loss.py")} <= set(WITH_EXAMPLES)
