"""The weights that a trunk starts from: of ImageNet, or of a file."""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor

from layers.backbone import ImageBackbone, TimmBackbone
from layers.published import load_state
from util.torch_files import load_safetensors, load_torch, weights_of
from utils import InputError

RESNET_URL = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
WHAT = "weights of the trunk (model.pretrained)"
OURS = "trunk.net."  # in the names of a checkpoint of train.py, before the library's


def load_trunk(trunk: ImageBackbone, pretrained: str) -> None:
    """`pretrained`: imagenet (downloaded once by torchvision or timm), none, or the path of a state dict.

    A file may lack the classifier, or have one of another data set's classes; it may hold its weights under `model` or
    `state_dict`. Of a checkpoint of train.py, of whatever data set, the trunk is taken.
    Raises InputError where weights cannot be had or do not fit.
    """
    if pretrained == "none":
        return
    if pretrained == "imagenet":
        state = _timm_weights(trunk) if isinstance(trunk, TimmBackbone) else _resnet_weights()
    else:
        state = _file(pretrained)
    if state is None:
        raise InputError(f"{WHAT} {pretrained}: not a table of names and tensors")
    spare = trunk.classifier
    try:
        load_state(trunk.net, {k: v for k, v in state.items() if not k.startswith(spare or "\0")}, optional=spare)
    except ValueError as error:
        raise InputError(f"{WHAT} {pretrained}: {error}") from None


def _resnet_weights() -> dict[str, Tensor] | None:
    """From where torchvision keeps what it downloads; it would execute what such a file names, and so is not asked."""
    path = Path(torch.hub.get_dir(), "checkpoints", Path(RESNET_URL).name)
    if not path.is_file():
        digest = path.stem.partition("-")[2]  # the first digits of its sha256, which its name holds
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(RESNET_URL, str(path), hash_prefix=digest, progress=sys.stderr.isatty())
        except (URLError, OSError, RuntimeError) as error:
            raise InputError(
                f"the ImageNet weights of ResNet-18 cannot be downloaded ({error}); fetch {RESNET_URL} elsewhere and "
                "set model.pretrained to the file's path, or set model.pretrained to none"
            ) from None
    return weights_of(load_torch(path, WHAT))


def _timm_weights(trunk: TimmBackbone) -> dict[str, Tensor]:
    import timm

    try:
        return timm.create_model(trunk.name, pretrained=True, num_classes=0).state_dict()
    except Exception as error:  # of the network, of the hub, or of timm, which has no weights for some
        raise InputError(
            f"the weights of {trunk.name} cannot be downloaded ({' '.join(str(error).split())[:300]}); fetch them "
            "elsewhere and set model.pretrained to the file's path, or set model.pretrained to none"
        ) from None


def _file(path: str) -> dict[str, Tensor] | None:
    """A state dict in the library's names; of a checkpoint of train.py what belongs to its trunk."""
    state = load_safetensors(path, WHAT) if Path(path).suffix == ".safetensors" else weights_of(load_torch(path, WHAT))
    of_trunk = {name.partition(OURS)[2]: tensor for name, tensor in (state or {}).items() if OURS in name}
    return of_trunk or state
