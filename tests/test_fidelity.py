"""The model computes what the released code computes: golden/model_a.npz, through every path it can take."""

from __future__ import annotations

import json

import golden_model
import numpy as np
import pytest
import torch

from layers.loss import TripletLoss
from layers.published import from_published, load_published, to_published


@pytest.fixture(scope="module")
def golden() -> dict:
    return golden_model.numbers()


@pytest.fixture(scope="module")
def batch(golden: dict) -> tuple:
    return golden_model.inputs(golden)


@pytest.fixture(scope="module")
def model(golden: dict) -> torch.nn.Module:
    return golden_model.model(golden)


def close(ours: torch.Tensor, golden: dict, key: str) -> bool:
    return np.abs(ours.detach().numpy() - golden[key]).max() <= 1e-5


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_every_stage_is_within_1e_5_of_the_released_code(golden, model, batch, memory_format) -> None:
    images, local_rep, local_adj, token_ids, lengths = batch
    images = images.to(memory_format=memory_format)
    branch = model.to(memory_format=memory_format).global_branch
    with torch.no_grad():
        assert close(branch.solo(branch.trunk(images)[3].mean((2, 3))), golden, "solo")
        assert close(branch(images), golden, "global_feature")
        assert close(model.local_branch(local_rep, local_adj), golden, "local_feature")
        assert close(model.encode_image(images, local_rep, local_adj), golden, "visual_feature")
        assert close(model.encode_text(token_ids, lengths), golden, "text_feature")
        assert close(model.encode_text(token_ids), golden, "text_feature")
        assert close(model(images, local_rep, local_adj, token_ids, lengths), golden, "sims")


def test_losses_and_gradient_norms_are_those_of_the_released_code(golden, model, batch) -> None:
    sims = model(batch[0].to(memory_format=torch.channels_last), *batch[1:])
    assert abs(TripletLoss(0.2, True)(sims).item() - golden["loss_max"]) < 1e-5
    loss = TripletLoss(0.2, False)(sims)
    assert abs(loss.item() - golden["loss_sum"]) < 1e-5
    model.zero_grad()
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    found = {name: gradient.norm().item() for name, gradient in to_published(gradients).items()}
    norms = {k: v for k, v in json.loads(str(golden["grad_norms"])).items() if v is not None and v > 1e-6}
    assert len(norms) > 100
    assert {name: found[name] for name in norms if not abs(found[name] - norms[name]) <= 1e-3 * norms[name]} == {}


@pytest.mark.parametrize("hardest", [False, True])
def test_the_loss_is_the_sum_over_wrong_pairs_or_the_hardest_of_each_row_and_column(hardest) -> None:
    """Some are more than the margin below their pair here, unlike in the golden batch."""
    s = torch.rand(5, 5, generator=torch.Generator().manual_seed(0))
    rows = [[max(0, 0.2 + s[i, j] - s[i, i]) for j in range(5) if j != i] for i in range(5)]
    columns = [[max(0, 0.2 + s[i, j] - s[j, j]) for i in range(5) if i != j] for j in range(5)]
    expected = sum((max if hardest else sum)(terms) for terms in rows + columns)
    assert TripletLoss(0.2, hardest)(s).item() == pytest.approx(float(expected), rel=1e-5)


def test_bf16_stays_near_float32(golden, model, batch) -> None:
    """Not an equality: the largest difference of a cosine on the golden batch, with room for other processors."""
    images = batch[0].to(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        sims = model(images, *batch[1:])
    assert sims.dtype == torch.float32
    assert 1e-6 < np.abs(sims.numpy() - golden["sims"]).max() < 2e-3


def test_released_gate_cancels_and_the_papers_does_not(golden, batch) -> None:
    """Under `released` the dynamic-fusion weights move no similarity; under `paper` they do."""
    for gate, moves in (("released", False), ("paper", True)):
        model = golden_model.model(golden, gate)
        with torch.no_grad():
            before = model(*batch)
            rng = torch.Generator().manual_seed(1)
            for weight in model.midf.gamma.parameters():
                weight.copy_(0.1 * torch.randn(weight.shape, generator=rng))
            moved = (model(*batch) - before).abs().max().item()
        assert (moved > 1e-4) if moves else (moved <= 1e-6), gate


def test_published_names_round_trip_bit_for_bit(golden, model) -> None:
    state = golden_model.weights(golden)
    load_published(model, state)
    for back in (to_published(model.state_dict()), to_published(from_published(state))):
        assert all(torch.equal(back[name], state[name]) for name in back.keys() | state.keys())


def test_load_published_lists_missing_unexpected_and_misshapen_names(golden, model) -> None:
    state = golden_model.weights(golden)
    del state["mvsa.LF_conv.bias"]
    state |= {"stranger": torch.zeros(1), "local_feature.fc2.weight": torch.zeros(3, 3)}
    before = {name: x.clone() for name, x in model.state_dict().items()}
    says = r"1 missing: mvsa\.LF_conv\.bias; 1 unexpected: stranger; .*local_feature\.fc2\.weight \(3, 3\) instead of"
    with pytest.raises(ValueError, match=says):
        load_published(model, state)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
