"""Figures: what they show, read back from the drawn objects, and the command on a run's files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from postprocessing.figures import RIGHT, draw_run, recall_bars, retrieval_grid, save_figure, training_curve
from postprocessing.matrices import Gallery, Matrix
from postprocessing.rerank import Setting, multivariate_order
from postprocessing.results import History
from tests.test_tables import BOTH, fold, results
from utils import InputError, write_json

ROOT = Path(__file__).parent.parent


def history(batches: int = 200, chance: float | None = 2.5) -> History:
    train = [{"epoch": s // 50, "step": s, "loss": 100.0 / (1 + s), "lr": 1e-4} for s in range(1, batches + 1)]
    val = [{"epoch": s // 50, "step": s, "mr": 10.0 + s / 50, "chance": chance} for s in range(50, batches + 1, 50)]
    return History(train=train, val=val)


def texts(figure) -> list[str]:
    import matplotlib.text

    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def gallery(folder: Path, images: int = 12, per_image: int = 2) -> tuple[np.ndarray, list[str], list[str], np.ndarray]:
    """Return a random matrix, image files, captions, and the image of each caption."""
    rng = np.random.default_rng(0)
    paths = [str(folder / f"image_{i}.png") for i in range(images)]
    for i, path in enumerate(paths):
        Image.new("RGB", (20 + i, 30), (10 * i, 100, 50)).save(path)
    sims = rng.uniform(0.1, 0.9, (images, images * per_image))
    captions = [f"caption number {c}" for c in range(images * per_image)]
    return sims, paths, captions, np.arange(images * per_image) // per_image


def test_the_curve_shows_losses_their_mean_around_each_batch_validation_and_chance():
    figure = training_curve(history(), "run, fold 0")
    loss, mr = figure.axes
    values = [row.loss for row in history().train]
    np.testing.assert_allclose(loss.lines[0].get_ydata(), values)
    assert loss.lines[1].get_ydata()[0] == pytest.approx(np.mean(values[:6]))
    assert loss.lines[1].get_ydata()[100] == pytest.approx(np.mean(values[95:106]))
    np.testing.assert_allclose(mr.lines[0].get_xydata(), [(row.step, row.mr) for row in history().val])
    assert mr.lines[-1].get_linestyle() == "--" and set(mr.lines[-1].get_ydata()) == {2.5}
    assert {"run, fold 0", "best mR 14.00", "chance mR 2.50"} <= set(texts(figure))


@pytest.mark.parametrize("rows", [history(1), history(60, None), History(train=[], val=history().val)])
def test_short_histories_are_drawn(rows, tmp_path):
    save_figure(training_curve(rows), tmp_path / "curve.png")
    assert Image.open(tmp_path / "curve.png").size[0] > 800


def heights(axes) -> list[list[float]]:
    return [[bar.get_height() for bar in bars] for bars in axes.containers if hasattr(bars, "patches")]


def test_the_bars_show_this_run_and_the_published_recalls():
    figure = recall_bars(BOTH)
    own, after, galr, _ = heights(figure.axes[0])
    assert own == pytest.approx([11, 21, 32, 5, 21, 32, 18.5])
    assert after == pytest.approx([13.5, 23.5, 37, 5, 23.5, 37, 21])
    assert galr == [13.05, 30.09, 42.70, 10.47, 36.34, 53.35, 31.00]
    assert any("test split, 452 images, 2260 captions, 2 folds" in text for text in texts(figure))


def test_the_bars_of_one_fold_and_of_other_data_sets_show_ties_at_random_where_they_matter(tmp_path):
    save_figure(recall_bars(results([fold(0, 0.0)], "DEMO")), tmp_path / "bars.png")
    axes = recall_bars(results([fold(0, 0.0, ties=4.0), fold(1, 2.0, 453, 2265)], "ucm")).axes[0]
    assert [text.get_text() for text in axes.get_legend().texts] == ["this run", "this run, ties at random"]
    assert [row[-1] for row in heights(axes)] == pytest.approx([18.5, 20.5])


def frames(figure) -> list[tuple]:
    """Return (row from the top, column from the left, colour of the frame) of every image."""
    drawn = [(axes.get_position(), axes.spines["top"].get_edgecolor()) for axes in figure.axes if axes.images]
    return sorted((round(-place.y1, 3), place.x0, to_hex(color)) for place, color in drawn)


def orders(sims: np.ndarray, k: int = 10) -> dict[str, np.ndarray]:
    return {"i2t": multivariate_order(sims, Setting(k=k)), "t2i": multivariate_order(sims.T, Setting(k=k))}


@pytest.mark.parametrize("rerank", [False, True])
def test_the_grid_frames_the_right_image_where_it_ranks(tmp_path, rerank):
    sims, paths, captions, owner = gallery(tmp_path)
    figure = retrieval_grid(sims, paths, captions, owner, "title", orders(sims) if rerank else None, queries=1)
    asked = 12  # one query: the middle of the 24 captions
    expected = [np.argsort(-sims[:, asked], kind="stable")]
    if rerank:
        expected.append(multivariate_order(sims.T, Setting(k=10))[asked])
    top = frames(figure)[0][0]
    drawn = [colour == RIGHT for y, _, colour in frames(figure) if abs(y - top) < 0.01]
    assert drawn == [image == owner[asked] for order in expected for image in order[:5]]
    ranks = [str(1 + int(np.flatnonzero(order == owner[asked])[0])) for order in expected]
    assert "right at rank " + ", reranked ".join(ranks) in texts(figure)
    assert len(frames(figure)) == 5 * len(expected) + 1


def test_the_retrieval_grid_counts_ties_against_the_query_and_ticks_the_right_captions(tmp_path):
    sims, paths, captions, owner = gallery(tmp_path)
    tied = texts(retrieval_grid(np.full_like(sims, 0.5), paths, captions, owner, "title", queries=1))
    assert f"right at rank {len(sims)} (tied)" in tied
    assert any(f"right at rank {len(captions) - 1}" in text for text in tied)  # image 4 has two of the captions
    figure = retrieval_grid(sims, paths, captions, owner, queries=1)
    lines = [text for text in texts(figure) if text[0] in "\u2713\u2013"]
    best = np.argsort(-sims[6], kind="stable")[:5]
    assert lines == [f"{chr(0x2713 if owner[c] == 6 else 0x2013)} {captions[c]}" for c in best]
    with pytest.raises(InputError, match="11 image paths and 24 captions"):
        retrieval_grid(sims, paths[1:], captions, owner)


def test_odd_captions_missing_images_and_tiny_galleries_are_drawn(tmp_path, recwarn, monkeypatch):
    sims, paths, _, owner = gallery(tmp_path, 3, 2)
    Path(paths[0]).unlink()
    Path(paths[1]).write_bytes(b"no image")
    captions = ["$\\frac{", "", "x" * 500, "\u4e24\u4e2a \u5b57", "tab\tand\nline", "50% & more_ ^"]
    figure = retrieval_grid(sims, paths, captions, owner, reranked=orders(sims, 30))
    save_figure(figure, tmp_path / "sheet.png")
    assert {"(missing)", "(unreadable)"} <= {text.split("\n")[-1] for text in texts(figure)}
    assert not list(recwarn)
    monkeypatch.chdir(tmp_path)  # relative paths start at the current folder
    tiny = retrieval_grid(np.ones((1, 1)), ["image_2.png"], ["one"], np.array([0]))
    save_figure(tiny, tmp_path / "one.png")
    assert not [text for text in texts(tiny) if "missing" in text]


@pytest.fixture
def draw(tmp_path, run):
    """Write runs/run with two folds, and file/ with the matrices of the first; return the command that draws them."""
    for number in range(2):
        write_json(tmp_path / f"runs/run/{number}/history.json", history().model_dump())
    sims, paths, captions, owner = gallery(tmp_path)
    for suffix in ("", "_val"):
        Matrix(sims.astype(np.float32), owner, Gallery(paths, captions)).save(tmp_path / f"file/run_0{suffix}.npy")
    write_json(tmp_path / "runs/run/results.json", BOTH.model_dump())
    return lambda more="": run(f"-m postprocessing.figures --run {tmp_path}/runs/run --matrices {tmp_path}/file {more}")


def test_a_run_is_drawn_from_its_files_and_missing_ones_are_named(draw, tmp_path):
    done = draw(f"--out {tmp_path}/pictures")
    assert (done.status, done.err) == (0, "")
    names = {f"{name}.png" for name in ("recall", "curve_0", "sheet_0", "sheet_0_val", "curve_1")}
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == names
    missing = {line.rpartition("/")[2] for line in done.out.splitlines() if "left out" in line}
    assert missing == {f"run_1{suffix}" for suffix in (".npy", "_gallery.json", "_val.npy", "_val_gallery.json")}


@pytest.mark.parametrize(
    ("damage", "content", "message"),
    [
        ("runs/run/0/history.json", '{"train": 3}', "history.json, entry train: Input should"),
        ("file/run_0_gallery.json", '{"images": [], "captions": []}', "0 image paths"),
    ],
)
def test_damaged_files_are_one_line_and_nothing_is_drawn(draw, tmp_path, damage, content, message):
    (tmp_path / damage).write_text(content)
    done = draw()
    assert done.status == 2 and message in done.message
    assert not (tmp_path / "runs/run/figures").exists()


def test_a_run_with_nothing_to_draw_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="is not there"):
        draw_run(tmp_path / "none")
    with pytest.raises(InputError, match=r"nothing to draw.*results.json"):
        draw_run(tmp_path)
