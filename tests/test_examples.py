"""The examples in docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib

import pytest
from conftest import ROOT

ROOMS = ("", "bench/", "exec/", "layers/", "option/", "postprocessing/", "search/", "util/", "util/regions/")
SOURCES = [
    path.relative_to(ROOT).as_posix()
    for room in ROOMS
    for path in sorted(ROOT.glob(f"{room}*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("source", SOURCES)
def test_examples_in_docstrings_run(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    name = source.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name} needs {error.name}")
    found = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted and not found.failed
