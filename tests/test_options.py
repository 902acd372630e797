"""Options: published files load unchanged, keys keep their meaning, values as people write them, mistakes are named."""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path

import pytest
import yaml
from rehearsal import OPTIONS as PUBLISHED

from option import load_options
from option.__main__ import table
from utils import InputError, Parser

# AMFMN's file as the authors publish it: no local features, and its attention is read.
PUBLISHED_AMFMN = """
model:
    multiscale: {multiscale_input_channel: 3, multiscale_output_channel: 1}
    cross_attention: {att_type: "fusion_att"}
    seq2vec: {arch: skipthoughts, dir_st: /data, type: BayesianUniSkip, dropout: 0.25, fixed_emb: False}
    embed: {embed_dim: 512}
    name: AMFMN
dataset:
    datatype: rsitmd
    data_split:
    data_path: 'data/rsitmd_precomp/'
    image_path: '/data/rsitmd_images/'
    vocab_path: 'vocab/rsitmd_splits_vocab.json'
optim: {epochs: 70, lr: 0.0002, lr_decay_param: 0.7, lr_update_epoch: 20, grad_clip: 0, max_violation: 0, margin: 0.2,
        resume: False}
logs: {eval_step: 1, print_freq: 10, ckpt_save_path: "checkpoint/", logger_name: 'logs/'}
k_fold: {experiment_name: 'rsitmd_aba_mv', nums: 5, current_num: 0}
"""
SHIPPED = ["DEMO", "RSITMD", "RSICD", "UCM", "SYDNEY"]
DEMO = "option/DEMO/DEMO_GaLR.yaml"


@pytest.fixture
def published(tmp_path: Path) -> Path:
    path = tmp_path / "published.yaml"
    path.write_text(PUBLISHED)
    return path


def test_a_published_file_loads_unchanged_and_its_unused_keys_are_named_once(published, capsys) -> None:
    options = load_options(published)
    note = capsys.readouterr().out
    assert note.count("\n") == 1
    unused = "cross_attention", "correct_local_hidden_dim", "supplement_global_", "global_local_weight", "data_split"
    assert all(key in note for key in unused)
    assert options.optim.lr == 2e-4 and options.k_fold.nums == 3 and options.optim.max_violation is False
    assert options.model.fusion.gate == "released"


def test_amfmns_published_file_loads_unchanged_and_keys_of_another_models_block_are_refused(tmp_path) -> None:
    (tmp_path / "amfmn.yaml").write_text(PUBLISHED_AMFMN)
    options = load_options(tmp_path / "amfmn.yaml", ["dataset.local_path=no.h5"])
    assert (options.model.name, options.model.cross_attention.att_type) == ("AMFMN", "fusion_att")
    assert options.local_path == "zeros" and (options.optim.epochs, options.k_fold.nums) == (70, 5)
    with pytest.raises(InputError, match=r"unknown key model.fusion: it belongs to GaLR, not to AMFMN"):
        load_options(tmp_path / "amfmn.yaml", ["model.fusion.gate=paper"])


# The shortest file of each model, and every value that it then has.
SHORT = """
model: {name: MODEL}
dataset: {datatype: rsitmd, data_path: data/, image_path: images/, vocab_path: vocab.json, local_path: local.h5}
k_fold: {experiment_name: short}
"""
SKIPTHOUGHTS = """{arch: skipthoughts, type: BayesianUniSkip, dir_st: seq2vec, dropout: 0.25, fixed_emb: False,
    pretrained: True, embedding_dim: 620, hidden_dim: 2400}"""
