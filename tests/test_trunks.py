"""Trunks of timm, frozen normalisation, and the text encoders that may stand in the place of skip-thoughts."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from data import load_data, read_split, train_batches
from engine import make_criterion, make_model, make_optimizer, train_step
from layers.backbone import MEAN, STD, Renormalise, ResNet18, TimmBackbone, make_backbone
from layers.cpu import FusedConv2d, fuse_norms
from layers.text_encoder import GRUEncoder, pool
from option import load_options
from option.options import PlainGRU
from util.trunk_weights import load_trunk
from utils import InputError
from vocab import encode_captions, load_words

NET = "test_efficientnet"  # timm's own for tests: 0.4 million parameters


@pytest.fixture(scope="module")
def trunk() -> TimmBackbone:
    pytest.importorskip("timm")
    torch.manual_seed(0)
    return make_backbone(NET, 64)


def settle(net: nn.Module) -> None:
    """Statistics that are no identity."""
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                tensor.uniform_(0.5, 1.5, generator=generator)


# ---------------------------------------------------------------- trunks


def test_a_trunk_of_timm_gives_four_maps_and_what_its_classifier_would_read(trunk) -> None:
    images = torch.rand(2, 3, 64, 64)
    found = trunk.eval()(images)
    assert [feature_map.shape[2] for feature_map in found[:4]] == [16, 8, 4, 2]
    assert [feature_map.shape[1] for feature_map in found[:4]] == list(trunk.channels)
    assert torch.equal(found.pooled, trunk.net.forward_head(trunk.net.forward_features(trunk.renormalise(images))))
    assert found.pooled.shape == (2, trunk.width)


def test_images_are_converted_to_another_mean_and_deviation() -> None:
    pixels, mean, std = torch.rand(1, 3, 4, 4), (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)
    given, wanted = (
        (pixels - torch.tensor(m).view(3, 1, 1)) / torch.tensor(s).view(3, 1, 1) for m, s in ((MEAN, STD), (mean, std))
    )
    assert torch.allclose(Renormalise(mean, std)(given), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "says"),
    [("resnet1818", "neither resnet18 nor a model of timm"), ("test_vit", "a 4th, an 8th|no feature maps")],
)
def test_a_network_that_is_not_there_or_has_no_such_maps_is_an_input_error(name, says, work) -> None:
    pytest.importorskip("timm")
    options = load_options("tiny.yaml", [f"model.trunk={name}"])
    with pytest.raises(InputError, match=says):
        make_model(options, load_words(options))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_of_a_trunk_s_weights_loads_and_its_classifier_is_not_read(trunk, suffix, tmp_path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(1)
    source = timm.create_model(NET, num_classes=7)
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save(source.state_dict(), path)
    else:
        pytest.importorskip("safetensors.torch").save_file(source.state_dict(), path)
    fresh = copy.deepcopy(trunk)
    load_trunk(fresh, str(path))
    expected = source.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in fresh.net.state_dict().items())
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="damaged"):
        load_trunk(fresh, str(path))


def test_another_network_s_weights_are_an_input_error(trunk, tmp_path) -> None:
    torch.save(ResNet18().net.state_dict(), tmp_path / "r18.pth")
    with pytest.raises(InputError, match=r"misshapen: bn1\.weight"):
        load_trunk(trunk, str(tmp_path / "r18.pth"))


# ---------------------------------------------------------------- frozen normalisation


def both_norms(name: str, size: int) -> tuple[nn.Module, nn.Module]:
    """A trunk in evaluation mode, and the same one with folded normalisation, in training mode."""
    plain, frozen = make_backbone(name, size).eval(), make_backbone(name, size, "frozen").train()
    settle(plain.net)
    frozen.net.load_state_dict(plain.net.state_dict())
    return plain, frozen


@pytest.mark.parametrize("name", ["resnet18", NET])
def test_folded_normalisation_is_the_same_function_with_the_same_gradients(name) -> None:
    if name == NET:
        pytest.importorskip("timm")
    plain, frozen = both_norms(name, 32)
    assert sum(isinstance(module, FusedConv2d) for module in frozen.modules()) > 10
    images = torch.rand(2, 3, 32, 32)
    for one, other in zip(plain(images), frozen(images), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4 * one.abs().max().item())
    for net in (plain, frozen):
        net(images).pooled.square().mean().backward()
    gradients = dict(frozen.named_parameters())
    for where, parameter in plain.named_parameters():
        if parameter.grad is not None:
            largest = parameter.grad.abs().max().item()
            assert torch.allclose(parameter.grad, gradients[where].grad, rtol=1e-2, atol=1e-3 * largest), where


@pytest.mark.parametrize("mode", ["frozen", "evaluation"])
def test_folded_normalisation_keeps_each_layers_own_eps(mode) -> None:
    """Networks differ in it: 1e-5 in ResNet-18, 1e-3 in tf_efficientnet_lite0."""
    torch.manual_seed(0)
    trunk, images = ResNet18().eval(), torch.rand(2, 3, 32, 32)
    settle(trunk.net)
    for module in trunk.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.3
    with torch.no_grad():
        plain = trunk(images)
        if mode == "frozen":
            trunk.freeze_norms(32)
            found = trunk.train()(images)
        else:
            with trunk.fused(32):
                found = trunk(images)
    for one, other in zip(plain, found, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4 * one.abs().max().item())


def test_training_moves_scales_and_no_statistics(work) -> None:
    options = load_options("tiny.yaml", ["model.trunk_norm=frozen"])
    words = load_words(options)
    data = load_data(read_split("data", "train"), options, words, torch.device("cpu"), training=True)
    model, criterion = make_model(options, words).train(), make_criterion(options.optim, torch.device("cpu"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = next(train_batches(data, options, 0, 0))
    train_step(model, batch, criterion, make_optimizer(model, options.optim, criterion), 1e-3, options)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert "global_branch.trunk.net.bn1.weight" in moved
    assert not any("running" in name or "num_batches" in name for name in moved)


@pytest.fixture(scope="module")
def settled() -> ResNet18:
    """With statistics, scales and shifts that do something."""
    torch.manual_seed(0)
    trunk = ResNet18().eval()
    for norm in (module for module in trunk.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_var, 0.5, 2)
        for tensor in (norm.running_mean, norm.weight.data, norm.bias.data):
            nn.init.normal_(tensor)
    return trunk


def test_evaluation_folds_normalisation_and_gives_the_same_features_without_a_pass_of_its_own(settled) -> None:
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        plain = settled(images)
        with settled.fused(64):
            assert not any(isinstance(module, nn.BatchNorm2d) for module in settled.modules())
            folded = settled(images)
    for one, other in zip(plain, folded, strict=True):
        assert (one - other).abs().max() < 1e-5 * one.abs().max()


def test_a_trunk_is_as_before_once_it_is_no_longer_folded(settled) -> None:
    modules, state = list(settled.named_modules()), {name: x.clone() for name, x in settled.state_dict().items()}
    with pytest.raises(KeyboardInterrupt), settled.fused(64):
        assert settled.state_dict().keys() == state.keys()
        raise KeyboardInterrupt
    assert [(name, id(module)) for name, module in settled.named_modules()] == [(n, id(m)) for n, m in modules]
    assert all(torch.equal(x, state[name]) for name, x in settled.state_dict().items())


def test_a_copy_has_its_own_normalisation() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
    fuse_norms(net, torch.rand(1, 3, 8, 8))
    other, images = copy.deepcopy(net), torch.rand(1, 3, 8, 8)
    other[1].weight.data.mul_(2)
    assert torch.allclose(other(images), 2 * net(images), atol=1e-6)


# ---------------------------------------------------------------- text encoders


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
    """A small BERT with its tokenizer in a folder."""
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "ship", "plane", "two", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    folder = tmp_path / "bert"
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def with_encoder(block: str) -> None:
    """tiny.yaml with another text encoder and without a vocabulary."""
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

    from util.weights import load_starting_weights

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
    assert f"needs the package {package}: pip install -r requirements-models.txt" in refused.message
