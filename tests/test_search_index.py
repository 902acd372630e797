"""search.index and search.query: an index holds the model's vectors, keeps step with its folder, and ranks exactly."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet
import pytest
import torch

import vocab
from data import load_data, read_split
from engine import embed_images, load_model
from layers import build_model
from layers.drea import Regions
from option import load_options
from search.encoder import load_encoder
from search.pictures import crop_regions, given_regions
from search.query import to_csv, to_geojson
from search.rasters import RasterRules
from search.store import Hit, Index, Record, open_index
from search.windows import selo_windows
from tests.conftest import ROOT, Outcome
from tests.searching import SENTENCE, rows, vectors, write_scene
from util.checkpoint import read_checkpoint
from util.images import open_image
from util.regions.local_features import LocalRules, load_local, read_rules
from utils import InputError
from vocab import encode_captions

pytestmark = pytest.mark.usefixtures("short_trunk")
Run = Callable[[str], Outcome]
QUERY = f"-m search.query --index i.db --text '{SENTENCE}' --device cpu "


def answers(run: Run, question: str, top: int = 100) -> list[dict]:
    """Return what search.query answers from i.db."""
    ended = run(f"-m search.query --index i.db --device cpu --json --top {top} {question}")
    assert ended.status == 0, ended.err
    return json.loads(ended.out)


def test_an_index_holds_the_vectors_of_the_whole_model_and_ranks_them_exactly(index, run, checkpoint):
    assert index().status == 0
    assert run("-m search.index --index i.db --export rows.parquet").status == 0
    table = pyarrow.parquet.read_table("rows.parquet").to_pydict()
    stored = dict(zip(table["path"], table["vector"], strict=True))

    options, device = load_options("tiny.yaml"), torch.device("cpu")
    words = vocab.load("vocab.json").words
    model = load_model(read_checkpoint(checkpoint), options, words, device)
    split = read_split("data", "train")
    data = load_data(split, options, words, device, training=False)
    expected = torch.nn.functional.normalize(embed_images(model, data, options)).numpy()
    np.testing.assert_allclose([stored[name] for name in split.images], expected, atol=1e-5)

    found = answers(run, f"--text '{SENTENCE}'")
    with torch.no_grad():
        sentence = model.encode_text(*encode_captions([SENTENCE], options, words))[0].numpy()
    scores = {name: np.dot(vector, sentence) / np.linalg.norm(sentence) for name, vector in stored.items()}
    assert [one["path"] for one in found] == sorted(scores, key=lambda name: -scores[name])
    assert [one["score"] for one in found] == pytest.approx(sorted(scores.values(), reverse=True), abs=1e-5)


def test_add_takes_what_is_new_or_changed_and_drops_what_is_gone(index, work):
    images = work / "data/images"
    late = images / "demo_0003.png"
    late.rename(work / "demo_0003.png")
    assert index().status == 0
    before = rows()
    assert len(before) == 19

    (work / "demo_0003.png").rename(late)
    (images / "demo_0000.png").unlink()
    (images / "demo_0001.png").write_bytes(b"no image")
    shutil.copy(images / "demo_0004.png", images / "demo_0002.png")
    ended = index("--add")
    assert ended.status == 0
    assert "2 files new or changed, 1 gone" in ended.out
    assert "1 files were not read" in ended.err and "demo_0001.png cannot be decoded" in ended.err
    after = rows()
    assert after.keys() == before.keys() - {"demo_0000.png", "demo_0001.png"} | {"demo_0003.png"}
    assert after["demo_0002.png"] != before["demo_0002.png"] and after["demo_0005.png"] == before["demo_0005.png"]
    assert "0 files new or changed, 0 gone" in index("--add").out


def test_a_stopped_run_goes_on_where_it_was_and_doubles_nothing(index, monkeypatch):
    monkeypatch.setattr("search.encoder.BATCH", 8)
    original, batches = Index.put, []

    def put(self: Index, records: list[Record], vectors: np.ndarray) -> None:
        if len(batches) == 2:
            batches.append(0)
            raise KeyboardInterrupt
        batches.append(len(records))
        original(self, records, vectors)

    monkeypatch.setattr(Index, "put", put)
    assert index().status == 130
    assert len(rows()) == 16
    assert index().status == 0
    assert batches == [8, 8, 0, 4] and len(rows()) == 20


def test_an_index_refuses_the_vectors_of_another_model(index, run, checkpoint, work):
    assert index().status == 0
    other = torch.load(checkpoint, weights_only=True)
    next(iter(other["model"].values())).add_(1)
    torch.save(other, work / "other.pth.tar")
    refused = index("--add --resume other.pth.tar")
    assert refused.status == 2 and "another checkpoint" in refused.message
    refused = index("--add --set model.fusion.gate=released")
    assert refused.status == 2 and "made with another model" in refused.err
    refused = run(QUERY + "--resume other.pth.tar")
    assert refused.status == 2 and "is not the one that made this index" in refused.message
    assert index().status == 2  # complete: --add is needed


def test_scenes_are_indexed_by_windows_with_their_place(index, run, work):
    folder = work / "mine"
    write_scene(folder / "a 'b' \"c\"" / "größe,{x}%.tif")
    write_scene(folder / "far/away.tif", west=700_000)
    shutil.copy(work / "data/images/demo_0000.png", folder / "small.png")
    assert index("--scales 128", "mine", "none").status == 0
    found = rows()
    assert {name: len(of_file) for name, of_file in found.items()} == {
        "a 'b' \"c\"/größe,{x}%.tif": 24,
        "far/away.tif": 24,
        "small.png": 1,
    }
    windows = {record[3:7] for record in found["far/away.tif"]}
    assert found["far/away.tif"][0].windows == len(windows) == 24
    assert (0, 128, 0, 128) in windows and (272, 400, 272, 400) in windows and (64, 192, 64, 192) in windows

    far = answers(run, f"--text '{SENTENCE}' --folder far")
    assert len(far) == 24 and {one["path"] for one in far} == {"far/away.tif"}
    west, south, east, north = next(one["place"] for one in far if one["window"] == [0, 128, 0, 128])
    assert 17.53 < west < 17.56 and east - west == pytest.approx(0.0163, abs=5e-4)
    assert 45.10 < south < north < 45.13
    near = answers(run, f"--text '{SENTENCE}' --bbox 14.9 45 15.0001 46")
    assert near and all(one["window"][2] == 0 and "größe" in one["path"] for one in near)
    folded = answers(run, f"--text '{SENTENCE}' --fold 0.000001")
    assert len(folded) < 49 and len(folded) + sum(len(one["folded"]) for one in folded) == 49


def test_a_picture_asks_with_the_bands_of_the_index(index, run, work):
    write_scene(work / "mine/a.tif", bands=5, side=100)
    assert index("--bands 5 2 1 --stretch 10", "mine", "none").status == 0
    [answer] = answers(run, "--image mine/a.tif")
    assert answer["score"] == pytest.approx(1, abs=1e-5)


def test_a_scene_whose_windows_are_not_all_there_is_completed(index, work):
    write_scene(work / "mine/scene.tif")
    assert index("--scales 64 128", "mine", "none").status == 0
    whole = rows()["scene.tif"]
    assert len(whole) == len(selo_windows(400, 400, [64, 128])) == whole[0].windows
    with open_index("i.db") as opened:
        opened.drop([record.key for record in whole[::2]])
    ended = index("--scales 64 128 --add", "mine", "none")
    assert "1 files new or changed" in ended.out
    assert sorted(rows()["scene.tif"]) == sorted(whole)
    (work / "mine/scene.tif").unlink()
    write_scene(work / "mine/scene.tif", side=120)
    assert index("--scales 64 128 --add", "mine", "none").status == 0
    assert [record[3:8] for record in rows()["scene.tif"]] == [(0, 120, 0, 120, 1)]  # and no window of the old file


def test_no_regions_are_none_and_not_proposals():
    found = given_regions(SimpleNamespace(regions="none"), {"a.tif": Path("a.tif")}, RasterRules())
    assert [len(one.score) for one in found.values()] == [0]


def test_a_detectors_regions_go_to_the_window_that_their_centre_lies_in():
    regions = Regions(np.array([0, 1]), np.array([0.9, 0.8]), np.array([[0.25, 0.25, 0.1, 0.1], [0.5, 0.25, 0.2, 0.2]]))
    cut = crop_regions(regions, (1000, 400), (0, 200, 400, 600))  # the second one: centre (500, 100), 200 x 80
    assert cut.class_id.tolist() == [1] and cut.score.tolist() == [0.8]
    np.testing.assert_allclose(cut.box, [[0.5, 0.5, 1, 0.4]])


def test_local_features_of_a_new_image_are_made_by_the_training_files_rules(run, work, checkpoint):
    (work / "lists").mkdir()
    (work / "lists/train_filename.txt").write_text("demo_0003.png\ndemo_0004.png\n")
    (work / "lists/test_filename.txt").write_text("demo_0005.png\n")
    build = "-m util.build_local --data_path lists --image_path data/images --regions proposals --workers 1 "
    assert run(build + "--out proposed.h5 --similarity box --distance-scale 0.3").status == 0
    rules = read_rules("proposed.h5")
    again = json.loads(json.dumps(rules.to_dict()))
    assert again == rules.to_dict() and LocalRules.from_dict(again).to_dict() == again
    rep, adj = load_local("proposed.h5", ["demo_0003.png", "demo_0004.png"])
    for i, name in enumerate(("demo_0003", "demo_0004")):
        made = rules.features(open_image(f"data/images/{name}.png"))
        np.testing.assert_array_equal(made[0], rep[i])
        np.testing.assert_array_equal(made[1], adj[i])
    assert rep.any()

    index = f"-m search.index --path_opt tiny.yaml --resume {checkpoint} --images data/images --out i.db --device cpu "
    index += "--workers 0 --add --set dataset.local_path=proposed.h5"
    assert "20 files new" in run(index).out
    assert "0 files new or changed, 0 gone" in run(index).out  # an index knows its own rules again


def test_what_cannot_be_answered_is_one_line_and_what_is_no_index_is_left_alone(index, run, work):
    assert index().status == 0
    (work / "file.db").write_text("x")
    (work / "other.db").mkdir()
    (work / "other.db/mine.txt").write_text("x")
    for arguments, says in (
        ("i.db --text ''", "is empty"),
        ("i.db --text xyzzy", "knows none of these words"),
        ("i.db --image /no/file.png", "is not there"),
        ("i.db --image vocab.json", "cannot be decoded"),
        ("i.db --text plane --top 0", "--top must be from 1 to 10000, got 0"),
        ("i.db", "--text or --image is missing"),
        ("i.db --text plane --bbox 5 2 6 1", "bounds must be west, south, east, north in degrees, got 5.0 2.0 6.0 1.0"),
        ("i.db --text plane --fold 2", "--fold must be a cosine above 0, at most 1, got 2"),
        ("data --text plane", "ends in .db"),
        ("no.db --text plane", "is not there"),
        ("file.db --text plane", "is no index"),
        ("other.db --text plane", "is no index"),
    ):
        refused = run(f"-m search.query --device cpu --index {arguments}")
        assert refused.status == 2 and says in refused.message and len(refused.message) < 400
    assert [path.name for path in (work / "other.db").iterdir()] == ["mine.txt"]
    with open_index("i.db"):
        assert "is in use" in run(QUERY).message


def test_a_damaged_index_is_named(index, run):
    assert index().status == 0
    for fault in ("manifest.json*", "schema.json", "data_*.parquet"):
        shutil.copytree("i.db", "damaged.db", dirs_exist_ok=True)
        for path in Path("damaged.db").rglob(fault):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        ended = run(f"-m search.query --index damaged.db --text '{SENTENCE}' --device cpu")
        assert ended.status in (2, 3) and "damaged.db" in ended.message and "anew" in ended.message, fault


def test_answers_as_csv_and_geojson():
    here = Record("=1+1.tif", 1, 1, 0, 8, 4, 12, 5, 10.0, 50.0, 11.0, 51.0)
    answers = [Hit(0.5, here, None), Hit(0.25, Record('a,"b".png', 1, 1, 0, 1, 0, 1, 1), None)]
    lines = to_csv(answers).splitlines()
    assert lines[1] == "1,0.500000, =1+1.tif,0,8,4,12,10.0,50.0,11.0,51.0"
    assert lines[2] == '2,0.250000,"a,""b"".png",0,1,0,1,,,,'
    first, second = to_geojson(answers)["features"]
    assert first["geometry"]["coordinates"][0][:2] == [[10.0, 50.0], [11.0, 50.0]]
    assert first["properties"]["window"] == [0, 8, 4, 12] and second["geometry"] is None


@pytest.mark.parametrize(("model", "is_cosine"), [("VSEPP", True), ("AMFMN", False)])
def test_a_model_whose_similarity_is_a_cosine_encodes_and_another_is_refused(tmp_path, model, is_cosine):
    words, options = ("plane", "road", "<unk>"), load_options(ROOT / f"option/DEMO/DEMO_{model}.yaml")
    torch.save({"model": build_model(options, words).state_dict(), "words": list(words)}, tmp_path / "a.pth.tar")
    with contextlib.nullcontext() if is_cosine else pytest.raises(InputError, match="a function of each pair"):
        encoder = load_encoder(options, tmp_path / "a.pth.tar", torch.device("cpu"), read_rules("zeros"))
        lengths = np.linalg.norm(encoder.sentences(["a plane", "two roads"]), axis=1)
        np.testing.assert_allclose(lengths, 1, atol=1e-5)


def test_clip_indexes_and_answers_with_its_own_tokenizer(run, work):
    pytest.importorskip("open_clip", reason="pip install -r requirements-extra.txt")
    from tests.test_clip import arch_in

    keys = f"model.clip.arch={arch_in(work / 'arch', 'vit')} model.clip.weights=none dataset.image_size=64"
    keys += " dataset.data_path=data dataset.image_path=data/images optim.precision=fp32"
    torch.manual_seed(0)
    options = load_options(ROOT / "option/UCM/UCM_CLIP.yaml", keys.split())
    model = build_model(options, ()).eval()
    torch.save({"model": model.state_dict(), "words": []}, "clip.pth.tar")
    given = f"--path_opt {ROOT}/option/UCM/UCM_CLIP.yaml --resume clip.pth.tar --device cpu"
    made = run(f"-m search.index {given} --images data/images --out i.db --workers 0 --set {keys}")
    assert made.status == 0 and "20 files new" in made.out, made.err
    with torch.no_grad():
        ids, lengths = encode_captions([SENTENCE], options, ())
        sentence = torch.nn.functional.normalize(model.encode_text(ids, lengths))[0].numpy()
    scores = sorted((float(vector @ sentence) for vector in vectors("i.db").values()), reverse=True)
    assert [one["score"] for one in answers(run, f"--text '{SENTENCE}'", 3)] == pytest.approx(scores[:3], abs=1e-5)
