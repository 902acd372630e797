"""Folded batch normalisation in evaluation: the same features, and a trunk that is left as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from layers.trunk import ResNet18


@pytest.fixture(scope="module")
def trunk() -> ResNet18:
    """With statistics, scales and shifts that do something."""
    torch.manual_seed(0)
    trunk = ResNet18().eval()
    for norm in (module for module in trunk.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_var, 0.5, 2)
        for tensor in (norm.running_mean, norm.weight.data, norm.bias.data):
            nn.init.normal_(tensor)
    return trunk


def test_folded_normalisation_gives_the_same_features_without_a_pass_of_its_own(trunk) -> None:
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        plain = trunk(images)
        with trunk.folded(64):
            assert not any(isinstance(module, nn.BatchNorm2d) for module in trunk.modules())
            folded = trunk(images)
    for one, other in zip(plain, folded, strict=True):
        assert (one - other).abs().max() < 1e-5 * one.abs().max()


def test_a_trunk_is_as_before_once_it_is_no_longer_folded(trunk) -> None:
    modules, state = list(trunk.named_modules()), {name: x.clone() for name, x in trunk.state_dict().items()}
    with pytest.raises(KeyboardInterrupt), trunk.folded(64):
        assert trunk.state_dict().keys() == state.keys()
        raise KeyboardInterrupt
    assert [(name, id(module)) for name, module in trunk.named_modules()] == [(n, id(m)) for n, m in modules]
    assert all(torch.equal(x, state[name]) for name, x in trunk.state_dict().items())
