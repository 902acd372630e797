"""CLIP: the towers as open_clip computes them, its files in every form, scored as it comes, fine-tuned, resumed.

Small models with random weights, a vision transformer and a ResNet, through open_clip's own factory.
"""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import OPTIONS, run_process
from interrupted import at_step, stop
from soak import differences

from layers.backbone import MEAN, STD
from layers.clip import CLIPNetwork
from option.options import CLIPSource, Options
from util.starting_weights import load_clip
from utils import InputError
from vocab import encode_captions

open_clip = pytest.importorskip("open_clip")

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
TOWERS = {
    "vit": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 32},
    "resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None, "head_width": 32},
}
FINE_TUNE = (
    "optim.loss=infonce optim.temperature=0.01 dataset.captions_per_image=2 dataset.batch_size=4 logs.save_steps=2"
)


def arch_in(folder: Path, tower: str, quick: bool = True) -> str:
    """Describe a small architecture in a folder and return its name."""
    folder.mkdir(exist_ok=True)
    config = {"embed_dim": 32, "vision_cfg": TOWERS[tower], "text_cfg": TEXT, "quick_gelu": quick}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return f"local-dir:{folder.absolute()}"


@pytest.fixture(params=TOWERS)
def arch(request, tmp_path) -> str:
    return arch_in(tmp_path / "arch", request.param)


def network(arch: str, seed: int = 0, image_size: int = 64) -> CLIPNetwork:
    torch.manual_seed(seed)
    return CLIPNetwork(arch, "none", image_size).eval()


