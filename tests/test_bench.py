"""The measuring command: every suite runs, gives the promised figures, and compares sides that agree in numbers."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import bench.__main__
import bench.data
import bench.eval
import bench.loop
import bench.rerank
import bench.scaling
import bench.similarity
import bench.train
import vocab
from bench import figures, measured
from util.lists import read_captions
from utils import InputError, RunError

CPU = torch.device("cpu")
TINY = (
    "dataset.batch_size=32",
    "dataset.batch_size_val=3",
    "dataset.image_size=32",
    "model.seq2vec.hidden_dim=24",
    "model.seq2vec.embedding_dim=12",
)
FIGURES = {"ours", "baseline", "ratio", "spread", "peak_mib"}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def here(make, *arguments, times=1):
    """Stands in for `measured`: the work is done in this process, which starts faster than one of its own."""
    return bench.Outcome(0.5, make(*arguments)(), 100.0)


@pytest.fixture
def in_this_process(monkeypatch):
    for module in (bench.train, bench.eval, bench.data, bench.rerank, bench.similarity):
        monkeypatch.setattr(module, "measured", here)
    monkeypatch.delenv("GALR_TEST_DATA", raising=False)


def test_training_suite_compares_gradients_and_gives_both_cases(in_this_process, capsys):
    cases = bench.train.cases(CPU, 1, TINY)
    assert cases.keys() == {"train.step_bf16", "train.step_fp32"}
    assert all(case.keys() == FIGURES and case["ratio"] == 1 for case in cases.values())
    assert "gradient norms in float32 agree" in capsys.readouterr().out


def test_gradient_norms_equal_the_baselines_parameter_by_parameter():
    ours, plain = bench.train.our_gradients(TINY, CPU)(), bench.train.baseline_gradients(TINY, CPU)()
    assert ours.keys() == plain.keys()
    assert sum(norm > bench.train.NOISE for norm in plain.values()) > 100
    assert bench.train.worst_gradient(ours, plain)[1] < bench.train.TOLERANCE


def test_another_gradient_stops_the_training_suite(in_this_process, monkeypatch):
    monkeypatch.setattr(bench.train, "our_gradients", lambda *_: lambda: {"a": 1.0, "b": 2.0})
    monkeypatch.setattr(bench.train, "baseline_gradients", lambda *_: lambda: {"a": 1.0, "b": 2.1})
    with pytest.raises(RunError, match="gradient of b"):
        bench.train.cases(CPU, 1, TINY)


def test_a_gradient_that_is_lost_counts_as_another():
    assert bench.train.worst_gradient({"a": 0.0, "b": 1.0}, {"a": 0.5, "b": 1.0}) == ("a", 1.0)
    assert bench.train.worst_gradient({"a": 1e-9, "b": 1.0}, {"a": 0.0, "b": 1.0}) == ("b", 0.0)
    assert not bench.train.worst_gradient({"a": float("nan")}, {"a": 1.0})[1] <= bench.train.TOLERANCE


@pytest.mark.parametrize("full", [False, True])
def test_evaluation_suite_compares_similarities(in_this_process, capsys, full):
    cases = bench.eval.cases(CPU, 1, TINY, images=7, full=full)
    assert cases.keys() == {"eval.rsitmd_test", "eval.rsitmd_test_bf16"}
    assert all(case.keys() == FIGURES for case in cases.values())
    assert ("extrapolated" in capsys.readouterr().out) is not full


def test_blockwise_similarities_equal_ours_and_images_differ():
    ours = bench.eval.our_evaluation(TINY, 7, "fp32", CPU)()
    _, plain = bench.eval.baseline_evaluation(TINY, 7, True, CPU)()
    assert ours.shape == plain.shape == (7, 35)
    assert np.abs(ours - plain).max() < bench.eval.TOLERANCE
    assert ours.std(axis=0).min() > 1e-3


def test_data_suite_gives_both_caches(in_this_process):
    cases = bench.data.cases(CPU, 1, TINY, samples=32)
    assert cases.keys() == {"data.cached", "data.h5"}
    assert all(case.keys() == FIGURES for case in cases.values())


def test_rerank_suite_compares_with_the_plain_rerank_and_recall(in_this_process):
    cases = bench.rerank.cases(images=40, rounds=1)
    assert cases.keys() == {"rerank.rsicd", "recall.rsicd"}
    assert all(case.keys() == FIGURES for case in cases.values())


def test_other_similarities_stop_the_evaluation_suite(in_this_process, monkeypatch):
    plain = bench.eval.baseline_evaluation(TINY, 7, True, CPU)()[1]
    for module_side in ("our_evaluation", "baseline_evaluation"):
        monkeypatch.setattr(bench.eval, module_side, lambda *_: lambda: (1.0, plain))
    monkeypatch.setattr(bench.eval, "our_evaluation", lambda *_: lambda: plain + 1e-3)
    with pytest.raises(RunError, match="from the baseline's"):
        bench.eval.cases(CPU, 1, TINY, images=7, full=True)


@pytest.mark.parametrize("side", ["plain_multivariate", "plain_recall"])
def test_another_rerank_or_recall_stops_the_suite(in_this_process, monkeypatch, side):
    right = getattr(bench.rerank, side)
    wrong = {
        "plain_multivariate": lambda s: right(s) + 1e-3 * (right(s) > 0),
        "plain_recall": lambda s: ([0.0] * 3,) * 2,
    }
    monkeypatch.setattr(bench.rerank, side, wrong[side])
    with pytest.raises(RunError, match="baseline's"):
        bench.rerank.cases(images=40, rounds=1)


def test_times_are_for_100_samples_and_for_the_whole_split(in_this_process):
    """Every work counts as 0.5 seconds here."""
    case = bench.data.cases(CPU, 1, TINY, samples=32)["data.cached"]
    assert case["ours"] == case["baseline"] == pytest.approx(0.5 * 100 / 32)
    ticks = itertools.count(0, 1.0)
    with pytest.MonkeyPatch.context() as patch:
        work = bench.eval.baseline_evaluation(TINY, 7, False, CPU)
        patch.setattr(bench.eval.time, "perf_counter", lambda: next(ticks))
        seconds, rows = work()
    assert len(rows) == 3 and seconds == pytest.approx(1 + 1 * 7 / 3)  # laid out once, a block of 3 scaled to 7


def test_recorded_caption_lengths_are_those_of_rsitmd():
    if not os.environ.get("GALR_TEST_DATA"):
        pytest.skip("GALR_TEST_DATA is not set: RSITMD's captions are not at hand")
    captions = read_captions(Path(os.environ["GALR_TEST_DATA"], "rsitmd_precomp"), "train")
    counts = Counter(len(vocab.tokenize(caption)) for caption in captions if caption)
    assert tuple(counts[words] for words in range(max(counts) + 1)) == bench.train.LENGTHS


def test_figures_are_medians_and_their_ratio():
    case = figures([1.0, 2.0, 4.0], [10.0, 30.0, 20.0], 7.0)
    assert case == {"ours": 2.0, "baseline": 20.0, "ratio": 10.0, "spread": 1.0, "peak_mib": 7.0}


def test_command_writes_the_figures_and_a_table(monkeypatch, tmp_path, capsys):
    case = figures([1.0], [8.0], 2.0)
    for module, names in ((bench.train, ["train.step_bf16", "train.step_fp32"]), (bench.rerank, ["rerank.rsicd"])):
        monkeypatch.setattr(module, "cases", lambda *_, names=names, **__: dict.fromkeys(names, case))
    out = tmp_path / "figures.json"
    monkeypatch.setattr("sys.argv", ["bench", "--suite", "train,rerank", "--device", "cpu", "--json", str(out)])
    bench.__main__.main()
    assert json.loads(out.read_text()) == {"train": {"step_bf16": case, "step_fp32": case}, "rerank": {"rsicd": case}}
    assert "train.step_bf16" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--suite", "trian"], ["--repeats", "0"], ["--suite", ""], ["--json", "."]])
def test_wrong_arguments_are_input_errors(monkeypatch, arguments):
    monkeypatch.setattr("sys.argv", ["bench", *arguments])
    with pytest.raises(InputError):
        bench.__main__.main()


def _slower_once():
    naps = iter((0.2, 0.0, 0.2))
    return lambda: time.sleep(next(naps))


def _fails():
    raise ValueError("no such thing")


def _tells_its_process():
    calls = itertools.count(1)
    return lambda: (next(calls), multiprocessing.parent_process().pid)


def _has_a_child():
    loader = torch.utils.data.DataLoader(range(3), batch_size=1, num_workers=1)
    return lambda: [int(batch) for batch in loader]


def test_a_side_works_in_a_whole_process_of_its_own_and_its_failure_is_one_line():
    outcome = measured(_tells_its_process, times=3)
    assert outcome.answer == (3, multiprocessing.current_process().pid) and 0 < outcome.seconds < 60
    assert outcome.peak_mib > 1
    assert measured(_has_a_child).answer == [0, 1, 2]  # as the baseline's loader has
    assert not multiprocessing.active_children()  # nothing of a side is alive while the next one works
    assert measured(_slower_once, times=3).seconds >= 0.2  # the median of the times
    with pytest.raises(RunError, match="no such thing"):
        measured(_fails)


def test_scaling_fits_the_exponent(monkeypatch):
    for name, sizes in (("BATCHES", (2, 4)), ("CAPTIONS", (2, 4)), ("DATA_SETS", (10, 20)), ("GALLERIES", (2, 4))):
        monkeypatch.setattr(bench.scaling, name, sizes)
    results = bench.scaling.scaling(CPU, "fp32", TINY)
    assert all(np.isfinite(table["exponent"]) and len(table["seconds"]) == 2 for table in results.values())
    assert "exponent" in bench.scaling.table(results)


def test_the_loop_is_timed_its_operations_counted_and_the_protocol_follows(monkeypatch):
    monkeypatch.setattr(bench.loop, "peak_flops", lambda *_: 1e12)
    monkeypatch.setattr(bench.loop, "seconds", lambda work, _: 2.0 if work() is not None else 0)
    results = bench.loop.loop(CPU, "fp32", TINY, validation=4)
    assert results["batches"][0]["samples_per_second"] == 3 * 32 / 2
    assert results["batches"][0]["of_peak"] == pytest.approx(48 * results["gflop_per_sample"] / 1000)
    assert results["protocol_hours"] == pytest.approx(60 * (17160 / 48 + 2) / 3600)
    assert "48.0 samples/s" in bench.loop.table(results)


def test_similarity_bench_compares_all_three_forms(in_this_process, monkeypatch):
    cases = bench.similarity.cases(CPU, 1, (150, 20, 8))
    assert cases.keys() == {f"similarity.{form}" for form in ("soft_att", "fusion_att", "similarity_att")}
    assert all(case.keys() == FIGURES and case["ratio"] == pytest.approx(150 / 128) for case in cases.values())
    monkeypatch.setattr(bench.similarity, "plain", lambda *_: torch.ones(128, 20))
    with pytest.raises(RunError, match="from the baseline's"):
        bench.similarity.cases(CPU, 1, (150, 20, 8))


def test_what_a_side_of_the_similarity_bench_returns_outlives_its_process():
    """A tensor sent from a process is gone with it; an array is copied."""
    for side in (bench.similarity.ours, bench.similarity.baseline):
        assert isinstance(side("soft_att", (2, 3, 8), CPU)()[0], np.ndarray)
