"""The backbone: the network that turns images into feature maps, ResNet-18 (He et al. 2016) or one of timm.

f1..f4 are its last feature maps of S/4, S/8, S/16 and S/32 pixels a side.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import NamedTuple, Self

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from layers.cpu import fuse_norms, fused
from layers.distributed import GlobalBatch, Shard

STRIDES = (4, 8, 16, 32)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet: red, green, blue


class Backbone(nn.Module):
    """A network that may start from pretrained weights.

    net: the network itself, under the names of its library.
    """

    net: nn.Module

    @contextlib.contextmanager
    def fused(self, image_size: int) -> Iterator[None]:
        """Fuse batch norms into convolutions within this context, where that is faster and the network has any."""
        yield

    def recompute(self) -> None:
        """Compute activations anew in the backward pass instead of keeping them (gradient checkpointing).

        Raise ValueError where this network cannot without changing its numbers.
        """
        if any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in self.train().modules()):
            raise ValueError("batch norms of this network would count every batch twice; model.trunk_norm=frozen helps")
        if not hasattr(self.net, "set_grad_checkpointing"):
            raise ValueError(f"{type(self.net).__name__} has no gradient checkpointing")
        self.net.set_grad_checkpointing()


class Features(NamedTuple):
    """Feature maps f1..f4, (B, C, S/4, S/4) to (B, C', S/32, S/32), and a vector (B, W) of images (B, 3, S, S)."""

    f1: Tensor
    f2: Tensor
    f3: Tensor
    f4: Tensor
    pooled: Tensor


class ImageBackbone(Backbone):
    """Map images (B, 3, S, S) to Features.

    channels: of f1..f4; width: of the pooled vector; classifier: prefixes of the parameters that only classification
    needs; frozen_norm: batch norm keeps the statistics that the network came with, while scale and shift learn.
    """

    channels: tuple[int, ...]
    width: int
    classifier: tuple[str, ...]
    frozen_norm = False

    def forward(self, images: Tensor) -> Features:
        raise NotImplementedError

    @contextlib.contextmanager
    def fused(self, image_size: int) -> Iterator[None]:
        """Fuse batch norms into convolutions within this context (evaluation)."""
        device = next(self.parameters()).device
        with fused(self, torch.zeros(1, 3, image_size, image_size, device=device)):
            yield

    def freeze_norms(self, image_size: int) -> None:
        """Freeze the statistics of batch norm and fuse it into the convolutions, from now on."""
        self.frozen_norm = True
        fuse_norms(self, torch.zeros(1, 3, image_size, image_size))
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; frozen batch norms are always in the latter."""
        super().train(mode)
        for module in self.modules():
            if self.frozen_norm and isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


class ResNet18(ImageBackbone):
    """torchvision's ResNet-18 with random weights."""

    channels, width, classifier = (64, 128, 256, 512), 512, ("fc.",)
    recomputed = False

    def __init__(self) -> None:
        super().__init__()
        self.net = torchvision.models.resnet18()  # its fc is not used, but published files carry it
        for block in (self.net.layer2[0], self.net.layer3[0], self.net.layer4[0]):
            block.conv1.reset_parameters()  # drawn anew, so that a seed gives the weights that it always gave
            nn.init.kaiming_normal_(block.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's

    def forward(self, images: Tensor) -> Features:
        net = self.net
        x, maps = self._call(nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool), images), []
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            for block in layer:
                x = self._call(block, x)
            maps.append(x)
        return Features(*maps, x.mean(dim=(2, 3)))

    def recompute(self) -> None:
        self.recomputed = True

    def _call(self, part: nn.Module, x: Tensor) -> Tensor:
        """Apply a part of the network; keep x alone for the backward pass where activations are computed anew."""
        if not (self.recomputed and torch.is_grad_enabled()):
            return part(x)
        again = functools.partial(counted_once, part, GlobalBatch.current)
        contexts = {"context_fn": lambda: (nullcontext(), again())}
        return checkpoint(part, x, use_reentrant=False, preserve_rng_state=False, **contexts)


@contextlib.contextmanager
def counted_once(part: nn.Module, shard: Shard | None) -> Iterator[None]:
    """Keep the running statistics of batch norms as they are within this context; `shard`: of a global batch."""
    norms = [norm for norm in part.modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.training]
    before = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        with GlobalBatch(shard) if shard else nullcontext():
            yield
    finally:
        for norm, momentum, count in before:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)


class TimmBackbone(ImageBackbone):
    """A network of timm by its name there, with random weights and without its classifier.

    What stands between the last feature map and the classifier (a last convolution, the pooling) gives the pooled
    vector. Raises ValueError for a name that timm lacks, and for a network without four such maps at this image size.
    """

    def __init__(self, name: str, image_size: int) -> None:
        super().__init__()
        import timm

        if not timm.is_model(name):
            near = ", ".join(timm.list_models(f"*{name.split('.')[0]}*")[:5])
            raise ValueError(f"model.trunk {name} is neither resnet18 nor a model of timm" + (near and f" ({near})"))
        try:
            self.net = timm.create_model(name, num_classes=0)
            with torch.no_grad():
                final, maps = self.net.eval().forward_intermediates(torch.zeros(1, 3, image_size, image_size))
                self.width = self.net.forward_head(final).shape[1]
        except Exception as error:  # whatever keeps it from working: a fixed image size, no intermediate maps, ...
            raise ValueError(f"model.trunk {name} gives no feature maps at image size {image_size} ({error})") from None
        self.net.train()
        sides = [feature_map.shape[-1] for feature_map in maps]
        last = {side: index for index, side in enumerate(sides)}
        self.maps = [last.get(image_size // stride) for stride in STRIDES]
        if None in self.maps:
            raise ValueError(
                f"model.trunk {name} gives feature maps of {sides} pixels a side at image size "
                f"{image_size}; those of a 4th, an 8th, a 16th and a 32nd are needed"
            )
        self.channels = tuple(maps[index].shape[1] for index in self.maps)
        classifier = self.net.pretrained_cfg.get("classifier", ())
        self.name = name
        self.classifier = tuple(f"{part}." for part in ([classifier] if isinstance(classifier, str) else classifier))
        mean, std = (tuple(self.net.pretrained_cfg.get(key, own)) for key, own in (("mean", MEAN), ("std", STD)))
        self.renormalise = nn.Identity() if (mean, std) == (MEAN, STD) else Renormalise(mean, std)

    def forward(self, images: Tensor) -> Features:
        final, maps = self.net.forward_intermediates(self.renormalise(images), indices=self.maps)
        return Features(*maps, self.net.forward_head(final))


class Renormalise(nn.Module):
    """Convert images normalised by ImageNet's mean and deviation to the given ones. It has no weights."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        mean, std, given_mean, given_std = (torch.tensor(x).view(3, 1, 1) for x in (mean, std, MEAN, STD))
        self.register_buffer("scale", given_std / std, persistent=False)
        self.register_buffer("shift", (given_mean - mean) / std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return torch.addcmul(self.shift, images, self.scale)


def make_backbone(name: str, image_size: int, norm: str = "batch") -> ImageBackbone:
    """Build `resnet18`, or a network of timm by its name. norm: statistics of the batch, or `frozen`.

    Raises ValueError, and ImportError where timm is not installed.
    """
    backbone = ResNet18() if name == "resnet18" else TimmBackbone(name, image_size)
    if norm == "frozen":
        backbone.freeze_norms(image_size)
    return backbone
