"""Training protocol, evaluation, and the two test commands."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import torch
import yaml

import vocab
from data import Batch, image_batches, load_data, read_split
from engine import encode_split, learning_rate, load_model, make_optimizer, train_step
from layers.distributed import Shard
from layers.loss import TripletLoss
from layers.published import to_published
from option import load_options
from option.options import Optim
from util.checkpoint import read_checkpoint

pytestmark = pytest.mark.usefixtures("short_trunk")


def test_the_rate_falls_at_the_start_of_epochs_19_39_and_59_of_70() -> None:
    rates = [learning_rate(Optim(), epoch) for epoch in range(70)]
    expected = [2e-4] * 19 + [2e-4 * 0.7] * 20 + [2e-4 * 0.7**2] * 20 + [2e-4 * 0.7**3] * 11
    assert rates == pytest.approx(expected, rel=1e-12)


def test_the_rate_is_multiplied_at_every_epoch_e_with_e_mod_u_equal_to_u_less_1() -> None:
    for update in (1, 2, 7):
        options, rate = Optim(lr_update_epoch=update, lr_decay_param=0.5), 2e-4
        for epoch in range(30):
            rate *= 0.5 if epoch % update == update - 1 else 1
            assert learning_rate(options, epoch) == pytest.approx(rate, rel=1e-9)


class Product(torch.nn.Module):
    """A model of one weight, whose gradient is the mean of the images."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2, 3))

    def forward(self, images: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return self.weight * images


@pytest.mark.parametrize(("limit", "length"), [(0, 6.0), (0.5, 0.5), (10, 6.0)])
def test_a_gradient_longer_than_grad_clip_is_shortened_to_it(limit, length) -> None:
    """A step of gradient descent at the rate 1 is as long as the gradient."""
    options = load_options("option/DEMO/DEMO_GaLR.yaml", [f"optim.grad_clip={limit}"])
    model, images = Product(), torch.full((2, 3), 6 / 6**0.5)
    part = Shard(0, 2, 2)
    batch = Batch(images, *[images] * 3, torch.tensor([1, 1]), None, part, part)
    optimizer = torch.optim.SGD(model.parameters(), lr=99)
    loss = train_step(model, batch, lambda sims, _: sims.sum(), optimizer, 1.0, options)
    assert loss.item() == pytest.approx(6 * 6 / 6**0.5)
    assert (1 - model.weight).norm().item() == pytest.approx(length, rel=1e-4)


def test_the_optimiser_is_adamw_with_the_betas_the_rate_and_the_decay_of_the_options() -> None:
    def group(**keys) -> dict:
        model = torch.nn.Linear(2, 2, bias=False)
        model.backbones = model.transformers = list
        optimizer = make_optimizer(model, Optim(**keys))
        assert isinstance(optimizer, torch.optim.AdamW)
        return optimizer.param_groups[0]

    assert (tuple(group()["betas"]), group()["weight_decay"], group()["eps"]) == ((0.9, 0.999), 0, 1e-8)
    other = group(betas=[0.5, 0.9], weight_decay=0.1)
    assert (tuple(other["betas"]), other["weight_decay"], other["factor"]) == ((0.5, 0.9), 0.1, 1)


@pytest.mark.parametrize("hardest", [False, True])
def test_the_loss_is_the_sum_over_wrong_pairs_or_the_hardest_of_each_row_and_column(hardest) -> None:
    s = torch.rand(5, 5, generator=torch.Generator().manual_seed(0))
    rows = [[max(0, 0.2 + s[i, j] - s[i, i]) for j in range(5) if j != i] for i in range(5)]
    columns = [[max(0, 0.2 + s[i, j] - s[j, j]) for i in range(5) if i != j] for j in range(5)]
    expected = sum((max if hardest else sum)(terms) for terms in rows + columns)
    assert TripletLoss(0.2, hardest)(s).item() == pytest.approx(float(expected), rel=1e-5)


def test_similarities_do_not_depend_on_batches_or_on_the_order_of_captions(work, checkpoint) -> None:
    options = load_options("tiny.yaml")
    words = vocab.load("vocab.json").words
    device = torch.device("cpu")
    model = load_model(read_checkpoint(checkpoint), options, words, device)
    loaded = load_data(read_split("data", "test"), options, words, device, training=False)
    sims = encode_split(model, loaded, options)
    assert sims.shape == (len(loaded.paths), len(loaded.lengths)) and sims.dtype == np.float32
    larger = load_options("tiny.yaml", ["dataset.batch_size_val=64"])
    assert np.abs(encode_split(model, loaded, larger) - sims).max() < 1e-5
    model.eval()
    for i, caption in enumerate(loaded.split.captions[:3]):
        ids = torch.tensor([vocab.encode(caption, vocab.Vocabulary(words).index)])
        with torch.no_grad():
            text = model.encode_text(ids)
            image = model.encode_image(*(x[1:2] for x in next(image_batches(loaded, 2))))
        one = torch.nn.functional.cosine_similarity(image, text).item()
        assert abs(one - sims[1, i]) < 1e-5


def test_equal_captions_are_encoded_once_and_score_alike(work, checkpoint, monkeypatch) -> None:
    options = load_options("tiny.yaml")
    words = vocab.load("vocab.json").words
    model = load_model(read_checkpoint(checkpoint), options, words, torch.device("cpu"))
    loaded = load_data(read_split("data", "test"), options, words, torch.device("cpu"), training=False)
    token_ids = loaded.token_ids.clone()
    token_ids[3] = token_ids[7]
    encode, encoded = model.encode_text, []
    monkeypatch.setattr(model, "encode_text", lambda ids, lengths: encoded.extend(ids.tolist()) or encode(ids, lengths))
    before = encode_split(model, loaded, options)
    encoded.clear()
    after = encode_split(model, loaded._replace(token_ids=token_ids), options)
    assert len(encoded) == len(set(map(tuple, token_ids.tolist())))
    assert after.flags.c_contiguous and np.array_equal(after[:, 3], after[:, 7])
    others = np.arange(after.shape[1]) != 3
    assert np.abs(after - before)[:, others].max() < 1e-6


def place(checkpoint, folder) -> str:
    shutil.copytree(checkpoint.parent, folder)
    return f"{folder}/{checkpoint.name}"


def test_test_single_gives_the_numbers_of_test_digit_for_digit(work, checkpoint, run) -> None:
    path = place(checkpoint, work / "checkpoint/tiny/0")
    assert run("test.py --path_opt tiny.yaml --rerank").status == 0
    for split, name in (("test", "tiny_0"), ("val", "tiny_0_val")):
        single = run(f"test_single.py --path_opt tiny.yaml --resume {path} --split {split} --sims s.npy --figure f.png")
        assert single.status == 0 and f"{split} split:" in single.out and "chance mR" in single.out
        assert np.array_equal(np.load("s.npy"), np.load(f"postprocessing/file/{name}.npy"))
        assert np.array_equal(np.load("s_images.npy"), np.load(f"postprocessing/file/{name}_images.npy"))
    results = json.loads((work / "checkpoint/tiny/results.json").read_text())
    assert results["experiment"] == "tiny" and results["folds"][0]["split"] == "test"
    with (work / "checkpoint/tiny/results.csv").open(newline="") as file:
        whole = {
            column: value for column, value in next(csv.DictReader(file)).items() if "t2i" in column or "i2t" in column
        }
    single = run(f"test_single.py --path_opt tiny.yaml --resume {path}").out
    row = next(line for line in single.splitlines() if line.startswith("| fold 0 "))
    assert [float(cell) for cell in row.split("|")[3:9]] == [round(float(whole[k]), 2) for k in whole if "@" in k]
    ranks = [f"{float(whole[f'{way} {kind} r']):.2f}" for way in ("i2t", "t2i") for kind in ("med", "mean")]
    assert "i2t median {} mean {}, t2i median {} mean {}".format(*ranks) in single
    assert (work / "f.png").stat().st_size > 1000
    assert results["rerank"]["setting"]["k"] == 30 and len(results["rerank"]["folds"]) == 1


def test_a_published_checkpoint_scores_as_it_is(work, checkpoint, run) -> None:
    ours = read_checkpoint(checkpoint)
    published = {key: ours[key] for key in ("epoch", "arch", "best_rsum", "options", "Eiters")}
    torch.save(published | {"model": to_published(ours["model"])}, work / "published.pth.tar")
    outputs = [
        run(f"test_single.py --path_opt tiny.yaml --resume {path}") for path in (checkpoint, "published.pth.tar")
    ]
    assert [one.status for one in outputs] == [0, 0]
    assert outputs[0].out == outputs[1].out


@pytest.mark.parametrize(("gate", "warned"), [("paper", False), ("released", True)])
def test_another_gate_than_the_checkpoint_was_trained_with_is_warned_of(work, checkpoint, run, gate, warned) -> None:
    outcome = run(f"test_single.py --path_opt tiny.yaml --resume {checkpoint} --set model.fusion.gate={gate}")
    assert outcome.status == 0 and ("--set model.fusion.gate=paper scores it as trained" in outcome.err) == warned


@pytest.mark.parametrize(("path", "warned"), [("data/local.h5", False), ("zeros", True)])
def test_a_checkpoint_that_is_scored_without_its_local_features_is_warned_of(
    work, checkpoint, run, path, warned
) -> None:
    outcome = run(f"test_single.py --path_opt tiny.yaml --resume {checkpoint} --set dataset.local_path={path}")
    assert outcome.status == 0 and ("--set dataset.local_path=data/local.h5 scores it as" in outcome.err) == warned


@pytest.mark.parametrize("fusion", ["paper", [], {"gate": torch.zeros(2)}, {"gate": []}])
def test_options_in_a_checkpoint_that_are_no_options_are_passed_over(work, checkpoint, run, fusion) -> None:
    torch.save(read_checkpoint(checkpoint) | {"options": {"model": {"fusion": fusion}}}, work / "strange.pth.tar")
    assert run("test_single.py --path_opt tiny.yaml --resume strange.pth.tar").status == 0


def test_test_single_names_the_fold_of_the_checkpoint(work, checkpoint, run) -> None:
    path = place(checkpoint, work / "checkpoint/tiny/2")
    assert "fold 2 " in run(f"test_single.py --path_opt tiny.yaml --resume {path}").out


def test_a_published_option_file_trains_and_its_result_can_be_fine_tuned(work, run) -> None:
    """The string "None", unused keys and all; the published widths are too slow for a test, so two are overridden."""
    tree = yaml.safe_load((work / "tiny.yaml").read_text())
    tree["model"] |= {
        "cross_attention": {"att_type": "sum"},
        "global_local_weight": {"global": "None", "local": "None"},
    }
    tree["model"]["fusion"] |= {"correct_local_hidden_dim": 512, "supplement_global_hidden_drop": 0.2}
    tree["dataset"]["data_split"] = "train"
    tree["optim"] = {
        "epochs": 1,
        "lr": 0.0002,
        "lr_decay_param": 0.7,
        "lr_update_epoch": 20,
        "grad_clip": "None",
        "max_violation": 0,
        "margin": 0.2,
        "resume": "None",
    }
    (work / "published.yaml").write_text(yaml.safe_dump(tree))
    assert run("train.py --path_opt published.yaml").status == 0
    best = "checkpoint/tiny/0/GaLR_best.pth.tar"
    tuned = run(
        f"train.py --path_opt published.yaml --set optim.resume={best} k_fold.experiment_name=tuned optim.lr=1e-9"
    )
    assert tuned.status == 0 and "was trained on" not in tuned.err
    first, second = (read_checkpoint(f"checkpoint/{name}/0/GaLR_best.pth.tar")["model"] for name in ("tiny", "tuned"))
    weights = [name for name in first if "running" not in name and "num_batches" not in name]  # an epoch moves those
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in weights)


