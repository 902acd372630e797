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

import util.pixels
from option import load_options
from util.images import BadImages, decode
from util.pixels import DiskCache, open_cache

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


@pytest.mark.parametrize("change", ["time stamp", "bytes", "order", "sizes", "one more", "gone"])
def test_a_cache_of_other_images_is_not_up_to_date(change, files, tmp_path) -> None:
    sizes = (16, 24)
    assert built(tmp_path / "cache.npy", files).cut() == []
    if change == "time stamp":
        os.utime(files[2], ns=(10**18, 10**18 + 1))
    elif change == "bytes":
        Path(files[2]).write_bytes(Path(files[2]).read_bytes() + b"x")
        os.utime(files[2], ns=(10**18, 10**18))
    elif change == "order":
        files = files[::-1]
    elif change == "sizes":
        sizes = (24, 16)
    elif change == "one more":
        files = [*files, str(shutil.copy2(files[0], tmp_path / "more.bmp"))]
    else:
        Path(files[2]).unlink()
    assert DiskCache(tmp_path / "cache.npy", files, sizes).cut() is None


@pytest.mark.parametrize("harm", ["cut off", "of another kind", "no array", "record cut off", "record of another"])
def test_a_damaged_cache_is_made_anew(harm, files, tmp_path) -> None:
    cache, record = built(tmp_path / "cache.npy", files), tmp_path / "cache.json"
    if harm == "cut off":
        cache.path.write_bytes(cache.path.read_bytes()[:3000])
    elif harm == "of another kind":
        np.save(cache.path, np.load(cache.path).astype(np.int8))
    elif harm == "no array":
        cache.path.write_bytes(b"")
    elif harm == "record cut off":
        record.write_text(record.read_text()[:50])
    else:
        record.write_text("[1]")
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


def test_caches_of_an_earlier_version_are_named_once_as_unused(work, capsys) -> None:
    (work / "data/images_64.h5").write_bytes(b"")
    options = load_options("tiny.yaml", ["dataset.cache=h5"]).dataset
    assert options.cache == "disk"
    for _ in range(2):
        open_cache(options)
    assert capsys.readouterr().err.count("nothing reads images_64.h5 of an earlier version") == 1
    util.pixels._name_old_caches.cache_clear()


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
