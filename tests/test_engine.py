"""Training protocol, evaluation, and the two test commands: scores, rerank, every query's rank."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import vocab
from data import image_batches, load_data, read_split
from engine import encode_split, load_model
from layers.published import to_published
from option import load_options
from postprocessing.matrices import load, load_gallery, matrix_files
from postprocessing.recall import recall
from postprocessing.rerank import rerank_recall
from postprocessing.results import Setting
from util.checkpoint import read_checkpoint

pytestmark = pytest.mark.usefixtures("short_trunk")


@pytest.fixture
def encoder(work, checkpoint) -> SimpleNamespace:
    """Hold the options and words of the demonstration set, its model, and the test split."""
    options, words, cpu = load_options("tiny.yaml"), vocab.load("vocab.json").words, torch.device("cpu")
    model = load_model(read_checkpoint(checkpoint), options, words, cpu)
    loaded = load_data(read_split("data", "test"), options, words, cpu, training=False)
    return SimpleNamespace(options=options, words=words, model=model, loaded=loaded, checkpoint=checkpoint)


def test_similarities_do_not_depend_on_batches_or_on_the_order_of_captions(encoder) -> None:
    model, loaded = encoder.model, encoder.loaded
    sims = encode_split(model, loaded, encoder.options)
    assert sims.shape == (len(loaded.paths), len(loaded.lengths)) and sims.dtype == np.float32
    larger = load_options("tiny.yaml", ["dataset.batch_size_val=64"])
    assert np.abs(encode_split(model, loaded, larger) - sims).max() < 1e-5
    model.eval()
    for i, caption in enumerate(loaded.split.captions[:3]):
        ids = torch.tensor([vocab.encode(caption, vocab.Vocabulary(encoder.words).index)])
        with torch.no_grad():
            text = model.encode_text(ids)
            image = model.encode_image(*(x[1:2] for x in next(image_batches(loaded, 2))))
        one = torch.nn.functional.cosine_similarity(image, text).item()
        assert abs(one - sims[1, i]) < 1e-5


def test_equal_captions_are_encoded_once_and_score_alike(encoder, monkeypatch) -> None:
    model, loaded, token_ids = encoder.model, encoder.loaded, encoder.loaded.token_ids.clone()
    token_ids[3] = token_ids[7]
    encode, encoded = model.encode_text, []
    monkeypatch.setattr(model, "encode_text", lambda ids, lengths: encoded.extend(ids.tolist()) or encode(ids, lengths))
    before = encode_split(model, loaded, encoder.options)
    encoded.clear()
    after = encode_split(model, loaded._replace(token_ids=token_ids), encoder.options)
    assert len(encoded) == len(set(map(tuple, token_ids.tolist())))
    assert after.flags.c_contiguous and np.array_equal(after[:, 3], after[:, 7])
    others = np.arange(after.shape[1]) != 3
    assert np.abs(after - before)[:, others].max() < 1e-6


def test_test_single_gives_the_numbers_of_test_digit_for_digit(scored_run, run) -> None:
    single = "test_single.py --path_opt tiny.yaml --resume checkpoint/tiny/0/GaLR_best.pth.tar"
    assert run("test.py --path_opt tiny.yaml --rerank").status == 0
    for split, name in (("val", "tiny_0_val"), ("test", "tiny_0")):
        scored = run(f"{single} --split {split} --sims s.npy --figure f.png")
        assert scored.status == 0 and f"{split} split:" in scored.out and "chance mR" in scored.out
        assert np.array_equal(np.load("s.npy"), np.load(f"postprocessing/file/{name}.npy"))
        assert np.array_equal(np.load("s_images.npy"), np.load(f"postprocessing/file/{name}_images.npy"))
        assert load_gallery(Path("s.npy")) == load_gallery(Path(f"postprocessing/file/{name}.npy"))
    assert Path("f.png").stat().st_size > 1000
    with Path("checkpoint/tiny/results.csv").open(newline="") as file:
        whole = {name: float(value) for name, value in next(csv.DictReader(file)).items() if "2" in name}
    row = next(line for line in scored.out.splitlines() if line.startswith("| fold 0 "))
    assert [float(cell) for cell in row.split("|")[3:9]] == [round(whole[k], 2) for k in whole if "@" in k]
    ranks = [f"{whole[f'{way} {kind} r']:.2f}" for way in ("i2t", "t2i") for kind in ("med", "mean")]
    assert "i2t median {} mean {}, t2i median {} mean {}".format(*ranks) in scored.out
    results = json.loads(Path("checkpoint/tiny/results.json").read_text())
    assert results["experiment"] == "tiny" and results["folds"][0]["split"] == "test"
    assert results["rerank"]["setting"]["k"] == 30 and len(results["rerank"]["folds"]) == 1


def test_a_published_checkpoint_of_several_gpus_without_counters_scores_as_it_is(work, checkpoint, run) -> None:
    """Names begin with `module.`, older PyTorch kept no counters, and the best score is a number of NumPy."""
    ours = read_checkpoint(checkpoint)
    state = {f"module.{k}": x for k, x in to_published(ours["model"]).items() if not k.endswith("num_batches_tracked")}
    published = {key: ours[key] for key in ("epoch", "arch", "options", "Eiters")}
    torch.save(published | {"model": state, "best_rsum": np.float64(1)}, work / "published.pth.tar")
    outputs = [run(f"test_single.py --path_opt tiny.yaml --resume {x}") for x in (checkpoint, "published.pth.tar")]
    assert [one.status for one in outputs] == [0, 0] and outputs[0].out == outputs[1].out


@pytest.mark.parametrize(
    ("change", "way"),
    [
        ("model.fusion.gate=released", "model.fusion.gate=paper scores it as trained"),
        ("dataset.local_path=zeros", "dataset.local_path=data/local.h5 scores it as trained"),
        ("model.fusion.gate=paper dataset.local_path=data/local.h5", ""),
    ],
)
def test_a_checkpoint_scored_otherwise_than_it_was_trained_is_warned_of(change, way, work, checkpoint, run) -> None:
    outcome = run(f"test_single.py --path_opt tiny.yaml --resume {checkpoint} --set {change}")
    assert outcome.status == 0 and way in outcome.err and ("scores it as" in outcome.err) == bool(way)


@pytest.mark.parametrize("fusion", ["paper", [], {"gate": torch.zeros(2)}, {"gate": []}])
def test_options_in_a_checkpoint_that_are_no_options_are_passed_over(work, checkpoint, run, fusion) -> None:
    torch.save(read_checkpoint(checkpoint) | {"options": {"model": {"fusion": fusion}}}, work / "strange.pth.tar")
    assert run("test_single.py --path_opt tiny.yaml --resume strange.pth.tar").status == 0


def test_test_single_names_the_fold_of_the_checkpoint(scored_run, run) -> None:
    Path("checkpoint/tiny/0").rename("checkpoint/tiny/2")
    path = "checkpoint/tiny/2/GaLR_best.pth.tar"
    assert "fold 2 " in run(f"test_single.py --path_opt tiny.yaml --resume {path}").out


def test_a_result_can_be_fine_tuned(work, run) -> None:
    train = "train.py --path_opt tiny.yaml --set optim.epochs=1"
    assert run(train).status == 0
    best = "checkpoint/tiny/0/GaLR_best.pth.tar"
    tuned = run(f"{train} optim.resume={best} k_fold.experiment_name=tuned optim.lr=1e-9")
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


def test_a_compiled_model_encodes_alike_and_keeps_the_names_of_its_weights(encoder, monkeypatch) -> None:
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compiler(function, backend="eager"))
    state, options = read_checkpoint(encoder.checkpoint), load_options("tiny.yaml", ["optim.compile=true"])
    compiled = load_model(state, options, encoder.words, torch.device("cpu"))
    assert compiled.state_dict().keys() == encoder.model.state_dict().keys()
    found, expected = (encode_split(model, encoder.loaded, options) for model in (compiled, encoder.model))
    assert np.array_equal(found, expected)


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


def test_test_py_scores_the_published_rerank_of_its_matrix_and_writes_every_query_s_rank(scored_run, run) -> None:
    assert run("test.py --path_opt tiny.yaml --rerank").status == 0
    scored = json.loads((scored_run / "checkpoint/tiny/results.json").read_text())
    sims, owner = load("postprocessing/file/tiny_0.npy")
    for found, expected in ((scored, recall(sims, owner)), (scored["rerank"], rerank_recall(sims, owner, Setting()))):
        (fold,) = found["folds"]
        for way in ("i2t", "t2i"):
            assert getattr(expected, way)._asdict().items() <= fold[way].items() and 0 < fold[way]["map"] <= 100
    assert scored["rerank"]["setting"] == asdict(Setting()) and scored["bank"] is None
    with (scored_run / "checkpoint/tiny/ranks.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(sims.shape)
    for way in ("i2t", "t2i"):
        ranks = [int(row["rank"]) for row in rows if row["direction"] == way]
        assert np.mean(ranks) == pytest.approx(scored["folds"][0][way]["meanr"])


def test_the_folds_from_current_num_on_are_scored(scored_run, run) -> None:
    (scored_run / "checkpoint/tiny/0").rename(scored_run / "checkpoint/tiny/2")
    assert run("test.py --path_opt tiny.yaml --set k_fold.nums=3 k_fold.current_num=2").status == 0
    scored = json.loads((scored_run / "checkpoint/tiny/results.json").read_text())
    assert [fold["fold"] for fold in scored["folds"]] == [2]
    missing = run("test.py --path_opt tiny.yaml --set k_fold.nums=3 k_fold.current_num=1")
    assert missing.status == 2 and "folds [1] have no GaLR_best.pth.tar" in missing.message


def test_the_vectors_of_the_captions_are_written_beside_the_matrix(scored_run, run) -> None:
    lines = Path("data/test_caps.txt").read_text().splitlines()
    Path("data/test_caps.txt").write_text("\n".join([lines[1], *lines[1:]]) + "\n")  # two captions of one vector
    assert run("test.py --path_opt tiny.yaml --caption-vectors").status == 0
    best = "--resume checkpoint/tiny/0/GaLR_best.pth.tar --sims a.npy --caption-vectors b.npy"
    assert run(f"test_single.py --path_opt tiny.yaml {best}").status == 0
    vectors, sims = np.load("b.npy"), np.load("a.npy")
    assert np.array_equal(vectors, np.load("postprocessing/file/tiny_0_caption_vectors.npy"))
    assert vectors.dtype == np.float32 and vectors.shape[0] == sims.shape[1] == len(
        load_gallery(Path("a.npy")).captions
    )
    same = [[np.array_equal(one, other) for other in rows] for rows in (vectors, sims.T) for one in rows]
    assert same[: len(vectors)] == same[len(vectors) :] and vectors.std(axis=0).max() > 0
    assert matrix_files(["postprocessing/file/tiny_0*.npy"]) == [Path("postprocessing/file/tiny_0.npy")]
    refused = run("test_single.py --path_opt tiny.yaml --resume none --caption-vectors b.txt")
    assert refused.status == 2 and "--caption-vectors b.txt: the name must end in .npy" in refused.message
