"""Check util.build_local: from a detector's files, or from images alone, to the files that training reads."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image, ImageDraw

from layers.drea import DreaOptions, Regions, denoise, enhanced_adjacency
from util import build_local
from util.regions.local_features import load_local
from utils import InputError

TRAIN = ["t0.png", "t1.part.png", "t2.png", "t3.png"]
TEST = ["s0.png", "s1.png"]
KEYS = ["t0", "t1", "t2", "t3", "s0", "s1"]
COLOURS = [(200, 40, 40), (40, 40, 200), (230, 230, 230), (20, 20, 20), (240, 200, 40), (30, 160, 60)]


def draw(path: Path, seed: int) -> None:
    """Draw rectangles of many looks on grey."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (128, 96), (120, 120, 120))
    for colour in COLOURS:
        x, y, w, h = rng.integers([0, 0, 8, 8], [110, 80, 30, 30])
        ImageDraw.Draw(image).rectangle([x, y, x + w, y + h], fill=colour)
    image.save(path)


@pytest.fixture
def data(tmp_path) -> Path:
    for folder in ("images", "boxes"):
        (tmp_path / folder).mkdir()
    (tmp_path / "train_filename.txt").write_text("\n".join(TRAIN) + "\n")
    (tmp_path / "test_filename.txt").write_text("".join(f"{name}\n" * 5 for name in TEST))
    for i, (name, key) in enumerate(zip(TRAIN + TEST, KEYS, strict=True)):
        draw(tmp_path / "images" / name, i)
        box = f"{i} 0 64 0 64 48 {i} 48"
        text = "" if i == 2 else f"gsd:1\n{box} plane 0\n{box} plane 0\n{box} storage tank 1\n"
        (tmp_path / "boxes" / f"{key}.txt").write_text(text)
    return tmp_path


@pytest.fixture
def run(data, monkeypatch):
    """Run the command, with proposals in one process unless `extra` says something else."""

    def command(*extra: str, regions: str = "boxes", out: str = "out/local.h5") -> Path:
        source = regions if regions == "proposals" else str(data / regions)
        arguments = ["--data_path", str(data), "--image_path", str(data / "images"), "--regions", source]
        arguments += ["--workers", "1", "--out", str(data / out)]
        monkeypatch.setattr(sys, "argv", ["build_local", *arguments, *extra])
        build_local.main()
        return data / out

    return command


def expected(options: DreaOptions) -> tuple[np.ndarray, np.ndarray]:
    rep, adj = [], []
    for i in range(6):
        low, high = i / 128, 0.5
        box = [(low + high) / 2, 0.25, high - low, 0.5]
        regions = Regions.empty() if i == 2 else Regions(np.array([0, 0, 2]), np.ones(3), np.array([box] * 3))
        denoised = denoise(regions, options)
        rep.append(denoised.nodes)
        adj.append(enhanced_adjacency(denoised.nodes, denoised.multiplicity, options))
    return np.stack(rep), np.stack(adj)


@pytest.mark.parametrize(
    ("extra", "options"),
    [
        ("", {}),
        ("--no-denoise --multiplicity-weighting 0", {"denoise": False, "multiplicity_weighting": 0}),
        ("--no-enhance --similarity-threshold 0.9", {"enhance": False, "similarity_threshold": 0.9}),
        (
            "--similarity box --distance-scale 0.1 --saliency-weighting 0.7",
            {"similarity": "box", "distance_scale": 0.1, "saliency_weighting": 0.7},
        ),
    ],
)
def test_the_file_holds_the_drea_of_each_listed_image_and_how_it_was_made(run, data, extra, options):
    options = DreaOptions(**options)
    rep, adj = expected(options)
    with h5py.File(run(*extra.split())) as file:
        assert file["name"].asstr()[:].tolist() == KEYS
        assert file["local_rep"].dtype == file["local_adj"].dtype == np.float32
        assert np.array_equal(file["local_rep"], rep)
        assert np.array_equal(file["local_adj"], adj)
        attributes = dict(file.attrs)
    assert attributes.pop("source") == str(data / "boxes") and attributes.pop("format") == "dota"
    assert attributes == {f"drea.{name}": value for name, value in asdict(options).items()}


def test_images_whose_files_have_another_suffix_are_noted_once(run, data, caplog):
    for path in list((data / "images").iterdir()):
        path.rename(path.with_suffix(".bmp" if path.suffix != ".bmp" else ".png"))
    with caplog.at_level("INFO"):
        run()
    assert caplog.text.count("have other names there") == 1


def test_class_files_and_class_maps_of_the_command_line_are_heeded(run, data):
    for key in KEYS:
        (data / "boxes" / f"{key}.txt").write_text("1 .1 .1 .3 .1 .3 .3 .1 .3 .9\n" if key == "t0" else "")
    (data / "names").write_text("dam\nferry\n")
    with h5py.File(run("--classes", str(data / "names"), "--class-map", "ferry=harbor")) as file:
        assert file["local_rep"][0, 0, :15].argmax() == 7 and file["local_rep"][0].any()


def test_both_forms_read_back_alike(run, data):
    path = run("--published", str(data / "out" / "local.npy"))
    tree = np.load(data / "out" / "local.npy", allow_pickle=True).item()
    assert sorted(tree) == ["adj_matrix", "local_rep"]
    assert list(tree["local_rep"]) == [f"{key}.txt" for key in KEYS]
    assert type(tree["adj_matrix"]["t0.txt"][0]) is list
    names = [*TEST, *TRAIN]
    for one, other in zip(load_local(path, names), load_local(path.with_suffix(".npy"), names), strict=True):
        assert np.array_equal(one, other)


