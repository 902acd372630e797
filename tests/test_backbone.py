"""Backbones of timm: maps, mean and deviation of images, weights in files, errors."""

from __future__ import annotations

import copy

import pytest
import torch

from engine import make_model
from layers.backbone import MEAN, STD, Renormalise, ResNet18, TimmBackbone, make_backbone
from option import load_options
from util.starting_weights import load_backbone
from utils import InputError
from vocab import load_words

NET = "test_efficientnet"  # timm's own for tests: 0.4 million parameters


@pytest.fixture(scope="module")
def trunk() -> TimmBackbone:
    pytest.importorskip("timm")
    torch.manual_seed(0)
    return make_backbone(NET, 64)


def test_a_backbone_of_timm_gives_four_maps_and_the_input_of_its_classifier(trunk) -> None:
    images = torch.rand(2, 3, 64, 64)
    found = trunk.eval()(images)
    assert [feature_map.shape[2] for feature_map in found[:4]] == [16, 8, 4, 2]
    assert [feature_map.shape[1] for feature_map in found[:4]] == list(trunk.channels)
    assert torch.equal(found.pooled, trunk.net.forward_head(trunk.net.forward_features(trunk.renormalise(images))))
    assert found.pooled.shape == (2, trunk.width)


def test_images_are_converted_to_another_mean_and_deviation() -> None:
    pixels, mean, std = torch.rand(1, 3, 4, 4), (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)
    given, wanted = (
        (pixels - torch.tensor(m).view(3, 1, 1)) / torch.tensor(s).view(3, 1, 1) for m, s in ((MEAN, STD), (mean, std))
    )
    assert torch.allclose(Renormalise(mean, std)(given), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "says"),
    [("resnet1818", "neither resnet18 nor a model of timm"), ("test_vit", "a 4th, an 8th|no feature maps")],
)
def test_a_network_that_timm_lacks_or_without_such_maps_is_an_input_error(name, says, work) -> None:
    pytest.importorskip("timm")
    options = load_options("tiny.yaml", [f"model.trunk={name}"])
    with pytest.raises(InputError, match=says):
        make_model(options, load_words(options))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_of_a_backbones_weights_loads_without_its_classifier(trunk, suffix, tmp_path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(1)
    source = timm.create_model(NET, num_classes=7)
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save(source.state_dict(), path)
    else:
        pytest.importorskip("safetensors.torch").save_file(source.state_dict(), path)
    fresh = copy.deepcopy(trunk)
    load_backbone(fresh, str(path))
    expected = source.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in fresh.net.state_dict().items())
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="damaged"):
        load_backbone(fresh, str(path))


def test_weights_of_another_network_are_an_input_error(trunk, tmp_path) -> None:
    torch.save(ResNet18().net.state_dict(), tmp_path / "r18.pth")
    with pytest.raises(InputError, match=r"misshapen: bn1\.weight"):
        load_backbone(trunk, str(tmp_path / "r18.pth"))
