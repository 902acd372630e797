"""Weights under the names of the released code, and back.

The released model keeps each gate of the GRU apart; ours stacks them (reset, update, candidate).
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from layers.weights import mismatch
from utils import InputError

# published prefix -> ours; within these, the small renamings of PARTS
PREFIXES = {
    "extract_feature.resnet.": "global_branch.resnet.",
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
    "fusion.l2l_SA.": "midf.local_sa.",
    "fusion.g2g_SA.": "midf.global_sa.",
    "fusion.g2l_SGA.": "midf.local_sga.",
    "fusion.l2g_SGA.": "midf.global_sga.",
    "fusion.dynamic_weight.": "midf.gamma.",
}
PARTS = {
    "mhatt1.": "attention1.",
    "mhatt2.": "attention2.",
    "mhatt.": "attention.",
    "linear_v.": "value.",
    "linear_k.": "key.",
    "linear_q.": "query.",
    "linear_merge.": "merge.",
    "ffn.mlp.fc.linear.": "feedforward.inner.",
    "ffn.mlp.linear.": "feedforward.outer.",
    ".a_2": ".a",
    ".b_2": ".b",
}
CELL = "text_feature.seq2vec.rnn.gru_cell."
STACKED = {
    "text_encoder.gru.input_weight": [f"{CELL}weight_i{gate}.weight" for gate in "rin"],
    "text_encoder.gru.input_bias": [f"{CELL}weight_i{gate}.bias" for gate in "rin"],
    "text_encoder.gru.hidden_weight": [f"{CELL}weight_h{gate}.weight" for gate in "rin"],
}


def _renamed(name: str, prefixes: dict[str, str], parts: dict[str, str]) -> str:
    for old, new in prefixes.items():
        if name.startswith(old):
            rest = name[len(old) :]
            if "fusion." in (old[:7], new[:7]):
                for part, ours in parts.items():
                    rest = re.sub(
                        rf"(?<![a-z0-9_]){re.escape(part)}" if part[0] != "." else re.escape(part) + "$", ours, rest
                    )
            return new + rest
    return name


def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> ours. Names that are not known stay as they are."""
    stacked = {name: parts for name, parts in STACKED.items() if all(part in state for part in parts)}
    ours = {name: torch.stack([state[part] for part in parts]) for name, parts in stacked.items()}
    taken = {part for parts in stacked.values() for part in parts}
    return ours | {_renamed(name, PREFIXES, PARTS): x for name, x in state.items() if name not in taken}


def to_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names -> published, for people who run the released code. Works for gradients as for weights."""
    prefixes, parts = ({new: old for old, new in table.items()} for table in (PREFIXES, PARTS))
    published = {}
    for name, x in state.items():
        if name in STACKED:
            published |= dict(zip(STACKED[name], x.unbind(0), strict=True))
        else:
            published[_renamed(name, prefixes, parts)] = x
    return published


def is_published(state: dict[str, Tensor]) -> bool:
    """Whether a state dict carries the released code's names."""
    return any(name.startswith("extract_feature.") for name in state)


def load_published(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load weights under published names, strictly.

    Raises InputError that lists the missing, the unexpected and the misshapen names.
    """
    fault = mismatch(state, to_published(model.state_dict()))
    if fault:
        raise InputError(f"the published weights do not fit this model: {fault}")
    model.load_state_dict(from_published(state))
