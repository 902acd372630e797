"""The seeded models and batches of golden/*.npz (see ../shared/golden/README.md), rebuilt from the seed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from layers import build_model
from layers.published import load_published
from option import load_options

GOLDEN = Path(__file__).parent / "golden"


def seeded(name: str, shape: list[int], rng: np.random.RandomState) -> np.ndarray:
    if name.endswith("num_batches_tracked"):
        return np.int64(1)
    x = rng.standard_normal(shape)
    if name.endswith("running_var"):
        x = 0.5 + rng.rand(*shape)
    elif name.endswith("running_mean"):
        x = 0.1 * x
    elif (".bn" in name and name.endswith("weight")) or "downsample.1.weight" in name or name.endswith("a_2"):
        x = 1 + 0.1 * x
    elif name.endswith(("bias", "b_2")) or "bias_" in name:
        x = 0.05 * x
    elif x.ndim >= 2:
        x = x / np.sqrt(np.prod(shape[1:]))
    return x.astype("float32")


def numbers(name: str = "model_a") -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


def weights(golden: dict) -> dict[str, torch.Tensor]:
    """Return the published state dict."""
    seed, shapes = int(golden["seed"]), json.loads(str(golden["shapes"]))
    return {
        name: torch.as_tensor(seeded(name, shapes[name], np.random.RandomState([seed, i])))
        for i, name in enumerate(sorted(shapes))
    }


def inputs(golden: dict) -> tuple[torch.Tensor, ...]:
    """Return images, local_rep, local_adj, token_ids, lengths."""
    rng, batch = np.random.RandomState(int(golden["seed"]) + 1000), int(golden["batch"])
    images = rng.standard_normal((batch, 3, 256, 256)).astype("float32")
    local_rep = rng.rand(batch, 20, 20).astype("float32")
    local_adj = rng.rand(batch, 20, 20).astype("float32")
    local_adj = (local_adj + local_adj.transpose(0, 2, 1)) / 2
    return tuple(map(torch.from_numpy, (images, local_rep, local_adj, golden["token_ids"], golden["lengths"])))


def model(golden: dict, gate: str = "released") -> torch.nn.Module:
    """Build the golden GaLR in evaluation mode."""
    return built(weights(golden), "option/RSITMD/RSITMD_GaLR.yaml", [f"model.fusion.gate={gate}"])


def built(state: dict[str, torch.Tensor], path: str, overrides: list[str]) -> torch.nn.Module:
    """Build the model of an option file with published weights, in evaluation mode."""
    model = build_model(load_options(path, overrides), [f"w{i}" for i in range(40)])
    load_published(model, state)
    return model.eval()
