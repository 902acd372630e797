"""The weights that a CLIP starts from: of open_clip by name, or of a file in one of the forms that people hold."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from layers.clip import CLIPNetwork
from layers.published import load_state
from option.options import CLIPSource
from util.torch_files import load_safetensors, load_torch, weights_of
from util.torchscript import is_torchscript, load_torchscript
from utils import InputError

WHAT = "weights of CLIP (model.clip.weights)"
NOTES = ("input_resolution", "context_length", "vocab_size")  # numbers that stand among the weights of OpenAI's files


def load_clip(network: CLIPNetwork, source: CLIPSource) -> None:
    """`source.weights`: a name of open_clip (downloaded once), none, or the path of a file.

    Files: OpenAI's (a TorchScript archive, or its state dict, in half precision), RemoteCLIP's (open_clip's state
    dict), GeoRSCLIP's and open_clip's checkpoints (`state_dict`, names with `module.`), safetensors. Position
    embeddings are interpolated to the image size. Raises InputError where weights cannot be had or do not fit.
    """
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed

    if source.weights == "none":
        return
    net = network.net
    state = _read(Path(source.weights) if Path(source.weights).exists() else _download(source))
    if state is None:
        raise InputError(f"{WHAT} {source.weights}: not a table of names and tensors")
    passing = {name for name, _ in net.named_buffers()} - set(net.state_dict())  # made anew, not loaded
    state = {name: value for name, value in state.items() if name not in NOTES and name not in passing}
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
        raise InputError(f"{WHAT} {source.weights} do not fit model.clip.arch {source.arch}: {error}") from None
    if not all(torch.isfinite(value).all() for value in net.state_dict().values()):
        raise InputError(f"{WHAT} {source.weights}: not all of them are finite")


def _read(path: Path) -> dict[str, Tensor] | None:
    if path.suffix == ".safetensors":
        return load_safetensors(path, WHAT)
    if is_torchscript(path):
        return load_torchscript(path, WHAT)
    return weights_of(load_torch(path, WHAT))


def _download(source: CLIPSource) -> Path:
    """open_clip's file of named weights, from its cache or from the network."""
    import open_clip

    arch = source.arch.replace("/", "-")
    named = open_clip.pretrained.get_pretrained_cfg(arch, source.weights)
    if not named:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(arch)) or "none for this architecture"
        raise InputError(f"{WHAT} {source.weights}: neither a file nor a name of open_clip for {arch} ({known})")
    try:
        return Path(open_clip.pretrained.download_pretrained(named))
    except Exception as error:  # of the network, or of the hub
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{WHAT} {source.weights} cannot be downloaded ({reason}); fetch them elsewhere and set model.clip.weights "
            "to the file's path, or to none"
        ) from None
