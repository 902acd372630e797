"""Check the result files of long work: what is done, and what a changed or a foreign file makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from util.regions.finished import SETTINGS, work_through
from utils import InputError


def draw(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (4, 4), colour).save(path, "BMP")  # as long in any colour
    return path


@pytest.fixture
def work(tmp_path):
    """Work on the images of some keys; return all results, and what was worked on."""

    def run(images: dict[str, Path], **settings) -> tuple[dict, list[str]]:
        seen: list[Path] = []
        steps = lambda paths: (seen.append(path) or [path.name] for path in paths)  # noqa: E731
        results, damaged = work_through(tmp_path / "new", settings, images, steps, 1, "error")
        assert damaged is None
        return results, [path.name for path in seen]

    return run


def test_what_is_done_is_known_again_unless_the_file_has_changed(tmp_path, work) -> None:
    files = {key: draw(tmp_path / key) for key in ("x/a.png", "y/é.png")}
    results = {"x/a.png": ["a.png"], "y/é.png": ["é.png"]}
    assert work(files, shrink=(1, 2)) == (results, ["a.png", "é.png"])
    assert work(files, shrink=(1, 2)) == (results, [])
    draw(tmp_path / "x/a.png", "blue")
    assert work({"x/a.png": files["x/a.png"]}, shrink=(1, 2)) == (results, ["a.png"])
    with pytest.raises(InputError, match="other weights or options"):
        work(files, shrink=(1, 3))


def test_two_images_that_are_there_cannot_share_a_name(tmp_path, work) -> None:
    x, y = draw(tmp_path / "x/a.png"), draw(tmp_path / "y/a.png")
    work({"a": x})
    with pytest.raises(InputError, match=r"x/a.png and .*y/a.png share a name"):
        work({"a": y})
    x.unlink()
    assert work({"a": y})[1] == ["a.png"]  # moved: done again


@pytest.mark.parametrize("text", ["{", "5", '["a", 3, []]'])
@pytest.mark.parametrize("name", ["a.json", SETTINGS])
def test_a_damaged_result_is_a_clear_error(text, name, tmp_path, work) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / name).write_text(text)
    with pytest.raises(InputError):
        work({})
