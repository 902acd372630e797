"""Image files as people hold them: depth, orientation, files that are cut short; and the cache of decoded images."""

from __future__ import annotations

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile

import util.images
from util.image_cache import build_cache, cache_is_fresh, map_cache
from util.images import BadImages, check_images, decode, image_size, load_pixels, open_image, what_is_there
from utils import InputError

CASES = Path(__file__).parent / "cases/images"
SHORT = CASES / "short_by_21_bytes.jpg"


def deep(path: Path, form: str) -> Path:
    """A colour image of 16 bits a channel, every value 1500."""
    if form == "png":
        return CASES / "rgb16.png"
    pixels = np.full((4, 5, 3), 1500, np.uint16)
    if form == "ppm":
        path.write_bytes(b"P6 5 4 65535\n" + pixels.astype(">u2").tobytes())
        return path
    entries = [
        (256, 3, 1, 5),
        (257, 3, 1, 4),
        (258, 3, 3, 158),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 164),
        (277, 3, 1, 3),
        (278, 3, 1, 4),
        (279, 4, 1, pixels.nbytes),
        (284, 3, 1, 1),
    ]
    kinds = {3: "<u2", 4: "<u4"}
    head = b"II*\0" + np.uint32(8).tobytes() + np.uint16(len(entries)).tobytes()
    for tag, kind, count, value in entries:
        head += np.array([tag, kind], "<u2").tobytes() + np.uint32(count).tobytes()
        head += np.array(value, kinds[kind] if count == 1 else "<u4").tobytes().ljust(4, b"\0")
    head += bytes(4)
    path.write_bytes(head.ljust(158, b"\0") + np.array([16] * 3, "<u2").tobytes() + pixels.astype("<u2").tobytes())
    return path


@pytest.mark.parametrize("form", ["png", "tif", "ppm"])
def test_sixteen_bits_a_channel_in_colour_are_an_error_that_says_so(form, tmp_path) -> None:
    path = deep(tmp_path / f"a.{form}", form)
    with Image.open(path) as image:
        assert max(image.convert("RGB").getpixel((0, 0))) < 7  # what Pillow makes of it, without a word
    with pytest.raises(InputError, match=f"{path.name} has 16 bits a channel; convert it to 8 bits"):
        open_image(path)


def test_sixteen_bits_a_pixel_are_eight_bits_a_channel_or_fewer(tmp_path) -> None:
    """BMP's 5-6-5: Pillow's name for it has a 16 in it, too."""
    head = b"BM" + np.array([54 + 12 + 8, 0, 66], "<u4").tobytes() + np.array([40, 2, 2], "<u4").tobytes()
    head += np.array([1, 16], "<u2").tobytes() + np.array([3, 8, 0, 0, 0, 0, 0xF800, 0x07E0, 0x001F], "<u4").tobytes()
    (tmp_path / "a.bmp").write_bytes(head + b"\x00\xf8" * 4)
    assert open_image(tmp_path / "a.bmp").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("form", ["jpg", "png", "tif"])
def test_the_orientation_mark_is_followed_by_pixels_and_sizes_alike(form, tmp_path) -> None:
    path = CASES / "exif6.jpg"
    if form != "jpg":
        path = tmp_path / f"a.{form}"
        with Image.open(CASES / "exif6.jpg") as stored:
            stored.save(path, exif=stored.getexif())
    with Image.open(CASES / "exif6.jpg") as stored:
        assert stored.size == (96, 40)
        upright = np.asarray(stored.transpose(Image.Transpose.ROTATE_270))
    image = open_image(path)
    assert image.size == image_size(path) == (40, 96)
    assert np.array_equal(np.asarray(image), upright)
    assert np.array_equal(decode(str(path), 32), np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)))


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


@pytest.mark.parametrize("mark", UPRIGHT)
def test_every_orientation_mark_turns_pixels_and_size(mark, tmp_path) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (3, 5, 3), np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = mark
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    image = open_image(tmp_path / "a.png")
    assert image.size == image_size(tmp_path / "a.png")
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


@pytest.mark.parametrize("raw", [b"", b"\xff\xd8\xff\xe0", b"GIF89a nothing"])
def test_what_cannot_be_decoded_at_all_is_an_error_in_any_case(raw, tmp_path) -> None:
    (tmp_path / "a.jpg").write_bytes(raw)
    with pytest.raises(InputError, match="cannot be decoded"):
        open_image(tmp_path / "a.jpg", "allow")


