"""Text encoders and backbones in the place of the published ones; packages that are not installed."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import OPTIONS
from interrupted import same_weights
from torch.nn import functional
from torch.nn.utils import rnn

from engine import make_model
from layers.backbone import ResNet18, TimmBackbone, make_backbone
from layers.gru import pack_sequences, unpack_sequences
from layers.text_encoder import FrozenTransformerEncoder, GRUEncoder, pool
from option import load_options
from option.options import FrozenTransformer, PlainGRU
from util.starting_weights import load_backbone, load_starting_weights
from utils import InputError
from vocab import encode_captions, load_words


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


def write_transformer(folder: Path) -> Path:
    """Write a small BERT with its tokenizer to `folder`/bert."""
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "ship", "plane", "two", "##s"]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    transformers.BertModel(transformers.BertConfig(vocab_size=len(words), **shape)).save_pretrained(folder / "bert")
    return folder / "bert"


@pytest.fixture
def transformer(tmp_path) -> Path:
    return write_transformer(tmp_path)


def with_encoder(block: str) -> None:
    """Rewrite tiny.yaml with another text encoder and without a vocabulary."""
    options = yaml.safe_load(OPTIONS)
    options["model"]["seq2vec"] = yaml.safe_load(block)
    del options["dataset"]["vocab_path"]
    Path("tiny.yaml").write_text(yaml.safe_dump(options))


def test_a_transformer_reads_captions_by_its_own_tokens_and_starts_from_its_weights(transformer, work, run) -> None:
    transformers = pytest.importorskip("transformers")
    with_encoder(f"{{arch: transformer, path: '{transformer}'}}")
    options, captions = load_options("tiny.yaml"), ["two red ships", "a plane"]
    ids, lengths = encode_captions(captions, options, load_words(options))
    assert ids.tolist() == [[3, 9, 6, 7, 10, 4], [3, 5, 8, 4, 0, 0]] and lengths.tolist() == [6, 4]
    model = make_model(options, ()).eval()
    load_starting_weights(model, options.model, ())
    tokens = transformers.AutoTokenizer.from_pretrained(transformer)(captions, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = transformers.AutoModel.from_pretrained(transformer).eval()(**tokens).last_hidden_state
        expected = model.text_encoder.out(torch.stack((states[0].mean(0), states[1, :4].mean(0))))
        assert torch.allclose(model.encode_text(ids, lengths), expected, atol=1e-5)
    assert run("train.py --path_opt tiny.yaml --set optim.epochs=1 optim.text_lr=1e-4").status == 0
    assert torch.load("checkpoint/tiny/0/GaLR_best.pth.tar", weights_only=True)["words"] == []
    assert run("test.py --path_opt tiny.yaml").status == 0


@pytest.fixture
def frozen(transformer) -> FrozenTransformerEncoder:
    """Return an encoder of random weights in training mode, without dropout."""
    torch.manual_seed(1)
    options = FrozenTransformer(arch="frozen_transformer", path=str(transformer), hidden_dim=6, gru_dropout=0)
    return FrozenTransformerEncoder(options, 5)


def test_a_frozen_transformer_s_vector_is_added_to_what_a_gru_reads(frozen) -> None:
    ids = torch.tensor([[3, 9, 6, 7, 10, 4], [3, 5, 8, 4, 0, 0]])
    with torch.no_grad():
        states = frozen.network(input_ids=(ids - 1).clamp(min=0), attention_mask=(ids != 0).long()).last_hidden_state
        vectors = torch.stack((states[0].mean(0), states[1, :4].mean(0)))
        hidden = functional.gelu(frozen.out[0](functional.layer_norm(vectors, vectors.shape[1:])))
        assert torch.allclose(frozen(ids), frozen.words(ids) + frozen.out[3](hidden), atol=1e-5)


def test_a_frozen_transformer_learns_nothing_and_drops_nothing(frozen) -> None:
    ids = torch.tensor([[3, 9, 6, 4]])
    assert frozen.words.training and not any(module.training for module in frozen.network.modules())
    frozen(ids).sum().backward()
    learning = {name for name, parameter in frozen.named_parameters() if parameter.grad is not None}
    assert {name.split(".")[0] for name in learning} == {"words", "out"}
    assert not any(parameter.requires_grad for parameter in frozen.network.parameters())


def test_a_caption_is_read_by_a_frozen_transformer_once_and_alone(frozen) -> None:
    """So a resumed run, whose first batch is another one, has the same vectors to the bit."""
    passes = []
    frozen.network.register_forward_hook(lambda *_: passes.append(1))
    ids = torch.tensor([[3, 9, 6, 7, 10, 4], [3, 5, 8, 4, 0, 0], [3, 5, 8, 4, 0, 0]])
    together = frozen.frozen_vectors(ids)
    assert len(passes) == 2
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(frozen.frozen_vectors(ids[1:2, :4]), together[1:2])
    assert len(passes) == 2
    assert torch.allclose(frozen.eval().frozen_vectors(ids), together, atol=1e-6)  # as a batch
    assert len(passes) == 3
    frozen.train()
    other = {name: value + 1 for name, value in frozen.state_dict().items()}
    frozen.load_state_dict(other)  # what was kept is of the weights before
    assert not torch.allclose(frozen.frozen_vectors(ids), together, atol=1e-3)


def test_a_run_with_a_frozen_transformer_resumes_to_the_bit(transformer, work, run) -> None:
    with_encoder(f"{{arch: frozen_transformer, path: '{transformer}', hidden_dim: 6}}")
    train = "train.py --path_opt tiny.yaml --set optim.ema=0.9 optim.epochs"
    for command in (f"{train}=2 k_fold.experiment_name=whole", f"{train}=1", f"{train}=2 --resume"):
        assert run(command).status == 0
    assert same_weights(Path("checkpoint/whole/0"), Path("checkpoint/tiny/0"))
    assert run("test.py --path_opt tiny.yaml --set optim.epochs=2").status == 0


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ("{arch: transformer, path: /nowhere/at/all}", "model.seq2vec.path /nowhere/at/all is no text encoder"),
        ("{arch: lstm}", "model.seq2vec.arch = 'lstm': there are skipthoughts, gru, transformer, frozen_transformer"),
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
        ("timm", {"trunk": "test_efficientnet"}),
        ("transformers", {"seq2vec": {"arch": "transformer", "path": "somewhere"}}),
        ("open_clip", {"trunk": "clip"}),
    ],
)
def test_a_package_that_is_not_installed_is_one_line(package, model, work, run, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    options = yaml.safe_load(OPTIONS)
    if package == "open_clip":
        del options["model"]["seq2vec"], options["model"]["pretrained"]
    options["model"] |= model
    Path("tiny.yaml").write_text(yaml.safe_dump(options))
    refused = run("train.py --path_opt tiny.yaml")
    assert refused.status == 2
    assert f"needs the package {package}: pip install -r requirements-extra.txt" in refused.message


NET = "test_efficientnet"  # timm's own for tests: 0.4 million parameters


@pytest.fixture(scope="module")
def trunk() -> TimmBackbone:
    pytest.importorskip("timm")
    torch.manual_seed(0)
    return make_backbone(NET, 64)


def test_a_backbone_of_timm_gives_four_maps_and_the_input_of_its_classifier(trunk) -> None:
    images = torch.rand(2, 3, 64, 64)
    found = trunk.eval()(images)
    assert [feature_map.shape[2] for feature_map in found[:4]] == [16, 8, 4, 2]
    assert [feature_map.shape[1] for feature_map in found[:4]] == list(trunk.channels)
    assert torch.equal(found.pooled, trunk.net.forward_head(trunk.net.forward_features(trunk.renormalise(images))))
    assert found.pooled.shape == (2, trunk.width)


@pytest.mark.parametrize(
    ("name", "says"),
    [("resnet1818", "neither resnet18 nor a model of timm"), ("test_vit", "a 4th, an 8th|no feature maps")],
)
def test_a_network_that_timm_lacks_or_without_such_maps_is_an_input_error(name, says, work) -> None:
    pytest.importorskip("timm")
    options = load_options("tiny.yaml", [f"model.trunk={name}"])
    with pytest.raises(InputError, match=says):
        make_model(options, load_words(options))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_of_a_backbones_weights_loads_without_its_classifier(trunk, suffix, tmp_path) -> None:
    timm, files = pytest.importorskip("timm"), pytest.importorskip("safetensors.torch")
    torch.manual_seed(1)
    expected, path = timm.create_model(NET, num_classes=7).state_dict(), tmp_path / f"weights.{suffix}"
    (torch.save if suffix == "pth" else files.save_file)(expected, path)
    fresh = copy.deepcopy(trunk)
    load_backbone(fresh, str(path))
    assert all(torch.equal(value, expected[name]) for name, value in fresh.net.state_dict().items())
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="damaged"):
        load_backbone(fresh, str(path))
    torch.save(ResNet18().net.state_dict(), path)
    with pytest.raises(InputError, match=r"misshapen: bn1\.weight"):
        load_backbone(fresh, str(path))
