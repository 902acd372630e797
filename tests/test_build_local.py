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
from util.regions import build_local
from util.regions.local_features import load_local
from utils import InputError, Interrupted

TRAIN = ["t0.png", "t1.part.png", "t2.png", "t3.png"]
TEST = ["s0.png", "s1.png"]
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
    for i, name in enumerate(TRAIN + TEST):
        draw(tmp_path / "images" / name, i)
        stem = name.split(".")[0]
        box = f"{i} 0 64 0 64 48 {i} 48"
        text = "" if i == 2 else f"gsd:1\n{box} plane 0\n{box} plane 0\n{box} storage tank 1\n"
        (tmp_path / "boxes" / f"{stem}.txt").write_text(text)
    return tmp_path


@pytest.fixture
def run(data, monkeypatch):
    def command(*extra: str, regions: str = "boxes", out: str = "out/local.h5") -> Path:
        source = regions if regions == "proposals" else str(data / regions)
        arguments = ["--data_path", str(data), "--image_path", str(data / "images"), "--regions", source]
        monkeypatch.setattr(sys, "argv", ["build_local", *arguments, "--out", str(data / out), *extra])
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
        ([], DreaOptions()),
        (["--no-denoise"], DreaOptions(denoise=False)),
        (["--no-enhance"], DreaOptions(enhance=False)),
        (["--no-denoise", "--no-enhance"], DreaOptions(denoise=False, enhance=False)),
        (["--similarity", "box", "--distance-scale", "0.1"], DreaOptions(similarity="box", distance_scale=0.1)),
        (["--multiplicity-weighting", "0"], DreaOptions(multiplicity_weighting=0)),
        (["--saliency-weighting", "0.5"], DreaOptions(saliency_weighting=0.5)),
        (["--similarity-threshold", "0.9"], DreaOptions(similarity_threshold=0.9)),
    ],
)
def test_the_file_holds_the_drea_of_each_listed_image_and_how_it_was_made(run, data, extra, options):
    rep, adj = expected(options)
    with h5py.File(run(*extra)) as file:
        assert file["name"].asstr()[:].tolist() == ["t0", "t1", "t2", "t3", "s0", "s1"]
        assert file["local_rep"].dtype == file["local_adj"].dtype == np.float32
        assert np.array_equal(file["local_rep"], rep)
        assert np.array_equal(file["local_adj"], adj)
        attributes = dict(file.attrs)
    assert attributes.pop("source") == str(data / "boxes") and attributes.pop("format") == "dota"
    assert attributes == {f"drea.{name}": value for name, value in asdict(options).items()}


def test_class_files_and_class_maps_of_the_command_line_are_heeded(run, data):
    for i, name in enumerate(TRAIN + TEST):
        line = "1 .1 .1 .3 .1 .3 .3 .1 .3 .9\n" if i == 0 else ""
        (data / "boxes" / f"{name.split('.')[0]}.txt").write_text(line)
    (data / "names").write_text("dam\nferry\n")
    with h5py.File(run("--classes", str(data / "names"), "--class-map", "ferry=ship")) as file:
        assert file["local_rep"][0, 0, :15].argmax() == 1 and file["local_rep"][0].any()


def test_both_forms_read_back_alike(run, data):
    path = run("--published", str(data / "out" / "local.npy"))
    tree = np.load(data / "out" / "local.npy", allow_pickle=True).item()
    assert sorted(tree) == ["adj_matrix", "local_rep"]
    assert list(tree["local_rep"]) == ["t0.txt", "t1.txt", "t2.txt", "t3.txt", "s0.txt", "s1.txt"]
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


def test_proposals_are_the_same_for_any_number_of_processes(run):
    one = run("--workers", "1", regions="proposals", out="one.h5").read_bytes()
    two = run("--workers", "2", regions="proposals", out="two.h5").read_bytes()
    assert one == two


def noted(work, seen: list):
    """Return the work on a file that also notes the file."""
    return lambda path, truncated: seen.append(path) or work(path, truncated)


def spoil(path: Path) -> bytes:
    """Cut an image short and return its bytes before."""
    whole = path.read_bytes()
    path.write_bytes(whole[:-60])
    return whole


def test_a_damaged_image_is_named_and_the_proposals_of_the_others_are_kept(run, data, monkeypatch, capsys):
    expected = run("--workers", "1", regions="proposals", out="whole.h5").read_bytes()
    good = spoil(data / "images/t2.png")
    with pytest.raises(InputError, match=r"1 of 6 images .*t2\.png .*proposals of the others are kept"):
        run("--workers", "1", regions="proposals")
    assert "the others are done first" in capsys.readouterr().err
    assert [path.name for path in (data / "out").iterdir()] == [".local.h5.proposals"]
    (data / "images/t2.png").write_bytes(good)
    seen, original = [], build_local._propose_file
    monkeypatch.setattr(
        build_local, "_propose_file", lambda path, truncated: seen.append(path) or original(path, truncated)
    )
    assert run("--workers", "1", regions="proposals").read_bytes() == expected
    assert [Path(path).name for path in seen] == ["t2.png"]
    assert [path.name for path in (data / "out").iterdir()] == ["local.h5"]


def test_what_is_there_of_a_damaged_image_is_taken_on_request(run, data, capsys):
    spoil(data / "images/t2.png")
    run("--workers", "1", "--truncated", "allow", regions="proposals")
    assert "1 of 6 images are cut short" in capsys.readouterr().err


