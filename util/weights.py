"""Files of weights, read without running anything in them, and the weights that a new model starts from."""

from __future__ import annotations

import os
import pickle
import re
import shlex
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor

from layers.backbone import ImageBackbone, TimmBackbone
from layers.clip import CLIPNetwork
from layers.model import Model
from layers.published import load_state
from layers.text_encoder import TransformerEncoder
from option.models import CLIPSource, ModelOptions, Seq2Vec, Transformer
from util.pickles import Type, scalar
from util.skipthoughts import load_skipthoughts
from utils import InputError, existing_file, not_installed, some

# ---------------------------------------------------------------- files

# NumPy's numbers among plain ones (a best score) are read by stand-ins, so that NumPy's own functions are never called.
NUMPY_SCALARS = [
    (scalar, "numpy.core.multiarray.scalar"),
    (scalar, "numpy._core.multiarray.scalar"),
    (Type, "numpy.dtype"),
]
WRAPPERS = "module.", "_orig_mod."  # prefixes of DataParallel and DistributedDataParallel, and of torch.compile


def load_torch(path: str | os.PathLike, what: str) -> Any:
    """Read a file of torch.save onto the CPU with `weights_only`; NumPy's numbers come as Python's.

    Raises InputError for a missing or damaged file and for one that holds more than tensors and plain containers.
    """
    path = existing_file(path, what)
    _check_archive(path, what)
    try:
        with torch.serialization.safe_globals(NUMPY_SCALARS), path.open("rb") as file:  # by content, not by suffix
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # PyTorch's message goes on to advise an unsafe way
        found = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it names {found[1]}" if found else "it is no archive of tensors"
        raise InputError(f"{what} {path} is damaged, or holds more than weights, and was not read ({reason})") from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged archive raises errors of many kinds
        if "legacy .tar" in str(error):
            raise InputError(f"{what} {path} is a .tar of PyTorch 0.1; save it anew with PyTorch 1") from None
        raise InputError(f"{what} {path} is damaged ({' '.join(str(error).split())[:200]})") from None


def _check_archive(path: Path, what: str) -> None:
    """Check every part of an archive of torch.save by its checksum (CRC-32), which PyTorch itself does not.

    Raises InputError for a damaged archive, for one that would unpack to more than its size (PyTorch compresses
    nothing), and for a program of torch.jit.save. Files of before PyTorch 1.6 are no archives and pass.
    """
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(part.file_size for part in archive.infolist())
            program = any(name.endswith("/constants.pkl") for name in archive.namelist())
            damaged = None if unpacked > path.stat().st_size else archive.testzip()
    except Exception as error:  # a damaged archive raises errors of many kinds
        raise InputError(f"{what} {path} is damaged ({error})") from None
    if program:
        new = path.with_suffix(".weights.pt")
        code = f"import torch; torch.save(torch.jit.load({str(path)!r}, 'cpu').state_dict(), {str(new)!r})"
        raise InputError(
            f"{what} {path} is a TorchScript program, and was not run; if you trust it, this line converts it to a "
            f"file of weights, {new}: python -c {shlex.quote(code)}"
        )
    if unpacked > path.stat().st_size:
        raise InputError(f"{what} {path} is a packed archive, not a file of torch.save, and was not read")
    if damaged:
        raise InputError(f"{what} {path} is damaged (the checksum of {damaged} is wrong)")


def weights_of(tree: Any, keys: tuple[str, ...] = ("model", "state_dict")) -> dict[str, Tensor] | None:
    """Return the table of names and tensors in what `load_torch` gave: under the first key that is there, or all of it.

    Prefixes that wrappers of the model put before all names are removed. None if there is no such table.
    """
    for key in keys:
        tree = tree.get(key, tree) if isinstance(tree, dict) else tree
    if not isinstance(tree, dict) or not tree:
        return None
    state = OrderedDict(dict.items(tree))
    if not all(isinstance(name, str) and _is_plain(value) for name, value in state.items()):
        return None
    state._metadata = _versions(getattr(tree, "_metadata", None))
    while wrapper := next((wrapper for wrapper in WRAPPERS if all(name.startswith(wrapper) for name in state)), ""):
        torch.nn.modules.utils.consume_prefix_in_state_dict_if_present(state, wrapper)
    return state


