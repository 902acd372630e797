"""Check the fast paths of a CPU (layers/cpu.py) against plain formulas: convolutions, batch norm, MVSA, GRU."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from data import load_data, read_split, train_batches
from engine import make_criterion, make_model, make_optimizer, train_step
from layers.backbone import ResNet18, make_backbone
from layers.cpu import FusedConv2d, depthwise, fuse_norms
from layers.global_branch import MVSA
from option import load_options
from vocab import load_words

NET = "test_efficientnet"  # timm's own for tests: 0.4 million parameters


# ---------------------------------------------------------------- MVSA


def test_mvsa_without_its_concatenated_maps_is_the_formula_with_its_gradients(monkeypatch) -> None:
    torch.manual_seed(0)
    mvsa = MVSA((3, 4, 5, 6), 4, 8)
    maps = [
        torch.randn(2, c, side, side, requires_grad=True) for c, side in zip((3, 4, 5, 6), (16, 8, 4, 2), strict=True)
    ]
    inputs = [*maps, *mvsa.parameters()]
    fast = mvsa(*maps)
    monkeypatch.setattr("layers.global_branch.on_cpu", lambda _: False)
    plain = mvsa(*maps)
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
    direction = torch.randn_like(plain)
    gradients = (torch.autograd.grad((values * direction).sum(), inputs) for values in (fast, plain))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- depthwise convolution


def both_passes(run, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
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


def test_gradients_of_a_depthwise_convolution_do_not_depend_on_the_number_of_threads() -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(11, 16, 6, 6), torch.randn(16, 1, 3, 3), torch.randn(16)]
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            results.append(both_passes(lambda *args: depthwise(*args, 1, 1), inputs))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


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


# ---------------------------------------------------------------- batch norm


def settle(net: nn.Module) -> None:
    """Give batch norms statistics, scales and shifts that do something."""
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                tensor.uniform_(0.5, 1.5, generator=generator)


def both_norms(name: str, size: int) -> tuple[nn.Module, nn.Module]:
    """Build a backbone in evaluation mode, and the same one with frozen batch norm, in training mode."""
    plain, frozen = make_backbone(name, size).eval(), make_backbone(name, size, "frozen").train()
    settle(plain.net)
    frozen.net.load_state_dict(plain.net.state_dict())
    return plain, frozen


@pytest.mark.parametrize("name", ["resnet18", NET])
def test_a_fused_batch_norm_is_the_same_function_with_the_same_gradients(name) -> None:
    if name == NET:
        pytest.importorskip("timm")
    plain, frozen = both_norms(name, 32)
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
    torch.manual_seed(0)
    trunk, images = ResNet18().eval(), torch.rand(2, 3, 32, 32)
    settle(trunk.net)
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
                found = trunk(images)
    for one, other in zip(plain, found, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4 * one.abs().max().item())


def test_training_with_frozen_batch_norm_moves_scales_and_no_statistics(work) -> None:
    options = load_options("tiny.yaml", ["model.trunk_norm=frozen"])
    words = load_words(options)
    data = load_data(read_split("data", "train"), options, words, torch.device("cpu"), training=True)
    model, criterion = make_model(options, words).train(), make_criterion(options.optim, torch.device("cpu"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = next(train_batches(data, options, 0, 0))
    train_step(model, batch, criterion, make_optimizer(model, options.optim, criterion), 1e-3, options)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert "global_branch.trunk.net.bn1.weight" in moved
    assert not any("running" in name or "num_batches" in name for name in moved)


@pytest.fixture(scope="module")
def settled() -> ResNet18:
    """Build a ResNet-18 whose batch norms do something."""
    torch.manual_seed(0)
    trunk = ResNet18().eval()
    for norm in (module for module in trunk.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_var, 0.5, 2)
        for tensor in (norm.running_mean, norm.weight.data, norm.bias.data):
            nn.init.normal_(tensor)
    return trunk


def test_evaluation_fuses_batch_norms_and_gives_the_same_features(settled) -> None:
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        plain = settled(images)
        with settled.fused(64):
            assert not any(isinstance(module, nn.BatchNorm2d) for module in settled.modules())
            folded = settled(images)
    for one, other in zip(plain, folded, strict=True):
        assert (one - other).abs().max() < 1e-5 * one.abs().max()


def test_a_backbone_is_as_before_once_it_is_no_longer_fused(settled) -> None:
    modules, state = list(settled.named_modules()), {name: x.clone() for name, x in settled.state_dict().items()}
    with pytest.raises(KeyboardInterrupt), settled.fused(64):
        assert settled.state_dict().keys() == state.keys()
        raise KeyboardInterrupt
    assert [(name, id(module)) for name, module in settled.named_modules()] == [(n, id(m)) for n, m in modules]
    assert all(torch.equal(x, state[name]) for name, x in settled.state_dict().items())


def test_a_copy_has_its_own_batch_norm() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
    fuse_norms(net, torch.rand(1, 3, 8, 8))
    other, images = copy.deepcopy(net), torch.rand(1, 3, 8, 8)
    other[1].weight.data.mul_(2)
    assert torch.allclose(other(images), 2 * net(images), atol=1e-6)
