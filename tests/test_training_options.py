"""Options beside the published recipe: losses, batches, schedules, frozen parts, the average, parts left out."""

from __future__ import annotations

import json
import math
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from interrupted import FOLD, LAST, TRAIN, at_step, stop
from soak import differences
from torch.optim.swa_utils import AveragedModel

from data import SameCaptions, epoch_rows, epoch_size, load_data, read_split, train_batches
from engine import learning_rate, make_criterion, make_model, make_optimizer, train_step
from layers import build_model
from layers.average import make_average
from layers.loss import InfoNCE, Pairs
from layers.model import l2norm
from option import load_options
from option.options import Optim
from utils import InputError
from vocab import load_words

pytestmark = pytest.mark.usefixtures("short_trunk", "without_pictures")
CPU = torch.device("cpu")
BY_IMAGE = ["optim.loss=infonce", "dataset.captions_per_image=2", "dataset.batch_size=4"]


def plain_infonce(s: torch.Tensor, pairs: Pairs, temperature: float) -> float:
    """The sum as the formula has it, pair by pair."""
    terms = []
    for i, j in zip(pairs.image.tolist(), pairs.caption.tolist(), strict=True):
        captions = [k for k in pairs.caption.tolist() if not pairs.positive[i, k]]
        images = [k for k in range(len(s)) if not pairs.positive[k, j]]
        for others in ([s[i, k] for k in captions], [s[k, j] for k in images]):
            terms.append(math.log(1 + sum(math.exp((other - s[i, j]) / temperature) for other in others)))
    return sum(terms) / len(terms)


def test_the_cross_entropy_is_the_mean_over_pairs_against_what_is_no_positive() -> None:
    rng = np.random.default_rng(0)
    s = torch.from_numpy(rng.uniform(-1, 1, (3, 4)))
    image, caption = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 1, 1, 2, 3])  # caption 1 is of two images
    positive = torch.zeros(3, 4, dtype=torch.bool)
    positive[image, caption] = True
    positive[0, 3] = True  # image 0 has such a caption outside of the batch
    pairs = Pairs(image, caption, positive)
    assert InfoNCE(0.2)(s, pairs).item() == pytest.approx(plain_infonce(s, pairs, 0.2), rel=1e-5)


def test_pairs_without_any_negative_have_no_loss_and_finite_gradients() -> None:
    s = torch.rand(3, 3, requires_grad=True)
    own = torch.arange(3)
    loss = InfoNCE()(s, Pairs(own, own, torch.ones(3, 3, dtype=torch.bool)))
    loss.backward()
    assert loss.item() == 0 and not s.grad.any()


def test_a_learned_temperature_moves_and_stops_at_a_hundredth_and_a_fixed_one_stays() -> None:
    own = torch.arange(2)
    pairs, s = Pairs(own, own, torch.eye(2) > 0), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    criterion = InfoNCE(0.02)
    optimizer = torch.optim.SGD(criterion.parameters(), lr=1e30)
    criterion(s.double(), pairs).backward()
    optimizer.step()
    criterion(s, pairs)
    assert math.exp(criterion.log_scale.item()) == pytest.approx(100)
    assert not InfoNCE(0.02, learned=False).log_scale.requires_grad


@pytest.fixture
def loaded(work) -> tuple:
    options = load_options("tiny.yaml", BY_IMAGE)
    return options, load_data(read_split("data", "train"), options, load_words(options), CPU, training=True)


def test_batches_of_images_hold_each_image_once_with_so_many_of_its_captions(loaded) -> None:
    options, data = loaded
    owner = data.split.image_of_caption
    same = SameCaptions(data.token_ids.numpy(), owner)
    seen = []
    for rows in epoch_rows(data, options.dataset, np.random.default_rng(0)):
        assert len(rows.images) == 4 and np.array_equal(np.bincount(rows.image), [2] * 4)
        assert len(set(same.code[rows.captions])) == len(rows.captions), "equal captions are encoded once"
        of_pair = same.positive(rows.images, rows.captions)[rows.image, rows.caption]
        assert of_pair.all(), "each pair's caption is one of its image's"
        seen += rows.images.tolist()
    assert sorted(seen) == list(range(len(data.paths)))
    assert epoch_size(data, options.dataset)[1] == 2 * len(data.paths)
    everything = options.dataset.model_copy(update={"captions_per_image": 99})
    pairs = sum(len(rows.image) for rows in epoch_rows(data, everything, np.random.default_rng(0)))
    assert pairs == len(owner) == epoch_size(data, everything)[1]


def test_a_positive_is_an_image_with_a_caption_of_the_same_words() -> None:
    ids = np.array([[1, 2], [3, 0], [1, 2], [4, 0], [3, 0]])
    same = SameCaptions(ids, np.array([0, 0, 1, 1, 2]))
    positive = same.positive(np.arange(3), np.array([0, 3, 4]))
    assert positive.tolist() == [[True, False, True], [True, True, False], [False, False, True]]


def test_the_cosine_falls_from_the_rate_to_zero_after_a_warm_up_in_proportion() -> None:
    options = Optim(epochs=11, lr=1.0, schedule="cosine", warmup=1)
    assert [learning_rate(options, 0, part) for part in (0.25, 1)] == pytest.approx([0.25, 1])
    assert learning_rate(options, 5, 1) == pytest.approx(0.5)
    assert learning_rate(options, 2, 0.5) == pytest.approx((1 + math.cos(math.pi * 0.15)) / 2)
    assert learning_rate(options, 10, 1) == pytest.approx(0, abs=1e-12)
    warmed = Optim(warmup=0.5)
    assert [learning_rate(warmed, 0, part) for part in (0.25, 0.5, 0.75)] == pytest.approx([1e-4, 2e-4, 2e-4])


