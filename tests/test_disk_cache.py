"""The cache of decoded images on disk."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_images import SHORT

from util.images import BadImages, decode
from util.pixels import DiskCache

pytestmark = pytest.mark.usefixtures("short_trunk")


@pytest.fixture
def files(tmp_path) -> list[str]:
    """Images that have one time stamp and one size in bytes."""
    rng = np.random.default_rng(0)
    paths = [str(tmp_path / f"{i}.bmp") for i in range(5)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(path)
        os.utime(path, ns=(10**18, 10**18))
    return paths


def built(path: Path, files: list[str], sizes: tuple[int, ...] = (16, 24)) -> DiskCache:
    cache = DiskCache(path, files, sizes)
    cache.build(2)
    return cache


def test_every_size_is_that_of_the_decoded_image_and_the_file_is_numpys(files, tmp_path) -> None:
    cache = built(tmp_path / "cache.npy", files)
    for size in (16, 24):
        pixels = cache.pixels(size)
        assert pixels.shape == (5, size, size, 3) and not pixels.flags.owndata
        assert all(np.array_equal(pixels[i], decode(path, size)) for i, path in enumerate(files))
    assert np.load(tmp_path / "cache.npy").shape == (5, 3 * (16**2 + 24**2))
    assert sorted(path.name for path in tmp_path.glob("*cache*")) == ["cache.json", "cache.npy"]


CHANGES = {
    "time stamp": lambda files: os.utime(files[2], ns=(10**18, 10**18 + 1)),
    "bytes": lambda files: (Path(files[2]).write_bytes(b"x"), os.utime(files[2], ns=(10**18, 10**18))),
    "order": lambda files: files.reverse(),
    "one more": lambda files: files.append(files[0]),
    "gone": lambda files: Path(files[2]).unlink(),
    "sizes": lambda files: None,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_cache_of_other_images_is_not_up_to_date(change, files, tmp_path) -> None:
    assert built(tmp_path / "cache.npy", list(files)).cut() == []
    CHANGES[change](files)
    assert DiskCache(tmp_path / "cache.npy", files, (24, 16) if change == "sizes" else (16, 24)).cut() is None


HARMS = {
    "cut off": lambda file, record: file.write_bytes(file.read_bytes()[:3000]),
    "of another kind": lambda file, record: np.save(file, np.load(file).astype(np.int8)),
    "no array": lambda file, record: file.write_bytes(b""),
    "record cut off": lambda file, record: record.write_text(record.read_text()[:50]),
    "record of another": lambda file, record: record.write_text("[1]"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_cache_is_made_anew(harm, files, tmp_path) -> None:
    cache = built(tmp_path / "cache.npy", files)
    HARMS[harm](cache.path, tmp_path / "cache.json")
    assert cache.cut() is None
    cache.build(1)
    assert cache.cut() == [] and np.array_equal(cache.pixels(16)[4], decode(files[4], 16))


def test_a_bad_image_leaves_the_cache_before_as_it_was(files, tmp_path) -> None:
    cache = built(tmp_path / "cache.npy", files)
    before = cache.path.read_bytes(), cache.path.with_suffix(".json").read_bytes()
    Path(files[3]).write_bytes(b"")
    with pytest.raises(BadImages, match=r"1 of 5 images .*3.bmp"):
        cache.build(1)
    assert before == (cache.path.read_bytes(), cache.path.with_suffix(".json").read_bytes())
    assert not list(tmp_path.glob(".*"))


def test_the_command_writes_the_cache_that_a_run_takes(work, run) -> None:
    done = run("-m util.cache_images --path_opt tiny.yaml")
    assert done.status == 0 and "data/images_64_70.npy: 20 images" in done.out
    record = json.loads((work / "data/images_64_70.json").read_text())
    assert len(record["paths"]) == 20 and record["sizes"] == [70, 64]
    before = (work / "data/images_64_70.npy").stat()
    assert run("train.py --path_opt tiny.yaml --set dataset.cache=disk optim.epochs=1").status == 0
    assert (work / "data/images_64_70.npy").stat().st_mtime_ns == before.st_mtime_ns


def test_images_that_are_cut_short_are_remembered_by_the_cache(work, run) -> None:
    names = (work / "data/train_filename.txt").read_text().split()
    shutil.copy(SHORT, work / "data/images" / names[0])
    command = "-m util.cache_images --path_opt tiny.yaml"
    assert run(command).status == 2
    allowed = run(f"{command} --set dataset.truncated=allow")
    assert allowed.status == 0 and "1 of 20 images are cut short" in allowed.message
    refused = run(command)
    assert refused.status == 2 and f"cut short: data/images/{names[0]}" in refused.message
    assert "1 of 20" in run(f"{command} --set dataset.truncated=allow").message


@pytest.mark.parametrize("cache", ["ram", "none", "disk"])
def test_training_names_all_files_of_both_lists_that_are_cut_short_before_it_begins(cache, work, run) -> None:
    train, test = (
        list(dict.fromkeys((work / f"data/{split}_filename.txt").read_text().split())) for split in ("train", "test")
    )
    for name in (train[0], train[-1], test[0]):
        shutil.copy(SHORT, work / "data/images" / name)
    outcome = run(f"train.py --path_opt tiny.yaml --set dataset.cache={cache}")
    assert outcome.status == 2 and "3 of 20 images" in outcome.message
    assert all(name in outcome.message for name in (train[0], train[-1], test[0]))