def test_previews_are_sheets_of_four_images_each_once(run, data, capsys):
    run("--preview", "100")
    sheets = sorted((data / "out").glob("*.png"))
    assert [path.name for path in sheets] == ["local_preview_1.png", "local_preview_2.png"]
    with Image.open(sheets[0]) as four, Image.open(sheets[1]) as two:
        assert four.width == two.width and four.height == 2 * two.height
        assert np.asarray(four).std() > 10
    assert "regions per image: mean 2.5, median 3, most 3" in capsys.readouterr().out


# ---------------------------------------------------------------- proposals


def test_proposals_are_the_same_for_any_number_of_processes(run):
    one = run(regions="proposals", out="one.h5").read_bytes()
    assert run("--workers", "2", regions="proposals", out="two.h5").read_bytes() == one


def test_a_damaged_image_is_named_and_the_proposals_of_the_others_are_kept(run, data, capsys):
    whole = run(regions="proposals", out="whole.h5").read_bytes()
    image = data / "images/t2.png"
    good = image.read_bytes()
    image.write_bytes(good[:-60])
    with pytest.raises(InputError, match=r"1 of 6 images .*t2\.png .*results of the others are kept"):
        run(regions="proposals")
    assert "the others are done first" in capsys.readouterr().err
    assert [path.name for path in (data / "out").iterdir()] == [".local.h5.proposals"]
    run("--truncated", "allow", regions="proposals", out="allowed.h5")
    assert "1 of 6 images are cut short" in capsys.readouterr().err
    image.write_bytes(good)
    assert run(regions="proposals").read_bytes() == whole
    assert [path.name for path in (data / "out").iterdir()] == ["local.h5"]


def test_prototypes_see_the_train_images_only(run, data):
    def prototypes(out: str) -> tuple[np.ndarray, np.ndarray]:
        with h5py.File(run(regions="proposals", out=out)) as file:
            assert file.attrs["source"] == "proposals" and file["local_rep"][:].any()
            return file.attrs["prototypes.centres"], file["local_rep"][4:]

    before, test_before = prototypes("before.h5")
    draw(data / "images" / TEST[0], 50)
    after, test_after = prototypes("after.h5")
    assert len(before) == 15
    assert np.array_equal(before, after) and not np.array_equal(test_before, test_after)
    draw(data / "images" / TRAIN[0], 60)
    assert not np.array_equal(before, prototypes("third.h5")[0])


# ---------------------------------------------------------------- what is missing or wrong


def test_images_that_share_a_name_up_to_the_first_dot_keep_their_whole_stems(run, data):
    (data / "train_filename.txt").write_text("\n".join([*TRAIN, "t1.other.png"]) + "\n")
    (data / "boxes/t1.txt").rename(data / "boxes/t1.part.txt")
    (data / "boxes/t1.other.txt").write_text("")
    with h5py.File(run()) as file:
        assert file["name"].asstr()[:].tolist() == ["t0", "t1.part", "t2", "t3", "t1.other", "s0", "s1"]


def test_missing_regions_and_images_are_named_or_become_zeros(run, data):
    (data / "boxes" / "s1.txt").unlink()
    (data / "images" / "t3.png").unlink()
    with pytest.raises(InputError, match="1 of 6 images: s1"):
        run()
    with pytest.raises(InputError, match=r"1 of 6 images .*t3\.png is not there"):
        run(regions="proposals")
    with h5py.File(run("--allow-missing", regions="proposals")) as file:
        assert not file["local_rep"][3].any() and file["local_rep"][5].any()
    draw(data / "images" / "t3.png", 3)
    with h5py.File(run("--allow-missing")) as file:
        assert not file["local_rep"][5].any() and file["local_rep"][3].any()
    for path in (data / "images").iterdir():
        path.unlink()
    with h5py.File(run("--allow-missing", regions="proposals")) as file:
        assert file["local_rep"].shape == (6, 20, 20) and not file["local_rep"][:].any()


FAULTS = {
    "no image": lambda data: (data / "images/t0.png").write_text("GIF89a nothing"),
    "no image, regions of a detector": lambda data: (data / "images/t0.png").write_text("GIF89a nothing"),
    "malformed regions": lambda data: (data / "boxes/s1.txt").write_text("1 2 3\n"),
    "published out": lambda data: None,
}


@pytest.mark.parametrize("kind", FAULTS)
def test_wrong_input_is_one_clear_error_before_anything_is_written(run, data, kind):
    FAULTS[kind](data)
    before = sorted(data.rglob("*"))
    more = ["--published", str(data / "local.h5")] if "published" in kind else ["--preview", "9"]
    with pytest.raises(InputError) as error:
        run(*more, regions="boxes" if "regions" in kind else "proposals")
    assert "\n" not in str(error.value) and ("no image" not in kind or "t0.png" in str(error.value))
    assert sorted(data.rglob("*")) == before


def test_a_published_number_that_is_too_large_for_float32_is_named(tmp_path) -> None:
    zeros = np.zeros((20, 20)).tolist()
    large = [[10**400, *zeros[0][1:]], *zeros[1:]]
    np.save(tmp_path / "local.npy", {"local_rep": {"a.txt": large}, "adj_matrix": {"a.txt": zeros}})
    with pytest.raises(InputError, match="must be a table of 20 x 20 numbers of float32"):
        load_local(tmp_path / "local.npy", ["a"])
