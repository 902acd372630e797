"""ResNet-18 (He et al. 2016), the trunk of every model here, and its four feature maps."""

from __future__ import annotations

import torchvision
from torch import Tensor, nn

from layers.strided_conv import StridedConv2d


def resnet18() -> nn.Module:
    """torchvision's, with random weights; its strided convolutions are those of layers/strided_conv.py."""
    net = torchvision.models.resnet18()
    for block in (net.layer2[0], net.layer3[0], net.layer4[0]):
        channels = block.conv1.in_channels
        block.conv1 = StridedConv2d(channels, 2 * channels, kernel_size=3, stride=2, padding=1, bias=False)
        nn.init.kaiming_normal_(block.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's
    return net


def feature_maps(net: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """images (B, 3, S, S) -> f1..f4, of 64, 128, 256, 512 channels and S/4, S/8, S/16, S/32 pixels a side."""
    f1 = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(images)))))
    f2 = net.layer2(f1)
    f3 = net.layer3(f2)
    return f1, f2, f3, net.layer4(f3)
