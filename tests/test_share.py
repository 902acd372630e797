"""util.share and load_pretrained: a model folder gives the vectors of its checkpoint, whole or not at all."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("safetensors", reason="pip install -r requirements-extra.txt")

from conftest import Outcome, listing
from safetensors.torch import load_file

from data import load_data, read_split
from engine import embed_captions, embed_images, load_model, load_pretrained
from layers import build_model
from layers.model import l2norm
from option import load_options
from option.options import Options
from postprocessing.recall import DIRECTIONS, query_ranks
from util import share
from util.checkpoint import read_checkpoint, save_checkpoint
from utils import InputError, write_json, write_text
from vocab import load_words

pytestmark = pytest.mark.usefixtures("short_trunk")
Run = Callable[[str], Outcome]
SHARE = "-m util.share --run checkpoint/tiny --fold 0 --out models/tiny"
LOCAL = "-m util.build_local --data_path data --image_path data/images --out data/local.h5 --regions"


@pytest.fixture
def shared(scored_run: Path, run: Run) -> Path:
    """Share the tiny checkpoint in fp32 as models/tiny of the current folder."""
    made = run(f"{SHARE} --dtype fp32")
    assert made.status == 0, made.err
    return scored_run / "models/tiny"


@pytest.fixture
def state(scored_run: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """Let util.share read the tiny checkpoint from this state."""
    state = read_checkpoint("checkpoint/tiny/0/GaLR_best.pth.tar")
    monkeypatch.setattr(share, "read_checkpoint", lambda _: state)
    return state


def vectors_of_checkpoint(*keys: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the unit vectors of the test images and captions by the checkpoint, as test.py encodes them."""
    options, device = load_options("tiny.yaml", keys), torch.device("cpu")
    words = load_words(options)
    model = load_model(read_checkpoint("checkpoint/tiny/0/GaLR_best.pth.tar"), options, words, device)
    data = load_data(read_split("data", "test"), options, words, device, training=False)
    images, captions = embed_images(model, data, options), embed_captions(model, data.token_ids, options)
    return l2norm(images).numpy(), l2norm(captions.vectors).numpy()[captions.place]


def vectors_of_folder() -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors of the test split by the shared folder, from image files and sentences alone."""
    model, found = load_pretrained("models/tiny", "cpu"), read_split("data", "test")
    return model.images([f"data/images/{name}" for name in found.images]), model.sentences(found.captions)


def card() -> tuple[dict, str]:
    """Return the metadata and the text of the shared folder's card."""
    _, block, text = Path("models/tiny/README.md").read_text().split("---\n", 2)
    return yaml.safe_load(block), text


