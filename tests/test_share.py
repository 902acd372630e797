"""util.share and load_pretrained: a model folder gives the vectors of its checkpoint, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("safetensors", reason="pip install -r requirements-extra.txt")


from data import load_data, read_split
from engine import embed_captions, embed_images, load_model, load_pretrained
from layers.model import l2norm
from option import load_options
from util.checkpoint import read_checkpoint
from util.regions.rules import read_rules
from vocab import load_words

pytestmark = pytest.mark.usefixtures("short_trunk")
SHARE = "-m util.share --run checkpoint/tiny --fold 0 --out models/tiny"


@pytest.fixture
def shared(scored_run: Path, run) -> Path:
    """Share the tiny checkpoint in fp32 as models/tiny of the current folder."""
    made = run(f"{SHARE} --dtype fp32")
    assert made.status == 0, made.err
    return scored_run / "models/tiny"


def checkpoint_vectors(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the unit vectors of a split's images and captions by the checkpoint, as test.py has them."""
    options, device = load_options("tiny.yaml"), torch.device("cpu")
    words = load_words(options)
    model = load_model(read_checkpoint("checkpoint/tiny/0/GaLR_best.pth.tar"), options, words, device)
    data = load_data(read_split("data", split), options, words, device, training=False)
    captions = embed_captions(model, data.token_ids, options)
    images = embed_images(model, data, options)
    return l2norm(images).numpy(), l2norm(captions.vectors).numpy()[captions.place]


def test_a_folder_gives_the_vectors_of_its_checkpoint(shared: Path) -> None:
    split = read_split("data", "test")
    model = load_pretrained("models/tiny", "cpu")
    model = model._replace(rules=read_rules("zeros"))
    images = model.images([f"data/images/{name}" for name in split.images])
    print(images.shape)
