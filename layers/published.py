"""Load weights: under the names of the released code, and under our own.

The released model keeps each gate of the GRU apart; ours stacks them (reset, update, candidate).
"""

from __future__ import annotations

import re
from collections import OrderedDict

import torch
from torch import Tensor, nn

COUNTER = "num_batches_tracked"  # of batch norm: unused at a fixed momentum, and absent from older files
ATTENTION = {"linear_v.": "value.", "linear_k.": "key.", "linear_q.": "query.", "linear_merge.": "merge."}
FEEDFORWARD = {"ffn.mlp.fc.linear.": "feedforward.inner.", "ffn.mlp.linear.": "feedforward.outer."}


def _block(attentions: dict[str, str], norms: int) -> dict[str, str]:
    """Return the names within an SA or an SGA block."""
    heads = {a + old: b + new for a, b in attentions.items() for old, new in ATTENTION.items()}
    both = {"a_2": "a", "b_2": "b"}.items()
    return heads | FEEDFORWARD | {f"norm{i}.{old}": f"norm{i}.{new}" for i in range(1, norms + 1) for old, new in both}


SA = _block({"mhatt.": "attention."}, norms=2)
SGA = _block({"mhatt1.": "attention1.", "mhatt2.": "attention2."}, norms=3)

# the beginning of a published name -> of ours
NAMES = {
    "extract_feature.resnet.": "global_branch.trunk.net.",
    "extract_feature.linear.": "global_branch.solo.",
    "mvsa.LF_conv.": "global_branch.mvsa.low_conv.",
    "mvsa.HF_conv.": "global_branch.mvsa.high_conv.",
    "mvsa.conv1x1_1.": "global_branch.mvsa.value.",
    "mvsa.conv1x1_2.": "global_branch.mvsa.gate.",
    "mvsa.solo_attention.": "global_branch.mvsa.mask.",
    "local_feature.fc1.": "local_branch.graph.0.",
    "local_feature.fc2.": "local_branch.graph.1.",
    "local_feature.fc3.": "local_branch.graph.2.",
    "local_feature.out.": "local_branch.out.",
    "text_feature.seq2vec.embedding.": "text_encoder.embedding.",
    "text_feature.to_out.": "text_encoder.out.",
    "fusion.dynamic_weight.": "midf.gamma.",
    **{f"fusion.l2l_SA.{old}": f"midf.local_sa.{new}" for old, new in SA.items()},
    **{f"fusion.g2g_SA.{old}": f"midf.global_sa.{new}" for old, new in SA.items()},
    **{f"fusion.g2l_SGA.{old}": f"midf.local_sga.{new}" for old, new in SGA.items()},
    **{f"fusion.l2g_SGA.{old}": f"midf.global_sga.{new}" for old, new in SGA.items()},
    # AMFMN's, beside those that it shares with GaLR
    "cross_attention_s.cross_attention.0.": "attention.gate.",
    "cross_attention_s.cross_attention_fc1.0.": "attention.joint_gate.",
    "cross_attention_s.cross_attention_fc2.0.": "attention.joint_value.",
    "cross_attention_s.fc_visual.0.": "attention.visual.",
    "cross_attention_s.fc_text.0.": "attention.text.",
    "vgmf_gate.gate.": "unused_gate.",
    # VSE++'s
    "img_enc.cnn.module.": "trunk.net.",
    "img_enc.fc.": "image_out.",
    "txt_enc.embed.": "embedding.",
    "txt_enc.rnn.": "gru.",
}
CELL = "text_feature.seq2vec.rnn.gru_cell."
STACKED = {
    "text_encoder.gru.input_weight": [f"{CELL}weight_i{gate}.weight" for gate in "rin"],
    "text_encoder.gru.input_bias": [f"{CELL}weight_i{gate}.bias" for gate in "rin"],
    "text_encoder.gru.hidden_weight": [f"{CELL}weight_h{gate}.weight" for gate in "rin"],
}


def _renamed(name: str, names: dict[str, str]) -> str:
    old = next((old for old in names if name.startswith(old)), "")
    return names.get(old, "") + name[len(old) :]


def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename published names to ours. Unknown names stay as they are."""
    stacked = {name: parts for name, parts in STACKED.items() if all(part in state for part in parts)}
    ours = {name: torch.stack([state[part] for part in parts]) for name, parts in stacked.items()}
    taken = {part for parts in stacked.values() for part in parts}
    return ours | {_renamed(name, NAMES): x for name, x in state.items() if name not in taken}


def to_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename our names to published ones. Works for gradients as for weights."""
    names = {new: old for old, new in NAMES.items()}
    published = {}
    for name, x in state.items():
        if name in STACKED:
            published |= dict(zip(STACKED[name], x.unbind(0), strict=True))
        else:
            published[_renamed(name, names)] = x
    return published


def is_published(state: dict[str, Tensor]) -> bool:
    """Return whether a state dict carries the released code's names."""
    return any(name.startswith(("extract_feature.", "img_enc.")) for name in state)


def load_published(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load weights under published names, strictly; the counters of batch norm may be missing.

    Raises ValueError that lists the missing, the unexpected and the misshapen names; the model is then as it was.
    """
    wanted = to_published(model.state_dict())
    missing = [name for name in wanted if name not in state and not name.endswith(COUNTER)]
    unexpected = [name for name in state if name not in wanted]
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    if fault := _listed({"missing": missing, "unexpected": unexpected, "misshapen": shapes}):
        raise ValueError(f"under the published names, {fault}")
    load_state(model, from_published(state))


def load_state(module: nn.Module, state: dict[str, Tensor], optional: tuple[str, ...] = ()) -> None:
    """Load weights as `load_state_dict` does, strictly, except for two things that a file may lack: the counters of
    batch norm, which are 0 then, and names that start with one of `optional`.

    Raises ValueError that lists what is missing, unexpected or misshapen; the module is then as it was.
    """
    before = module.state_dict()
    counters = {name: torch.zeros_like(own) for name, own in before.items() if name.endswith(COUNTER)}
    complete = OrderedDict(counters | state)
    complete._metadata = getattr(state, "_metadata", None)  # of the versions of modules: PyTorch mends older ones by it
    before = {name: own.clone() for name, own in before.items()}
    try:
        found = module.load_state_dict(complete, strict=False)
        missing = [name for name in found.missing_keys if not name.startswith(optional or "\0")]
        fault = _listed({"missing": missing, "unexpected": found.unexpected_keys})
    except RuntimeError as error:  # a first line that names the module's class, then one line for each tensor
        fault = _listed({"misshapen": [_in_short(line.strip()) for line in str(error).splitlines()[1:]]})
    if fault:
        module.load_state_dict(before)
        raise ValueError(fault)


def _in_short(line: str) -> str:
    """Shorten PyTorch's line on a tensor of another shape."""
    found = re.fullmatch(r"size mismatch for (\S+): .*Size\(\[(.*)\]\) from .*Size\(\[(.*)\]\)\.", line)
    return f"{found[1]} ({found[2]}) instead of ({found[3]})" if found else line


def _listed(faults: dict[str, list[str]]) -> str:
    """Return each kind of fault with how many names have it, and the first twenty of them."""
    return "; ".join(
        f"{len(names)} {what}: {', '.join(names[:20])}" + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        for what, names in faults.items()
        if names
    )
