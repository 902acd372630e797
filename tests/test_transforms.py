"""Pixels -> images for the model: the published transform to the bit, and our own augmentation."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as pil_path
from PIL import Image
from test_data import images_of

import util.images
from util import transforms

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's constants of ImageNet: red, green, blue


def real_images() -> list[str]:
    """100 UCM images: the 44 that are not 256 x 256, and others."""
    if "GALR_TEST_DATA" not in os.environ:
        pytest.skip("GALR_TEST_DATA is not set: no real images")
    paths = sorted((Path(os.environ["GALR_TEST_DATA"]) / "ucm_precomp" / "images").iterdir())
    odd = [p for p in paths if Image.open(p).size != (256, 256)]
    assert len(odd) == 44
    return [str(p) for p in (odd + [p for p in paths if p not in odd][:56])]


def check(paths: list[str], size: int, kind: str | None) -> None:
    """Compare with torchvision's transforms of a Pillow image: of evaluation, or of training with this augmentation."""
    resized = transforms.resize_size(size) if kind else size
    pixels = torch.from_numpy(np.stack([util.images.decode(path, resized) for path in [*reversed(paths), paths[0]]]))
    places = torch.arange(len(paths)).flip(0)
    drawn = transforms.draw_augmentation(np.random.default_rng(0), len(paths), size, kind or "rotate")
    ours = transforms.augment(pixels, places, drawn, size) if kind else transforms.normalise(pixels)[places]
    for i, path in enumerate(paths):
        image = pil_path.resize(Image.open(path).convert("RGB"), [resized, resized])
        if kind:
            image = pil_path.rotate(image, float(drawn.angles[i]))
            image = pil_path.crop(image, *map(int, drawn.offsets[i]), size, size)
            image = pil_path.hflip(image) if drawn.mirrored[i] else image
        assert torch.equal(ours[i], pil_path.normalize(pil_path.to_tensor(image), MEAN, STD)), path


@pytest.mark.parametrize("kind", [None, "rotate", "flips"])
def test_transforms_are_the_pil_path_bit_for_bit_on_100_real_images(kind) -> None:
    check(real_images(), 256, kind)


@pytest.mark.parametrize("kind", [None, "rotate", "flips"])
def test_transforms_are_the_pil_path_at_other_sizes(kind, tmp_path) -> None:
    check([str(tmp_path / name) for name in images_of(tmp_path, 6)], 64, kind)


def test_images_are_the_same_from_any_number_of_threads() -> None:
    rng = np.random.default_rng(0)
    pixels, places = torch.from_numpy(rng.integers(0, 256, (4, 35, 35, 3), np.uint8)), torch.tensor([3, 0, 3])
    drawn, threads = transforms.draw_augmentation(rng, 3, 32), torch.get_num_threads()
    try:
        images = []
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            images.append(transforms.augment(pixels, places, drawn, 32))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(images[0], images[1]) and torch.equal(images[0], images[2])
    with pytest.raises(IndexError, match="out of range"):
        transforms.augment(pixels, torch.tensor([4, 0, 3]), drawn, 32)


def test_angles_fill_0_to_90_and_crops_reach_every_place() -> None:
    drawn = transforms.draw_augmentation(np.random.default_rng(0), 20000, 256)
    assert 0 <= drawn.angles.min() < 0.1 and 89.9 < drawn.angles.max() < 90
    assert abs(drawn.angles.mean() - 45) < 1
    assert set(drawn.offsets.flatten()) == set(range(23))


def test_flips_lay_a_picture_down_in_eight_ways_and_the_published_rotation_mirrors_none() -> None:
    drawn = transforms.draw_augmentation(np.random.default_rng(0), 8000, 256, "flips")
    _, counts = np.unique(np.stack((drawn.angles, drawn.mirrored), 1), axis=0, return_counts=True)
    assert set(drawn.angles) == {0, 90, 180, 270} and len(counts) == 8 and counts.min() > 850
    assert not transforms.draw_augmentation(np.random.default_rng(0), 100, 256).mirrored.any()


