"""A model folder with a text transformer: its configuration and tokenizer come along, and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("safetensors", reason="pip install -r requirements-extra.txt")
pytest.importorskip("transformers", reason="pip install -r requirements-extra.txt")

from test_other_encoders import write_transformer

from engine import load_pretrained
from layers import build_model
from layers.text_encoder import TransformerEncoder
from option import Options, load_options
from option.options import Transformer
from utils import InputError
from vocab import encode_captions

pytestmark = pytest.mark.usefixtures("short_trunk")
SENTENCES = ["two red planes", "a ship"]
HELD = Path("shared/transformer")


@pytest.fixture(params=["transformer", "frozen_transformer"])
def wanted(request, work, tmp_path, run) -> np.ndarray:
    """Share an untrained model as the folder `shared`, remove its transformer, and return its vectors of SENTENCES."""
    transformer = write_transformer(tmp_path)
    tree = load_options("tiny.yaml").to_dict()
    tree["model"]["seq2vec"] = {"arch": request.param, "path": str(transformer)}
    options = Options.model_validate(tree)
    torch.manual_seed(0)
    model = build_model(options, ()).eval()
    Path("run/0").mkdir(parents=True)
    state = {"model": model.state_dict(), "options": options.to_dict(), "words": [], "arch": "GaLR"}
    torch.save(state, "run/0/GaLR_best.pth.tar")
    with torch.no_grad():
        vectors = model.encode_text(*encode_captions(SENTENCES, options, ()))
    made = run("-m util.share --run run --out shared --dtype fp32")
    assert made.status == 0, made.err
    shutil.rmtree(transformer)
    return torch.nn.functional.normalize(vectors).numpy()


def test_it_reads_sentences_as_its_checkpoint_did_without_the_folder_that_it_was_trained_with(wanted) -> None:
    assert {path.name for path in HELD.iterdir()} == {"config.json", "tokenizer.json", "tokenizer_config.json"}
    Path("shared").rename("moved")
    vectors = load_pretrained("moved", "cpu").sentences(SENTENCES)
    np.testing.assert_allclose(vectors, wanted, atol=1e-6)
    assert abs(float(vectors[0] @ vectors[1])) < 0.999  # they differ


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("config.json", "auto_map"),
        ("tokenizer_config.json", "auto_map"),
        ("config.json", "attn_implementation"),
        ("config.json", "quantization_config"),
    ],
)
def test_a_key_that_would_load_other_code_is_not_read(wanted, file, key) -> None:
    tree = json.loads((HELD / file).read_text()) | {"nested": {"KEY": "user/code"}}
    escaped = f"{key[:4]}\\u{ord(key[4]):04x}{key[5:]}"  # JSON has more than one way to spell it
    (HELD / file).write_text(json.dumps(tree).replace("KEY", escaped))
    with pytest.raises(InputError, match=f"the key {key} would load other code"):
        load_pretrained("shared", "cpu")


def test_files_that_are_missing_foreign_or_elsewhere_are_one_line(wanted, tmp_path) -> None:
    (HELD / "added_tokens.json").write_text("{}")
    with pytest.raises(InputError, match=r"has no added_tokens\.json there"):
        load_pretrained("shared", "cpu")
    (HELD / "added_tokens.json").unlink()
    (HELD / "tokenizer.json").rename(tmp_path / "elsewhere.json")
    with pytest.raises(InputError, match=r"no file transformer/tokenizer\.json"):
        load_pretrained("shared", "cpu")
    (HELD / "tokenizer.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(InputError, match=r"transformer/tokenizer\.json is a link that leads out"):
        load_pretrained("shared", "cpu")
    (HELD / "tokenizer.json").unlink()
    text = (tmp_path / "elsewhere.json").read_text()
    (HELD / "tokenizer.json").write_text(text.replace('"ship"', '"shop"'))
    with pytest.raises(InputError, match="tokenizer is not what the model was made with"):
        load_pretrained("shared", "cpu")


def test_a_transformer_that_is_gone_is_one_line_and_leaves_no_folder(wanted, run) -> None:
    done = run("-m util.share --run run --out again")
    assert done.status == 2 and "model.seq2vec.path" in done.message and not Path("again").exists()


def test_a_transformer_that_its_file_calls_half_precision_learns_in_float32(tmp_path) -> None:
    transformer = write_transformer(tmp_path)
    tree = json.loads((transformer / "config.json").read_text())
    (transformer / "config.json").write_text(json.dumps(tree | {"dtype": "float16", "torch_dtype": "float16"}))
    encoder = TransformerEncoder(Transformer(arch="transformer", path=str(transformer)), 4)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "nothing_known"},
        {"model_type": "bert", "hidden_size": "wide"},
        {"model_type": "bert", "hidden_act": "nope"},
        {"model_type": "clip"},
        {"model_type": "t5", "d_model": 8, "num_layers": 1, "d_ff": 8, "num_heads": 1, "d_kv": 8},
    ],
    ids=lambda config: str(config)[:50],
)
def test_what_is_no_text_encoder_is_said_to_be_none(config, tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"model.seq2vec.path {tmp_path} is "):
        TransformerEncoder(Transformer(arch="transformer", path=str(tmp_path)), 4)
