"""Unsupervised proposals: compact, contrasting things are found, background is not, and nothing is random."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from layers.drea import denoise
from util.regions.proposals import DESCRIPTION, NOTHING, Proposals, classify, fit_prototypes, propose

GREY, RED, BLUE = (120, 120, 120), (200, 40, 40), (40, 40, 200)


def drawing(*things: tuple, size: tuple[int, int] = (256, 256)) -> Image.Image:
    """A grey image with coloured rectangles ("box") or ellipses, given by their corners in shares of the sides."""
    image = Image.new("RGB", size, GREY)
    draw = ImageDraw.Draw(image)
    for kind, colour, *corners in things:
        pixels = [round(value * size[i % 2]) for i, value in enumerate(corners)]
        (draw.rectangle if kind == "box" else draw.ellipse)(pixels, fill=colour)
    return image


SCENE = (("box", RED, 0.1, 0.1, 0.3, 0.2), ("disc", BLUE, 0.6, 0.6, 0.8, 0.8))
PLACES = np.array([[0.2, 0.15, 0.2, 0.1], [0.7, 0.7, 0.2, 0.2]])


def found_near(proposals: Proposals, place: np.ndarray) -> np.ndarray:
    return np.abs(proposals.box - place).max(axis=1) < 0.02


def test_things_are_found_where_they_stand_and_the_background_is_not():
    proposals = propose(drawing(*SCENE))
    assert all(found_near(proposals, place).any() for place in PLACES)
    away = np.abs(proposals.box[:, None, :2] - PLACES[:, :2]) > PLACES[:, 2:] / 2 + 0.02
    assert not away.any(axis=2).all(axis=1).any()
    assert ((proposals.score > 0.5) & (proposals.score <= 1)).all()


def test_the_resolution_of_the_image_does_not_matter():
    large = propose(drawing(*SCENE, size=(1024, 1024)))
    assert all(found_near(large, place).any() for place in PLACES)


def test_more_contrast_gives_a_higher_score():
    faint = propose(drawing(("box", (150, 120, 120), 0.1, 0.1, 0.3, 0.2)))
    strong = propose(drawing(("box", RED, 0.1, 0.1, 0.3, 0.2)))
    assert 0 < faint.score.max() < strong.score.min()


def test_a_branching_segment_is_not_compact_enough():
    cross = ("box", RED, 0.1, 0.48, 0.9, 0.52), ("box", RED, 0.48, 0.1, 0.52, 0.9)
    assert not found_near(propose(drawing(*cross)), np.array([0.5, 0.5, 0.8, 0.8])).any()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 2), (7, 9), (256, 256)])
def test_a_blank_image_of_any_size_gives_nothing(size):
    assert len(propose(drawing(size=size)).score) == 0


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_images_of_every_mode_are_taken(mode):
    assert len(propose(drawing(*SCENE).convert(mode)).score) > 0


def test_the_same_image_gives_the_same_proposals():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)).resize((256, 192))
    first, second = propose(noise), propose(noise)
    assert len(first.score) > 0
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one, other)


def test_proposals_are_regions_that_denoising_takes():
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 40, 3), np.uint8)).resize((256, 256))
    proposals = propose(noise)
    denoised = denoise(classify(proposals, fit_prototypes(proposals.description)))
    assert 0 < len(denoised.region_of_node) <= 20


def test_prototypes_tell_things_of_different_looks_apart():
    proposals = propose(drawing(*SCENE))
    regions = classify(proposals, fit_prototypes(proposals.description))
    kinds = [set(regions.class_id[found_near(proposals, place)]) for place in PLACES]
    assert not kinds[0] & kinds[1]


def test_there_are_15_prototypes_or_as_many_as_there_are_looks():
    rng = np.random.default_rng(0)
    many = rng.random((200, len(DESCRIPTION)))
    assert fit_prototypes(many).centres.shape == (15, len(DESCRIPTION))
    assert len(fit_prototypes(np.repeat(many[:3], 9, axis=0)).centres) == 3
    assert len(fit_prototypes(many[:0]).centres) == 0
    first, again = fit_prototypes(many), fit_prototypes(many)
    assert np.array_equal(first.centres, again.centres)


def test_without_prototypes_or_proposals_there_are_no_regions():
    proposals = propose(drawing(*SCENE))
    assert len(classify(proposals, fit_prototypes(NOTHING.description)).score) == 0
    assert len(classify(NOTHING, fit_prototypes(proposals.description)).score) == 0


def test_ucm_images_give_regions_in_the_image():
    folder = os.environ.get("GALR_TEST_DATA")
    if not folder:
        pytest.skip("GALR_TEST_DATA is not set: no real images")
    for name in ("150.jpg", "990.jpg", "1050.jpg"):  # planes, a golf course, a harbour
        with Image.open(Path(folder) / "ucm_precomp" / "images" / name) as image:
            proposals = propose(image)
        assert 10 < len(proposals.score) < 300
        low, high = proposals.box[:, :2] - proposals.box[:, 2:] / 2, proposals.box[:, :2] + proposals.box[:, 2:] / 2
        assert (low > -1e-9).all() and (high < 1 + 1e-9).all()
