"""The gated recurrent unit of skip-thoughts, with Bayesian dropout: masks drawn once per sequence and kept over time.

    r = sigmoid(W_r (m_xr x) + b_r + U_r (m_hr h))          reset
    z = sigmoid(W_z (m_xz x) + b_z + U_z (m_hz h))          update
    n = tanh   (W_n (m_xn x) + b_n + r (U_n (m_hn h)))      candidate
    h <- (1 - z) n + z h

Released code, `BayesianUniSkip`; without dropout the plain GRU of `UniSkip` and `BiSkip`. There is no hidden bias.

Sequences are packed, longest first, so that step t works on those that still have a word. The input products of all
words are one batched product, the three hidden products of a step are another.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from layers.distributed import global_places, to_device


class Packing(NamedTuple):
    """Padded sequences (B, T), packed longest first.

    rows (M,): row of each packed word among the sorted sequences. words (M,): its place in the flattened (B, T).
    order (B,): sorted -> given. sizes: number of sequences that have a word t, for each t.
    total: number of sequences of the global batch. places (B,): of these among all, sorted alike; None if there are no
    others.
    """

    rows: Tensor
    words: Tensor
    order: Tensor
    sizes: list[int]
    total: int
    places: Tensor | None


def pack(lengths: Tensor, width: int, device: torch.device, reverse: bool = False) -> Packing:
    """Pack sequences of these lengths (B,), which stand in a (B, width) array; `reverse` reads them backwards."""
    lengths, order = lengths.cpu().sort(descending=True, stable=True)
    steps = torch.arange(int(lengths[0]))
    t, rows = torch.nonzero(steps[:, None] < lengths[None, :], as_tuple=True)
    place = lengths[rows] - 1 - t if reverse else t
    words = order[rows] * width + place
    sizes = torch.bincount(t).tolist()
    total, places = global_places(order)
    places = None if places is None else to_device(places, device)
    return Packing(to_device(rows, device), to_device(words, device), to_device(order, device), sizes, total, places)


class GRU(nn.Module):
    """One direction. Gates are stacked in the order reset, update, candidate.

    Args: input_size E, hidden_size H, dropout: rate of the Bayesian masks in training.
    """

    def __init__(self, input_size: int, hidden_size: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.input_weight = nn.Parameter(torch.empty(3, hidden_size, input_size))
        self.input_bias = nn.Parameter(torch.zeros(3, hidden_size))
        self.hidden_weight = nn.Parameter(torch.empty(3, hidden_size, hidden_size))

    def initialise(self) -> None:
        """Draw Glorot input weights and orthogonal hidden weights, gate by gate."""
        for gate in range(3):
            nn.init.xavier_uniform_(self.input_weight[gate])
            nn.init.orthogonal_(self.hidden_weight[gate])

    def forward(self, words: Tensor, packing: Packing) -> Tensor:
        """Return the state after the last word of each sequence (B, H), in the given order. words (M, E): packed."""
        input_mask, hidden_mask = self._masks(words, packing)
        words = words.expand(3, -1, -1) if input_mask is None else words * input_mask[:, packing.rows]
        gates = torch.baddbmm(self.input_bias.unsqueeze(1), words, self.input_weight.transpose(1, 2)).float()
        if torch.is_grad_enabled():
            last = Recurrence.apply(gates, self.hidden_weight, hidden_mask, packing.rows, packing.sizes)
        else:
            last = recurrence(gates, self.hidden_weight, hidden_mask, packing.sizes)
        return torch.empty_like(last).index_copy(0, packing.order, last)

    def _masks(self, words: Tensor, packing: Packing) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Draw masks (3, B, E) and (3, B, H), one for each gate and sequence, with values 0 and 1 / keep rate.

        They are drawn for the global batch, of which these sequences may be a part.
        """
        if not self.training or self.dropout == 0:
            return None, None
        keep = 1 - self.dropout
        widths = self.input_weight.shape[2], self.input_weight.shape[1]
        drawn = (words.new_empty(3, packing.total, width).bernoulli_(keep).div_(keep) for width in widths)
        return tuple(mask if packing.places is None else mask[:, packing.places] for mask in drawn)


