"""Check util.detect with small, randomly initialised detectors: loading, output, going on after a stop."""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import get_model

from layers.drea import CLASSES
from util import detect
from util.regions import finished
from util.regions.readers import read_detections
from utils import InputError, Interrupted

ARCH = "fasterrcnn_mobilenet_v3_large_320_fpn"
SIZES = {"min_size": 64, "max_size": 96}


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    model = get_model(ARCH, weights=None, weights_backbone=None, num_classes=16, **SIZES)
    path = tmp_path_factory.mktemp("weights") / "detector.pth"
    torch.save({"model": model.state_dict()}, path)
    return path


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i, size in enumerate([(60, 80), (90, 50), (64, 64), (40, 40), (70, 70)]):
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(folder / f"{i}.png")
    (folder / "notes.md").write_text("not an image")
    return folder


@pytest.fixture(scope="session")
def load_once():
    return functools.lru_cache(detect.load_detector)  # building a detector takes most of the time of these tests


@pytest.fixture
def run(tmp_path, images, weights, load_once, monkeypatch):
    monkeypatch.setattr(detect, "load_detector", load_once)

    def command(*extra: str, out: str = "out", threshold: str = "--threshold 0.06") -> dict[str, list[str]]:
        arguments = ["--image_path", str(images), "--weights", str(weights), "--out", str(tmp_path / out)]
        arguments += f"--arch {ARCH} --min-size 64 --max-size 96 {threshold} --batch_size 2 --device cpu".split()
        monkeypatch.setattr(sys, "argv", ["detect", *arguments, *extra])
        detect.main()
        return lines(tmp_path / out)

    return command


def lines(folder: Path) -> dict[str, list[str]]:
    return {path.name: path.read_text().splitlines() for path in sorted(folder.glob("*.txt"))}


