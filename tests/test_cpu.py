"""Check the fast paths of a CPU (layers/cpu.py) against plain formulas: convolutions, batch norm, MVSA, GRU."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from layers.backbone import ImageBackbone, make_backbone
from layers.cpu import FusedConv2d, depthwise, fuse_norms
from layers.global_branch import MVSA

NET = "test_efficientnet"  # timm's own for tests: 0.4 million parameters


def test_mvsa_without_its_concatenated_maps_is_the_formula_with_its_gradients(monkeypatch) -> None:
    torch.manual_seed(0)
    mvsa = MVSA((3, 4, 5, 6), 4, 8)
    maps = [torch.randn(2, c, side, side) for c, side in ((3, 16), (4, 8), (5, 4), (6, 2))]
    names, weights = zip(*mvsa.named_parameters(), strict=True)

    def run(*inputs: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(mvsa, dict(zip(names, inputs[4:], strict=True)), inputs[:4])

    inputs = [*maps, *(weight.detach() for weight in weights)]
    fast = both_passes(run, inputs)
    monkeypatch.setattr("layers.global_branch.on_cpu", lambda _: False)
    for one, other in zip(fast, both_passes(run, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def both_passes(run: Callable, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the output of a function, and the gradient of each input under fixed weights of the output."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    out = run(*inputs)
    weights = torch.rand(out.shape, generator=torch.Generator().manual_seed(1))
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), inputs)]


@pytest.mark.parametrize(
    ("batch", "side", "kernel", "stride", "padding"),
    [(3, 8, 3, 1, 1), (9, 8, 3, 2, 0), (1, 9, 5, 2, 2), (10, 4, 5, 1, 2), (2, 2, 5, 1, 2)],
)
def test_both_passes_of_a_depthwise_convolution_are_those_of_conv2d(
    batch: int, side: int, kernel: int, stride: int, padding: int
) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(batch, 7, side, side + 1), torch.randn(7, 1, kernel, kernel), torch.randn(7)]
    expected = both_passes(lambda *args: functional.conv2d(*args, stride, padding, groups=7), inputs)
    ours = both_passes(lambda *args: depthwise(*args, stride, padding), inputs)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_fused_depthwise_convolution_trains_as_it_evaluates(stride: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(6, 6, 3, stride, 1, groups=6, bias=False), nn.BatchNorm2d(6))
    images = torch.randn(4, 6, 9, 9)
    net(images)  # statistics
    expected = net.eval()(images)
    fuse_norms(net, images)
    torch.testing.assert_close(net(images), expected)
    with torch.inference_mode():
        torch.testing.assert_close(net(images), expected)


def settled(name: str) -> ImageBackbone:
    """Build a backbone in evaluation mode whose batch norms do something."""
    torch.manual_seed(0)
    trunk, generator = make_backbone(name, 32).eval(), torch.Generator().manual_seed(1)
    for module in trunk.modules():
        if hasattr(module, "running_mean"):
            for tensor in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                tensor.uniform_(0.5, 1.5, generator=generator)
    return trunk


@pytest.mark.parametrize("name", ["resnet18", NET])
def test_a_fused_batch_norm_is_the_same_function_with_the_same_gradients(name) -> None:
    if name == NET:
        pytest.importorskip("timm")
    plain, frozen = settled(name), make_backbone(name, 32, "frozen").train()
    frozen.net.load_state_dict(plain.net.state_dict())
    assert sum(isinstance(module, FusedConv2d) for module in frozen.modules()) > 10
    images = torch.rand(2, 3, 32, 32)
    for one, other in zip(plain(images), frozen(images), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4 * one.abs().max().item())
    for net in (plain, frozen):
        net(images).pooled.square().mean().backward()
    gradients = dict(frozen.named_parameters())
    for where, parameter in plain.named_parameters():
        if parameter.grad is not None:
            largest = parameter.grad.abs().max().item()
            assert torch.allclose(parameter.grad, gradients[where].grad, rtol=1e-2, atol=1e-3 * largest), where


@pytest.mark.parametrize("mode", ["frozen", "evaluation"])
def test_a_fused_batch_norm_keeps_its_own_eps(mode) -> None:
    """Networks differ in it: 1e-5 in ResNet-18, 1e-3 in tf_efficientnet_lite0."""
    trunk, images = settled("resnet18"), torch.rand(2, 3, 32, 32)
    for module in trunk.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.3
    with torch.no_grad():
        plain = trunk(images)
        if mode == "frozen":
            trunk.freeze_norms(32)
            found = trunk.train()(images)
        else:
            with trunk.fused(32):
                assert not any(isinstance(module, nn.BatchNorm2d) for module in trunk.modules())
                found = trunk(images)
    for one, other in zip(plain, found, strict=True):
        assert (one - other).abs().max() < 1e-5 * one.abs().max()


def test_a_backbone_is_as_before_once_it_is_no_longer_fused() -> None:
    trunk = settled("resnet18")
    modules, state = list(trunk.named_modules()), {name: x.clone() for name, x in trunk.state_dict().items()}
    with pytest.raises(KeyboardInterrupt), trunk.fused(64):
        assert trunk.state_dict().keys() == state.keys()
        raise KeyboardInterrupt
    assert [(name, id(module)) for name, module in trunk.named_modules()] == [(n, id(m)) for n, m in modules]
    assert all(torch.equal(x, state[name]) for name, x in trunk.state_dict().items())


def test_a_copy_has_its_own_batch_norm() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
    fuse_norms(net, torch.rand(1, 3, 8, 8))
    other, images = copy.deepcopy(net), torch.rand(1, 3, 8, 8)
    other[1].weight.data.mul_(2)
    assert torch.allclose(other(images), 2 * net(images), atol=1e-6)
