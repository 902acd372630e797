"""AMFMN and VSE++: equal to their published code, no array of all pairs, through every command."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import golden_model
import numpy as np
import pytest
import torch
import yaml
from conftest import OPTIONS
from interrupted import at_step, same_weights, stop
from matplotlib.figure import Figure
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import layers.amfmn
import layers.model
import test
import train
from layers import build_model
from layers.amfmn import FusionAttention, SimilarityAttention, SoftAttention
from layers.loss import TripletLoss
from layers.published import to_published
from option import load_options
from option.options import ModelOptions

GOLDEN = {  # name: option file, overrides, the loss whose gradient it gives
    "amfmn_soft_a": ("AMFMN", ["model.cross_attention.att_type=soft_att"], "loss_sum"),
    "amfmn_fusion_a": ("AMFMN", ["model.cross_attention.att_type=fusion_att"], "loss_sum"),
    "amfmn_similarity_a": ("AMFMN", ["model.cross_attention.att_type=similarity_att"], "loss_sum"),
    "vsepp_a": ("VSEPP", [], "loss_max"),
}


@pytest.fixture(scope="module", params=GOLDEN)
def published(request: pytest.FixtureRequest) -> tuple[dict, dict, torch.nn.Module, str]:
    """Return the golden numbers, the published weights, the model with them, the loss whose gradient is given."""
    file, overrides, loss_of_gradient = GOLDEN[request.param]
    golden = golden_model.numbers(request.param)
    state = golden_model.weights(golden)
    return golden, state, golden_model.built(state, f"option/RSITMD/RSITMD_{file}.yaml", overrides), loss_of_gradient


def test_a_published_checkpoint_comes_back_bit_for_bit(published) -> None:
    _, state, model, _ = published
    back = to_published(model.state_dict())
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_vectors_similarities_losses_and_gradients_are_those_of_the_published_code(published) -> None:
    golden, _, model, loss_of_gradient = published
    images, _, _, token_ids, lengths = golden_model.inputs(golden)
    v, t = model.encode_image(images), model.encode_text(token_ids, lengths)
    sims = model.similarity(v, t)
    for ours, key in ((v, "visual"), (t, "text"), (sims, "sims"), (model.encode_text(token_ids), "text")):
        assert np.abs(ours.detach().numpy() - golden[key]).max() <= 1e-5, key
    losses = {"loss_sum": TripletLoss(0.2, False)(sims), "loss_max": TripletLoss(0.2, True)(sims)}
    for key, loss in losses.items():
        assert abs(loss.item() - golden[key]) <= 1e-5, key
    losses[loss_of_gradient].backward()
    ours = to_published({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
    norms = {key: norm for key, norm in json.loads(str(golden["grad_norms"])).items() if norm is not None}
    assert ours.keys() == norms.keys()
    for key, gradient in ours.items():
        assert abs(gradient.norm().item() - norms[key]) <= 1e-3 * norms[key], key


D = 6


def plain_vector(attention: torch.nn.Module, v: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return F of one pair by the published formulas."""
    if isinstance(attention, SoftAttention):
        return torch.sigmoid(attention.gate(v)) * t
    if isinstance(attention, FusionAttention):
        both = torch.cat((v, t))
        return torch.sigmoid(attention.joint_gate(both)) * attention.joint_value(both)
    of_t = attention.text(t)
    return torch.sigmoid(attention.visual(v) * of_t) * of_t