def test_vectors_are_those_of_open_clip_for_its_own_images_and_tokens(arch) -> None:
    ours, pixels = network(arch), torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    captions = ["two planes ! parked near the terminal", "many ships"]  # "!" is token 0, which also fills rows up
    ids, lengths = encode_captions(captions, load_options_of(arch), ())
    assert ids.shape[1] == lengths.max() < 77 and ((ids != 0).sum(1) == lengths).all()
    with torch.no_grad():
        own = normalised(pixels, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
        assert torch.allclose(ours(normalised(pixels, MEAN, STD)), ours.net.encode_image(own), atol=1e-5)
        expected = ours.net.encode_text(open_clip.get_tokenizer(arch)(captions))
        assert torch.allclose(ours.encode_text(ids), expected, atol=1e-5)


def normalised(pixels: torch.Tensor, mean: tuple, std: tuple) -> torch.Tensor:
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def test_images_are_normalised_as_the_named_weights_were_trained(monkeypatch, tmp_path) -> None:
    """SigLIP's weights, for one, want another mean and deviation than OpenAI's."""
    mean, std = (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)
    monkeypatch.setattr(open_clip.pretrained, "get_pretrained_cfg", lambda *_: {"mean": mean, "std": std})
    torch.manual_seed(0)
    ours = CLIPNetwork(arch_in(tmp_path / "arch", "vit"), "named", 64).eval()
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        found, expected = ours(normalised(pixels, MEAN, STD)), ours.net.encode_image(normalised(pixels, mean, std))
    assert torch.allclose(found, expected, atol=1e-5)


def load_options_of(arch: str) -> Options:
    """Return the options of a CLIP without files."""
    dataset = {"datatype": "x", "data_path": "x", "image_path": "x", "image_size": 64}
    model = {"name": "CLIP", "clip": {"arch": arch, "weights": "none"}}
    return Options(model=model, dataset=dataset, k_fold={"experiment_name": "x"})


# ---------------------------------------------------------------- files


FORMS = {
    "RemoteCLIP's": lambda net, path: torch.save(net.state_dict(), path),
    "GeoRSCLIP's": lambda net, path: torch.save(
        {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in net.state_dict().items()}}, path
    ),
    "OpenAI's state dict": lambda net, path: torch.save(
        {name: value.half() for name, value in net.state_dict().items()} | {"input_resolution": torch.tensor(64)}, path
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_file_of_every_form_is_loaded(form, arch, tmp_path) -> None:
    source, path = network(arch, seed=1), tmp_path / "clip.pt"
    expected = {name: value.clone() for name, value in source.net.state_dict().items()}
    FORMS[form](source.net, path)
    loaded = network(arch, seed=2)
    load_clip(loaded, CLIPSource(arch=arch, weights=str(path)))
    half = "OpenAI" in form
    for name, value in loaded.net.state_dict().items():
        assert value.dtype == expected[name].dtype
        assert torch.equal(value, expected[name].half().to(value.dtype) if half else expected[name]), name


def test_hugging_face_s_clip_gives_the_vectors_that_it_gives_there(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 256}
    config = transformers.CLIPConfig(
        text_config=shape | {"hidden_act": "quick_gelu"},
        vision_config=shape | {"image_size": 64, "patch_size": 32, "hidden_act": "quick_gelu"},
        projection_dim=32,
    )
    torch.manual_seed(0)
    theirs, arch = transformers.CLIPModel(config).eval(), arch_in(tmp_path / "arch", "vit")
    theirs.save_pretrained(tmp_path / "hf")
    weights = str(tmp_path / "hf/model.safetensors")
    ours = network(arch)
    load_clip(ours, CLIPSource(arch=arch, weights=weights))
    pixels, ids = torch.rand(2, 3, 64, 64), open_clip.get_tokenizer(arch)(["two ships", "many green trees"])
    with torch.no_grad():
        expected = theirs(input_ids=ids, pixel_values=pixels)
        for found, wanted in (
            (ours.net.encode_image(pixels), expected.image_embeds),
            (ours.encode_text(ids + 1), expected.text_embeds),
        ):
            assert torch.allclose(torch.nn.functional.normalize(found), wanted, atol=1e-5)
    plain = arch_in(tmp_path / "plain", "vit", quick=False)
    with pytest.raises(InputError, match=r"were trained with quick_gelu \(.*config\.json\)"):
        load_clip(network(plain), CLIPSource(arch=plain, weights=weights))


def test_openais_weights_by_file_are_refused_by_an_architecture_without_their_activation(tmp_path) -> None:
    plain = arch_in(tmp_path / "plain", "vit", quick=False)
    source, path = network(plain), tmp_path / "clip.pt"
    FORMS["OpenAI's state dict"](source.net, path)
    with pytest.raises(InputError, match=r'are OpenAI.s, trained with QuickGELU.* set "quick_gelu": true'):
        load_clip(source, CLIPSource(arch=plain, weights=str(path)))
    torch.save({"context_length": torch.tensor(77), "a": torch.zeros(1)}, path)
    with pytest.raises(InputError, match=r"set model\.clip\.arch RN50-quickgelu"):
        load_clip(source, CLIPSource(arch="RN50", weights=str(path)))


def test_what_is_no_such_file_is_an_input_error(tmp_path) -> None:
    arch, path = arch_in(tmp_path / "arch", "vit"), tmp_path / "clip.pt"
    state = network(arch).net.state_dict()
    for content, says in (
        ({k: v for k, v in state.items() if k != "ln_final.bias"}, "1 missing: ln_final.bias"),
        (state | {"logit_scale": torch.tensor(torch.nan)}, "not finite in 1 tensors: logit_scale"),
    ):
        torch.save(content, path)
        with pytest.raises(InputError, match=says):
            load_clip(network(arch), CLIPSource(arch=arch, weights=str(path)))
    with pytest.raises(InputError, match="neither a file nor a name of open_clip for ViT-B-32"):
        load_clip(network(arch), CLIPSource(arch="ViT-B-32", weights="openbi"))


def as_openai_archive(net, path: Path) -> None:
    """A TorchScript archive in half precision with three numbers among the weights, as OpenAI's files are."""
    for name in ("input_resolution", "context_length", "vocab_size"):
        if hasattr(net, name):
            delattr(net, name)
        net.register_buffer(name, torch.tensor(77))
    images, texts = torch.zeros(1, 3, 64, 64), torch.zeros(1, 77, dtype=torch.int64)
    traced = torch.jit.trace_module(net, {"encode_image": images, "encode_text": texts}, check_trace=False)
    traced.half().save(str(path))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_the_line_in_the_error_converts_openais_archive_to_weights_that_load(arch, tmp_path) -> None:
    source, path = network(arch, seed=1), tmp_path / "it's a clip.pt"
    expected = {name: value.clone() for name, value in source.net.state_dict().items()}
    as_openai_archive(source.net, path)
    with pytest.raises(InputError, match="is a TorchScript program, and was not run") as error:
        load_clip(network(arch), CLIPSource(arch=arch, weights=str(path)))
    line = str(error.value).partition("python -c ")[2]
    subprocess.run(["bash", "-c", f"{shlex.quote(sys.executable)} -c {line}"], check=True, capture_output=True)
    loaded = network(arch, seed=2)
    load_clip(loaded, CLIPSource(arch=arch, weights=str(path.with_suffix(".weights.pt"))))
    for name, value in loaded.net.state_dict().items():
        assert torch.equal(value, expected[name].half().to(value.dtype)), name


# ---------------------------------------------------------------- names


def test_openai_s_weights_want_the_architecture_with_their_activation() -> None:
    with pytest.raises(ValueError, match="were trained as ViT-B-32-quickgelu"):
        CLIPNetwork("ViT-B-32", "openai", 224)
    with pytest.raises(ValueError, match="ViT-B-33 is no architecture of open_clip"):
        CLIPNetwork("ViT-B-33", "openai", 224)


def test_captions_that_clip_cuts_are_counted(tmp_path, capsys) -> None:
    options, long = load_options_of(arch_in(tmp_path / "arch", "vit")), "many buildings beside the road " * 20
    encode_captions([f"{long} and a bridge", f"{long} and a lake", "ship " * 75], options, ())
    assert "2 captions have more than 77 tokens" in capsys.readouterr().err


# ---------------------------------------------------------------- runs


@pytest.fixture
def clip(work) -> str:
    """clip.yaml: a small CLIP with weights in a file, on the demonstration set; galr.yaml: GaLR upon it."""
    arch = arch_in(work / "arch", "vit")
    torch.save(network(arch, seed=3).net.state_dict(), "clip.pt")
    options, source = yaml.safe_load(OPTIONS), {"arch": arch, "weights": "clip.pt"}
    del options["dataset"]["vocab_path"]
    parts = {key: options["model"][key] for key in ("fusion", "embed")}
    for name, model in (("clip", {"name": "CLIP"}), ("galr", {"trunk": "clip"} | parts)):
        Path(f"{name}.yaml").write_text(yaml.safe_dump(options | {"model": model | {"clip": source}}))
    return "--path_opt clip.yaml"


def test_clip_is_scored_as_it_comes_and_galr_upon_it_scores_the_same_at_first(clip) -> None:
    sims = []
    for name in ("clip", "galr"):
        done = run_process(f"test_single.py --path_opt {name}.yaml --resume none --sims {name}.npy", Path.cwd())
        assert (done.status, done.err) == (0, "") and done.out.count("test split:") == 1
        sims.append(np.load(f"{name}.npy"))
    assert np.abs(sims[0] - sims[1]).max() < 1e-5 and sims[0].std() > 1e-3


def test_clip_is_fine_tuned_resumed_and_tested(clip, run) -> None:
    command = f"train.py {clip} --set {FINE_TUNE}"
    assert run(command).status == 0
    Path("checkpoint").rename("whole")
    with at_step(3, stop(signal.SIGTERM)):
        assert run(command).status == 143
    assert run(f"{command} --resume").status == 0
    fold = Path("checkpoint/tiny/0")
    assert differences(Path("whole/tiny/0").absolute(), fold.absolute()) == []
    best = torch.load(fold / "GaLR_best.pth.tar", weights_only=True)
    assert best["arch"] == "CLIP" and best["words"] == []
    assert run(f"test.py {clip} --rerank --set {FINE_TUNE}").status == 0


def test_galr_upon_clip_learns_what_the_regions_add(clip, run) -> None:
    done = run(f"train.py --path_opt galr.yaml --set {FINE_TUNE} optim.freeze=[clip] optim.epochs=1")
    assert done.status == 0
    best = torch.load("checkpoint/tiny/0/GaLR_best.pth.tar", weights_only=True)["model"]
    start = torch.load("clip.pt", weights_only=True)
    assert best["scale"] != 0 and all(torch.equal(best[f"clip.net.{name}"], value) for name, value in start.items())
    assert run("test.py --path_opt galr.yaml").status == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("model.trunk=resnet18", "model.clip needs model.trunk clip"),
        ("model.pretrained=none", "leave out pretrained"),
        ("model.embed.embed_dim=64 model.fusion.mca_HIDDEN_SIZE=64 model.fusion.mca_HIDDEN_SIZE_HEAD=32", "have 32"),
    ],
)
def test_options_that_do_not_go_with_clip_are_one_line(clip, run, change, says) -> None:
    refused = run(f"test_single.py --path_opt galr.yaml --resume none --set {change}")
    assert refused.status == 2 and says in refused.message


