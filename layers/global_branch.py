"""Global branch: ResNet-18 and multi-scale visual self-attention, MVSA (paper section III-A; released code).

f1..f4 = layer1..layer4 of ResNet-18           low = [f1; up(f2)]        high = [f3; up(f4)]
solo   = Linear(mean of f4 over positions)
a = conv3x3, stride 4 (low)    b = conv1x1 (high)    c = [a; b] + mean of b over its channels
mask   = Linear(flatten(conv1x1(c) * sigmoid(conv1x1'(c))))
v_g    = l2norm(solo * sigmoid(mask))
"""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional


def l2norm(x: Tensor) -> Tensor:
    """x / (|x| + 1e-8) along the last dimension (released code)."""
    return x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + 1e-8)


class MVSA(nn.Module):
    """Multi-scale visual self-attention: a mask (B, D) from shallow and deep feature maps."""

    def __init__(self, size: int, embed_dim: int) -> None:
        super().__init__()
        self.low_conv = nn.Conv2d(192, 3, kernel_size=3, stride=4)
        self.high_conv = nn.Conv2d(768, 3, kernel_size=1)
        self.value = nn.Conv2d(6, 1, kernel_size=1)
        self.gate = nn.Conv2d(6, 1, kernel_size=1)
        self.mask = nn.Linear(size * size, embed_dim)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """low (B, 192, 4s, 4s), high (B, 768, s, s) -> (B, D)."""
        b = self.high_conv(high)
        c = torch.cat((self.low_conv(low), b), dim=1) + b.mean(dim=1, keepdim=True)
        return self.mask((self.value(c) * torch.sigmoid(self.gate(c))).flatten(1))


class GlobalBranch(nn.Module):
    """Images -> v_g. At image size S the attention map is S / 16 wide; published weights fit S = 256."""

    def __init__(self, image_size: int, embed_dim: int) -> None:
        super().__init__()
        self.resnet = torchvision.models.resnet18()  # its fc is not used, but published files carry it
        self.solo = nn.Linear(512, embed_dim)
        self.mvsa = MVSA(image_size // 16, embed_dim)

    def trunk(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """images (B, 3, S, S) -> low (B, 192, S/4, S/4), high (B, 768, S/16, S/16), mean of f4 (B, 512)."""
        net = self.resnet
        f1 = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(images)))))
        f2 = net.layer2(f1)
        f3 = net.layer3(f2)
        f4 = net.layer4(f3)
        low = torch.cat((f1, functional.interpolate(f2, scale_factor=2)), dim=1)
        high = torch.cat((f3, functional.interpolate(f4, scale_factor=2)), dim=1)
        return low, high, f4.mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 3, S, S), normalised -> v_g (B, D), of unit length."""
        low, high, mean = self.trunk(images)
        return l2norm(self.solo(mean).float() * torch.sigmoid(self.mvsa(low, high).float()))
