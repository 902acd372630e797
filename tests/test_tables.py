"""Tables: every row of a results.json and of the published numbers, in three forms that say the same."""

from __future__ import annotations

import csv
import io
import math
import statistics

import pytest

from postprocessing.tables import (
    SIX,
    change_table,
    comma_separated,
    latex,
    main,
    markdown,
    published,
    summarise,
    write_tables,
)
from util.errors import InputError
from util.files import write_json


def fold(number: int, add: float, images: int = 452, captions: int = 2260) -> dict:
    score = {"r1": 10.0 + add, "r5": 20.0 + add, "r10": 30.0 + 2 * add, "medr": 12.0, "meanr": 40.5}
    sizes = {"fold": number, "split": "test", "images": images, "captions": captions}
    return {**sizes, "i2t": score, "t2i": {**score, "r1": 5.0}, "mr": 17.5 + add}


def results(folds: list[dict], dataset: str = "RSITMD", **more) -> dict:
    mean, std = summarise(folds)
    return {"experiment": "run", "dataset": dataset, "folds": folds, "mean": mean, "std": std, "rerank": {}, **more}


def reranked(folds: list[dict]) -> dict:
    mean, std = summarise(folds)
    return {"k": 30, "folds": folds, "mean": mean, "std": std}


def read_csv(text: str) -> list[dict]:
    return list(csv.DictReader(io.StringIO(text)))


def test_mean_and_sample_deviation_over_folds():
    mean, std = summarise([fold(0, 0.0), fold(1, 1.0), fold(2, 5.0)])
    assert mean["i2t"]["r10"] == pytest.approx(34) and mean["mr"] == pytest.approx(19.5)
    assert std["i2t"]["r10"] == pytest.approx(statistics.stdev([30, 32, 40]))
    assert std["t2i"]["r1"] == std["i2t"]["medr"] == 0
    assert list(mean) == list(std) == ["i2t", "t2i", "mr"]


def test_one_fold_has_no_deviation_and_no_folds_are_an_error():
    mean, std = summarise([fold(0, 1.0)])
    assert mean["mr"] == 18.5 and std["mr"] is None and set(std["i2t"].values()) == {None}
    with pytest.raises(InputError, match="no folds"):
        summarise([])


def test_the_published_rows_have_the_mr_of_their_recalls():
    for dataset in ("rsitmd", "rsicd", "ucm", "sydney"):
        assert published(dataset)
        for row in published(dataset):
            recalls = [row[direction][at] for direction, at in SIX if row[direction]]
            assert not recalls or math.isclose(sum(recalls) / 6, row["mr"], abs_tol=0.006)


def test_the_published_rows_are_found_by_any_form_of_the_name():
    assert published("RSITMD") == published("rsitmd_precomp") == published("rsitmd") != []
    assert published("DEMO") == []


def test_rows_are_folds_then_mean_and_std_then_rerank_then_published():
    both = results([fold(0, 0.0), fold(1, 2.0)], rerank=reranked([fold(0, 3.0), fold(1, 4.0)]))
    rows = read_csv(comma_separated(both))
    names = ["fold 0", "fold 1", "mean", "std"]
    assert [row["name"] for row in rows] == [
        *names,
        *(f"{name} + rerank" for name in names),
        "GaLR (published)",
        "GaLR + rerank (published)",
    ]
    by_name = {row["name"]: row for row in rows}
    assert float(by_name["mean"]["i2t R@1"]) == 11 and float(by_name["mean + rerank"]["mR"]) == 21
    assert float(by_name["GaLR (published)"]["t2i R@10"]) == 53.35 and by_name["GaLR (published)"]["i2t med r"] == ""


def test_every_row_names_its_split_gallery_and_chance():
    for row in read_csv(comma_separated(results([fold(0, 0.0), fold(1, 2.0)]))):
        assert (row["split"], row["images"], row["captions"]) == ("test", "452", "2260")
        assert float(row["chance mR"]) == pytest.approx(1.18, abs=0.005)


def test_folds_with_galleries_of_several_sizes_share_only_what_they_have_in_common():
    rows = {r["name"]: r for r in read_csv(comma_separated(results([fold(0, 0.0), fold(1, 2.0, 453, 2265)])))}
    assert rows["fold 1"]["images"] == "453"
    assert (rows["mean"]["split"], rows["mean"]["images"], rows["mean"]["chance mR"]) == ("test", "", "")


def test_one_fold_has_no_std_row():
    assert "std" not in markdown(results([fold(0, 0.0)]))


def test_the_three_forms_hold_the_same_cells(tmp_path):
    both = results([fold(0, 0.0), fold(1, 2.0)], rerank=reranked([fold(0, 3.0), fold(1, 4.0)]))
    write_tables(both, tmp_path)
    md, table, tex = ((tmp_path / f"results.{suffix}").read_text() for suffix in ("md", "csv", "tex"))
    assert (md, table, tex) == (markdown(both), comma_separated(both), latex(both))
    lines = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in md.splitlines()]
    del lines[1]
    in_tex = [
        [c.strip() for c in row.removesuffix(r" \\").split("&")] for row in tex.splitlines() if row.endswith(r"\\")
    ]
    assert in_tex == lines
    for cells, row in zip(lines[1:], read_csv(table), strict=True):
        for cell, value in zip(cells, row.values(), strict=True):
            assert cell == (value or "-") or float(cell) == pytest.approx(float(value), abs=0.0051)
    assert len({len(line) for line in md.splitlines()}) == 1  # aligned


def test_latex_signs_are_escaped():
    odd = results([{**fold(0, 0.0), "fold": "a_b&c%"}])
    assert r"fold a\_b\&c\%" in latex(odd)


def test_the_change_stands_beside_before_and_after():
    table = change_table(fold(0, 0.0), fold(0, 2.5))
    assert "| i2t R@10   | 30.00 | 35.00 |  +5.00 |".replace(" ", "") in table.replace(" ", "")
    assert "-0.00" not in change_table(fold(0, 0.001), fold(0, 0.0))
    assert "| mR | 17.50 | 20.00 | +2.50 |".replace(" ", "") in table.replace(" ", "")


@pytest.mark.parametrize("wrong", [{}, {"folds": 3}, {"folds": [{}], "mean": {}, "std": {}}, {"folds": []}])
def test_what_is_no_results_file_is_an_input_error_and_nothing_is_written(tmp_path, wrong):
    with pytest.raises(InputError):
        write_tables({"experiment": "x", "dataset": "ucm", **wrong}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_runs_compare_by_their_means_with_the_deviation_of_mr(tmp_path, monkeypatch, capsys):
    for name, add in (("one", 0.0), ("two", 4.0)):
        write_json(tmp_path / name / "results.json", results([fold(0, add), fold(1, add + 2)], experiment=name))
    monkeypatch.setattr("sys.argv", ["tables", str(tmp_path / "one"), str(tmp_path / "two")])
    main()
    header, _, *rows = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()
    )
    one, two = (dict(zip(header, row, strict=True)) for row in rows)
    assert (one["experiment"], one["mR"], one["std"], one["folds"]) == ("one", "18.50", "1.41", "2")
    assert (two["experiment"], two["mR"], two["images"]) == ("two", "22.50", "452")
