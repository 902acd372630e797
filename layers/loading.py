"""Weights from a table of names and tensors, by PyTorch's own rules."""

from __future__ import annotations

import copy
import re
import warnings
from collections import OrderedDict

import torch
from torch import Tensor, nn

COUNTER = "num_batches_tracked"  # of batch normalisation: unused at a fixed momentum, and absent from older files


def load_state(module: nn.Module, state: dict[str, Tensor], optional: tuple[str, ...] = ()) -> None:
    """Load weights as `load_state_dict` does, strictly, but for two things that a file may lack: the counters of batch
    normalisation, which are 0 then, and names that start with one of `optional`.

    Raises ValueError that lists what is missing, unexpected or misshapen; the module is then as it was.
    """
    counters = {name: torch.zeros_like(own) for name, own in module.state_dict().items() if name.endswith(COUNTER)}
    complete = OrderedDict(counters | state)
    complete._metadata = getattr(state, "_metadata", None)  # of the versions of modules: PyTorch mends older ones by it
    if fault := _fault(_without_content(module), complete, optional):
        raise ValueError(fault)
    module.load_state_dict(complete, strict=False)


def _without_content(module: nn.Module) -> nn.Module:
    """A copy of a module whose tensors have a shape, and take no memory."""
    tensors = {id(tensor): tensor.to("meta") for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, tensors)


def _fault(module: nn.Module, state: dict[str, Tensor], optional: tuple[str, ...]) -> str:
    """What keeps the state from being loaded, in words; empty if nothing does."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that nothing is copied into the module without content
            found = module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # a first line that names the module's class, then one line for each tensor
        return listed({"misshapen": [_shapes(line.strip()) for line in str(error).splitlines()[1:]]})
    missing = [name for name in found.missing_keys if not name.startswith(optional or "\0")]
    return listed({"missing": missing, "unexpected": found.unexpected_keys})


def _shapes(line: str) -> str:
    """PyTorch's line on a tensor of another shape, in fewer words."""
    found = re.fullmatch(r"size mismatch for (\S+): .*Size\(\[(.*)\]\) from .*Size\(\[(.*)\]\)\.", line)
    return f"{found[1]} ({found[2]}) instead of ({found[3]})" if found else line


def listed(faults: dict[str, list[str]]) -> str:
    """Kinds of faults and the names that have them, in words: how many, and the first twenty."""
    return "; ".join(
        f"{len(names)} {what}: {', '.join(names[:20])}" + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        for what, names in faults.items()
        if names
    )
