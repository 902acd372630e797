"""Criteria of similarities s_ij: the published triplet loss, or symmetric cross-entropy (InfoNCE).

A criterion is called as criterion(similarity, pairs). `shown` are the numbers that the log shows of it, on the device;
`logged` takes their values, which are read with the losses, in one wait for a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from option.options import Optim

LARGEST_SCALE = 100  # of similarities in the cross-entropy (CLIP's)


class Pairs(NamedTuple):
    """Pairs that belong together in a batch of B images and M captions.

    image, caption (P,): row and column of each pair of the data set in the batch. positive (B, M): whether the image
    has a caption of these very words, in the batch or not.
    """

    image: Tensor
    caption: Tensor
    positive: Tensor


class TripletLoss(nn.Module):
    """Bidirectional triplet loss (released code).

        L = sum over i != j of  max(0, margin + s_ij - s_ii) + max(0, margin + s_ij - s_jj)

    with `max_violation` only the largest term of each row (first part) and of each column (second part). Pairs stand on
    the diagonal; a caption of the same image elsewhere is a negative too.

    >>> similarity = torch.tensor([[0.9, 0.8], [0.1, 0.5]])
    >>> TripletLoss(margin=0.2, max_violation=False)(similarity)  # 0.1 of the first row, 0.5 of the second column
    tensor(0.6000)
    """

    shown: Sequence[Tensor] = ()

    def __init__(self, margin: float = 0.2, max_violation: bool = False) -> None:
        super().__init__()
        self.margin, self.max_violation = margin, max_violation

    def forward(self, similarity: Tensor, pairs: Pairs | None = None) -> Tensor:
        """Return the sum over a batch of similarities (B, B), images x captions. `pairs` is not read."""
        positive = similarity.diagonal()
        own = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
        captions = (self.margin + similarity - positive[:, None]).clamp(min=0).masked_fill(own, 0)
        images = (self.margin + similarity - positive[None, :]).clamp(min=0).masked_fill(own, 0)
        if self.max_violation:
            return captions.amax(dim=1).sum() + images.amax(dim=0).sum()
        return captions.sum() + images.sum()

    def logged(self) -> dict[str, float]:
        """Return what the log says of this criterion beside the loss: nothing."""
        return {}


class InfoNCE(nn.Module):
    """Symmetric cross-entropy (van den Oord et al. 2018; in both directions as in CLIP, Radford et al. 2021).

        l_ij = s_ij / temperature
        L = mean over pairs (i, j) of half of
            log(1 + sum over j' in N(i) of exp(l_ij' - l_ij)) + log(1 + sum over i' in N'(j) of exp(l_i'j - l_ij))

    N(i) are the captions of all pairs whose words no caption of image i has, N'(j) the images without a caption of j's
    words: equal captions, and captions of one image, are no negatives of each other. Where every image has one caption
    and no two are equal, this is CLIP's loss. A learned temperature does not fall below 1 / 100.
    """

    def __init__(self, temperature: float = 0.07, learned: bool = True) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)), requires_grad=learned)

    @property
    def temperature(self) -> float:
        """Return its current value; on a GPU this waits for the work before it."""
        return math.exp(-self.log_scale.item())

    def forward(self, similarity: Tensor, pairs: Pairs) -> Tensor:
        """Return the loss of similarities (B, M), images x captions."""
        if self.log_scale.requires_grad:
            self.log_scale.data.clamp_(max=math.log(LARGEST_SCALE))  # not in the graph, where it could not come back
        logits = similarity.float() * self.log_scale.exp()
        own = logits[pairs.image, pairs.caption]
        others = logits.masked_fill(pairs.positive, torch.finfo(logits.dtype).min / 2)  # finite: a row may have none
        of_image = others[:, pairs.caption].logsumexp(dim=1)[pairs.image]
        of_caption = others.logsumexp(dim=0)[pairs.caption]
        return (functional.softplus(of_image - own) + functional.softplus(of_caption - own)).mean() / 2

    @property
    def shown(self) -> Sequence[Tensor]:
        """Return what `logged` is given the value of."""
        return (self.log_scale.detach(),)

    def logged(self, log_scale: float) -> dict[str, float]:
        """Return what the log says of this criterion beside the loss."""
        return {"temperature": math.exp(-log_scale)}


CRITERIA: dict[str, Callable[[Optim], nn.Module]] = {  # values of optim.loss
    "triplet": lambda optim: TripletLoss(optim.margin, optim.max_violation),
    "infonce": lambda optim: InfoNCE(optim.temperature, optim.learn_temperature),
}
