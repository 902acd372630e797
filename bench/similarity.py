"""AMFMN's similarities at RSICD's test size, 1093 images x 5465 captions of 512 numbers: seconds and memory, by form.

The baseline lays the vectors F of a block of 128 x 128 pairs out and works on them as the formulas stand; it does one
row of blocks, and its time is scaled to all images. Each side has a process of its own, and only one is alive.

    python -m bench.similarity [--device auto|cpu|cuda] [--rounds 3]
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from bench import Case, figures, measured, peak_mib
from bench.train import wait
from layers.amfmn import ATTENTION
from layers.cpu import reuse_memory
from util.device import pick_device
from utils import InputError, Parser, RunError, run_command

IMAGES, CAPTIONS, WIDTH = 1093, 5465, 512
BLOCK = 128
TOLERANCE = 1e-5


def vectors(form: str, sizes: tuple[int, int, int], device: torch.device) -> tuple[torch.nn.Module, Tensor, Tensor]:
    """The attention, image vectors and text vectors, from one seed."""
    images, captions, width = sizes
    torch.manual_seed(0)
    attention = ATTENTION[form](width)
    v, t = torch.randn(images, width), torch.randn(captions, width).relu()
    return attention.to(device), v.to(device), t.to(device)


def ours(form: str, sizes: tuple[int, int, int], device: torch.device) -> Callable[[], tuple[np.ndarray, float]]:
    """All similarities at once. Returns those of the first block's images, and the MiB that memory grew by."""
    if device.type == "cpu":
        reuse_memory()  # as in every command
    attention, v, t = vectors(form, sizes, device)

    @torch.no_grad()
    def work() -> tuple[np.ndarray, float]:
        before = peak_mib()
        sims = attention(v, t)
        wait(device)
        return sims[:BLOCK].cpu().numpy(), peak_mib() - before

    return work


def baseline(form: str, sizes: tuple[int, int, int], device: torch.device) -> Callable[[], tuple[np.ndarray, float]]:
    """One row of blocks, laid out. Returns its similarities, and the MiB that memory grew by."""
    attention, v, t = vectors(form, sizes, device)

    @torch.no_grad()
    def work() -> tuple[np.ndarray, float]:
        before = peak_mib()
        sims = torch.cat([plain(form, attention, v[:BLOCK], part) for part in t.split(BLOCK)], dim=1)
        wait(device)
        return sims.cpu().numpy(), peak_mib() - before

    return work


def plain(form: str, attention: torch.nn.Module, v: Tensor, t: Tensor) -> Tensor:
    """Similarities of every pair, each of whose vectors F is laid out: (n, D), (m, D) -> (n, m)."""
    v, t = v[:, None].expand(-1, len(t), -1), t[None].expand(len(v), -1, -1)
    if form == "soft_att":
        f = torch.sigmoid(attention.gate(v)) * t
    elif form == "fusion_att":
        both = torch.cat((v, t), dim=2)
        f = torch.sigmoid(attention.joint_gate(both)) * attention.joint_value(both)
    else:
        of_t = attention.text(t)
        f = torch.sigmoid(attention.visual(v) * of_t) * of_t
    return functional.cosine_similarity(v, f, dim=2)


def cases(
    device: torch.device, rounds: int = 3, sizes: tuple[int, int, int] = (IMAGES, CAPTIONS, WIDTH)
) -> dict[str, Case]:
    """{"similarity.soft_att" ...: figures}; `peak_mib` is what ours takes beside the vectors, the matrix included.

    Raises RunError where the two sides' similarities do not agree.
    """
    results = {}
    for form in ATTENTION:
        fast, slow, grown = [], [], 0.0
        for _ in tqdm(range(rounds), form, disable=None):
            one, other = (measured(side, form, sizes, device) for side in (ours, baseline))
            apart = float(np.abs(one.answer[0] - other.answer[0]).max())
            if not apart <= TOLERANCE:
                raise RunError(f"{form}: our similarities are {apart:.1e} from the baseline's (limit {TOLERANCE})")
            grown = max(grown, one.answer[1])
            fast.append(one.seconds)
            slow.append(other.seconds * max(sizes[0] / BLOCK, 1))
        results[f"similarity.{form}"] = figures(fast, slow, grown)
    return results


def main() -> None:
    parser = Parser(prog="python -m bench.similarity", description="AMFMN's similarities at RSICD's test size.")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each form (default 3)")
    parser.add_device()
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        raise InputError(f"--rounds {arguments.rounds}: at least 1 is needed")
    print(json.dumps(cases(pick_device(arguments.device), arguments.rounds), indent=2))


if __name__ == "__main__":
    run_command(main)