def test_one_threads_leniency_is_not_anothers() -> None:
    """Pillow's switch is one for all threads; a strict one beside a lenient one must stay strict."""
    inside, done = threading.Event(), threading.Event()

    def lenient() -> bool:
        with what_is_there():
            inside.set()
            done.wait(10)
            return bool(ImageFile.LOAD_TRUNCATED_IMAGES)

    with ThreadPoolExecutor() as pool:
        other = pool.submit(lenient)
        inside.wait(10)
        with pytest.raises(InputError):
            open_image(SHORT)
        done.set()
        assert other.result() and not ImageFile.LOAD_TRUNCATED_IMAGES


# ---------------------------------------------------------------- the cache


@pytest.fixture
def files(tmp_path) -> list[str]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(path)
    return [str(path) for path in paths]


def test_a_cache_goes_on_where_it_stopped_and_when_images_are_mended(files, tmp_path, monkeypatch) -> None:
    whole, cache, partial = tmp_path / "whole.h5", tmp_path / "cache.h5", tmp_path / ".cache.h5.partial"
    build_cache(whole, files, [16, 24], 1)
    good = Path(files[3]).read_bytes()
    Path(files[3]).write_bytes(good[:-60])
    with pytest.raises(BadImages, match=r"1 of 5 images .*3.png"):
        build_cache(cache, files, [16, 24], 1)
    assert partial.exists() and not cache.exists()
    Path(files[3]).write_bytes(good)
    Image.new("RGB", (9, 9), "red").save(files[1])  # changed meanwhile: done anew
    seen, square = [], util.images.square
    monkeypatch.setattr("util.image_cache.square", lambda image, size: seen.append(size) or square(image, size))
    build_cache(cache, files, [16, 24], 1)
    assert len(seen) == 2 * 2 and cache_is_fresh(cache, files, [16, 24]) and not partial.exists()
    for size in (16, 24):
        ours, expected = map_cache(cache, size), map_cache(whole, size)
        assert (ours[1] == [255, 0, 0]).all()
        assert all(np.array_equal(ours[i], expected[i]) for i in (0, 2, 3, 4))


@pytest.mark.parametrize("change", ["content", "order", "size", "one more"])
def test_a_cache_of_other_pictures_is_stale_even_where_their_size_in_bytes_is_the_same(change, files, tmp_path) -> None:
    cache, sizes = tmp_path / "cache.h5", [16]
    build_cache(cache, files, sizes, 1)
    assert cache_is_fresh(cache, files, sizes)
    if change == "content":
        status = Path(files[2]).stat()
        os.utime(files[2], ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    elif change == "order":
        files = files[::-1]
    elif change == "size":
        sizes = [24]
    else:
        files = [*files, str(shutil.copy(files[0], tmp_path / "more.png"))]
    assert not cache_is_fresh(cache, files, sizes)


@pytest.mark.parametrize("spoilt", [b"", b"no HDF5", None])
def test_a_damaged_part_of_a_cache_is_made_anew(spoilt, files, tmp_path) -> None:
    partial = tmp_path / ".cache.h5.partial"
    if spoilt is None:
        with h5py.File(partial, "w") as file:
            file["path"] = files
    else:
        partial.write_bytes(spoilt)
    build_cache(tmp_path / "cache.h5", files, [16], 2)
    assert np.array_equal(map_cache(tmp_path / "cache.h5", 16)[4], decode(files[4], 16))


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


@pytest.mark.parametrize("cache", ["ram", "none", "h5"])
def test_training_names_all_files_of_both_lists_that_are_cut_short_before_it_begins(cache, work, run) -> None:
    train, test = (
        list(dict.fromkeys((work / f"data/{split}_filename.txt").read_text().split())) for split in ("train", "test")
    )
    for name in (train[0], train[-1], test[0]):
        shutil.copy(SHORT, work / "data/images" / name)
    outcome = run(f"train.py --path_opt tiny.yaml --set dataset.cache={cache}")
    assert outcome.status == 2 and "3 of 20 images" in outcome.message
    assert all(name in outcome.message for name in (train[0], train[-1], test[0]))
