"""Image files as people hold them: depth, orientation, files that are cut short; and the cache of decoded images."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, ImageFile

from util.images import BadImages, check_images, decode, image_size, load_pixels, open_image, what_is_there
from utils import InputError

CASES = Path(__file__).parent / "cases/images"
SHORT = CASES / "short_by_21_bytes.jpg"


def deep(path: Path) -> Path:
    """A colour image of 16 bits a channel, every value 1500."""
    pixels = np.full((4, 5, 3), 1500, np.uint16)
    match path.suffix:
        case ".png":
            shutil.copy(CASES / "rgb16.png", path)
        case ".ppm":
            path.write_bytes(b"P6 5 4 65535\n" + pixels.astype(">u2").tobytes())
        case ".tif":
            tifffile.imwrite(path, pixels, photometric="rgb")  # comes with scikit-image
    return path


@pytest.mark.parametrize("form", ["png", "tif", "ppm"])
def test_sixteen_bits_a_channel_in_colour_are_an_error_that_says_so(form, tmp_path) -> None:
    path = deep(tmp_path / f"a.{form}")
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
