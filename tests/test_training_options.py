"""Options beyond the published recipe: losses, batches of images, schedules, optimiser, frozen parts, the average."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from interrupted import FOLD, LAST, TRAIN, at_step, stop
from soak import differences
from torch.optim.swa_utils import AveragedModel

import engine
from data import SameCaptions, epoch_rows, epoch_size, load_data, read_split, train_batches
from engine import learning_rate, make_criterion, make_model, make_optimizer, train_step
from layers.average import make_average
from layers.loss import InfoNCE, Pairs
from option import load_options
from option.options import Optim
from utils import InputError
from vocab import load_words

pytestmark = pytest.mark.usefixtures("short_trunk")
CPU = torch.device("cpu")
BY_IMAGE = ["optim.loss=infonce", "dataset.captions_per_image=2", "dataset.batch_size=4"]


# ---------------------------------------------------------------- the loss


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


def test_the_cross_entropy_of_distinct_pairs_is_that_of_clip() -> None:
    s = torch.rand(6, 6, generator=torch.Generator().manual_seed(0))
    own = torch.arange(6)
    entropy = torch.nn.functional.cross_entropy
    expected = (entropy(s / 0.07, own) + entropy(s.T / 0.07, own)) / 2
    assert InfoNCE(0.07)(s, Pairs(own, own, torch.eye(6) > 0)).item() == pytest.approx(expected.item(), rel=1e-5)


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


# ---------------------------------------------------------------- batches


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


def test_a_batch_gives_similarities_of_its_images_and_captions_and_pairs_that_point_into_them(loaded) -> None:
    options, data = loaded
    torch.manual_seed(0)
    model = make_model(options, load_words(options))
    batch = next(train_batches(data, options, 0, 0))
    sims = model(*batch.inputs)
    assert sims.shape == batch.pairs.positive.shape == (len(batch.images), len(batch.lengths))
    assert batch.pairs.positive[batch.pairs.image, batch.pairs.caption].all()


# ---------------------------------------------------------------- rates


def test_the_cosine_falls_from_the_rate_to_zero_after_a_warm_up_in_proportion() -> None:
    options = Optim(epochs=11, lr=1.0, schedule="cosine", warmup=1)
    assert [learning_rate(options, 0, part) for part in (0.25, 1)] == pytest.approx([0.25, 1])
    assert learning_rate(options, 5, 1) == pytest.approx(0.5)
    assert learning_rate(options, 2, 0.5) == pytest.approx((1 + math.cos(math.pi * 0.15)) / 2)
    assert learning_rate(options, 10, 1) == pytest.approx(0, abs=1e-12)
    warmed = Optim(warmup=0.5)
    assert [learning_rate(warmed, 0, part) for part in (0.25, 0.5, 0.75)] == pytest.approx([1e-4, 2e-4, 2e-4])


def test_the_trunk_has_its_own_rate_and_vectors_do_not_decay(work) -> None:
    options = load_options(
        "tiny.yaml", ["optim.trunk_lr=1e-4", "optim.lr=1e-3", "optim.weight_decay=0.1", "optim.loss=infonce"]
    )
    model, criterion = make_model(options, load_words(options)), make_criterion(options.optim, CPU)
    groups = make_optimizer(model, options.optim, criterion).param_groups
    trunk = set(model.backbones()[0].parameters())
    seen = []
    for group in groups:
        for parameter in group["params"]:
            assert group["factor"] == pytest.approx(0.1 if parameter in trunk else 1)
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0)
            seen.append(parameter)
    assert criterion.log_scale in set(seen) and len(seen) == len(list(model.parameters())) + 1


def test_by_default_one_group_holds_all_parameters_in_their_order(work) -> None:
    """Optimisers of runs from before there were groups go on."""
    options = load_options("tiny.yaml")
    model = make_model(options, load_words(options))
    (group,) = make_optimizer(model, options.optim, make_criterion(options.optim, CPU)).param_groups
    assert all(map(torch.Tensor.is_set_to, group["params"], model.parameters()))


# ---------------------------------------------------------------- parts that stay, and the average


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


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optim.freeze=[trunk,visual]", "optim.freeze: the model has no part visual"),
        ("optim.loss=huber", "optim.loss must be one of triplet, infonce, got huber"),
    ],
)
def test_a_part_or_a_loss_that_is_not_there_is_one_line(work, run, override, says) -> None:
    refused = run(f"{TRAIN} --set {override}")
    assert refused.status == 2 and says in refused.message


def test_the_average_follows_the_weights_and_is_what_is_scored(work, run, monkeypatch) -> None:
    steps = []
    real = engine.train_step

    def watched(model, *arguments):
        loss = real(model, *arguments)
        steps.append(model.local_branch.out.bias.detach().clone())
        return loss

    monkeypatch.setattr(engine, "train_step", watched)
    assert run(f"{TRAIN} --set optim.ema=0.3 optim.epochs=1").status == 0
    expected = steps[0]
    for n, weights in enumerate(steps[1:], 1):
        keep = min(0.3, (1 + n) / (10 + n))
        expected = keep * expected + (1 - keep) * weights
    best = torch.load(FOLD / "GaLR_best.pth.tar", weights_only=True)["model"]
    last = torch.load(LAST, weights_only=True)["model"]
    assert torch.allclose(best["local_branch.out.bias"], expected, atol=1e-6)
    assert torch.equal(last["local_branch.out.bias"], steps[-1])
    assert make_average(torch.nn.Linear(1, 1), 0) is None


def test_the_average_is_pytorch_s_to_the_bit() -> None:
    """Its own update would wait for a GPU at every step (test_cuda_runs.py)."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))

    def update(average, weights, steps) -> None:
        torch._foreach_lerp_(average, weights, 1 - min(0.5, (1 + steps.item()) / (10 + steps.item())))

    ours, plain = make_average(model, 0.5), AveragedModel(model, multi_avg_fn=update)
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


def test_a_trunk_that_timm_lacks_is_an_input_error(work) -> None:
    pytest.importorskip("timm")
    options = load_options("tiny.yaml", ["model.trunk=resnet1818"])
    with pytest.raises(InputError, match="neither resnet18 nor a model of timm"):
        make_model(options, load_words(options))
