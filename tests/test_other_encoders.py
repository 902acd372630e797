"""Text encoders that may replace skip-thoughts: a plain GRU, a transformer; packages that are not installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch.nn.utils import rnn

from engine import make_model
from layers.gru import pack_sequences, unpack_sequences
from layers.text_encoder import GRUEncoder, pool
from option import load_options
from option.options import PlainGRU
from vocab import encode_captions, load_words

NET = "test_efficientnet"  # timm's own for tests: 0.4 million parameters


def test_pooling_counts_the_words_alone() -> None:
    states = torch.tensor([[[1.0], [3.0], [9.0]], [[-2.0], [-4.0], [-6.0]]])
    lengths = torch.tensor([2, 3])
    assert pool(states, lengths, "mean").tolist() == [[2], [-4]]
    assert pool(states, lengths, "max").tolist() == [[3], [-2]]
    assert pool(states, lengths, "first").tolist() == [[1], [-2]]


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_caption_s_vector_does_not_depend_on_what_else_is_in_its_batch(pooling, bidirectional) -> None:
    torch.manual_seed(0)
    options = PlainGRU(arch="gru", embedding_dim=4, hidden_dim=6, pooling=pooling, bidirectional=bidirectional)
    encoder = GRUEncoder(options, 9, 5).eval()
    ids = torch.tensor([[1, 2, 0, 0], [3, 4, 5, 6], [7, 0, 0, 0]])
    together = encoder(ids)
    for row, length in zip(range(3), (2, 4, 1), strict=True):
        alone = ids[row : row + 1, :length]
        assert torch.allclose(encoder(alone), together[row : row + 1], atol=1e-6)
        states, last = encoder.gru(encoder.embedding(alone))
        pooled = {"last": torch.cat(tuple(last), 1), "mean": states.mean(1), "max": states.amax(1)}[pooling]
        assert torch.allclose(encoder.out(pooled), together[row : row + 1], atol=1e-6)


def test_sequences_are_packed_and_unpacked_as_pytorch_does_it() -> None:
    """Without its waits for a GPU (test_cuda_runs.py)."""
    words, lengths = torch.rand(7, 5, 3), torch.tensor([2, 5, 1, 3, 3, 5, 2])
    ours = pack_sequences(words, lengths)
    plain = rnn.pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
    assert all(torch.equal(one, other) for one, other in zip(ours, plain, strict=True))
    assert torch.equal(unpack_sequences(ours), rnn.pad_packed_sequence(plain, batch_first=True)[0])


def test_a_plain_gru_drops_words_and_states_in_training_only() -> None:
    torch.manual_seed(0)
    encoder = GRUEncoder(PlainGRU(arch="gru", embedding_dim=50, hidden_dim=60, dropout=0.5), 9, 5)
    seen: dict[str, torch.Tensor] = {}
    encoder.gru.register_forward_pre_hook(lambda _, given: seen.update(words=given[0].data))
    encoder.out.register_forward_pre_hook(lambda _, given: seen.update(state=given[0]))
    for mode, silent in ((True, 0.5), (False, 0)):
        encoder.train(mode)(torch.tensor([[1, 2, 3, 4]]))
        assert all(abs((x == 0).float().mean() - silent) < 0.25 for x in seen.values())


@pytest.fixture
def transformer(tmp_path) -> Path:
    return write_transformer(tmp_path)


def write_transformer(folder: Path) -> Path:
    """Write a small BERT with its tokenizer to `folder`/bert."""
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "ship", "plane", "two", "##s"]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    transformers.BertModel(config).save_pretrained(folder / "bert")
    return folder / "bert"


def with_encoder(block: str) -> None:
    """Rewrite tiny.yaml with another text encoder and without a vocabulary."""
    lines = [
        line for line in Path("tiny.yaml").read_text().splitlines() if "seq2vec" not in line and "vocab_" not in line
    ]
    Path("tiny.yaml").write_text("\n".join([lines[0], f"    seq2vec: {block}", *lines[1:]]))


def test_a_transformer_reads_captions_by_its_own_tokens_and_starts_from_its_weights(transformer, work, run) -> None:
    transformers = pytest.importorskip("transformers")
    with_encoder(f"{{arch: transformer, path: '{transformer}'}}")
    options = load_options("tiny.yaml")
    captions = ["two red ships", "a plane"]
    ids, lengths = encode_captions(captions, options, load_words(options))
    assert ids.tolist() == [[3, 9, 6, 7, 10, 4], [3, 5, 8, 4, 0, 0]] and lengths.tolist() == [6, 4]

    from util.starting_weights import load_starting_weights

    model = make_model(options, ()).eval()
    load_starting_weights(model, options.model, ())
    tokens = transformers.AutoTokenizer.from_pretrained(transformer)(captions, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = transformers.AutoModel.from_pretrained(transformer).eval()(**tokens).last_hidden_state
        expected = model.text_encoder.out(torch.stack((states[0].mean(0), states[1, :4].mean(0))))
        assert torch.allclose(model.encode_text(ids, lengths), expected, atol=1e-5)

    assert run("train.py --path_opt tiny.yaml --set optim.epochs=1 optim.text_lr=1e-4").status == 0
    best = torch.load("checkpoint/tiny/0/GaLR_best.pth.tar", weights_only=True)
    assert best["words"] == []
    assert run("test.py --path_opt tiny.yaml").status == 0


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ("{arch: transformer, path: /nowhere/at/all}", "model.seq2vec.path /nowhere/at/all is no transformer"),
        ("{arch: gru, hidden_dim: 0}", "model.seq2vec.hidden_dim = 0"),
        ("{arch: gru, dir_st: x}", "unknown key model.seq2vec.dir_st"),
        ("{arch: lstm}", "model.seq2vec.arch = 'lstm': there are skipthoughts, gru, transformer"),
        ("{arch: gru}", "dataset.vocab_path is missing"),
    ],
)
def test_a_text_encoder_that_cannot_be_is_one_line(block, says, work, run) -> None:
    pytest.importorskip("transformers")
    with_encoder(block)
    refused = run("train.py --path_opt tiny.yaml")
    assert refused.status == 2 and says in refused.message


@pytest.mark.parametrize(
    ("package", "model"),
    [
        ("timm", f"trunk: {NET}"),
        ("transformers", "seq2vec: {arch: transformer, path: somewhere}"),
        ("open_clip", "trunk: clip"),
    ],
)
def test_a_package_that_is_not_installed_is_one_line_that_says_what_to_do(
    package, model, work, run, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    lines = [line for line in Path("tiny.yaml").read_text().splitlines() if model.split(":")[0] not in line]
    lines = [line for line in lines if package != "open_clip" or not line.startswith(("    seq2vec", "    pretrained"))]
    Path("tiny.yaml").write_text("\n".join([lines[0], f"    {model}", *lines[1:]]))
    refused = run("train.py --path_opt tiny.yaml")
    assert refused.status == 2
    assert f"needs the package {package}: pip install -r requirements-extra.txt" in refused.message