def test_crops_are_what_torchvision_crops_resizes_and_lays_down() -> None:
    rng, side, size = np.random.default_rng(0), 40, 32
    images = torch.from_numpy(rng.normal(size=(8, 3, side, side)).astype(np.float32))
    height, width = rng.integers(16, side + 1, (2, 8))
    top, left = rng.integers(0, side + 1 - height), rng.integers(0, side + 1 - width)
    angles, mirrored = np.arange(8) % 4 * 90.0, np.arange(8) >= 4
    offsets, extents = np.stack((top, left), 1) / side, np.stack((height, width), 1) / side
    ours = transforms.crop_and_resize(images, transforms.Augmentation(angles, offsets, mirrored, extents), size)
    assert ours.shape == (8, 3, size, size) and ours.is_contiguous(memory_format=torch.channels_last)
    for i, image in enumerate(images):
        box = (int(top[i]), int(left[i]), int(height[i]), int(width[i]))
        expected = pil_path.resized_crop(image, *box, [size, size], antialias=False)
        expected = torch.rot90(expected, int(angles[i]) // 90, (1, 2))
        expected = pil_path.hflip(expected) if mirrored[i] else expected
        inner = slice(2, -2)  # at its edges torchvision knows nothing of what lies beyond the crop
        assert torch.allclose(ours[i, :, inner, inner], expected[:, inner, inner], atol=1e-5)


def test_crops_lie_within_the_picture_and_have_the_sizes_and_shapes_that_are_asked_for() -> None:
    drawn = transforms.draw_augmentation(np.random.default_rng(0), 20000, 256, "crops", 0.3)
    height, width = drawn.extents.T
    assert drawn.offsets.min() >= 0 and (drawn.offsets + drawn.extents).max() <= 1
    assert 0.25 < (height * width).min() < 0.31 and (height * width).max() > 0.97
    assert 3 / 4 - 1e-9 <= (height / width).min() < 0.76 and 1.32 < (height / width).max() <= 4 / 3 + 1e-9
    ways, counts = np.unique(np.stack((drawn.angles, drawn.mirrored), 1), axis=0, return_counts=True)
    assert len(ways) == 8 and counts.min() > 2200
    half = drawn.part(slice(10000, None))
    assert all(np.array_equal(part, array[10000:]) for part, array in zip(half, drawn, strict=True))


def test_what_lies_beyond_the_picture_goes_on_as_its_edge() -> None:
    """No dark rim on crops that touch the border of the picture."""
    grey = torch.full((1, 40, 40, 3), 200, dtype=torch.uint8)
    whole = transforms.Augmentation(np.array([90.0]), np.zeros((1, 2)), np.array([True]), np.ones((1, 2)))
    ours = transforms.augment(grey, torch.tensor([0]), whole, 64)
    torch.testing.assert_close(ours, transforms.normalise(grey[:, :1, :1]).expand_as(ours))


def test_resize_follows_the_image_size_and_leaves_the_smallest_crop_its_size() -> None:
    assert [transforms.resize_size(s) for s in (256, 128, 64)] == [278, 139, 70]
    assert [transforms.resize_size(96, "crops", share) for share in (0.25, 0.5, 1)] == [192, 136, 96]


DRAWN = {  # three images, seed 7: angles, offsets, mirrored, extents
    ("rotate", 1): ([56.25859199442003, 80.74924208726179, 69.81171212206742], [[5, 1], [0, 2], [1, 6]], [0] * 3, None),
    ("flips", 1): ([270, 180, 180], [[6, 4], [5, 5], [1, 0]], [0, 0, 1], None),
    ("crops", 0.3): (
        [270, 180, 180],
        [
            [0, 0.08208111695387958],
            [0.1252282525305003, 0.06126298468169674],
            [0.05521167248503095, 0.15525170609708738],
        ],
        [1, 0, 1],
        [[1, 0.8245886175951196], [0.5867496629158798, 0.7799664182491831], [0.7833728496474952, 0.6511795751759865]],
    ),
}


@pytest.mark.parametrize(("kind", "smallest"), DRAWN)
def test_a_seed_draws_the_same_augmentation_as_ever(kind, smallest) -> None:
    """Runs of earlier versions are repeated, and resumed, only if draws and their order stay."""
    drawn = transforms.draw_augmentation(np.random.default_rng(7), 3, 64, kind, smallest)
    for ours, expected in zip(drawn, DRAWN[kind, smallest], strict=True):
        assert (ours is None) == (expected is None)
        if expected is not None:
            np.testing.assert_allclose(ours, expected, rtol=1e-15, atol=1e-16)