def test_a_folder_gives_the_vectors_of_its_checkpoint_local_features_by_its_rules(scored_run, run) -> None:
    (scored_run / "data/local.h5").unlink()
    assert run(f"{LOCAL} proposals").status == 0
    assert run(f"{SHARE} --dtype fp32").status == 0
    for ours, theirs in zip(vectors_of_folder(), vectors_of_checkpoint(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=0)
    without, _ = vectors_of_checkpoint("dataset.local_path=zeros")
    assert np.abs(vectors_of_folder()[0] - without).max() > 1e-4  # the local features count


def test_of_a_model_trained_with_a_detector_the_global_part_is_encoded_and_said(shared, capfd) -> None:
    ours, _ = vectors_of_folder()
    assert "global part alone" in capfd.readouterr().err
    np.testing.assert_allclose(ours, vectors_of_checkpoint("dataset.local_path=zeros")[0], atol=1e-6, rtol=0)


def test_similarity_is_that_of_the_model_also_where_it_is_no_cosine(work, run) -> None:
    tree = load_options("tiny.yaml").to_dict()
    keys = ("trunk", "trunk_norm", "pretrained", "multiscale", "seq2vec", "embed")
    tree["model"] = {"name": "AMFMN"} | {key: tree["model"][key] for key in keys}
    options = Options.model_validate(tree)
    words = list(load_words(options))
    model = build_model(options, words).eval()
    state = {"model": model.state_dict(), "options": tree, "words": words, "arch": "AMFMN"}
    save_checkpoint(state, Path("run/0/GaLR_best.pth.tar"))
    assert run("-m util.share --run run --out shared --dtype fp32").status == 0
    encoder = load_pretrained("shared", "cpu")
    images = encoder.images(["data/images/demo_0000.png"] * 2)
    sentences = encoder.sentences(["two red planes", "a road"])
    assert not encoder.unit and np.abs(np.linalg.norm(images, axis=1) - 1).max() > 1e-3
    with torch.no_grad():
        wanted = model.similarity(torch.tensor(images), torch.tensor(sentences)).numpy()
    np.testing.assert_allclose(encoder.similarity(images, sentences), wanted, atol=1e-6)


def test_a_lone_image_or_sentence_is_a_list_of_one_and_nothing_is_refused(shared) -> None:
    encoder, picture = load_pretrained("models/tiny", "cpu"), "data/images/demo_0000.png"
    for given in (picture, Path(picture), [picture]):
        np.testing.assert_array_equal(encoder.images(given), encoder.images([picture]))
    np.testing.assert_array_equal(encoder.sentences("a road"), encoder.sentences(["a road"]))
    for encode, tells in ((encoder.images, "image"), (encoder.sentences, "sentence")):
        with pytest.raises(InputError, match=f"at least one {tells} to encode, got none"):
            encode([])
    with pytest.raises(InputError, match=r"absent\.png is not there"):
        encoder.images([picture, "absent.png"])


def test_half_precision_is_of_matrices_only_moves_few_ranks_and_halves_the_file(shared, run) -> None:
    (images, captions), weights = vectors_of_folder(), shared / "model.safetensors"
    full, owner = weights.stat().st_size, read_split("data", "test").image_of_caption
    assert run(f"{SHARE} --replace").status == 0
    half_images, half_captions = vectors_of_folder()
    assert weights.stat().st_size < 0.55 * full
    types = {(tensor.ndim > 1, tensor.dtype) for tensor in load_file(weights).values()}
    assert types == {(True, torch.float16), (False, torch.float32), (False, torch.int64)}
    assert 0 < np.abs(half_images - images).max() < 5e-3
    before, after = (query_ranks(i @ c.T, owner) for i, c in ((images, captions), (half_images, half_captions)))
    moved = (getattr(before, way).from_zero() != getattr(after, way).from_zero() for way in DIRECTIONS)
    assert sum(part.sum() for part in moved) <= 4  # of 24 queries


def test_weights_too_large_for_half_precision_are_refused(state, run) -> None:
    name = next(name for name, tensor in state["model"].items() if tensor.ndim > 1)
    state["model"][name] = state["model"][name] + 1e6
    ended = run(SHARE)
    assert ended.status == 2 and "--dtype fp32" in ended.message and name in ended.message
    assert not Path("models").exists() or listing(Path("models")) == {}


def test_the_folder_names_no_file_of_the_machine_that_made_it(shared) -> None:
    texts = {path.name: path.read_text() for path in shared.iterdir() if path.suffix != ".safetensors"}
    assert texts.keys() == {"options.yaml", "vocab.json", "README.md", "split.json", "local_rules.json"}
    assert "data_path: data\n" in texts["options.yaml"] and "vocab_path: vocab.json" in texts["options.yaml"]
    assert str(Path.cwd()) not in "".join(texts.values())
    assert json.loads(texts["split.json"]) == json.loads(Path("checkpoint/tiny/0/split.json").read_text())


def test_absolute_paths_of_data_are_shared_by_their_names(state, run) -> None:
    state["options"]["dataset"] |= {"image_path": "/home/somebody/pictures", "val_list": "/home/somebody/val.txt"}
    state["options"]["model"]["pretrained"] = "/home/somebody/weights.pt"
    state["options"]["logs"]["logger_name"] = "/home/somebody/logs"
    assert run(SHARE).status == 0
    text = Path("models/tiny/options.yaml").read_text()
    assert "somebody" not in text and "image_path: pictures" in text


def test_the_card_has_the_hubs_metadata_the_scores_of_the_fold_and_chance(scored_run, run) -> None:
    assert run("test.py --path_opt tiny.yaml --rerank").status == 0
    results = Path("checkpoint/tiny/results.json")
    tree = json.loads(results.read_text())
    fold = tree["folds"][0]
    fold["random"]["mr"] = fold["mr"] + 1.25  # ties that matter
    write_json(results, tree)
    assert run(SHARE).status == 0
    metadata, text = card()
    assert {"license", "language", "tags", "pipeline_tag", "datasets", "metrics", "model-index"} <= metadata.keys()
    [entry] = metadata["model-index"]
    [result] = entry["results"]
    assert entry["name"] == "tiny" and result["dataset"]["split"] == "test"
    assert {one["name"]: one["value"] for one in result["metrics"]}["mR"] == round(fold["random"]["mr"], 2)
    for shown in ("chance mR", "+ rerank", f"{fold['mr']:.2f} |", f"{fold['random']['mr']:.2f} |"):
        assert shown in text
    assert "12 images train, 4 images val" in text and "| seed" in text and "embed_dim: 32" in text


def test_notes_stand_in_the_card_and_their_metadata_replace_ours(scored_run, run) -> None:
    write_text("notes.md", "---\nlicense: mit\ndatasets: [rsicd, ucm]\n---\nTrained on two data sets.\n")
    assert run(f"{SHARE} --card-notes notes.md").status == 0
    metadata, text = card()
    assert metadata["license"] == "mit" and metadata["datasets"] == ["rsicd", "ucm"] and "galr" in metadata["tags"]
    assert "Trained on two data sets." in text and "Weights: `mit`" in text and "has not scored" in text
    write_text("notes.md", "---\n- license\n---\n")
    assert "metadata (such as license: mit)" in run(f"{SHARE} --replace --card-notes notes.md").message


def test_the_commands_of_the_card_run_on_the_folder(shared) -> None:
    _, text = card()
    assert "python test_single.py --resume models/tiny --set dataset.data_path=LISTS" in text
    for name in ("a.jpg", "b.jpg"):
        shutil.copy("data/images/demo_0000.png", name)
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], scope := {})
    assert scope["images"].shape == (2, 32)