def test_fine_tuning_warns_of_validation_images_that_its_checkpoint_was_trained_on(work, checkpoint, run) -> None:
    command = f"train.py --path_opt tiny.yaml --set optim.resume={checkpoint} optim.epochs=1 k_fold.nums=1"
    names = json.loads(checkpoint.with_name("split.json").read_text())
    tuned = run(command)
    own = json.loads((work / "checkpoint/tiny/0/split.json").read_text())
    seen = set(names["train"]) & set(own["val"])
    assert tuned.status == 0 and seen
    assert f"was trained on {len(seen)} of the {len(own['val'])} images on which fold 0 validates" in tuned.err


def test_a_compiled_model_encodes_alike_and_keeps_the_names_of_its_weights(work, checkpoint, monkeypatch) -> None:
    compiler, options = torch.compile, load_options("tiny.yaml")
    monkeypatch.setattr(torch, "compile", lambda function: compiler(function, backend="eager"))
    words = vocab.load("vocab.json").words
    loaded = load_data(read_split("data", "test"), options, words, torch.device("cpu"), training=False)
    models = [
        load_model(
            read_checkpoint(checkpoint),
            load_options("tiny.yaml", [f"optim.compile={value}"]),
            words,
            torch.device("cpu"),
        )
        for value in ("false", "true")
    ]
    assert models[0].state_dict().keys() == models[1].state_dict().keys()
    assert np.array_equal(*(encode_split(model, loaded, options) for model in models))