def test_stopped_proposals_go_on_where_they_were(run, data, monkeypatch):
    expected = run("--workers", "1", regions="proposals", out="whole.h5").read_bytes()
    original, seen = build_local._propose_file, []

    def stop_at_third(path, truncated):
        if len(seen) == 2:
            raise Interrupted(15, "stopped")
        return seen.append(path) or original(path, truncated)

    monkeypatch.setattr(build_local, "_propose_file", stop_at_third)
    with pytest.raises(Interrupted):
        run("--workers", "1", regions="proposals")
    monkeypatch.setattr(build_local, "_propose_file", noted(original, seen))
    assert run("--workers", "1", regions="proposals").read_bytes() == expected
    assert len(seen) == len(set(seen)) == 6


def test_an_image_whose_size_cannot_be_read_is_named(run, data):
    for name in ("t1.part.png", "t3.png"):
        (data / "images" / name).write_bytes(b"no image")
    with pytest.raises(InputError, match=r"t1\.part\.png cannot be decoded"):
        run()
    assert not (data / "out").exists()


def test_images_that_share_a_name_up_to_the_first_dot_keep_their_whole_stems(run, data):
    (data / "train_filename.txt").write_text("\n".join([*TRAIN, "t1.other.png"]) + "\n")
    draw(data / "images/t1.other.png", 9)
    (data / "boxes/t1.txt").rename(data / "boxes/t1.part.txt")
    (data / "boxes/t1.other.txt").write_text("0 0 9 0 9 9 0 9 ship\n")
    path = run()
    with h5py.File(path) as file:
        assert file["name"].asstr()[:].tolist() == ["t0", "t1.part", "t2", "t3", "t1.other", "s0", "s1"]
    rep, _ = load_local(path, ["t1.other.png", "t1.part.png"])
    assert rep[0, 0, 1] == 1 and rep[1, 0, 0] == 1


def test_prototypes_see_the_train_images_only(run, data):
    def prototypes(out: str) -> tuple[np.ndarray, np.ndarray]:
        with h5py.File(run("--workers", "1", regions="proposals", out=out)) as file:
            assert file.attrs["source"] == "proposals" and file["local_rep"][:].any()
            return file.attrs["prototypes.centres"], file["local_rep"][4:]

    before, test_before = prototypes("before.h5")
    draw(data / "images" / TEST[0], 50)
    after, test_after = prototypes("after.h5")
    assert len(before) == 15
    assert np.array_equal(before, after) and not np.array_equal(test_before, test_after)
    draw(data / "images" / TRAIN[0], 60)
    assert not np.array_equal(before, prototypes("third.h5")[0])


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


def test_images_that_were_never_there_become_zeros_for_all(run, data):
    for path in (data / "images").iterdir():
        path.unlink()
    with h5py.File(run("--allow-missing", regions="proposals")) as file:
        assert file["local_rep"].shape == (6, 20, 20) and not file["local_rep"][:].any()


def fault(data: Path, kind: str) -> None:
    lists = data / "train_filename.txt"
    if kind == "no list":
        lists.unlink()
    elif kind == "blank line":
        lists.write_text("t0.png\n\nt2.png\n")
    elif kind == "leaves the folder":
        lists.write_text("../secret.png\n")
    elif kind == "absolute":
        lists.write_text(str(data / "images" / "t0.png") + "\n")
    elif kind == "one stem for two images":
        lists.write_text("t0.png\nt0.jpg\n")
    elif kind == "no stem":
        lists.write_text(".png\n")
    elif kind == "link out":
        (data / "images" / "t0.png").rename(data / "t0.png")
        (data / "images" / "t0.png").symlink_to(data / "t0.png")
    elif kind == "no image":
        (data / "images" / "t0.png").write_text("GIF89a nothing")
    elif kind == "too many bits":
        Image.fromarray(np.zeros((9, 9), np.uint16)).save(data / "images" / "t0.png")
    elif kind == "malformed regions":
        (data / "boxes" / "s1.txt").write_text("1 2 3\n")
    elif kind == "no folder":
        (data / "images").rename(data / "elsewhere")
    elif kind == "out is a folder":
        (data / "out" / "local.h5").mkdir(parents=True)
    elif kind == "a file in the way":
        (data / "out").write_text("")


@pytest.mark.parametrize(
    "kind",
    [
        "no list",
        "blank line",
        "leaves the folder",
        "absolute",
        "one stem for two images",
        "no stem",
        "link out",
        "no image",
        "too many bits",
        "malformed regions",
        "no folder",
        "out is a folder",
        "a file in the way",
    ],
)
def test_wrong_input_is_one_clear_error_before_anything_is_written(run, data, kind):
    fault(data, kind)
    before = sorted(data.rglob("*"))
    with pytest.raises(InputError) as error:
        run("--preview", "9", regions="boxes" if kind == "malformed regions" else "proposals")
    assert "\n" not in str(error.value)
    assert sorted(data.rglob("*")) == before


@pytest.mark.parametrize(
    "extra",
    [
        ["--workers", "0"],
        ["--similarity-threshold", "2"],
        ["--distance-scale", "nan"],
        ["--published", "{data}/out/../out/local.h5"],
        ["--format", "csv"],
        ["--regions", "nowhere"],
        ["--classes", "{data}/train_filename.txt"],
        ["--coco-images", "{data}/train_filename.txt"],
    ],
)
def test_options_that_make_no_sense_are_refused(run, data, extra):
    with pytest.raises(InputError):
        run(*(word.format(data=data) for word in extra))
    assert not (data / "out").exists()
