"""Global branch: a backbone and multi-scale visual self-attention, MVSA (AMFMN's; released code).

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

from layers.backbone import ImageBackbone
from layers.cpu import mvsa_high, mvsa_low, on_cpu
from layers.model import l2norm


class MVSA(nn.Module):
    """Multi-scale visual self-attention: a mask (B, D) from shallow and deep feature maps.

    channels: of f1..f4; size: s, the side of f3.
    """

    def __init__(self, channels: tuple[int, ...], size: int, embed_dim: int) -> None:
        super().__init__()
        self.low_conv = nn.Conv2d(sum(channels[:2]), 3, kernel_size=3, stride=4)
        self.high_conv = nn.Conv2d(sum(channels[2:]), 3, kernel_size=1)
        self.value = nn.Conv2d(6, 1, kernel_size=1)
        self.gate = nn.Conv2d(6, 1, kernel_size=1)
        self.mask = nn.Linear(size * size, embed_dim)

    def forward(self, f1: Tensor, f2: Tensor, f3: Tensor, f4: Tensor) -> Tensor:
        """Return the mask (B, D) of f1 (B, C1, 4s, 4s), f2 (B, C2, 2s, 2s), f3 (B, C3, s, s), f4 (B, C4, s/2, s/2)."""
        if on_cpu(f1):
            a, b = mvsa_low(self.low_conv, f1, f2), mvsa_high(self.high_conv, f3, f4)
        else:
            a, b = self.low_conv(torch.cat((f1, up(f2)), dim=1)), self.high_conv(torch.cat((f3, up(f4)), dim=1))
        c = torch.cat((a, b), dim=1) + b.mean(dim=1, keepdim=True)
        return self.mask((self.value(c) * torch.sigmoid(self.gate(c))).flatten(1))


def up(x: Tensor) -> Tensor:
    """Upsample twofold, to the nearest pixel."""
    return functional.interpolate(x, scale_factor=2)


class GlobalBranch(nn.Module):
    """Images -> v_g. At image size S the attention map is S / 16 wide; published weights fit S = 256 and `resnet18`.

    normalise: v_g to unit length, as GaLR does and AMFMN does not. masked: with MVSA.
    """

    def __init__(
        self, trunk: ImageBackbone, image_size: int, embed_dim: int, normalise: bool = True, masked: bool = True
    ) -> None:
        super().__init__()
        self.normalise = normalise
        self.trunk = trunk
        self.solo = nn.Linear(self.trunk.width, embed_dim)
        self.mvsa = MVSA(self.trunk.channels, image_size // 16, embed_dim) if masked else None

    def forward(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, S, S), normalised -> v_g (B, D)."""
        *maps, pooled = self.trunk(images)
        v_g = self.solo(pooled).float()
        if self.mvsa is not None:
            v_g = v_g * torch.sigmoid(self.mvsa(*maps).float())
        return l2norm(v_g) if self.normalise else v_g
