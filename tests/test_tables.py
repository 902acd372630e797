"""Tables: every row of a results.json and of the published numbers, in two forms that say the same."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import statistics

import numpy as np
import pytest

from postprocessing.recall import SIX
from postprocessing.results import Banked, FoldScore, Reranked, Results, load, summarise
from postprocessing.tables import WIDTH, change_table, comma_separated, markdown, published, write_ranks
from utils import InputError, write_json


def fold(number: int, add: float, images: int = 452, captions: int = 2260, ties: float = 0.0) -> FoldScore:
    score = {"r1": 10.0 + add, "r5": 20.0 + add, "r10": 30.0 + 2 * add, "medr": 12.0, "meanr": 40.5}
    sizes = {"fold": number, "split": "test", "images": images, "captions": captions}
    against = {"i2t": score, "t2i": {**score, "r1": 5.0}, "mr": 17.5 + add}
    random = {"i2t": {**score, "r1": score["r1"] + 6 * ties}, "t2i": against["t2i"], "mr": against["mr"] + ties}
    return FoldScore.model_validate({**sizes, **against, "random": random})


def results(folds: list[FoldScore], dataset: str = "RSITMD", **more) -> Results:
    return Results.of(folds, **{"experiment": "run", "dataset": dataset, "lists": "rsitmd_precomp", **more})


BOTH = results([fold(0, 0.0), fold(1, 2.0)], rerank=Reranked.of([fold(0, 3.0), fold(1, 4.0)]))


def read_csv(text: str) -> list[dict]:
    return list(csv.DictReader(io.StringIO(text)))


def test_mean_and_sample_deviation_over_folds():
    mean, std = summarise([fold(0, 0.0), fold(1, 1.0), fold(2, 5.0)])
    assert mean.i2t["r10"] == pytest.approx(34) and mean.mr == pytest.approx(19.5)
    assert std.i2t["r10"] == pytest.approx(statistics.stdev([30, 32, 40]))
    assert std.t2i["r1"] == std.i2t["medr"] == 0
    assert list(mean.model_dump()) == list(std.model_dump()) == ["i2t", "t2i", "mr", "random"]
    mean, std = summarise([fold(0, 1.0)])  # one fold has no deviation
    assert mean.mr == 18.5 and std.mr is None and set(std.i2t.values()) == {None}


def test_the_published_rows_have_the_mr_of_their_recalls():
    """Expect three exceptions, published so: a typing error of ours would be a fourth."""
    wrong = set()
    for dataset in ("rsitmd", "rsicd", "ucm", "sydney"):
        assert published(dataset)
        for row in published(dataset):
            recalls = [row.flat[key] for key in SIX]
            assert recalls.count(None) in (0, 6)
            if None not in recalls and not math.isclose(sum(recalls) / 6, row.flat["mr"], abs_tol=0.006):
                wrong.add((dataset, row.name))
    assert wrong == {("rsitmd", "SCAN i2t"), ("rsicd", "SCAN i2t"), ("rsicd", "AMFMN-soft")}


def test_every_published_row_names_its_source_and_those_of_ucm_their_lists():
    for rows in map(published, ("rsitmd", "rsicd", "ucm", "sydney")):
        assert len({row.name for row in rows}) == len(rows) and all(row.source for row in rows)
    lists = {row.name: row.lists for row in published("ucm")}
    assert all(lists.values()) and lists["PE-RSITR"] == "ucm_precomp"
    assert lists["AMFMN-soft"].startswith("ucm_amfmn_precomp")
    assert "not known" in lists["AMFMN-soft"] and "not known" in lists["CABIR"]
    from_memory = [*published("sydney"), *(row for row in published("rsicd") if row.name == "HarMA")]
    assert all(row.source.startswith("from memory, not checked") for row in from_memory)
    for dataset in ("rsitmd", "rsicd"):
        assert sum("Table I" in row.source for row in published(dataset)) == 13
    assert published("RSITMD") == published("rsitmd_precomp") == published("rsitmd") != [] == published("DEMO")


def test_rows_are_folds_then_mean_and_std_then_rerank_then_published():
    rows = read_csv(comma_separated(BOTH))
    names = ["fold 0", "fold 1", "mean", "std"]
    assert [row["name"] for row in rows] == [
        *names,
        *(f"{name} + rerank" for name in names),
        *(f"{row.name}{f' ± {row.std:.2f}' if row.std else ''} (published)" for row in published("rsitmd")),
    ]
    by_name = {row["name"]: row for row in rows}
    assert float(by_name["mean"]["i2t R@1"]) == 11 and float(by_name["mean + rerank"]["mR"]) == 21
    assert float(by_name["GaLR (published)"]["t2i R@10"]) == 53.35 and by_name["GaLR (published)"]["i2t med r"] == ""


def test_every_row_names_its_split_gallery_and_chance_if_it_is_the_same_in_all_folds():
    for row in read_csv(comma_separated(results([fold(0, 0.0), fold(1, 2.0)]))):
        assert (row["split"], row["images"], row["captions"]) == ("test", "452", "2260")
        assert float(row["chance mR"]) == pytest.approx(1.18, abs=0.005)
    rows = {r["name"]: r for r in read_csv(comma_separated(results([fold(0, 0.0), fold(1, 2.0, 453, 2265)])))}
    assert rows["fold 1"]["images"] == "453"
    assert (rows["mean"]["split"], rows["mean"]["images"], rows["mean"]["chance mR"]) == ("test", "", "")


def cells_of(text: str) -> list[list[list[str]]]:
    """Return the Markdown tables of a text: a list of rows of cells each."""
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        elif found[-1]:
            found.append([])
    return [[rows[0], *rows[2:]] for rows in found if rows]


def test_the_two_forms_hold_the_same_numbers():
    whole, text = markdown(BOTH), comma_separated(BOTH)
    means, folds, others = cells_of(whole)
    rows = {row["name"]: row for row in read_csv(text)}
    columns = ["i2t R@1", "i2t R@5", "i2t R@10", "t2i R@1", "t2i R@5", "t2i R@10", "mR"]
    for name, ties, *cells in [*means[1:], *folds[1:]]:
        row = rows[{"plain": "mean", "+ rerank": "mean + rerank"}.get(name, name)]
        assert ties == "against"
        assert [cell.split()[0] for cell in cells] == [f"{float(row[column]):.2f}" for column in columns]
    assert means[1][-1] == f"18.50 \u00b1 {float(rows['std']['mR']):.2f}"
    assert [row[0] for row in others[1:]] == [row.name for row in published("rsitmd")]
    assert len({len(line) for line in whole.split("\n\n")[3].splitlines()}) == 1  # aligned


def test_the_change_stands_beside_before_and_after():
    table = change_table(fold(0, 0.0), fold(0, 2.5)).replace(" ", "")
    assert "|i2tR@10|30.00|35.00|+5.00|" in table and "|mR|17.50|20.00|+2.50|" in table
    assert "-0.00" not in change_table(fold(0, 0.001), fold(0, 0.0))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("folds", 0, "images"), "many", "results.json, entry folds 1 images: Input should be a valid integer"),
        (("rerank", "setting"), {"k": -1}, "k must be an integer >= 1, got -1"),
        (("rerank", "setting"), {"k": "x"}, "results.json, entry rerank setting k: Input should be a valid integer"),
        (("folds",), [], "results.json, entry folds: List should have at least 1 item"),
    ],
)
def test_damage_to_a_results_file_is_named_with_its_place(tmp_path, place, value, message):
    tree = json.loads(results([fold(0, 0.0)], rerank=Reranked.of([fold(0, 3.0)])).model_dump_json())
    part = tree
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    (tmp_path / "results.json").write_text(json.dumps(tree))
    with pytest.raises(InputError, match=re.escape(message)):
        load(tmp_path / "results.json", Results)


def test_ties_at_random_have_rows_where_they_matter_and_only_there():
    with_ties = results([fold(0, 0.0, ties=0.02), fold(1, 2.0, ties=3.0)])
    rows = {row["name"]: row for row in read_csv(comma_separated(with_ties))}
    names = [name for name in rows if "ties" in name]
    assert names == [f"{name}, ties at random" for name in ("fold 1", "mean", "std")]
    assert float(rows["fold 1, ties at random"]["i2t R@1"]) == 12 + 18
    assert float(rows["mean, ties at random"]["mR"]) == pytest.approx((17.52 + 22.5) / 2)
    assert float(rows["std, ties at random"]["mR"]) == pytest.approx(statistics.stdev([17.52, 22.5]), abs=1e-4)
    means, folds, _ = cells_of(markdown(with_ties))
    assert [row[:2] for row in means[1:]] == [["plain", "against"], ["plain", "random"]]
    assert means[2][-1] == f"20.01 \u00b1 {statistics.stdev([17.52, 22.5]):.2f}"
    assert [row[:2] for row in folds[1:]] == [["fold 0", "against"], ["fold 1", "against"], ["fold 1", "random"]]


@pytest.mark.parametrize(("ties", "shown"), [(0.04, False), (0.06, True)])
def test_ties_that_move_mr_by_more_than_a_twentieth_of_a_point_are_shown(ties, shown):
    run = results([fold(0, 0.0, ties=ties)])
    assert ("ties at random" in comma_separated(run)) == shown
    assert (["fold 0", "random"] in [row[:2] for row in cells_of(markdown(run))[0]]) == shown


@pytest.mark.parametrize("dataset", ["RSITMD", "ucm_precomp", "sydney", "DEMO"])
def test_every_line_has_at_most_100_columns_and_the_head_names_split_lists_gallery_and_chance(dataset):
    folds = [fold(0, 0.0, ties=1.0), fold(1, 70.0, 453, 22650, ties=1.0)]
    bank = Banked.of(folds, kind="dynamic")
    text = markdown(results(folds, dataset, rerank=Reranked.of(folds), bank=bank))
    assert max(map(len, text.splitlines())) <= WIDTH == 100
    assert "test split of rsitmd_precomp: 452 images, 2260 captions, chance mR 1.18" in text
    assert "test split of rsitmd_precomp: 453 images, 22650 captions" in text
    means, by_fold, *others = cells_of(text)
    assert [row[:2] for row in means[1::2]] == [[name, "against"] for name in ("plain", "+ rerank", "+ dynamic bank")]
    row = next(row for row in by_fold if row[:2] == ["fold 0 + rerank", "against"])
    assert row[2:] == ["10.00", "20.00", "30.00", "5.00", "20.00", "30.00", "17.50"]
    assert [row[0] for rows in others for row in rows[1:]] == [
        row.name
        for lists in dict.fromkeys(row.lists for row in published(dataset))
        for row in published(dataset)
        if row.lists == lists
    ]
    assert all(f"Published, lists: {row.lists or 'not stated'}\n" in text for row in published(dataset))
    assert all(row.name in text.partition("Sources:")[2].replace("\n  ", " ") for row in published(dataset))


def test_the_tables_of_one_fold_leave_out_the_mean_and_hold_its_ranks():
    text = markdown(results([fold(3, 0.0, ties=1.0)]))
    own, others = cells_of(text)
    assert [row[:2] for row in own[1:]] == [["fold 3", "against"], ["fold 3", "random"]]
    assert "ranks: i2t median 12.00 mean 40.50, t2i median 12.00 mean 40.50" in text and others[1][0] == "VSE++"
    one = results([fold(0, 0.0)], "DEMO")
    assert "std" not in comma_separated(one) and "\u00b1" not in markdown(one)


def test_ranks_csv_holds_each_query_with_its_rank_and_first_answers(tmp_path):
    rng, owner = np.random.default_rng(0), np.array([0, 0, 1, 3, 3])  # image 2 has no caption and is no query
    sims = {fold: rng.random((4, 5)) for fold in (0, 1)}
    images, captions = [f"{i}.png" for i in range(4)], [f"caption, {c}" for c in range(5)]
    write_ranks(tmp_path / "ranks.csv", sims, images, captions, owner)
    rows = read_csv((tmp_path / "ranks.csv").read_text())
    assert [(row["fold"], row["direction"], row["number"]) for row in rows] == [
        (str(fold), way, str(at))
        for fold in (0, 1)
        for way, asked in (("i2t", (0, 1, 3)), ("t2i", range(5)))
        for at in asked
    ]
    for row in rows:
        matrix, at = sims[int(row["fold"])], int(row["number"])
        similarity, names, right = (
            (matrix[at], captions, owner == at)
            if row["direction"] == "i2t"
            else (matrix[:, at], images, np.arange(4) == owner[at])
        )
        order = np.argsort(-similarity)
        answers = [row[f"answer {n}"] for n in range(1, 11) if row[f"answer {n}"]]
        assert answers == [names[j] for j in order] and int(row["rank"]) == 1 + int(np.argmax(right[order]))
        assert row["query"] == (images if row["direction"] == "i2t" else captions)[at]


def test_runs_compare_by_their_means_with_the_deviation_of_mr_and_long_names_keep_their_ends(tmp_path, run):
    for name, add in (("one", 0.0), ("x" * 120 + "_two", 4.0)):
        of_two = results([fold(0, add), fold(1, add + 2)], experiment=name)
        write_json(tmp_path / name / "results.json", of_two.model_dump())
    out = run(f"-m postprocessing.tables {tmp_path}/one {tmp_path}/{'x' * 120}_two").out
    ((header, *rows),) = cells_of(out)
    one, two = (dict(zip(header, row, strict=True)) for row in rows)
    assert (one["experiment"], one["mR"], one["folds"]) == ("one", "18.50 \u00b1 1.41", "2")
    assert two["experiment"].endswith("_two") and two["mR"] == "22.50 \u00b1 1.41"
    assert out.splitlines()[0] == "test split of rsitmd_precomp: 452 images, 2260 captions, chance mR 1.18"
    assert max(map(len, out.splitlines())) <= WIDTH