def recurrence(
    gates: Tensor, weight: Tensor, mask: Tensor | None, sizes: list[int], saved: Tensor | None = None
) -> Tensor:
    """Run the recurrence over packed words.

    gates (3, M, H): W x + b of all words; weight U (3, H, H); mask of the state (3, B, H) -> last states (B, H).
    saved (5, M, H): filled with r, z, n, U_n h and the state before each word, if given.

    The state and everything elementwise stay in float32; the products run in autocast's type where it is on.
    """
    low = _product_type(weight)
    weight = weight.to(low).transpose(1, 2)
    state = gates.new_zeros(sizes[0], gates.shape[2])
    start = 0
    for step, size in enumerate(sizes):
        here = slice(start, start + size)
        before = state[:size]
        if step == 0:  # the state is zero
            product = gates.new_zeros(3, size, gates.shape[2])
        else:
            masked = before.expand(3, -1, -1) if mask is None else before * mask[:, :size]
            product = torch.bmm(masked.to(low), weight).float()
        reset, update = torch.sigmoid(gates[:2, here] + product[:2])
        candidate = torch.tanh(torch.addcmul(gates[2, here], reset, product[2]))
        after = torch.lerp(candidate, before, update)
        if saved is not None:
            torch.stack((reset, update, candidate, product[2], before), out=saved[:, here])
        state = after if size == len(state) else torch.cat((after, state[size:]))
        start += size
    return state


def _product_type(weight: Tensor) -> torch.dtype:
    """Return the type that products run in: autocast's where it is on."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


class Recurrence(torch.autograd.Function):
    """`recurrence` with its backward pass by hand: each weight gradient is one product over all words.

    Autograd would fill and add gradients of all words at each of them. rows (M,): row of each packed word.
    """

    @staticmethod
    def forward(ctx: Any, gates: Tensor, weight: Tensor, mask: Tensor | None, rows: Tensor, sizes: list[int]) -> Tensor:
        saved = gates.new_empty(5, *gates.shape[1:])
        ctx.save_for_backward(saved, weight, mask, rows)
        ctx.sizes = sizes
        ctx.low = _product_type(weight)
        return recurrence(gates, weight, mask, sizes, saved)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved, weight, mask, rows = ctx.saved_tensors
        low, end = ctx.low, len(rows)
        weight, grad = weight.to(low), grad.contiguous().clone()
        reset, update, candidate, product, before = saved
        grad_gates = torch.empty_like(saved[:3])  # of r, z, n before their squashing
        # slopes that do not depend on the gradient of the state, for all words at once
        to_update = (before - candidate) * update * (1 - update)
        to_candidate = (1 - update) * (1 - candidate * candidate)
        to_reset = product * reset * (1 - reset)
        for step, size in reversed(list(enumerate(ctx.sizes))):
            here = slice(end - size, end)
            above = grad[:size]
            d_reset, d_update, d_candidate = grad_gates[:, here]
            torch.mul(above, to_candidate[here], out=d_candidate)
            torch.mul(above, to_update[here], out=d_update)
            torch.mul(d_candidate, to_reset[here], out=d_reset)
            if step > 0:
                d_product = torch.stack((d_reset, d_update, d_candidate * reset[here]))
                below = torch.bmm(d_product.to(low), weight).float()
                if mask is not None:
                    below *= mask[:, :size]
                grad[:size] = above * update[here] + below.sum(0)
            end -= size
        first = ctx.sizes[0]  # at the first word the state is zero
        d_product = torch.stack((grad_gates[0], grad_gates[1], grad_gates[2] * reset))
        masked = before.expand(3, -1, -1) if mask is None else before * mask[:, rows]
        grad_weight = torch.bmm(d_product[:, first:].to(low).transpose(1, 2), masked[:, first:].to(low)).float()
        return grad_gates, grad_weight, None, None, None


# ---------------------------------------------------------------- for PyTorch's own GRU


def pack_sequences(words: Tensor, lengths: Tensor) -> PackedSequence:
    """Pack words (B, T, E) of lengths (B,), which are on the CPU, for `nn.GRU`.

    `pack_padded_sequence` computes the same, but moves the order to the GPU by a copy that waits.
    """
    lengths, order = lengths.sort(descending=True)
    order = to_device(order, words.device)
    packed = pack_padded_sequence(words.index_select(0, order), lengths, batch_first=True)
    return PackedSequence(packed.data, packed.batch_sizes, order)


def unpack_sequences(packed: PackedSequence) -> Tensor:
    """Return the states (B, T, H) of packed sequences, in their given order, zero behind each one's end.

    `pad_packed_sequence` computes the same, but reads the order from the GPU.
    """
    rows, steps, width = len(packed.sorted_indices), len(packed.batch_sizes), packed.data.shape[1]
    step, row = torch.nonzero(torch.arange(rows) < packed.batch_sizes[:, None], as_tuple=True)
    device = packed.data.device
    places = packed.sorted_indices[to_device(row, device)] * steps + to_device(step, device)
    return packed.data.new_zeros(rows * steps, width).index_copy(0, places, packed.data).view(rows, steps, width)


class Float32GRU(nn.GRU):
    """PyTorch's GRU in float32: autocast would hand it to cuDNN in float16, whatever the precision of the run."""

    def forward(self, words: Tensor | PackedSequence) -> tuple[Tensor | PackedSequence, Tensor]:
        with torch.autocast(self.weight_ih_l0.device.type, enabled=False):
            return super().forward(words.float())
