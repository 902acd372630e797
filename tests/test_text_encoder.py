"""Skip-thoughts encoders: golden/text_a.npz, Bayesian dropout, the packed GRU against its equations."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch

from layers.gru import GRU, pack
from layers.text_encoder import TextEncoder
from option.options import Seq2Vec
from util.skipthoughts import gru_shapes, load_skipthoughts
from utils import InputError

GOLDEN = Path(__file__).parent / "golden" / "text_a.npz"
WORDS = [f"w{i}" for i in range(30)]


def skip(rng: np.random.RandomState, hidden: int, prefix: str) -> dict[str, np.ndarray]:
    arrays = {}
    for key, shape in gru_shapes(620, hidden).items():
        x = rng.standard_normal(shape)
        arrays[prefix + key] = (x / np.sqrt(shape[0]) if len(shape) == 2 else 0.05 * x).astype("float32")
    return arrays


PUBLISHED = Path(__file__).parent / "cases" / "skipthoughts"  # tables as Python 2 pickled them, and their dictionary


@pytest.fixture(scope="module")
def published(skipthoughts, tmp_path_factory) -> Path:
    """Make the folder with its tables and dictionary in their published form."""
    folder = tmp_path_factory.mktemp("published")
    for path in (*PUBLISHED.iterdir(), *skipthoughts.glob("*.npz")):
        (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="module")
def skipthoughts(tmp_path_factory) -> Path:
    """Make the published folder in small: 17 dictionary words, tables as plain arrays."""
    folder = tmp_path_factory.mktemp("seq2vec")
    with np.load(GOLDEN) as golden:
        seed = int(golden["seed"])
    (folder / "dictionary.txt").write_text("\n".join([*WORDS[::2], "zzz", "UNK"]) + "\n")
    for i, name in enumerate(("utable", "btable"), start=1):
        np.save(
            folder / f"{name}.npy", np.random.RandomState(10 * seed + i).standard_normal((17, 620)).astype("float32")
        )
    np.savez(folder / "uni_skip.npz", **skip(np.random.RandomState(10 * seed + 3), 2400, "encoder_"))
    rng = np.random.RandomState(10 * seed + 4)
    np.savez(folder / "bi_skip.npz", **skip(rng, 1200, "encoder_"), **skip(rng, 1200, "encoder_r_"))
    return folder


@functools.cache
def new_encoder(kind: str) -> TextEncoder:
    """Build an encoder once: its random weights take a second to draw, and every test here loads others."""
    return TextEncoder(Seq2Vec(type=kind), len(WORDS), 512).eval()


def encoder(kind: str, folder: Path) -> TextEncoder:
    built = new_encoder(kind)
    load_skipthoughts(built, Seq2Vec(type=kind, dir_st=str(folder)), WORDS)
    return built


@pytest.mark.parametrize("kind", ["UniSkip", "BiSkip", "BayesianUniSkip"])
def test_encoders_from_published_files_are_within_1e_5_of_the_released_ones(kind, published, capsys) -> None:
    built = encoder(kind, published)
    assert "15 of 30 words" in capsys.readouterr().out
    with np.load(GOLDEN) as golden, torch.no_grad():
        ours = built.sentence_vector(torch.from_numpy(golden["token_ids"]), torch.from_numpy(golden["lengths"]))
        assert np.abs(ours.numpy() - golden[kind]).max() <= 1e-5


def test_tables_that_were_saved_again_as_plain_arrays_are_read_alike(published, skipthoughts) -> None:
    pickled = encoder("UniSkip", published).embedding.weight.detach().clone()
    assert torch.equal(encoder("UniSkip", skipthoughts).embedding.weight, pickled)


@pytest.mark.parametrize("form", ["published", "skipthoughts"])
@pytest.mark.parametrize(
    ("name", "size", "says"),
    [
        ("utable.npy", 0, "not there"),
        ("uni_skip.npz", 0, "not there"),
        ("dictionary.txt", 0, "not there"),
        ("utable.npy", 1000, "damaged"),
        ("uni_skip.npz", 5000, "damaged"),
        ("dictionary.txt", 9, "words of dictionary.txt"),
    ],
)
def test_missing_and_truncated_files_are_named_with_where_they_are_published(name, size, says, form, request, tmp_path):
    whole = request.getfixturevalue(form)
    for file in whole.iterdir():
        if file.name != name:
            (tmp_path / file.name).symlink_to(file)
    if size:
        (tmp_path / name).write_bytes((whole / name).read_bytes()[:size])
    with pytest.raises(InputError) as error:
        encoder("BayesianUniSkip", tmp_path)
    assert all(word in str(error.value) for word in (name, says, "rkiros"))


def plain_gru(gru: GRU, x: torch.Tensor, lengths: torch.Tensor, input_mask=None, hidden_mask=None) -> torch.Tensor:
    """Compute the equations of layers/gru.py, word by word, one sequence at a time."""
    rows = []
    for b, length in enumerate(lengths.tolist()):
        h = x.new_zeros(gru.hidden_weight.shape[1])
        for t in range(length):
            xs = [x[b, t] if input_mask is None else x[b, t] * input_mask[g, b] for g in range(3)]
            hs = [h if hidden_mask is None else h * hidden_mask[g, b] for g in range(3)]
            i = [gru.input_weight[g] @ xs[g] + gru.input_bias[g] for g in range(3)]
            u = [gru.hidden_weight[g] @ hs[g] for g in range(3)]
            r, z = torch.sigmoid(i[0] + u[0]), torch.sigmoid(i[1] + u[1])
            n = torch.tanh(i[2] + r * u[2])
            h = (1 - z) * n + z * h
        rows.append(h)
    return torch.stack(rows)


def run(gru: GRU, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    packing = pack(lengths, x.shape[1], x.device, False)
    return gru(x.flatten(0, 1)[packing.words], packing)


@pytest.mark.parametrize("masked", [False, True])
def test_the_packed_gru_has_the_values_and_gradients_of_its_equations(masked) -> None:
    torch.manual_seed(0)
    gru = GRU(5, 7, dropout=0.25 if masked else 0.0)
    gru.initialise()
    torch.nn.init.normal_(gru.input_bias)
    x, lengths = torch.randn(6, 9, 5, requires_grad=True), torch.tensor([3, 9, 1, 4, 9, 2])
    masks = (None, None)
    if masked:
        sorted_masks = (torch.rand(3, 6, 5) < 0.75) / 0.75, (torch.rand(3, 6, 7) < 0.75) / 0.75
        gru._masks = lambda words, batch: sorted_masks
        given = lengths.sort(descending=True, stable=True).indices.argsort()
        masks = tuple(mask[:, given] for mask in sorted_masks)
    ours, plain = run(gru, x, lengths), plain_gru(gru, x, lengths, *masks)
    assert torch.allclose(ours, plain, atol=1e-6)
    direction, inputs = torch.randn_like(ours), [x, *gru.parameters()]
    gradients = (torch.autograd.grad((states * direction).sum(), inputs) for states in (ours, plain))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))


def test_bayesian_masks_differ_by_gate_and_sequence_keep_the_mean_and_three_quarters() -> None:
    torch.manual_seed(0)
    gru = GRU(620, 2400, dropout=0.25).train()
    for mask in gru._masks(torch.zeros(1, 620), pack(torch.ones(50, dtype=torch.int64), 1, torch.device("cpu"))):
        assert mask.unique().tolist() == pytest.approx([0, 1 / 0.75])
        n = mask.numel()
        kept = (mask > 0).double().mean().item()
        assert abs(kept - 0.75) < 5 * (0.75 * 0.25 / n) ** 0.5
        assert abs(mask.double().mean().item() - 1) < 5 * (0.25 / 0.75 / n) ** 0.5
        flat = mask.flatten(0, 1)
        assert len(torch.unique(flat, dim=0)) == len(flat)  # no two gates, no two sequences share one


@pytest.mark.parametrize(("kind", "drops"), [("BayesianUniSkip", True), ("UniSkip", False), ("BiSkip", False)])
def test_only_the_bayesian_encoder_drops_out_and_only_in_training(kind, drops) -> None:
    torch.manual_seed(0)
    options = Seq2Vec(type=kind, embedding_dim=8, hidden_dim=16, dropout=0.5)
    built, ids = TextEncoder(options, 10, 4), torch.tensor([[3, 4, 5], [1, 2, 0]])
    once, twice = built.train().sentence_vector(ids), built.sentence_vector(ids)
    assert torch.equal(once, twice) != drops
    assert torch.equal(built.eval().sentence_vector(ids), built.sentence_vector(ids))


@pytest.mark.parametrize("fixed", [False, True])
def test_a_fixed_embedding_does_not_learn(fixed) -> None:
    built = TextEncoder(Seq2Vec(embedding_dim=8, hidden_dim=6, fixed_emb=fixed), 10, 4)
    built(torch.tensor([[3, 4]])).sum().backward()
    assert (built.embedding.weight.grad is None) == fixed