def test_a_checkpoint_of_another_architecture_is_warned_of_and_starts_a_clip_of_another_size(clip, run) -> None:
    """Without QuickGELU all shapes fit, and the scores are others."""
    assert run(f"train.py {clip} --set {FINE_TUNE} optim.epochs=1").status == 0
    config, best = Path("arch/open_clip_config.json"), "checkpoint/tiny/0/GaLR_best.pth.tar"
    Path("plain").mkdir()
    Path("plain", config.name).write_text(config.read_text().replace('"quick_gelu": true', '"quick_gelu": false'))
    assert "scored with" not in run(f"test_single.py {clip} --resume {best}").err
    plain = "--set model.clip.arch=local-dir:plain model.clip.weights"
    scored = run(f"test_single.py {clip} --resume {best} {plain}=none")
    assert scored.status == 0 and "was trained with model.clip.arch=local-dir:" in scored.err
    scored = run(f"test_single.py {clip} --resume none {plain}={best}")
    assert scored.status == 0 and "were trained as local-dir:" in scored.err and "used as local-dir:plain" in scored.err
    arch = f"local-dir:{Path('arch').absolute()}"
    larger, wanted = network(arch, image_size=128), torch.load(best, weights_only=True)["model"]
    load_clip(larger, CLIPSource(arch=arch, weights=best))
    assert torch.equal(larger.net.token_embedding.weight, wanted["clip.net.token_embedding.weight"])
    assert larger.net.visual.positional_embedding.shape[0] == 17
    assert larger(torch.zeros(1, 3, 128, 128)).shape == (1, 32)
