"""Hold README and guides to the code: commands, paths, flags, option keys, lengths of lines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from option.load import all_keys

ROOT = Path(__file__).resolve().parent.parent
GUIDES = "data training evaluation results fidelity search scaling".split()
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in GUIDES)]
CODE_FOLDERS = "layers|option|util|postprocessing|exec|tests|search|bench|docs"
SOURCES = "".join(path.read_text(encoding="utf-8") for path in ROOT.rglob("*.py") if ".venv" not in path.parts)
SCRIPTS = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "exec").rglob("*.sh"))

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def commands(text: str) -> list[str]:
    """Return the commands of the code blocks, each on one line."""
    blocks = re.findall(r"^ *```(\w*)\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    lines = [line for language, block in blocks if not language for line in block.replace("\\\n", " ").splitlines()]
    return [line.strip() for line in lines]


def test_the_readme_has_at_most_160_lines():
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= 160


@pages
def test_lines_and_table_cells_are_short(page):
    text = re.sub(r"<!-- options -->.*<!-- /options -->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")] == []
    rows = [line.strip("| ") for line in text.splitlines() if line.startswith("|")]
    assert [cell for row in rows for cell in row.split(" | ") if len(cell.strip()) > 60] == []


@pages
def test_named_files_and_links_exist(page):
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(rf"(?<![\w/.-])(?:{CODE_FOLDERS})/[\w./-]+\.(?:py|sh|yaml|md|csv|svg|png)\b", text))
    named |= set(re.findall(r"(?<![\w/.*-])\w+\.py\b", text)) | set(
        re.findall(r"\b(?:requirements|constraints)[\w-]*\.txt", text)
    )
    assert sorted(name for name in named if not (ROOT / name).exists()) == []
    links = re.findall(r"\]\((?!http)([^)#]+)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []


@pages
def test_named_modules_and_flags_exist(page):
    text = page.read_text(encoding="utf-8")
    modules = {name.replace(".", "/") for name in re.findall(r"python -m ([\w.]+)", text)}
    found = [name for name in modules if (ROOT / f"{name}.py").exists() or (ROOT / name / "__main__.py").exists()]
    assert modules - set(found) == set()
    ours = [line for line in commands(text) if re.match(r"([\w]+=\S+ )*(python|bash exec)", line)]
    flags = {flag for line in ours for flag in re.findall(r"(?<=\s)--[a-z][\w-]*", line.split("#")[0])}
    assert {flag for flag in flags if f'"{flag}"' not in SOURCES and flag not in SCRIPTS} == set()


@pages
def test_named_option_keys_exist(page):
    text = page.read_text(encoding="utf-8")
    blocks = "model|dataset|optim|logs|k_fold"
    named = {key.rstrip(".") for key in re.findall(rf"(?<![\w./{{])(?:{blocks})\.[a-z][\w.]*", text)}
    keys = {name for name, _, _ in all_keys()}
    blocks_of_blocks = {name.rpartition(".")[0] for name in keys}
    assert sorted(named - keys - blocks_of_blocks - {"model.state_dict", "model.safetensors"}) == []