def test_by_default_one_group_holds_all_parameters_in_their_order(work) -> None:
    """Optimisers of runs from before there were groups go on."""
    options = load_options("tiny.yaml")
    model = make_model(options, load_words(options))
    (group,) = make_optimizer(model, options.optim, make_criterion(options.optim, CPU)).param_groups
    assert all(map(torch.Tensor.is_set_to, group["params"], model.parameters()))


def test_frozen_parts_keep_weights_and_statistics_and_drop_nothing(loaded) -> None:
    options, data = loaded
    torch.manual_seed(0)
    model = make_model(options, load_words(options))
    model.freeze(["trunk", "local_branch.graph"])
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    criterion = make_criterion(options.optim, CPU)
    optimizer = make_optimizer(model, options.optim, criterion)
    train_step(model, next(train_batches(data, options, 0, 0)), criterion, optimizer, 1e-3, options)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not any(name.startswith(("global_branch.trunk.", "local_branch.graph.")) for name in moved)
    assert {"global_branch.solo.weight", "local_branch.out.weight"} <= moved
    assert model.midf.training and not model.global_branch.trunk.training


def test_the_average_is_pytorch_s_to_the_bit() -> None:
    """Its own update would wait for a GPU at every step (test_cuda_runs.py)."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))

    def update(average, weights, steps) -> None:
        torch._foreach_lerp_(average, weights, 1 - min(0.3, (1 + steps.item()) / (10 + steps.item())))

    ours, plain = make_average(model, 0.3), AveragedModel(model, multi_avg_fn=update)
    for _ in range(9):
        for tensor in (*model.parameters(), model[1].running_mean):
            tensor.data.normal_()
        ours.update_parameters(model)
        plain.update_parameters(model)
    assert ours.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in ours.state_dict().items())


def test_the_log_shows_how_a_learned_temperature_moves(work, run) -> None:
    assert run(f"{TRAIN} --set optim.loss=infonce optim.epochs=1 optim.lr=0.01 logs.print_freq=1").status == 0
    rows = json.loads((FOLD / "history.json").read_text())["train"]
    assert abs(rows[0]["temperature"] - 0.07) < 0.01 and len({row["temperature"] for row in rows}) > 1
    assert f"temperature {rows[-1]['temperature']:.4f}" in (FOLD / "log.txt").read_text()


EVERYTHING = (
    "optim.loss=infonce dataset.captions_per_image=3 dataset.batch_size=4 dataset.augment=crops optim.schedule=cosine "
    "optim.warmup=0.5 optim.trunk_lr=1e-4 optim.weight_decay=0.01 optim.betas=[0.9,0.98] optim.ema=0.9 "
    "optim.freeze=[midf.gamma] model.trunk_norm=frozen"
)


def test_a_run_with_all_of_it_resumes_to_the_very_same_end(work, run) -> None:
    lines = [line for line in Path("tiny.yaml").read_text().splitlines() if "seq2vec:" not in line]
    lines.insert(1, "    seq2vec: {arch: gru, hidden_dim: 8, embedding_dim: 4, bidirectional: True, pooling: max}")
    Path("tiny.yaml").write_text("\n".join(lines))
    assert run(f"{TRAIN} --set {EVERYTHING}").status == 0
    Path("checkpoint").rename("whole")
    with at_step(2, stop(signal.SIGTERM)):
        assert run(f"{TRAIN} --set {EVERYTHING}").status == 143
    assert run(f"{TRAIN} --resume --set {EVERYTHING}").status == 0
    assert differences(Path("whole/tiny/0").absolute(), FOLD.absolute()) == []
    state = torch.load(LAST, weights_only=True)
    assert state["loss"]["log_scale"].item() != pytest.approx(-math.log(0.07), abs=1e-6)
    assert state["average"]["n_averaged"] == 6


SMALL = [
    f"model.fusion.{key}={value}"
    for key, value in {"mca_HIDDEN_SIZE": 16, "mca_FF_SIZE": 8, "mca_MULTI_HEAD": 2, "mca_HIDDEN_SIZE_HEAD": 8}.items()
] + ["model.embed.embed_dim=16", "model.seq2vec.embedding_dim=4", "model.seq2vec.hidden_dim=4", "dataset.image_size=64"]
GALR = ROOT / "option/RSITMD/RSITMD_GaLR.yaml"
ROWS = dict(re.findall(r"\[(\w+)\]=(model\.[\w.]+=\w+)", (ROOT / "exec/ablation.sh").read_text()))


def galr(*overrides: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(load_options(GALR, [*SMALL, *overrides]), ["a", "b"]).eval()


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
    assert load_options(GALR, ["model.local_branch=False", "dataset.local_path=None"]).local_path == "zeros"


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
def test_without_the_dynamic_weights_both_vectors_count_alike(inputs) -> None:
    """Under the cosine that is what the released gate comes to, for its one weight multiplies both."""
    plain, released = galr("model.fusion.gate=none"), galr("model.fusion.gate=released")
    plain.load_state_dict({name: x for name, x in released.state_dict().items() if not name.startswith("midf.gamma")})
    of_plain, of_released = plain.encode_image(*inputs), released.encode_image(*inputs)
    torch.testing.assert_close(l2norm(of_plain), l2norm(of_released))
    assert not torch.allclose(of_plain, of_released)


def test_every_row_of_the_script_changes_the_model_and_is_by_itself_a_model_that_trains(work, run) -> None:
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