def in_any_order(files: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: sorted(of) for name, of in files.items()}


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Note the stems of the images that are decoded."""
    seen, real = [], detect._pixels
    monkeypatch.setattr(detect, "_pixels", lambda path, cut: seen.append(path.stem) or real(path, cut))
    return seen


def test_the_text_says_what_the_detector_found(run, tmp_path, images, weights, load_once, capsys):
    files = run("--batch_size", "1")  # alone in its batch, an image is not padded to the size of another
    model = load_once(arch=ARCH, weights=weights, classes=15, threshold=0.06, **SIZES)
    assert model.roi_heads.score_thresh == 0.06
    expected = {f"Task2_{name}.txt": [] for name in CLASSES}
    for path in sorted(images.glob("*.png")):
        pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255
        with torch.inference_mode():
            (output,) = model([pixels])
        for label, score, box in zip(*(output[key].tolist() for key in ("labels", "scores", "boxes")), strict=True):
            corners = " ".join(f"{side:.2f}" for side in box)
            expected[f"Task2_{CLASSES[label - 1]}.txt"].append(f"{path.stem} {score:.4f} {corners}")
    assert files == expected
    detections, form = read_detections(tmp_path / "out")
    assert form == "dota-result"
    total = sum(map(len, files.values()))
    assert sum(map(len, detections.rows.values())) == total > 10
    assert f"{total} regions in 5 images" in capsys.readouterr().out


def test_files_of_torchvisions_training_script_load_frozen_batch_normalisation_and_all(weights, tmp_path):
    state = torch.load(weights, weights_only=True)["model"]
    frozen = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    assert len(frozen) < len(state)
    torch.save({"model": frozen, "epoch": 3, "args": argparse.Namespace(lr=0.02)}, tmp_path / "model_25.pth")
    model = detect.load_detector(ARCH, tmp_path / "model_25.pth", 15, 0.5)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in frozen.items())


def test_a_stopped_run_goes_on_where_it_was(run, tmp_path, monkeypatch, decoded):
    whole = run(out="whole")
    real, written = finished.write_text, []

    def stop_after_the_fourth(path: Path, text: str) -> None:
        if len(written) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        written.append(path)
        real(path, text)

    monkeypatch.setattr(finished, "write_text", stop_after_the_fourth)
    with pytest.raises(Interrupted):
        run()
    assert len(list((tmp_path / "out" / detect.DONE).glob("?.json"))) == 4
    decoded.clear()
    written.clear()
    assert run() == whole and decoded == ["4"]


def test_a_damaged_image_is_named_the_others_are_done_and_it_alone_when_mended(run, images, tmp_path, capsys, decoded):
    whole = run(out="whole")
    good = (images / "3.png").read_bytes()
    (images / "3.png").write_bytes(good[:-100])
    with pytest.raises(InputError, match=r"1 of 5 images .*3\.png .*results of the others are kept"):
        run()
    assert "3.png" in capsys.readouterr().err  # before the work, too
    assert any(line[:2] == "3 " for of in run("--truncated", "allow", out="allowed").values() for line in of)
    assert lines(tmp_path / "out") == {name: [one for one in of if one[:2] != "3 "] for name, of in whole.items()}
    (images / "3.png").write_bytes(good)
    decoded.clear()
    assert in_any_order(run()) == in_any_order(whole) and decoded == ["3"]


def test_what_is_no_image_is_an_error_before_anything_is_written(run, images, tmp_path):
    (images / "3.png").write_bytes(b"\x89PNG no more")
    with pytest.raises(InputError, match=r"3\.png"):
        run()
    assert not (tmp_path / "out").exists()


def test_another_folder_of_images_adds_to_the_results(run, images, tmp_path):
    whole = run(out="whole")
    (tmp_path / "test").mkdir()
    for name in ("3.png", "4.png"):
        (images / name).rename(tmp_path / "test" / name)
    run()
    assert in_any_order(run("--image_path", str(tmp_path / "test"))) == in_any_order(whole)
    Image.new("RGB", (9, 9)).save(tmp_path / "test/0.png")
    with pytest.raises(InputError, match=r"images/0.png and .*test/0.png share a name"):
        run("--image_path", str(tmp_path / "test"))


def test_a_class_file_names_the_labels(run, tmp_path):
    classes = tmp_path / "classes.txt"
    classes.write_text("\n".join(f"kind {i}" for i in range(15)))
    assert list(run("--classes", str(classes))) == sorted(f"Task2_kind {i}.txt" for i in range(15))
    with pytest.raises(InputError, match="other weights or options"):
        run("--classes", str(classes), "--threshold", "0.07")
    classes.write_text("plane\nship\n")
    with pytest.raises(InputError, match=r"do not fit .* with 2 classes"):
        run("--classes", str(classes), out="other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("extra", ["--threshold=2", "--batch_size=0", "--min-size=0"])
def test_options_that_make_no_sense_are_refused(run, extra):
    with pytest.raises(InputError):
        run(extra)


def test_the_threshold_of_the_command_line_or_its_default_reaches_the_detector(run, monkeypatch):
    def see(**given) -> None:
        raise InputError(str(given))

    monkeypatch.setattr(detect, "load_detector", see)
    for threshold, expected in (("--threshold 0.06", "0.06"), ("", "0.3")):
        with pytest.raises(InputError, match=f"'threshold': {expected}, 'min_size': 64, 'max_size': 96"):
            run(threshold=threshold)


def test_a_retinanet_loads_and_detects(tmp_path, images):
    torch.manual_seed(0)
    made = get_model("retinanet_resnet50_fpn", weights=None, weights_backbone=None, num_classes=16)
    state = {f"module.{name}": value for name, value in made.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "retina.pth")
    model = detect.load_detector("retinanet_resnet50_fpn", tmp_path / "retina.pth", 15, 0.0, 64, 96)
    assert not model.training and model.score_thresh == 0.0
    found = list(detect.detect(model, sorted(images.glob("*.png"))[:3], torch.device("cpu"), 2, 1, "error"))
    assert len(found) == 3
    rows = [row for of_image in found for row in of_image]
    assert rows and all(1 <= label <= 15 and 0 <= score <= 1 for label, score, *_ in rows)


def test_folders_without_usable_images_are_clear_errors(tmp_path):
    for folder, message in ((tmp_path / "missing", "is not there"), (tmp_path, "holds no images")):
        with pytest.raises(InputError, match=message):
            detect.image_paths(folder)
    for name in ("a.png", "a.jpg"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match="share a name"):
        detect.image_paths(tmp_path)
