"""Parts of GaLR left out by option: what the model then computes, and that every row of exec/ablation.sh is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from matplotlib.figure import Figure

import train
from layers import build_model
from layers.model import l2norm
from option import load_options
from utils import InputError

pytestmark = pytest.mark.usefixtures("short_trunk")
SMALL = [
    f"model.fusion.{key}={value}"
    for key, value in {"mca_HIDDEN_SIZE": 16, "mca_FF_SIZE": 8, "mca_MULTI_HEAD": 2, "mca_HIDDEN_SIZE_HEAD": 8}.items()
] + ["model.embed.embed_dim=16", "model.seq2vec.embedding_dim=4", "model.seq2vec.hidden_dim=4", "dataset.image_size=64"]
ROWS = dict(re.findall(r"\[(\w+)\]=(model\.[\w.]+=\w+)", (ROOT / "exec/ablation.sh").read_text()))


def galr(*overrides: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(load_options(ROOT / "option/RSITMD/RSITMD_GaLR.yaml", [*SMALL, *overrides]), ["a", "b"]).eval()


@pytest.fixture
def inputs() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    return torch.randn(2, 3, 64, 64), torch.rand(2, 20, 20), torch.rand(2, 20, 20)


def parts(model: torch.nn.Module) -> set[str]:
    """Return the parts that have weights, two levels deep."""
    return {".".join(name.split(".")[:2]) for name in model.state_dict()}


@torch.no_grad()
def test_without_the_local_branch_the_vector_is_the_global_one_and_no_features_are_needed(inputs) -> None:
    model = galr("model.local_branch=False")
    images, local_rep, local_adj = inputs
    assert torch.equal(model.encode_image(*inputs), model.global_branch(images))
    assert torch.equal(model.encode_image(images, local_rep + 1, local_adj), model.encode_image(*inputs))
    assert not any(name.startswith(("local_branch", "midf")) for name in parts(model))
    options = load_options(
        ROOT / "option/RSITMD/RSITMD_GaLR.yaml", ["model.local_branch=False", "dataset.local_path=None"]
    )
    assert options.local_path == "zeros"


@torch.no_grad()
def test_without_mvsa_the_global_vector_is_solo_of_unit_length(inputs) -> None:
    branch = galr("model.mvsa=False").global_branch
    expected = l2norm(branch.solo(branch.trunk(inputs[0]).pooled))
    assert torch.equal(branch(inputs[0]), expected)
    assert "global_branch.mvsa" in parts(galr()) and "global_branch.mvsa" not in parts(galr("model.mvsa=False"))


@torch.no_grad()
def test_a_sum_or_a_concatenation_stands_in_the_place_of_midf(inputs) -> None:
    images, local_rep, local_adj = inputs
    for kind in ("sum", "concatenation"):
        model = galr(f"model.fusion.kind={kind}")
        v_g, v_l = model.global_branch(images), model.local_branch(local_rep, local_adj)
        expected = v_g + v_l if kind == "sum" else model.midf.out(torch.cat((v_g, v_l), dim=1))
        assert torch.equal(model.encode_image(*inputs), expected)
        assert {name for name in parts(model) if name.startswith("midf")} == (set() if kind == "sum" else {"midf.out"})


@torch.no_grad()
def test_under_the_papers_gate_gamma_1_weighs_the_gated_global_vector_and_gamma_2_the_sum() -> None:
    midf = galr("model.fusion.gate=paper").midf
    v_g, v_l = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(0))
    last = midf.gamma[-1]
    last.weight.zero_()
    last.bias.copy_(torch.tensor([3.0, 1.0]).log())  # gamma = 3/4, 1/4
    global_0, local_0 = midf.global_sa(v_g), midf.local_sa(v_l)
    local = midf.local_sga(local_0, global_0)
    glob = midf.global_sga(global_0, local)
    torch.testing.assert_close(midf(v_g, v_l), 0.75 * torch.sigmoid(local) * glob + 0.25 * (glob + local))


def test_attention_drops_whole_heads_of_each_vector_by_itself_in_training() -> None:
    """The softmax over one key is 1, so dropout of the attention map silences a head or doubles it."""
    attention = galr("model.fusion.mca_DROPOUT_R=0.5").midf.local_sa.attention.train()
    with torch.no_grad():
        attention.value.weight.copy_(torch.eye(16))
        attention.merge.weight.copy_(torch.eye(16))
        attention.value.bias.zero_()
        attention.merge.bias.zero_()
        torch.manual_seed(0)
        heads = attention(torch.ones(500, 16)).unflatten(1, (2, 8))
    assert torch.equal(heads, heads[:, :, :1].expand_as(heads)) and set(heads.unique().tolist()) == {0, 2}
    kept = heads[:, :, 0] > 0
    assert all(0.4 < share < 0.6 for share in kept.float().mean(0).tolist())
    assert 0.4 < (kept[:, 0] == kept[:, 1]).float().mean() < 0.6


def test_every_rate_of_dropout_acts_where_the_options_say() -> None:
    """mca_DROPOUT_R in attention and feed-forward, dynamic_fusion_drop before the dynamic weights."""
    midf = galr("model.fusion.gate=paper", "model.fusion.mca_DROPOUT_R=0", "model.fusion.dynamic_fusion_drop=0").midf
    v = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(midf.train()(*v), midf.eval()(*v))
    for key in ("mca_DROPOUT_R", "dynamic_fusion_drop"):
        zero = {"mca_DROPOUT_R", "dynamic_fusion_drop"} - {key}
        midf = galr("model.fusion.gate=paper", f"model.fusion.{key}=0.5", f"model.fusion.{zero.pop()}=0").midf
        assert not torch.equal(midf.train()(*v), midf.eval()(*v)), key
    feedforward = galr("model.fusion.mca_DROPOUT_R=0.5").midf.global_sa.feedforward
    assert not torch.equal(feedforward.train()(v[0]), feedforward.eval()(v[0]))


@torch.no_grad()
def test_without_the_dynamic_weights_both_vectors_count_alike(inputs) -> None:
    """Under the cosine that is what the released gate comes to, for its one weight multiplies both."""
    plain, released = galr("model.fusion.gate=none"), galr("model.fusion.gate=released")
    plain.load_state_dict({name: x for name, x in released.state_dict().items() if not name.startswith("midf.gamma")})
    of_plain, of_released = plain.encode_image(*inputs), released.encode_image(*inputs)
    torch.testing.assert_close(l2norm(of_plain), l2norm(of_released))
    assert not torch.allclose(of_plain, of_released)


def test_every_row_of_the_script_changes_the_model_and_is_by_itself_a_model_that_trains(work, run, monkeypatch) -> None:
    monkeypatch.setattr(train, "retrieval_grid", lambda *_: Figure())
    assert ROWS.keys() == {"no_local", "no_mvsa", "sum", "concatenation", "no_gate"}
    weights = {frozenset(galr().state_dict())}
    for row, setting in ROWS.items():
        settings = f"optim.epochs=1 k_fold.experiment_name={row} {setting}"
        assert run(f"train.py --path_opt tiny.yaml --device cpu --set {settings}").status == 0
        state = torch.load(Path("checkpoint", row, "0/last.pth.tar"), weights_only=True)
        weights.add(frozenset(state["model"]))
    assert len(weights) == 1 + len(ROWS)
    refused = run(f"test_single.py --path_opt tiny.yaml --resume checkpoint/{row}/0/GaLR_best.pth.tar")
    assert refused.status == 2 and "do not fit this model" in refused.message
    best = "--resume checkpoint/no_local/0/GaLR_best.pth.tar --device cpu"
    scored = run(f"test_single.py --path_opt tiny.yaml {best} --set {ROWS['no_local']} dataset.local_path=gone.h5")
    assert scored.status == 0 and "is now scored with" not in scored.err  # local features that no part reads


@pytest.mark.parametrize("part", ["local_branch", "mvsa"])
def test_upon_clip_there_is_no_such_part_to_leave_out(part) -> None:
    with pytest.raises(InputError, match=r"model\.trunk clip has no MVSA"):
        load_options(ROOT / "option/UCM/UCM_CLIP.yaml", ["model.name=GaLR", "model.trunk=clip", f"model.{part}=False"])