BACKBONE = """trunk: resnet18, trunk_norm: batch, pretrained: imagenet"""
MULTISCALE = "{multiscale_input_channel: 3, multiscale_output_channel: 1}"
MODEL_DEFAULTS = {
    "GaLR": f"""{{name: GaLR, {BACKBONE}, local_branch: True, mvsa: True, multiscale: {MULTISCALE},
        seq2vec: {SKIPTHOUGHTS}, embed: {{embed_dim: 512}}, clip: null,
        fusion: {{kind: midf, gate: released, dynamic_fusion_dim: 512, dynamic_fusion_drop: 0.2, mca_DROPOUT_R: 0.1,
                  mca_HIDDEN_SIZE: 512, mca_FF_SIZE: 1024, mca_MULTI_HEAD: 8, mca_HIDDEN_SIZE_HEAD: 64}}}}""",
    "AMFMN": f"""{{name: AMFMN, {BACKBONE}, multiscale: {MULTISCALE}, cross_attention: {{att_type: soft_att}},
        seq2vec: {SKIPTHOUGHTS}, embed: {{embed_dim: 512}}}}""",
    "VSE++": f"""{{name: VSE++, {BACKBONE}, word_dim: 300, image_norm: True, text_pooling: last, positions: 35,
        embed: {{embed_dim: 1024}}}}""",
    "CLIP": "{name: CLIP, clip: {arch: ViT-B-32-quickgelu, weights: openai}}",
}
DEFAULTS = """
dataset: {datatype: rsitmd, data_path: data/, image_path: images/, vocab_path: vocab.json, local_path: local.h5,
          batch_size: 100, batch_size_val: 70, workers: 3, image_size: 256, cache: ram, val_list: null,
          truncated: error, augment: rotate, smallest_crop: 0.5, captions_per_image: 0}
optim: {epochs: 20, early_stopping: 0, lr: 0.0002, lr_decay_param: 0.7, lr_update_epoch: 20, grad_clip: 0,
        max_violation: False, margin: 0.2, resume: False, precision: fp32, tf32: False, deterministic: False,
        checkpointing: False, compile: False, loss: triplet, temperature: 0.07, learn_temperature: True,
        schedule: step, warmup: 0, trunk_lr: null, text_lr: null, betas: [0.9, 0.999], weight_decay: 0, ema: 0,
        freeze: []}
logs: {eval_step: 1, print_freq: 10, save_steps: 0, save_minutes: 10, ckpt_save_path: checkpoint/, logger_name: logs/,
       matrices: postprocessing/file/}
k_fold: {experiment_name: short, nums: 1, current_num: 0, mode: shuffle, val_fraction: 0.2, seed: 0}
seed: 0
"""
ENCODERS = [
    "{arch: gru, embedding_dim: 300, hidden_dim: 512, bidirectional: False, pooling: last, dropout: 0.2}",
    "{arch: transformer, path: folder, pretrained: True, pooling: mean, dropout: 0}",
]


@pytest.mark.parametrize("model", MODEL_DEFAULTS)
def test_every_default_is_the_published_one(tmp_path, model) -> None:
    (tmp_path / "short.yaml").write_text(SHORT.replace("MODEL", model))
    expected = {"model": yaml.safe_load(MODEL_DEFAULTS[model]), **yaml.safe_load(DEFAULTS)}
    tree = load_options(tmp_path / "short.yaml").to_dict()
    assert tree == expected
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(tree))
    assert load_options(tmp_path / "again.yaml").to_dict() == tree


@pytest.mark.parametrize("defaults", ENCODERS)
def test_defaults_of_the_other_text_encoders(defaults) -> None:
    expected = yaml.safe_load(defaults)
    given = {key: value for key, value in expected.items() if key in ("arch", "path")}
    assert load_options(DEMO, [f"model.seq2vec={given}"]).to_dict()["model"]["seq2vec"] == expected


def test_every_key_has_a_line_of_documentation_and_stands_in_the_guide() -> None:
    rows = table().splitlines()
    cells = [cell.strip() for row in rows for cell in row.split("|")]
    assert len(rows) > 90 and all(len(cell) <= 66 for cell in cells) and "None" not in cells
    guide = Path("docs/training.md").read_text().partition("<!-- options -->\n")[2].partition("<!-- /options -->")[0]
    assert guide.strip() == table(), "write the output of `python -m option` between the markers of docs/training.md"