def plain_similarity(attention: torch.nn.Module, v: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return the cosine of each image and the F of each of its pairs, one after the other."""
    cosine = torch.nn.functional.cosine_similarity
    return torch.stack([torch.stack([cosine(x, plain_vector(attention, x, y), dim=0) for y in t]) for x in v])


@pytest.mark.parametrize("block", [1, 2 * D, 7 * D, 1000])
@pytest.mark.parametrize("form", [SoftAttention, FusionAttention, SimilarityAttention])
def test_blocks_of_pairs_give_the_similarities_and_gradients_of_pair_after_pair(form, block, monkeypatch) -> None:
    monkeypatch.setattr(layers.amfmn, "CPU_BLOCK", block)
    torch.manual_seed(0)
    attention = form(D).double()
    v, t = torch.randn(5, D, dtype=torch.double), torch.randn(3, D, dtype=torch.double)
    inputs = [x.requires_grad_() for x in (v, t, *attention.parameters())]
    direction = torch.randn(5, 3, dtype=torch.double)
    ours, plain = attention(v, t), plain_similarity(attention, v, t)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)
    gradients = (torch.autograd.grad((x * direction).sum(), inputs) for x in (ours, plain))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(attention(v, t), plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", [SoftAttention, FusionAttention, SimilarityAttention])
def test_a_text_vector_of_zeros_has_finite_similarities_and_gradients(form) -> None:
    """The text vector is behind a ReLU, so it can be zero as a whole."""
    torch.manual_seed(0)
    attention = form(D)
    v, t = torch.randn(2, D).requires_grad_(), torch.zeros(2, D).requires_grad_()
    sims = attention(v, t)
    sims.sum().backward()
    assert sims.isfinite().all() and v.grad.isfinite().all() and t.grad.isfinite().all()
    assert form(D)(v[:0], t).shape == (0, 2) and form(D)(v, t[:0]).shape == (2, 0)


@pytest.mark.parametrize("form", [SoftAttention, FusionAttention, SimilarityAttention])
def test_no_array_of_all_pairs_is_ever_laid_out(form, monkeypatch) -> None:
    """Every array that autograd or an operation makes is far smaller than N M D numbers, in training too."""
    n, m, d, sizes = 40, 30, 16, [0]
    monkeypatch.setattr(layers.amfmn, "CPU_BLOCK", 8 * d)

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            result = operation(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in tree_leaves(result) if isinstance(x, torch.Tensor))
            return result

    v, t, attention = torch.randn(n, d).requires_grad_(), torch.randn(m, d).requires_grad_(), form(d)
    with Watch():
        attention(v, t).sum().backward()
    assert n * m <= max(sizes) <= n * m + n * d < n * m * d / 8


def vsepp(**keys: str) -> torch.nn.Module:
    small = {"word_dim": "4", "embed.embed_dim": "8"}
    overrides = [f"model.{key}={value}" for key, value in (small | keys).items()]
    torch.manual_seed(0)
    return build_model(load_options("option/RSITMD/RSITMD_VSEPP.yaml", overrides), ["a", "b", "c"]).eval()


def test_vsepp_starts_from_the_authors_ranges(short_trunk) -> None:
    """Word vectors uniform in [-0.1, 0.1], the image's linear layer by Glorot without a shift."""
    model = vsepp(word_dim="300")
    words, weight = model.embedding.weight, model.image_out.weight
    assert 0.09 < words.abs().max() <= 0.1 and 0.05 < words.std() < 0.065
    limit = (6 / sum(weight.shape)) ** 0.5
    assert 0.95 * limit < weight.abs().max() <= limit and not model.image_out.bias.any()


def test_the_variant_of_vsepp_normalises_no_image_and_averages_positions_of_the_caption_alone(short_trunk) -> None:
    """Of five positions here, and of a longer caption as many as it has words, whatever else is in the batch."""
    plain, variant = vsepp(), vsepp(image_norm="False", text_pooling="mean", positions="5")
    images, lengths, ids = torch.randn(2, 3, 64, 64), torch.tensor([3, 9]), torch.zeros(2, 9, dtype=torch.int64)
    ids[0, :3], ids[1] = torch.tensor([1, 2, 2]), torch.arange(9) % 2 + 1
    with torch.no_grad():
        of_plain, of_variant = plain.encode_image(images), variant.encode_image(images)
        states = [variant.gru(variant.embedding(rows))[0].mean(1) for rows in (ids[:1, :5], ids[1:])]
        together, wider = variant.encode_text(ids, lengths), torch.nn.functional.pad(ids, (0, 20))
        assert torch.allclose(together, torch.nn.functional.normalize(torch.cat(states)), atol=1e-6)
        assert torch.allclose(together, variant.encode_text(wider, lengths), atol=1e-6)
        assert torch.allclose(together[:1], variant.encode_text(ids[:1, :3]), atol=1e-6)
    torch.testing.assert_close(of_plain, torch.nn.functional.normalize(of_variant))
    assert (of_variant.norm(dim=1) - 1).abs().min() > 1e-3


SMALL = {"pretrained": "none", "embed": {"embed_dim": 8}}
TEXT = {"pretrained": False, "embedding_dim": 8, "hidden_dim": 16}
MODELS = {
    att_type: SMALL | {"name": "AMFMN", "cross_attention": {"att_type": att_type}, "seq2vec": TEXT}
    for att_type in layers.amfmn.ATTENTION
} | {
    "vsepp": SMALL | {"name": "VSE++", "word_dim": 8},
    "vsepp_variant": SMALL | {"name": "VSE++", "word_dim": 8, "image_norm": False, "text_pooling": "mean"},
}


@pytest.mark.parametrize("name", MODELS)
def test_trains_resumes_exactly_tests_and_reranks(name, work, run: Callable, short_trunk, monkeypatch) -> None:
    monkeypatch.setattr(train, "retrieval_grid", lambda *_: Figure())  # no pictures, for speed
    monkeypatch.setattr(test, "draw_run", lambda *_, **__: ([], []))
    options = yaml.safe_load(OPTIONS)
    options["model"] = MODELS[name]
    del options["dataset"]["local_path"]  # no local features are needed
    Path("model.yaml").write_text(yaml.safe_dump(options))
    settings = "--path_opt model.yaml --device cpu --set optim.epochs=1 k_fold.experiment_name="
    assert run(f"train.py {settings}whole").status == 0
    with at_step(2, stop(signal.SIGTERM)):
        assert run(f"train.py {settings}parts").status == 143
    assert run(f"train.py {settings}parts --resume").status == 0
    assert same_weights(Path("checkpoint/whole/0"), Path("checkpoint/parts/0"))
    assert run(f"test.py {settings}whole --rerank").status == 0
    results = json.loads(Path("checkpoint/whole/results.json").read_text())
    assert results["mean"]["mr"] > 0 and results["rerank"]["mean"]["mr"] > 0
    best = "checkpoint/whole/0/GaLR_best.pth.tar"
    assert run(f"test_single.py {settings}whole --resume {best} --sims sims.npy").status == 0
    assert np.array_equal(np.load("sims.npy"), np.load("postprocessing/file/whole_0.npy"))


def test_a_checkpoint_of_another_model_is_named(work, run, checkpoint) -> None:
    options = yaml.safe_load(OPTIONS) | {"model": MODELS["soft_att"]}
    Path("model.yaml").write_text(yaml.safe_dump(options))
    refused = run(f"test_single.py --path_opt model.yaml --resume {checkpoint}")
    assert refused.status == 2 and "is of the model GaLR" in refused.message


def test_every_model_of_the_options_is_registered() -> None:
    blocks = get_args(get_args(ModelOptions)[0])
    assert {get_args(block.model_fields["name"].annotation)[0] for block in blocks} <= set(layers.models())