def test_no_graph_is_kept_where_no_backward_pass_will_follow(work, checkpoint, monkeypatch) -> None:
    """The states of all words would take most of the memory of an evaluation."""
    options, words = load_options("tiny.yaml"), vocab.load("vocab.json").words
    model = load_model(read_checkpoint(checkpoint), options, words, torch.device("cpu"))
    stacked, stack = [], torch.stack
    monkeypatch.setattr(torch, "stack", lambda *x, **kw: stacked.append(x) or stack(*x, **kw))
    with torch.no_grad():
        model.encode_text(torch.tensor([[1, 2, 1]]))
    assert not stacked
    model.encode_text(torch.tensor([[1, 2, 1]]))
    assert len(stacked) == 3


def test_an_image_whose_captions_are_all_blank_is_no_query_of_the_test_split(work, checkpoint, run) -> None:
    captions = (work / "data/test_caps.txt").read_text().splitlines()
    images = len(set((work / "data/test_filename.txt").read_text().split()))
    each = len(captions) // images
    (work / "data/test_caps.txt").write_text("\n".join([""] * each + captions[each:]) + "\n")
    outcome = run(f"test_single.py --path_opt tiny.yaml --resume {checkpoint}")
    assert outcome.status == 0 and f"{images} images, {len(captions) - each} captions" in outcome.out
    assert f"{each} blank captions of the test list" in outcome.err


def test_captions_of_the_same_words_are_counted_because_ties_cost_recall(work, checkpoint, run) -> None:
    captions = (work / "data/test_caps.txt").read_text().splitlines()
    words = [" ".join(["plane"] * (i + 1)) for i in range(len(captions))]
    for written, noted in ((words, False), ([words[0], *words[:-1]], True)):
        (work / "data/test_caps.txt").write_text("\n".join(written) + "\n")
        outcome = run(f"test_single.py --path_opt tiny.yaml --resume {checkpoint}")
        assert outcome.status == 0 and ("1 captions have the words of another one" in outcome.out) == noted