def test_values_of_a_file_are_printed_for_the_run_scripts(run, published) -> None:
    keys = "--get dataset.vocab_path k_fold.nums dataset.val_list"
    told = run(f"-m option --path_opt {published} {keys} --set k_fold.nums=4 dataset.vocab_path=v.json --device cpu")
    assert told.out.splitlines() == ["v.json", "4", "None"]
    assert "optim.margin" in run("-m option").out


@pytest.mark.parametrize("name", ["UCM", "RSICD"])
def test_a_renamed_file_runs_under_its_old_name(name, capsys) -> None:
    old = load_options(f"option/{name}/{name}_GaLR_lite.yaml")
    assert f"note: the file is now called option/{name}/{name}_lite.yaml" in capsys.readouterr().out
    assert old == load_options(f"option/{name}/{name}_lite.yaml")
    assert old.run_folder == Path("checkpoint", f"{name}_lite")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_load_say_paper_and_point_at_data(name) -> None:
    galr, amfmn, vsepp = (load_options(f"option/{name}/{name}_{model}.yaml") for model in ("GaLR", "AMFMN", "VSEPP"))
    assert galr.model.fusion.gate == "paper"
    assert (amfmn.model.name, amfmn.model.cross_attention.att_type) == ("AMFMN", "soft_att")
    assert (vsepp.model.name, vsepp.optim.max_violation, amfmn.optim.max_violation) == ("VSE++", True, False)
    for options in (galr, amfmn, vsepp):
        assert options.dataset.data_path.startswith("data/") and options.dataset.datatype == name.lower()
    if name in ("RSITMD", "RSICD"):
        o, epochs = galr.optim, 20 if name == "RSITMD" else 70
        assert (o.lr, o.lr_decay_param, o.lr_update_epoch, o.margin, o.epochs) == (2e-4, 0.7, 20, 0.2, epochs)
        assert (galr.dataset.batch_size, galr.k_fold.nums, galr.model.seq2vec.dropout) == (100, 3, 0.25)
    if name != "DEMO":
        rate = 1e-4 if name == "RSICD" else 2e-4
        assert all((o.optim.epochs, o.optim.lr, o.k_fold.nums) == (70, rate, 5) for o in (amfmn, vsepp))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["optim.lr=1e-4", "k_fold.nums=1"], {"optim.lr": 1e-4, "k_fold.nums": 1}),
        (["optim.lr=1e-4", "optim.lr=1e-3"], {"optim.lr": 1e-3}),  # the last one wins
        (["dataset.cache=h5"], {"dataset.cache": "disk"}),  # its old name
        (["optim.grad_clip=None", "optim.margin=null"], {"optim.margin": 0.2, "optim.grad_clip": 0}),
        (["k_fold.mode=disjoint"], {"k_fold.mode": "disjoint"}),
        (["model.seq2vec={arch: gru, hidden_dim: 64}"], {"model.seq2vec.hidden_dim": 64}),  # a block as a whole
    ],
)
def test_overrides_win_over_the_file(published, overrides, expected) -> None:
    options = load_options(published, overrides)
    assert {key: attrgetter(key)(options) for key in expected} == expected


@pytest.mark.parametrize("nothing", ["null", "None", "~", ""])
def test_null_means_none_where_a_key_can_be_none_and_else_the_default(nothing) -> None:
    keys = "model.pretrained", "model.seq2vec.pretrained", "model.fusion.gate", "dataset.cache", "optim.lr"
    options = load_options(DEMO, [f"{key}={nothing}" for key in keys])
    assert [attrgetter(key)(options) for key in keys] == ["none", False, "none", "none", 2e-4]


