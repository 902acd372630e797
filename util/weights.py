"""The weights that a new model starts from.

ResNet-18: torchvision's ImageNet weights, or a state dict in a file. Text encoder: the skip-thoughts folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.error import URLError

import torchvision
from torch import nn

from layers.loading import load_state
from layers.model import Model
from option.models import ModelOptions
from util.errors import InputError
from util.skipthoughts import load_skipthoughts
from util.torch_files import load_torch, weights_of

RESNET_URL = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url


def load_starting_weights(model: Model, options: ModelOptions, words: Sequence[str]) -> None:
    """Give a new model the weights that its options ask for; without any, its random ones stay.

    words: the vocabulary in index order from 1. Raises InputError where a file is missing, damaged or misshapen.
    """
    load_resnet(model.resnet, options.pretrained)
    if hasattr(options, "seq2vec") and options.seq2vec.pretrained:
        load_skipthoughts(model.text_encoder, options.seq2vec, words)


def load_resnet(resnet: nn.Module, pretrained: str) -> None:
    """`pretrained`: imagenet (downloaded once by torchvision), none, or the path of a ResNet-18 state dict.

    A file may lack the unused `fc`, or have one of another data set's classes; it may hold its weights under `model` or
    `state_dict`. Raises InputError where weights cannot be had or do not fit.
    """
    if pretrained == "none":
        return
    if pretrained == "imagenet":
        try:
            state = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.get_state_dict(check_hash=True)
        except (URLError, OSError, RuntimeError) as error:
            raise InputError(
                f"the ImageNet weights of ResNet-18 cannot be downloaded ({error}); fetch {RESNET_URL} elsewhere and "
                "set model.pretrained to the file's path, or set model.pretrained to none"
            ) from None
    else:
        state = weights_of(load_torch(pretrained, "ResNet-18 weights (model.pretrained)"))
    if state is None:
        raise InputError(f"ResNet-18 weights (model.pretrained) {pretrained}: not a table of names and tensors")
    try:
        load_state(resnet, {k: v for k, v in state.items() if not k.startswith("fc.")}, optional=("fc.",))
    except ValueError as error:
        raise InputError(f"ResNet-18 weights (model.pretrained) {pretrained}: {error}") from None
