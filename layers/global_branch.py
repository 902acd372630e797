"""Global branch: a trunk and multi-scale visual self-attention, MVSA (AMFMN's; released code).

f1..f4 = layer1..layer4 of ResNet-18           low = [f1; up(f2)]        high = [f3; up(f4)]
solo   = Linear(mean of f4 over positions)
a = conv3x3, stride 4 (low)    b = conv1x1 (high)    c = [a; b] + mean of b over its channels
mask   = Linear(flatten(conv1x1(c) * sigmoid(conv1x1'(c))))
v_g    = l2norm(solo * sigmoid(mask))               without MVSA: l2norm(solo)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from layers.model import l2norm
from layers.trunk import Trunk


class MVSA(nn.Module):
    """Multi-scale visual self-attention: a mask (B, D) from shallow and deep feature maps.

    A convolution of a concatenation is the sum of its parts' convolutions, and one of an upsampled map is one of the
    map itself with its taps summed. So neither `low` nor `high` is ever laid out, which costs more than the products.
    """

    def __init__(self, channels: tuple[int, ...], size: int, embed_dim: int) -> None:
        """channels: of f1..f4; size: s, the side of f3."""
        super().__init__()
        self.low_channels, self.high_channels = channels[:2], channels[2:]
        self.low_conv = nn.Conv2d(sum(self.low_channels), 3, kernel_size=3, stride=4)
        self.high_conv = nn.Conv2d(sum(self.high_channels), 3, kernel_size=1)
        self.value = nn.Conv2d(6, 1, kernel_size=1)
        self.gate = nn.Conv2d(6, 1, kernel_size=1)
        self.mask = nn.Linear(size * size, embed_dim)

    def forward(self, f1: Tensor, f2: Tensor, f3: Tensor, f4: Tensor) -> Tensor:
        """f1 (B, C1, 4s, 4s), f2 (B, C2, 2s, 2s), f3 (B, C3, s, s), f4 (B, C4, s/2, s/2) -> (B, D)."""
        b = self._high(f3, f4)
        c = torch.cat((self._low(f1, f2), b), dim=1) + b.mean(dim=1, keepdim=True)
        return self.mask((self.value(c) * torch.sigmoid(self.gate(c))).flatten(1))

    def _low(self, f1: Tensor, f2: Tensor) -> Tensor:
        """low_conv([f1; up(f2)]): with stride 4, taps 0, 1, 2 meet pixels 0, 0, 1 of every other one of f2."""
        of_f1, of_f2 = self.low_conv.weight.permute(0, 2, 3, 1).split(self.low_channels, dim=3)
        of_f2 = torch.stack((of_f2[:, :2].sum(1), of_f2[:, 2]), dim=1)
        of_f2 = torch.stack((of_f2[:, :, :2].sum(2), of_f2[:, :, 2]), dim=2)
        a = functional.linear(_patches(f1, 4, 3), of_f1.flatten(1), self.low_conv.bias)
        a = a + functional.linear(_patches(f2, 2, 2), of_f2.flatten(1))
        return a.permute(0, 3, 1, 2)

    def _high(self, f3: Tensor, f4: Tensor) -> Tensor:
        """high_conv([f3; up(f4)])"""
        of_f3, of_f4 = self.high_conv.weight.split(self.high_channels, dim=1)
        deep = functional.interpolate(functional.conv2d(f4, of_f4), scale_factor=2)
        return functional.conv2d(f3, of_f3, self.high_conv.bias) + deep


def _patches(x: Tensor, stride: int, side: int) -> Tensor:
    """Patches that do not overlap: (B, C, H, W) -> (B, H / stride, W / stride, side * side * C)."""
    x = x.permute(0, 2, 3, 1).unflatten(2, (-1, stride)).unflatten(1, (-1, stride))
    return x[:, :, :side, :, :side].permute(0, 1, 3, 2, 4, 5).flatten(3)


class GlobalBranch(nn.Module):
    """Images -> v_g. At image size S the attention map is S / 16 wide; published weights fit S = 256 and `resnet18`.

    normalise: v_g to unit length, as GaLR does and AMFMN does not. masked: with MVSA.
    """

    def __init__(
        self, trunk: Trunk, image_size: int, embed_dim: int, normalise: bool = True, masked: bool = True
    ) -> None:
        super().__init__()
        self.normalise = normalise
        self.trunk = trunk
        self.solo = nn.Linear(self.trunk.width, embed_dim)
        self.mvsa = MVSA(self.trunk.channels, image_size // 16, embed_dim) if masked else None

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 3, S, S), normalised -> v_g (B, D)."""
        *maps, pooled = self.trunk(images)
        v_g = self.solo(pooled).float()
        if self.mvsa is not None:
            v_g = v_g * torch.sigmoid(self.mvsa(*maps).float())
        return l2norm(v_g) if self.normalise else v_g