@pytest.mark.parametrize("call", ["save_options", "card", "flush"])
def test_a_failure_leaves_nothing_and_an_old_folder_as_it_was(shared, run, monkeypatch, call) -> None:
    before = listing(shared.parent)

    def fail(*_: object) -> None:
        raise InputError("stopped in the middle")

    with monkeypatch.context() as patch:
        patch.setattr(share, call, fail)
        assert "stopped in the middle" in run(f"{SHARE} --replace").message
        assert "stopped in the middle" in run(SHARE.replace("models/tiny", "models/new")).message
    assert listing(shared.parent) == before


def test_a_folder_that_is_there_is_refused_or_replaced_on_request(shared, run) -> None:
    before = listing(shared.parent)
    assert "--replace" in run(SHARE).message
    assert listing(shared.parent) == before
    assert run(f"{SHARE} --replace").status == 0
    assert listing(shared.parent).keys() == before.keys() and listing(shared.parent) != before
    write_text(shared / "mine.txt", "keep this")
    assert "is no model folder" in run(f"{SHARE} --replace").message
    assert (shared / "mine.txt").read_text() == "keep this"
    assert "must be the name of a folder" in run(f"{SHARE}/README.md").message


def test_the_hubs_library_reads_the_card(scored_run, run) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="pip install -r requirements-extra.txt")
    assert run("test.py --path_opt tiny.yaml").status == run(SHARE).status == 0
    data = hub.ModelCard(Path("models/tiny/README.md").read_text()).data
    assert (data.model_name, data.license, data.language) == ("tiny", "unknown", ["en"])
    assert len(data.eval_results) == 7 and data.eval_results[0].dataset_split == "test"
