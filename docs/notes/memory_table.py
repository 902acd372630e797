"""Print what a training step of each model holds in memory at batch 100, by the sizes of its tensors.

    python -m docs.notes.memory_table

Weights, gradients and Adam's two moments come from the parameters; activations are what autograd saves for the
backward pass of two smaller batches by a GPU's code path (run on a CPU), continued to 100. Workspaces of cuDNN, the
images in memory (dataset.cache: ram) and the allocator's slack come on top.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from engine import make_criterion, make_model, prepare
from layers.loss import Pairs
from layers.model import Model
from option import Options, load_options
from util.precision import autocast
from utils import Parser, run_command

MODELS = {"GaLR": 256, "AMFMN": 256, "VSEPP": 256, "CLIP": 224}  # option files of RSITMD, and their image size
WORDS, LENGTH, BATCH = 8000, 25, 100
SMALL = 4, 8  # pairs that are run
SETTINGS = {
    "fp32": "optim.precision=fp32",
    "bf16": "optim.precision=bf16",
    "bf16, checkpointing": "optim.precision=bf16 optim.checkpointing=true",
}


def main() -> None:
    Parser(prog="python -m docs.notes.memory_table", description="Print the memory of a training step.").parse_args()
    for module in list(sys.modules.values()):  # a GPU's code path
        if hasattr(module, "on_cpu"):
            module.on_cpu = lambda _: False
    print("| model | weights and Adam | activations fp32 | bf16 | bf16, checkpointing |\n|---|---|---|---|---|")
    for name, size in MODELS.items():
        cells = [measure(name, size, keys) for keys in SETTINGS.values()]
        print(f"| {name} | {cells[0][0]:.1f} | " + " | ".join(f"{cell[1]:.1f}" for cell in cells) + " |", flush=True)


def measure(name: str, size: int, keys: str) -> tuple[float, float]:
    """Return GiB of weights with gradients and Adam, and of what autograd saves at batch 100."""
    pretrained = "model.clip.weights=none" if name == "CLIP" else "model.pretrained=none"
    overrides = [pretrained, "dataset.captions_per_image=0", "optim.loss=triplet", *keys.split()]
    if name in ("GaLR", "AMFMN"):
        overrides.append("model.seq2vec.pretrained=false")
    device = torch.device("cpu")
    options = load_options(f"option/RSITMD/RSITMD_{name}.yaml", overrides)
    model = prepare(make_model(options, ["w"] * WORDS), options, device).train()
    state = sum(4 * p.numel() * (4 if p.requires_grad else 1) for p in model.parameters())
    first, second = (saved_bytes(model, options, size, 77 if name == "CLIP" else LENGTH, batch) for batch in SMALL)
    a_pair = (second - first) / (SMALL[1] - SMALL[0])
    return state / 2**30, (first + (BATCH - SMALL[0]) * a_pair) / 2**30


def saved_bytes(model: Model, options: Options, size: int, length: int, batch: int) -> int:
    """Return the bytes that autograd saves for the backward pass of a batch."""
    parameters = {parameter.data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}
    kept: list[Tensor] = []  # alive, so that no address comes twice

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters and storage.data_ptr() not in saved:
            saved[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    local = torch.randn(batch, 20, 20), torch.randn(batch, 20, 20)
    tokens = torch.randint(1, WORDS, (batch, length))
    places, positive = torch.arange(batch), torch.eye(batch, dtype=torch.bool)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), autocast(options, images.device):
        similarity = model(images, *local, tokens, (tokens != 0).sum(1))
        make_criterion(options.optim, images.device)(similarity, Pairs(places, places, positive))
    return sum(saved.values())


if __name__ == "__main__":
    run_command(main)