def _is_plain(value: Any) -> bool:
    """Return whether it is a dense tensor whose numbers are in memory."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _versions(metadata: Any) -> OrderedDict[str, dict[str, int]]:
    """Return the versions of modules that PyTorch stores beside a table of weights, and nothing else of it."""
    found = dict.items(metadata) if isinstance(metadata, dict) else ()
    return OrderedDict(
        (name, {"version": of_module["version"]})
        for name, of_module in found
        if isinstance(name, str) and isinstance(of_module, dict) and type(of_module.get("version")) is int
    )


def read_weights(path: str | os.PathLike, what: str, ignored: Collection[str] = ()) -> dict[str, Tensor]:
    """Read a table of finite weights but for the ignored names: a file of torch.save or of safetensors, by content.

    Raises InputError that names the file.
    """
    path = existing_file(path, what)
    with path.open("rb") as file:
        is_safetensors = file.read(9)[8:] == b"{"  # behind the length of its JSON header
    state = _read_safetensors(path, what) if is_safetensors else weights_of(load_torch(path, what))
    if state is None:
        raise InputError(f"{what} {path}: not a table of names and tensors")
    for name in ignored:
        state.pop(name, None)
    check_finite(state, f"{what} {path}")
    return state


def _read_safetensors(path: Path, what: str) -> dict[str, Tensor]:
    with not_installed(f"{what} {path}"):
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{what} {path} is damaged ({error})") from None


def check_finite(weights: dict[str, Tensor], where: str) -> None:
    """Raise InputError, which begins with `where`, for weights with NaN or infinity."""
    if spoilt := [name for name, value in weights.items() if not torch.isfinite(value).all()]:
        raise InputError(f"{where}: weights that are not finite in {len(spoilt)} tensors: {some(spoilt)}")


# ---------------------------------------------------------------- starting weights

BACKBONE = "weights of the backbone (model.pretrained)"
CLIP = "weights of CLIP (model.clip.weights)"
RESNET_URL = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
OURS = "trunk.net."  # precedes the library's names in a checkpoint of train.py
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


def load_backbone(backbone: ImageBackbone, pretrained: str) -> None:
    """Load `pretrained`: imagenet (downloaded once by torchvision or timm), none, or the path of a file.

    The file may lack the classifier, or have one of other classes. Of a checkpoint of train.py the backbone is taken.
    Raises InputError if weights cannot be had or do not fit.
    """
    if pretrained == "none":
        return
    if pretrained == "imagenet":
        timm_has = isinstance(backbone, TimmBackbone)
        state = _timm_weights(backbone) if timm_has else read_weights(_downloaded_resnet(), BACKBONE)
    else:
        state = read_weights(pretrained, BACKBONE)
        state = {name.partition(OURS)[2]: value for name, value in state.items() if OURS in name} or state
    spare = backbone.classifier
    state = {name: value for name, value in state.items() if not name.startswith(spare or "\0")}
    try:
        load_state(backbone.net, state, optional=spare)
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
            raise InputError(
                f"the ImageNet weights of ResNet-18 cannot be downloaded ({error}); fetch {RESNET_URL} elsewhere and "
                "set model.pretrained to the file's path, or set model.pretrained to none"
            ) from None
    return path


def _timm_weights(backbone: TimmBackbone) -> dict[str, Tensor]:
    import timm

    try:
        return timm.create_model(backbone.name, pretrained=True, num_classes=0).state_dict()
    except Exception as error:  # of the network, of the hub, or of timm, which has no weights for some
        raise InputError(
            f"the weights of {backbone.name} cannot be downloaded ({' '.join(str(error).split())[:300]}); fetch them "
            "elsewhere and set model.pretrained to the file's path, or set model.pretrained to none"
        ) from None


def load_clip(network: CLIPNetwork, source: CLIPSource) -> None:
    """Load `source.weights`: a name of open_clip (downloaded once), none, or the path of a file.

    Files: state dicts of OpenAI (half precision), RemoteCLIP, GeoRSCLIP and open_clip. Position embeddings are
    interpolated to the image size. Raises InputError if weights cannot be had or do not fit.
    """
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed

    if source.weights == "none":
        return
    net = network.net
    path = source.weights if Path(source.weights).exists() else _downloaded_clip(source)
    made_anew = {name for name, _ in net.named_buffers()} - set(net.state_dict())
    state = read_weights(path, CLIP, ignored={*NOT_WEIGHTS, *made_anew})
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
        raise InputError(f"{CLIP} {source.weights} do not fit model.clip.arch {source.arch}: {error}") from None


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
        raise InputError(
            f"{CLIP} {source.weights} cannot be downloaded ({' '.join(str(error).split())[:300]}); fetch them "
            "elsewhere and set model.clip.weights to the file's path, or to none"
        ) from None


def load_transformer(encoder: TransformerEncoder, options: Transformer) -> None:
    """Load a transformer from its folder or from Hugging Face. Raises InputError if weights cannot be had."""
    from transformers import AutoModel

    try:
        network = AutoModel.from_pretrained(options.path, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"model.seq2vec.path {options.path}: no weights there ({reason})") from None
    encoder.network.load_state_dict(network.state_dict())
