"""The tiny demonstration set of the tests, its options, and a network that is small enough to train in moments."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

# A model of 11 million parameters, all but a few of them ResNet-18's; 12 of 16 train images train: 4 batches an epoch.
OPTIONS = """\
model:
    pretrained: none
    seq2vec: {pretrained: False, embedding_dim: 8, hidden_dim: 16}
    fusion: {gate: paper, dynamic_fusion_dim: 32, mca_HIDDEN_SIZE: 32, mca_FF_SIZE: 32, mca_MULTI_HEAD: 2,
             mca_HIDDEN_SIZE_HEAD: 16}
    embed: {embed_dim: 32}
dataset:
    datatype: demo
    data_path: data
    image_path: data/images
    vocab_path: vocab.json
    local_path: data/local.h5
    image_size: 64
    batch_size: 16
    batch_size_val: 2
    workers: 1
optim: {epochs: 2, lr: 0.0005}
logs: {print_freq: 3, save_steps: 3, ckpt_save_path: checkpoint, logger_name: logs}
k_fold: {experiment_name: tiny, val_fraction: 0.25}
"""


def make_demo_folder(folder: Path, images: int = 20) -> None:
    """Write the demonstration set to `folder`/data, its vocabulary, its local features, and tiny.yaml."""
    import vocab
    from layers.drea import DreaOptions
    from util import make_demo
    from util.build_local import drea, write_local
    from util.lists import read_captions, read_names, stem
    from util.regions.detections import to_regions
    from util.regions.readers import read_detections

    data = folder / "data"
    make_demo.make_demo(data, images, 64, 0)
    captions = [caption for split in ("train", "test") for caption in read_captions(data, split)]
    vocab.save(vocab.build(captions), folder / "vocab.json")
    names = [stem(name) for name in dict.fromkeys(read_names(data, "train") + read_names(data, "test"))]
    detections, _ = read_detections(data / "boxes")
    denoised, adjacency = drea(to_regions(detections, names, lambda _: (64, 64)), DreaOptions())
    nodes = np.stack([one.nodes for one in denoised])
    write_local(data / "local.h5", names, nodes, adjacency, {"source": "boxes"})
    (folder / "tiny.yaml").write_text(OPTIONS)


class Block(nn.Module):
    """Stand for a layer of ResNet-18 by its convolution that halves the size, alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        nn.Conv2d(channels, 1, 1)  # draws from the generator, as it did when golden/learning.json was made
        self.conv1 = nn.utils.skip_init(nn.Conv2d, channels, 2 * channels, 3, 2, 1, bias=False)
        nn.init.ones_(self.conv1.weight)  # uninitialised memory may hold NaN; ResNet18 draws anew

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv1(x))


@contextlib.contextmanager
def shortened() -> Iterator[None]:
    """Build models with a trunk of an eighth of ResNet-18's weights."""

    def trunk() -> nn.Module:
        net = nn.Module()
        net.conv1, net.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        net.relu, net.maxpool, net.layer1 = nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Sequential()
        for name, channels in (("layer2", 64), ("layer3", 128), ("layer4", 256)):
            setattr(net, name, nn.Sequential(Block(channels)))
        return net

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision.models, "resnet18", trunk)
        yield


def listing(folder: Path) -> dict[str, bytes | None]:
    """Return everything in a folder, hidden files too: path -> content, None for folders and other things."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in sorted(folder.rglob("*"))
    }