def test_home_and_environment_variables_in_paths_are_filled_in(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("RS_DATA", "/data/rs")
    monkeypatch.setenv("HOME", "/home/someone")
    (tmp_path / "o.yaml").write_text(Path(DEMO).read_text().replace("data/demo_precomp/images", "$RS_DATA/images"))
    options = load_options(tmp_path / "o.yaml", ["dataset.data_path=${RS_DATA}/demo", "model.pretrained=~/r18.pth"])
    assert (options.dataset.image_path, options.dataset.data_path) == ("/data/rs/images/", "/data/rs/demo")
    assert options.model.pretrained == "/home/someone/r18.pth"
    parser = Parser()  # and on a command line, where no shell does it
    for name in ("--out", "--json", "--text"):
        parser.add_argument(name)
    found = parser.parse_args(["--out=~/x", "--json", "$RS_DATA/a.json", "--text", "a $5 bill ~ $RS_DATA"])
    assert vars(found) == {"out": "/home/someone/x", "json": "/data/rs/a.json", "text": "a $5 bill ~ $RS_DATA"}


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optim.lrr=1", "unknown key optim.lrr (nearest known key: optim.lr)"),
        ("lr=3", "unknown key lr (nearest known key: optim.lr)"),
        ("optim.momentum=1", "unknown key optim.momentum (known keys: "),
        ("logs.colour=3", "unknown key logs.colour (known keys: ckpt_save_path, eval_step, "),
        ("model.word_dim=3", "unknown key model.word_dim: it belongs to VSE++, not to GaLR"),
        ("model.seq2vec={arch: gru, dir_st: folder}", "model.seq2vec.dir_st: it belongs to skipthoughts, not to gru"),
        ("model.seq2vec=gru", "seq2vec is a block of options, not a value"),
        ("model.name=SCAN", "model.name = 'SCAN': there are GaLR, AMFMN, VSE++, CLIP"),
        ("optim.lr=.nan", "optim.lr"),
        ("optim.lr=fast", "optim.lr"),
        ("optim=3", "block of options"),
        ("optim.lr", "KEY=VALUE"),
        ("optim.lr.x=3", "optim.lr.x=3"),
        ("optim.resume=True", "optim.resume"),
        ("dataset.image_size=100", "dataset.image_size"),
        ("dataset.smallest_crop=0", "dataset.smallest_crop"),
        ("dataset.local_path=None", "dataset.local_path is missing"),
        ("dataset.data_path=$GONE/demo", "data_path: $GONE/demo: the environment variable GONE is not set"),
        ("k_fold.experiment_name=../up", "k_fold.experiment_name"),
        ("k_fold.current_num=3", "k_fold.current_num"),
        ("model.fusion.mca_HIDDEN_SIZE=256", "mca_HIDDEN_SIZE"),
        ("optim.warmup=20", "optim.warmup (20 epochs) must be below optim.epochs (20)"),
        ("model.fusion.mca_MULTI_HEAD=4", "mca_MULTI_HEAD times mca_HIDDEN_SIZE_HEAD must equal"),
        ("dataset.captions_per_image=2", "dataset.captions_per_image needs optim.loss infonce"),
        ("model.clip={}", "model.clip needs model.trunk clip, got resnet18"),
        ("k_fold={experiment_name: a, mode: disjoint}", "k_fold.mode disjoint needs k_fold.nums of 2 or more"),
        ("model.seq2vec={type: BiSkip, hidden_dim: 257}", "must be even"),
    ],
)
def test_mistakes_are_one_line_that_names_key_and_file(published, override, says) -> None:
    with pytest.raises(InputError) as error:
        load_options(published, [override])
    assert says in str(error.value) and "\n" not in str(error.value)
    assert "published.yaml" in str(error.value) or "--set" in str(error.value) or "$" in override


def test_all_faults_of_a_file_are_named_at_once(published) -> None:
    with pytest.raises(InputError, match=r"optim\.lr = -1.*; .*unknown key logs\.eval_stap"):
        load_options(published, ["optim.lr=-1", "logs.eval_stap=2"])
    with pytest.raises(InputError, match=r"k_fold\.mode disjoint splits at random"):
        load_options(published, ["k_fold.mode=disjoint", "dataset.val_list=val.txt"])


@pytest.mark.parametrize("text", ["", "- a", "a: [", "optim: {lr: 1, lr: 2}", "!!python/object:os.system {}", "1: 2"])
def test_files_that_are_no_option_files_are_refused(tmp_path, text) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(InputError, match=r"bad\.yaml"):
        load_options(tmp_path / "bad.yaml")
