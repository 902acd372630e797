"""The measuring command: every suite runs, gives the promised figures, and compares sides that agree in numbers."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
from collections import Counter
from pathlib import Path

import gradients
import numpy as np
import pytest
import sides
import torch

import bench.__main__
import bench.check_gpu
import bench.data
import bench.eval
import bench.loop
import bench.rerank
import bench.train
import vocab
from bench import figures, measured
from util.lists import read_captions
from utils import InputError, RunError

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
TINY = (*bench.check_gpu.SMALL, "dataset.batch_size=32")
FIGURES = {"ours", "baseline", "ratio", "spread", "peak_mib"}


def here(make, *arguments, times=1):
    """Stands in for `measured`: the work is done in this process, which starts faster than one of its own."""
    return bench.Outcome(0.5, make(*arguments)(), 100.0)


@pytest.fixture
def in_this_process(monkeypatch):
    monkeypatch.setattr(bench, "measured", here)
    monkeypatch.delenv("GALR_TEST_DATA", raising=False)


@pytest.fixture(params=[False, True])
def emulated(request, monkeypatch) -> bool:
    """Take bf16 for emulated, or not, on this processor."""
    for module in (bench.train, bench.eval):
        monkeypatch.setattr(module, "emulates_bf16", lambda _: request.param)
    return request.param


def check_figures(cases: dict, names: set[str], left_out: str = "") -> None:
    """Check that each case has the promised figures; `left_out` is null, for bf16 is emulated."""
    assert cases.keys() == names
    for name, case in cases.items():
        assert (case is None) if name == left_out else case.keys() == FIGURES


def test_suites_time_both_sides_and_leave_out_emulated_bf16(in_this_process, monkeypatch, emulated):
    for side in ("our_step", "baseline_step"):
        monkeypatch.setattr(bench.train, side, lambda *_: lambda: None)
    cases = bench.train.cases(CPU, 1, TINY)
    check_figures(cases, {"step_bf16", "step_fp32"}, "step_bf16" * emulated)
    assert cases["step_fp32"]["ratio"] == 1
    cases = bench.eval.cases(CPU, 1, TINY, images=7)
    check_figures(cases, {"rsitmd_test", "rsitmd_test_bf16"}, "rsitmd_test_bf16" * emulated)
    check_figures(bench.rerank.cases(images=40, repeats=1), {"rsicd"})


def test_steps_of_both_sides_train():
    for step in (bench.train.our_step(TINY, "fp32", CPU), bench.train.baseline_step(TINY, CPU)):
        step()


def test_gradient_norms_equal_the_baselines_parameter_by_parameter():
    ours, plain = gradients.our_gradients(TINY, CPU)(), gradients.baseline_gradients(TINY, CPU)()
    assert ours.keys() == plain.keys()
    assert sum(norm > gradients.NOISE for norm in plain.values()) > 100
    assert gradients.worst_gradient(ours, plain)[1] < gradients.TOLERANCE


def test_a_gradient_that_is_lost_counts_as_another():
    assert gradients.worst_gradient({"a": 0.0, "b": 1.0}, {"a": 0.5, "b": 1.0}) == ("a", 1.0)
    assert gradients.worst_gradient({"a": 1e-9, "b": 1.0}, {"a": 0.0, "b": 1.0}) == ("b", 0.0)
    assert not gradients.worst_gradient({"a": float("nan")}, {"a": 1.0})[1] <= gradients.TOLERANCE


@pytest.mark.parametrize(("gain", "emulated"), [(0.01, True), (0.6, False), (4.0, False)])
def test_a_small_product_tells_whether_bf16_is_emulated(monkeypatch, gain, emulated):
    monkeypatch.setattr(bench.train, "gain", lambda *_: gain)
    assert bench.train.emulates_bf16(CPU) is emulated


def test_blockwise_similarities_equal_ours_and_images_differ():
    ours = bench.eval.our_evaluation(TINY, 7, "fp32", CPU)()
    _, plain = bench.eval.baseline_evaluation(TINY, 7, CPU)()
    assert ours.shape == (7, 35) and plain.shape == (3, 35)  # one block of batch_size_val images
    assert np.abs(ours[:3] - plain).max() < bench.eval.TOLERANCE
    assert ours.std(axis=0).min() > 1e-3


def test_other_similarities_and_another_rerank_stop_their_suites(in_this_process, monkeypatch):
    plain, right = np.ones((3, 35), np.float32), bench.rerank.plain_multivariate
    monkeypatch.setattr(bench.eval, "baseline_evaluation", lambda *_: lambda: (1.0, plain))
    monkeypatch.setattr(bench.eval, "our_evaluation", lambda *_: lambda: plain + 1e-3)
    monkeypatch.setattr(bench.rerank, "plain_multivariate", lambda sims, **setting: right(sims, **setting) * 1.001)
    for suite in (lambda: bench.eval.cases(CPU, 1, TINY, images=7), lambda: bench.rerank.cases(images=40, repeats=1)):
        with pytest.raises(RunError, match="baseline's"):
            suite()


def test_times_are_for_100_samples_and_for_the_whole_split(in_this_process):
    """Every work counts as 0.5 seconds here."""
    cases = bench.data.cases(CPU, 1, TINY, samples=32)
    check_figures(cases, {"cached"})
    assert cases["cached"]["ours"] == cases["cached"]["baseline"] == pytest.approx(0.5 * 100 / 32)
    ticks = itertools.count(0, 1.0)
    with pytest.MonkeyPatch.context() as patch:
        work = bench.eval.baseline_evaluation(TINY, 7, CPU)
        patch.setattr(bench.eval.time, "perf_counter", lambda: next(ticks))
        seconds, rows = work()
    assert len(rows) == 3 and seconds == pytest.approx(1 + 1 * 7 / 3)  # laid out once, a block of 3 scaled to 7


def test_recorded_caption_lengths_are_those_of_rsitmd():
    if not os.environ.get("GALR_TEST_DATA"):
        pytest.skip("GALR_TEST_DATA is not set: RSITMD's captions are not at hand")
    captions = read_captions(Path(os.environ["GALR_TEST_DATA"], "rsitmd_precomp"), "train")
    counts = Counter(len(vocab.tokenize(caption)) for caption in captions if caption)
    assert tuple(counts[words] for words in range(max(counts) + 1)) == tuple(bench.train.LENGTHS)


def test_figures_are_medians_and_their_ratio():
    case = figures([1.0, 2.0, 4.0], [10.0, 30.0, 20.0], 7.0)
    assert case == {"ours": 2.0, "baseline": 20.0, "ratio": 10.0, "spread": 1.0, "peak_mib": 7.0}


def test_command_writes_the_figures_and_a_table(monkeypatch, tmp_path, capsys):
    case = figures([1.0], [8.0], 2.0)
    for module, names in ((bench.train, ["step_bf16", "step_fp32"]), (bench.rerank, ["rsicd"])):
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


def test_a_side_works_in_a_whole_process_of_its_own_and_its_failure_is_one_line():
    outcome = measured(sides.tells_its_process, times=3)
    assert outcome.answer == (3, multiprocessing.current_process().pid) and 0 < outcome.seconds < 60
    assert outcome.peak_mib > 1
    assert measured(sides.has_a_child).answer == [0, 1, 2]  # as the baseline's loader has
    assert not multiprocessing.active_children()  # nothing of a side is alive while the next one works
    assert measured(sides.slower_twice, times=3).seconds >= 0.2  # the median of the times
    with pytest.raises(RunError, match="no such thing"):
        measured(sides.fails)


def test_the_loop_is_timed_its_operations_counted_and_the_protocol_follows(monkeypatch):
    monkeypatch.setattr(bench.loop, "peak_flops", lambda *_: 1e12)
    monkeypatch.setattr(bench.loop, "seconds", lambda work, _: 2.0 if work() is not None else 0)
    results = bench.loop.loop(CPU, TINY, validation=4)
    assert results["batches"][0]["samples_per_second"] == 3 * 32 / 2
    assert results["batches"][0]["of_peak"] == pytest.approx(48 * results["gflop_per_sample"] / 1000)
    assert results["checkpoint"]["mib"] > 10 and results["checkpoint"]["writing_seconds"] > 0
    assert results["protocol_hours"] == pytest.approx(60 * (17160 / 48 + 2 + 2) / 3600)  # validation, checkpoints
