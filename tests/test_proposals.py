"""Check unsupervised proposals: compact, contrasting things are found, background is not, and nothing is random."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from util.regions.proposals import DESCRIPTION, Proposals, Prototypes, classify, fit_prototypes, propose

GREY, RED, BLUE = (120, 120, 120), (200, 40, 40), (40, 40, 200)


def drawing(*things: tuple, size: tuple[int, int] = (256, 256)) -> Image.Image:
    """Draw a grey image with coloured rectangles ("box") or ellipses, given by their corners in shares of the sides."""
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


@pytest.mark.parametrize("side", [256, 1024])
def test_things_are_found_where_they_stand_and_the_background_is_not(side):
    proposals = propose(drawing(*SCENE, size=(side, side)))
    assert all(found_near(proposals, place).any() for place in PLACES)
    away = np.abs(proposals.box[:, None, :2] - PLACES[:, :2]) > PLACES[:, 2:] / 2 + 0.02
    assert not away.any(axis=2).all(axis=1).any()
    assert ((proposals.score > 0.5) & (proposals.score <= 1)).all()


def test_a_branching_segment_is_not_compact_enough():
    cross = ("box", RED, 0.1, 0.48, 0.9, 0.52), ("box", RED, 0.48, 0.1, 0.52, 0.9)
    assert not found_near(propose(drawing(*cross)), np.array([0.5, 0.5, 0.8, 0.8])).any()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 2), (7, 9), (256, 256)])
def test_a_blank_image_of_any_size_gives_nothing(size):
    assert len(propose(drawing(size=size)).score) == 0


def test_there_are_15_prototypes_or_as_many_as_there_are_looks():
    rng = np.random.default_rng(0)
    many = rng.random((200, len(DESCRIPTION)))
    assert fit_prototypes(many).centres.shape == (15, len(DESCRIPTION))
    assert len(fit_prototypes(np.repeat(many[:3], 9, axis=0)).centres) == 3
    assert len(fit_prototypes(many[:0]).centres) == 0
    first, again = fit_prototypes(many), fit_prototypes(many)
    assert np.array_equal(first.centres, again.centres)


def test_a_large_piece_in_a_corner_is_background():
    corner, middle = ("box", RED, 0, 0, 0.3, 0.3), ("box", RED, 0.3, 0.3, 0.6, 0.6)
    assert not found_near(propose(drawing(corner)), np.array([0.15, 0.15, 0.3, 0.3])).any()
    assert found_near(propose(drawing(middle)), np.array([0.45, 0.45, 0.3, 0.3])).any()


def test_boxes_are_in_units_of_their_own_side():
    wide = propose(drawing(("box", RED, 0.2, 0.4, 0.3, 0.8), size=(256, 128)))
    assert np.abs(wide.box - [0.25, 0.6, 0.1, 0.4]).max(axis=1).min() < 0.03


def test_proposals_of_a_known_picture_are_what_they_were():
    """Hold the numbers of the version that made the local features of the published tables."""
    pixels = np.full((256, 256, 3), 120, np.uint8)
    striped = np.uint8([180, 60, 40]) + np.uint8(np.arange(64) // 4 % 2 * 12)[:, None]
    pixels[64:96, 64:128] = striped
    proposals = propose(Image.fromarray(pixels))
    assert len(proposals.score) == 15  # most are single stripes
    whole, left = proposals.box[:, 2].argmax(), proposals.box[:, 0].argmin()
    assert proposals.box[[whole, left]] == pytest.approx(
        np.array([[0.375, 0.3125, 0.21875, 0.09375], [0.26953125, 0.3125, 0.0234375, 0.109375]])
    )
    assert proposals.score[[whole, left]] == pytest.approx([0.9191683, 0.7254906], abs=1e-6)
    expected = [
        [44.99799, 47.27703, 37.62441, 2.09763, 0.76533, 0.0, 0.8473, 0.95493, -3.88695],
        [45.6972, 47.18909, 37.38494, 1.97767, 0.72156, 2.09763, 1.54045, 0.95493, -5.96639],
    ]
    assert proposals.description[[whole, left]] == pytest.approx(np.array(expected), abs=1e-4)


def test_prototypes_of_many_regions_are_fitted_to_evenly_spaced_ones():
    description = np.zeros((400, len(DESCRIPTION)))
    description[:, 0] = np.repeat([1.0, 2, 3, 4], 100)
    centres = fit_prototypes(description, most=40).centres[:, 0]
    assert sorted(centres.round(3).tolist()) == [-1.342, -0.447, 0.447, 1.342]


def test_the_class_of_a_region_is_its_nearest_prototype_in_units_of_the_deviation():
    centres = np.zeros((2, len(DESCRIPTION)))
    centres[1, 0] = 1
    prototypes = Prototypes(centres, np.full(len(DESCRIPTION), 10.0), np.full(len(DESCRIPTION), 4.0))
    description = np.full((2, len(DESCRIPTION)), 10.0)
    description[1, 0] = 13
    found = classify(Proposals(np.ones(2), np.full((2, 4), 0.5), description), prototypes)
    assert found.class_id.tolist() == [0, 1]
