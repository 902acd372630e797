"""Image files as people hold them: depth, orientation, files that are cut short; and the cache of decoded images."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image

from util.images import BadImages, check_images, decode, image_size, load_pixels, open_image
from util.pixels import DiskCache
from utils import InputError

CASES = Path(__file__).parent / "cases/images"
pytestmark = pytest.mark.usefixtures("short_trunk")
SHORT = CASES / "short_by_21_bytes.jpg"


@pytest.mark.parametrize("form", ["png", "tif", "ppm"])
def test_sixteen_bits_a_channel_in_colour_are_an_error_that_says_so(form, tmp_path) -> None:
    path, pixels = tmp_path / f"a.{form}", np.full((4, 5, 3), 1500, np.uint16)
    if form == "png":
        shutil.copy(CASES / "rgb16.png", path)
    elif form == "ppm":
        path.write_bytes(b"P6 5 4 65535\n" + pixels.astype(">u2").tobytes())
    else:
        tifffile.imwrite(path, pixels, photometric="rgb")  # comes with scikit-image
    with Image.open(path) as image:
        assert max(image.convert("RGB").getpixel((0, 0))) < 7  # what Pillow makes of it, without a word
    with pytest.raises(InputError, match=f"{path.name} has 16 bits a channel; convert it to 8 bits"):
        open_image(path)


def test_the_orientation_mark_is_followed_by_pixels_and_sizes_alike() -> None:
    path = CASES / "exif6.jpg"
    with Image.open(path) as stored:
        assert stored.size == (96, 40)
        upright = stored.transpose(Image.Transpose.ROTATE_270)
    image = open_image(path)
    assert image.size == image_size(path) == (40, 96) and np.array_equal(image, upright)
    assert np.array_equal(decode(str(path), 32), np.asarray(upright.resize((32, 32), Image.Resampling.BILINEAR)))


UPRIGHT = {  # orientation mark of EXIF -> how the stored pixels are turned to be upright
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
    9: lambda a: a,  # no mark of EXIF's
}


@pytest.mark.parametrize("form", ["png", "tif"])
@pytest.mark.parametrize("mark", UPRIGHT)
def test_every_orientation_mark_turns_pixels_and_size(mark, form, tmp_path) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (3, 5, 3), np.uint8)
    exif, path = Image.Exif(), tmp_path / f"a.{form}"
    exif[ExifTags.Base.Orientation] = mark
    Image.fromarray(stored).save(path, exif=exif)
    image = open_image(path)
    assert image.size == image_size(path)
    assert np.array_equal(np.asarray(image), UPRIGHT[mark](stored))


def test_grey_palette_and_transparent_images_of_eight_bits_become_rgb(tmp_path) -> None:
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8))
    for mode, name in (("L", "a.png"), ("P", "b.png"), ("RGBA", "c.png"), ("CMYK", "d.tif"), ("RGB", "e.ppm")):
        colours.convert(mode).save(tmp_path / name)
        with Image.open(tmp_path / name) as stored:
            expected = np.asarray(stored.convert("RGB"))
        assert np.array_equal(np.asarray(open_image(tmp_path / name)), expected), mode


def test_a_file_that_is_cut_short_is_named_or_decoded_as_far_as_it_goes(capsys) -> None:
    with pytest.raises(InputError, match=r"short_by_21_bytes.jpg .*cut short \(dataset.truncated=allow"):
        open_image(SHORT)
    pixels = np.asarray(open_image(SHORT, "allow")).astype(int)
    assert pixels.shape == (64, 64, 3) and pixels[:48].std() > 1
    assert image_size(SHORT) == (64, 64)
    load_pixels([str(SHORT), str(CASES / "exif6.jpg")], 32, 2, truncated="allow")
    assert capsys.readouterr().err.count("1 of 2 images are cut short; what is there is decoded") == 1


def test_all_files_that_are_cut_short_are_named(tmp_path) -> None:
    paths = [str(shutil.copy(SHORT, tmp_path / f"{i}.jpg")) for i in range(8)]
    with pytest.raises(BadImages) as error:
        load_pixels([*paths, str(CASES / "rgb16.png")], 32, 2)
    assert all(path in str(error.value) for path in paths)
    assert "9 of 9 images" in str(error.value) and "rgb16.png has 16 bits" in str(error.value)
    assert set(check_images(paths, 2)) == set(paths) and not check_images(paths, 2, "allow")


@pytest.mark.parametrize("raw", [b"", b"\xff\xd8\xff\xe0"])
def test_what_cannot_be_decoded_at_all_is_an_error_in_any_case(raw, tmp_path) -> None:
    (tmp_path / "a.jpg").write_bytes(raw)
    with pytest.raises(InputError, match="cannot be decoded"):
        open_image(tmp_path / "a.jpg", "allow")


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
    train, test = ((work / f"data/{split}_filename.txt").read_text().split() for split in ("train", "test"))
    for name in (short := (train[0], train[-1], test[0])):
        shutil.copy(SHORT, work / "data/images" / name)
    outcome = run(f"train.py --path_opt tiny.yaml --set dataset.cache={cache}")
    assert outcome.status == 2 and "3 of 20 images" in outcome.message
    assert all(name in outcome.message for name in short)
