"""search.store: rows keep apart what differs, answers are in order, and bounds, days and folders narrow them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from search.query import ask, hide_duplicates, narrowed
from search.store import Hit, Index, Mark, Record, open_index
from utils import InputError

DIM = 4
MARK = Mark("model.pth.tar", "0" * 64, {"model": {}}, ["plane"], {}, "images", DIM, [512], None, 2.0)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """Open an index without rows."""
    with open_index(str(tmp_path / "i.db"), create=True) as opened:
        opened.write_mark(MARK)
        yield opened


def picture(path: str, place: Sequence[float] = (), mtime_ns: int = 1) -> Record:
    return Record(path, 1, mtime_ns, 0, 8, 0, 8, 1, *place)


def unit(*angles: float) -> np.ndarray:
    """Return unit vectors (n, DIM) whose cosine with the first axis is that of the angle in degrees."""
    radians = np.deg2rad(angles)
    return np.stack([np.cos(radians), np.sin(radians), 0 * radians, 0 * radians], axis=1).astype(np.float32)


QUERY = unit(0)[0]


def put(index: Index, places: dict[str, Sequence[float]]) -> None:
    """Write a picture for each place, one further from the query than the other."""
    index.put([picture(name, place) for name, place in places.items()], unit(*range(len(places))))


def found(index: Index, **narrow: object) -> list[str]:
    """Return the paths of what a narrowed search finds, best first."""
    return [hit.record.path for hit in index.search(QUERY, 99, narrowed(**narrow))]


def test_answers_come_best_first_and_equal_ones_by_path(index):
    names = [f"{i:02d}.png" for i in range(30)]
    shuffled = np.random.default_rng(0).permutation(30)
    index.put([picture(names[i]) for i in shuffled], unit(*(10.0 + i // 10 for i in shuffled)))
    hits = index.search(QUERY, 30)
    assert [hit.record.path for hit in hits] == names
    assert [hit.score for hit in hits] == pytest.approx(np.cos(np.deg2rad([10 + i // 10 for i in range(30)])), abs=1e-6)
    windows = [Record("z.tif", 1, 1, top, top + 8, 0, 8, 3) for top in (16, 0, 8)]
    index.put(windows, unit(5, 5, 5))
    assert [hit.record.top for hit in index.search(QUERY, 3)] == [0, 8, 16]


def test_only_what_meets_the_bounds_is_found_on_each_side(index):
    places = {
        "inside": (11, 51, 12, 52),
        "around": (0, 40, 30, 70),
        "touches the north": (10, 55, 20, 60),
        "touches the south": (10, 40, 20, 50),
        "touches the west": (5, 51, 10, 52),
        "touches the east": (20, 51, 25, 52),
        "beyond the north": (11, 55.1, 12, 56),
        "beyond the south": (11, 45, 12, 49.9),
        "beyond the west": (5, 51, 9.9, 52),
        "beyond the east": (20.1, 51, 21, 52),
        "nowhere": (),
    }
    put(index, places)
    assert found(index, bbox=(10, 50, 20, 55)) == [name for name in places if name[0] in "iat"]


def test_bounds_that_meet_the_meridian_of_180_degrees(index):
    places = {"across": (179.5, 180.5), "west of it": (178, 179), "east of it": (-179, -178)}
    put(index, {name: (west, -17, east, -16) for name, (west, east) in places.items()})
    for west, east, names in (
        (179.2, 180, ["across"]),
        (-180, -179.2, ["across"]),
        (179.2, -179.2, ["across"]),
        (178.5, -178.5, list(places)),
        (-178.5, 178.5, ["west of it", "east of it"]),
        (0, 10, []),
    ):
        assert found(index, bbox=(west, -18, east, -15)) == names, (west, east)


def test_files_are_found_by_the_day_of_their_time_stamp(index):
    days = {"before": (2, 28, 23, 59), "first": (2, 29), "last": (3, 1, 23, 59), "after": (3, 2)}
    stamps = {name: int(datetime(2024, *day).timestamp()) * 10**9 for name, day in days.items()}
    index.put([picture(name, mtime_ns=stamp) for name, stamp in stamps.items()], unit(*range(4)))
    assert found(index, since="2024-02-29", until="2024-03-01") == ["first", "last"]
    assert found(index, since="2024-03-01") == ["last", "after"]
    assert found(index, until="2024-02-29") == ["before", "first"]


@pytest.mark.parametrize("day", ["2024-02-30", "yesterday", "9999-12-31", "1", "31.12.2024"])
def test_what_is_no_day_is_refused(day):
    with pytest.raises(InputError, match="a day must be written as 2024-12-31"):
        narrowed(until=day)


def test_a_folder_holds_what_lies_in_it_and_not_what_begins_alike(index):
    names = ["far/a.png", "far/deep/b.png", "far.png", "farther/c.png", "near/far/d.png", "FAR/e.png", 'q"\\/f.png']
    put(index, dict.fromkeys(names, ()))
    for folder in ("far", "far/", "/far"):
        assert found(index, folder=folder) == ["far/a.png", "far/deep/b.png"]
    assert found(index, folder='q"\\') == ['q"\\/f.png']


def test_a_row_of_the_same_window_replaces_the_old_one_and_no_other_and_dropped_ones_are_gone(index):
    windows = [(0, 64, 0, 64), (0, 64, 0, 128), (0, 64, 64, 128), (0, 128, 0, 64), (64, 128, 0, 64)]
    index.put([Record("scene.tif", 1, 1, *window, len(windows)) for window in windows], unit(*range(len(windows))))
    assert [record.window for record, _ in index.find("scene.tif")] == windows
    index.put([picture("a.png"), picture("b.png")], unit(0, 90))
    index.put([Record("a.png", 2, 3, 0, 8, 0, 8, 1)], unit(45))
    [(record, vector)] = index.find("a.png")
    assert (record.size, record.mtime_ns) == (2, 3)
    np.testing.assert_allclose(vector, unit(45)[0], atol=1e-6)
    index.drop([picture("b.png").key])
    assert index.find("b.png") == [] and index.count() == len(windows) + 1


def test_rows_beyond_what_milvus_gives_at_once_are_found(index, monkeypatch):
    monkeypatch.setattr("search.store.BATCH", 10)
    records = [Record("scene.tif", 1, 1, top, top + 8, 0, 8, 35) for top in range(35)]
    index.put([*records, picture("other.png")], unit(*range(36)))
    assert [record for record, _ in index.find("scene.tif")] == records
    assert len(list(index.records())) == index.count() == 36


def test_hiding_duplicates_still_gives_as_many_answers_as_were_asked_for(index):
    alike = [picture(f"alike {i}.png") for i in range(20)]
    others = [picture(f"other {i}.png") for i in range(5)]
    index.put(alike + others, unit(*[0.0] * 20, *(30.0 * (i + 1) for i in range(5))))
    answers = ask(index, QUERY, 4, fold=0.99)
    assert [answer.record.path for answer in answers] == ["alike 0.png", "other 0.png", "other 1.png", "other 2.png"]
    assert len(answers[0].duplicates) == 19


def test_hiding_puts_near_duplicates_under_the_best_of_them():
    angles = {"a": 0, "b": 10, "a2": 5}  # the last is near both
    hits = [Hit(0.5, picture(name), unit(angle)[0]) for name, angle in angles.items()]
    first, second = hide_duplicates(hits, 0.99)
    assert (first.record.path, [one.path for one in first.duplicates]) == ("a", ["a2"])
    assert (second.record.path, second.duplicates) == ("b", [])
    assert [one.record.path for one in hide_duplicates(hits, None)] == ["a", "b", "a2"]


@pytest.mark.parametrize(
    ("fault", "more"),
    [
        ("images", {"images": "elsewhere"}),
        ("checkpoint", {"sha256": "1" * 64}),
        ("words", {"words": ["ship"]}),
        ("rules", {"rules": {"source": "zeros"}}),
        ("scales", {"scales": [256]}),
        ("bands", {"bands": [4, 3, 2]}),
        ("stretch", {"stretch": 1.0}),
        ("image_size", {"options": {"model": {}, "dataset": {"image_size": 32}}}),
    ],
)
def test_vectors_made_in_another_way_do_not_belong_to_an_index(fault, more):
    mark = MARK._replace(options={"model": {}, "dataset": {"image_size": 64}})
    assert mark.differs(mark._replace(**more)) == [fault]
    assert not mark.differs(mark._replace(checkpoint="elsewhere/model.pth.tar", complete=True))


def test_a_large_folder_is_scanned_by_faiss_and_ranked_exactly_as_before(tmp_path, monkeypatch):
    address, records = str(tmp_path / "i.db"), [picture(f"f{i % 3}/{i}.png") for i in range(200)]
    vectors = np.random.default_rng(0).normal(size=(200, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for large, kind in ((201, "FLAT"), (200, "IVF_FLAT")):
        monkeypatch.setattr("search.store.LARGE", large)
        with open_index(address, create=True) as opened:
            opened.write_mark(MARK)
            opened.put(records, vectors)
            if kind == "IVF_FLAT":  # as after a kill while the kind changed
                opened.client.release_collection("galr")
                opened.client.drop_index("galr", "vector")
            opened.complete(MARK)
            assert opened.client.describe_index("galr", "vector")["index_type"] == kind
    with open_index(address) as opened:
        opened.put([picture("f1/late.png")], QUERY[None])
        opened.drop([records[0].key])
        opened.complete(MARK)
    scores = {one.path: float(vector @ QUERY) for one, vector in zip(records[1:], vectors[1:], strict=True)}
    scores["f1/late.png"] = 1.0
    with open_index(address) as opened:
        for folder in ("", "f1", "f0"):
            expected = sorted((path for path in scores if path.startswith(folder)), key=lambda path: -scores[path])[:50]
            hits = opened.search(QUERY, 50, narrowed(folder))
            assert [hit.record.path for hit in hits] == expected
            assert [hit.score for hit in hits] == pytest.approx([scores[path] for path in expected], abs=1e-5)
