"""Options: published files load unchanged, new keys keep their meaning, mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from option import load_options
from option.__main__ import table
from utils import InputError

# A file as the authors publish it: their keys, their unused ones, the string "None".
PUBLISHED = """
model:
    name: GaLR
    multiscale:
        multiscale_input_channel: 3
        multiscale_output_channel: 1
    cross_attention:
        att_type: "sum"
    fusion:
        correct_local_hidden_dim: 512
        correct_local_hidden_drop: 0.2
        supplement_global_hidden_dim: 512
        supplement_global_hidden_drop: 0.2
        dynamic_fusion_dim: 512
        dynamic_fusion_drop: 0.2
        mca_DROPOUT_R: 0.1
        mca_HIDDEN_SIZE: 512
        mca_FF_SIZE: 1024
        mca_MULTI_HEAD: 8
        mca_HIDDEN_SIZE_HEAD: 64
    seq2vec:
        arch: skipthoughts
        dir_st: /data/seq2vec
        type: BayesianUniSkip
        dropout: 0.25
        fixed_emb: False
    embed:
        embed_dim: 512
    global_local_weight:
        global: None
        local: None
dataset:
    datatype: rsitmd
    data_split: train
    data_path: ./data/rsitmd_precomp/
    image_path: /data/rsitmd/images/
    vocab_path: vocab/rsitmd_splits_vocab.json
    local_path: data/rsitmd_precomp/local.npy
    batch_size: 100
    batch_size_val: 70
    workers: 3
optim:
    epochs: 20
    lr: 0.0002
    lr_decay_param: 0.7
    lr_update_epoch: 20
    grad_clip: 0
    max_violation: 0
    margin: 0.2
    resume: False
logs:
    eval_step: 1
    print_freq: 10
    ckpt_save_path: checkpoint/
    logger_name: logs/
k_fold:
    experiment_name: rsitmd_aba
    nums: 3
    current_num: 0
"""
# AMFMN's: no local features, and its attention is read.
PUBLISHED_AMFMN = """
model:
    multiscale: {multiscale_input_channel: 3, multiscale_output_channel: 1}
    cross_attention:
        att_type: "fusion_att"
    seq2vec: {arch: skipthoughts, dir_st: /data, type: BayesianUniSkip, dropout: 0.25, fixed_emb: False}
    embed:
        embed_dim: 512
    name: AMFMN
dataset:
    datatype: rsitmd
    data_split:
    data_path: 'data/rsitmd_precomp/'
    image_path: '/data/rsitmd_images/'
    vocab_path: 'vocab/rsitmd_splits_vocab.json'
    batch_size: 100
    batch_size_val: 70
    workers: 3
optim: {epochs: 70, lr: 0.0002, lr_decay_param: 0.7, lr_update_epoch: 20, grad_clip: 0, max_violation: 0, margin: 0.2,
        resume: False}
logs: {eval_step: 1, print_freq: 10, ckpt_save_path: "checkpoint/", logger_name: 'logs/'}
k_fold: {experiment_name: 'rsitmd_aba_mv', nums: 5, current_num: 0}
"""
SHIPPED = ["DEMO", "RSITMD", "RSICD", "UCM", "SYDNEY"]


@pytest.fixture
def published(tmp_path: Path) -> Path:
    path = tmp_path / "published.yaml"
    path.write_text(PUBLISHED)
    return path


def test_a_published_file_loads_unchanged_and_its_unused_keys_are_named_once(published, capsys) -> None:
    options = load_options(published)
    note = capsys.readouterr().out
    assert note.count("\n") == 1
    for key in (
        "cross_attention",
        "correct_local_hidden_dim",
        "supplement_global_",
        "global_local_weight",
        "data_split",
    ):
        assert key in note
    assert options.optim.lr == 2e-4 and options.k_fold.nums == 3 and options.optim.max_violation is False


def test_a_published_file_means_the_released_code(published) -> None:
    options = load_options(published)
    assert options.model.fusion.gate == "released"
    assert options.model.pretrained == "imagenet" and options.model.seq2vec.pretrained
    assert options.dataset.image_size == 256 and options.optim.precision == "fp32"
    assert (options.k_fold.mode, options.k_fold.val_fraction) == ("shuffle", 0.2)


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
ENCODER_DEFAULTS = {
    "gru": "{arch: gru, embedding_dim: 300, hidden_dim: 512, bidirectional: False, pooling: last, dropout: 0.2}",
    "transformer, path: folder": "{arch: transformer, path: folder, pretrained: True, pooling: mean, dropout: 0}",
}


@pytest.mark.parametrize("model", MODEL_DEFAULTS)
def test_every_default_is_the_published_one(tmp_path, model) -> None:
    (tmp_path / "short.yaml").write_text(SHORT.replace("MODEL", model))
    expected = {"model": yaml.safe_load(MODEL_DEFAULTS[model]), **yaml.safe_load(DEFAULTS)}
    assert load_options(tmp_path / "short.yaml").to_dict() == expected


@pytest.mark.parametrize("arch", ENCODER_DEFAULTS)
def test_defaults_of_the_other_text_encoders(tmp_path, arch) -> None:
    (tmp_path / "short.yaml").write_text(SHORT.replace("MODEL", "GaLR"))
    options = load_options(tmp_path / "short.yaml", [f"model.seq2vec={{arch: {arch}}}"])
    assert options.to_dict()["model"]["seq2vec"] == yaml.safe_load(ENCODER_DEFAULTS[arch])


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


def test_the_cache_in_a_file_has_an_old_name(published) -> None:
    assert load_options(published, ["dataset.cache=h5"]) == load_options(published, ["dataset.cache=disk"])


@pytest.mark.parametrize("name", ["UCM", "RSICD"])
def test_a_renamed_file_runs_under_its_old_name(name, capsys) -> None:
    old = load_options(f"option/{name}/{name}_GaLR_lite.yaml")
    assert f"note: the file is now called option/{name}/{name}_lite.yaml" in capsys.readouterr().out
    assert old == load_options(f"option/{name}/{name}_lite.yaml") and old.run_folder == Path(
        "checkpoint", f"{name}_lite"
    )


def test_an_unknown_key_far_from_all_others_lists_those_of_its_block(published) -> None:
    with pytest.raises(InputError, match=r"unknown key logs\.colour \(known keys: ckpt_save_path, eval_step, "):
        load_options(published, ["logs.colour=3"])
    with pytest.raises(InputError, match=r"unknown key lr \(nearest known key: optim\.lr\)"):
        load_options(published, ["lr=3"])


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_load_say_paper_and_point_at_data(name) -> None:
    options = load_options(f"option/{name}/{name}_GaLR.yaml")
    assert options.model.fusion.gate == "paper"
    assert options.dataset.data_path.startswith("data/") and options.dataset.datatype == name.lower()


@pytest.mark.parametrize(("name", "epochs"), [("RSITMD", 20), ("RSICD", 70)])
def test_published_settings(name, epochs) -> None:
    o = load_options(f"option/{name}/{name}_GaLR.yaml")
    assert (o.dataset.batch_size, o.optim.lr, o.optim.lr_decay_param, o.optim.lr_update_epoch) == (100, 2e-4, 0.7, 20)
    assert (o.optim.margin, o.k_fold.nums, o.optim.epochs, o.model.seq2vec.dropout) == (0.2, 3, epochs, 0.25)


def test_overrides_win_and_are_checked_like_the_file(published) -> None:
    options = load_options(published, ["optim.lr=1e-4", "k_fold.nums=1", "model.fusion.gate=paper", "seed=7"])
    assert (options.optim.lr, options.k_fold.nums, options.model.fusion.gate, options.seed) == (1e-4, 1, "paper", 7)


def test_the_last_override_of_a_key_wins(published) -> None:
    assert load_options(published, ["optim.lr=1e-4", "optim.lr=1e-3"]).optim.lr == 1e-3


def test_all_faults_of_a_file_are_named_at_once(published) -> None:
    with pytest.raises(InputError, match=r"optim\.lr = -1.*; .*unknown key logs\.eval_stap"):
        load_options(published, ["optim.lr=-1", "logs.eval_stap=2"])


@pytest.mark.parametrize("other", ["k_fold.nums=1", "dataset.val_list=val.txt"])
def test_disjoint_folds_are_several_and_random(published, other) -> None:
    assert load_options(published, ["k_fold.mode=disjoint"]).k_fold.mode == "disjoint"
    with pytest.raises(InputError, match=r"k_fold\.mode disjoint"):
        load_options(published, ["k_fold.mode=disjoint", other])


def test_none_means_the_default(published) -> None:
    assert load_options(published, ["optim.grad_clip=None", "optim.margin=null"]).optim.margin == 0.2


def test_to_dict_gives_plain_values_that_load_again(published, tmp_path) -> None:
    tree = load_options(published).to_dict()
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(tree))
    assert load_options(tmp_path / "again.yaml").to_dict() == tree


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optim.lrr=1", "unknown key optim.lrr (nearest known key: optim.lr)"),
        ("optim.lr=-1", "optim.lr"),
        ("optim.lr=.nan", "optim.lr"),
        ("optim.lr=fast", "optim.lr"),
        ("optim=3", "block of options"),
        ("optim.lr", "KEY=VALUE"),
        ("optim.lr.x=3", "optim.lr.x=3"),
        ("optim.precision=fp8", "optim.precision"),
        ("optim.resume=True", "optim.resume"),
        ("dataset.image_size=100", "dataset.image_size"),
        ("dataset.smallest_crop=0", "dataset.smallest_crop"),
        ("dataset.batch_size=0", "dataset.batch_size"),
        ("dataset.datatype=None", "dataset.datatype is missing"),
        ("k_fold.experiment_name=../up", "k_fold.experiment_name"),
        ("k_fold.current_num=3", "k_fold.current_num"),
        ("model.fusion.mca_HIDDEN_SIZE=256", "mca_HIDDEN_SIZE"),
        ("model.fusion.gate=new", "model.fusion.gate"),
        ("seed=-1", "seed"),
        ("optim.warmup=20", "optim.warmup (20 epochs) must be below optim.epochs (20)"),
        ("model.fusion.mca_MULTI_HEAD=4", "mca_MULTI_HEAD times mca_HIDDEN_SIZE_HEAD must equal"),
        ("dataset.captions_per_image=2", "dataset.captions_per_image needs optim.loss infonce"),
        ("model.clip={}", "model.clip needs model.trunk clip, got resnet18"),
    ],
)
def test_mistakes_are_one_line_that_names_key_and_file(published, override, says) -> None:
    with pytest.raises(InputError) as error:
        load_options(published, [override])
    assert says in str(error.value) and "\n" not in str(error.value)
    assert "published.yaml" in str(error.value) or "--set" in str(error.value)


@pytest.mark.parametrize("text", ["", "- a", "a: [", "optim: {lr: 1, lr: 2}", "!!python/object:os.system {}", "1: 2"])
def test_files_that_are_no_option_files_are_refused(tmp_path, text) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"bad\.yaml"):
        load_options(path)


def test_bi_skip_needs_an_even_width(published) -> None:
    with pytest.raises(InputError, match="must be even"):
        load_options(published, ["model.seq2vec.type=BiSkip", "model.seq2vec.hidden_dim=257"])


def test_a_capital_none_for_pretrained_is_not_the_default(published) -> None:
    assert load_options(published, ["model.pretrained=None"]).model.pretrained == "none"


# ---------------------------------------------------------------- other models


@pytest.fixture
def published_amfmn(tmp_path: Path) -> Path:
    path = tmp_path / "amfmn.yaml"
    path.write_text(PUBLISHED_AMFMN)
    return path


def test_amfmns_published_file_loads_unchanged_and_its_attention_is_read(published_amfmn) -> None:
    options = load_options(published_amfmn)
    assert (options.model.name, options.model.cross_attention.att_type) == ("AMFMN", "fusion_att")
    assert options.local_path == "zeros" and (options.optim.epochs, options.k_fold.nums) == (70, 5)
    assert load_options(published_amfmn, ["dataset.local_path=no.h5"]).local_path == "zeros"


def test_a_key_of_another_models_block_is_an_error_that_names_its_owner(published, published_amfmn, tmp_path) -> None:
    with pytest.raises(InputError, match=r"unknown key model.fusion: it belongs to GaLR, not to AMFMN"):
        load_options(published_amfmn, ["model.fusion.gate=paper"])
    with pytest.raises(InputError, match=r"unknown key model.word_dim: it belongs to VSE\+\+, not to GaLR"):
        load_options(published, ["model.word_dim=3"])
    with pytest.raises(InputError, match=r"unknown key model.seq2vek \(nearest known key: model.seq2vec\)"):
        load_options(published_amfmn, ["model.seq2vek=3"])


def test_a_key_of_another_text_encoder_names_it_and_a_whole_block_takes_its_place() -> None:
    path = "option/UCM/UCM_GaLR.yaml"
    with pytest.raises(InputError, match=r"unknown key model.seq2vec.dir_st: it belongs to skipthoughts, not to gru"):
        load_options(path, ["model.seq2vec.arch=gru", "model.seq2vec.dir_st=folder"])
    assert load_options(path, ["model.seq2vec={arch: gru, hidden_dim: 64}"]).model.seq2vec.hidden_dim == 64
    with pytest.raises(InputError, match="seq2vec is a block of options, not a value"):
        load_options(path, ["model.seq2vec=gru"])


@pytest.mark.parametrize("name", ["SCAN", "galr", "[GaLR]", "3"])
def test_a_model_that_is_not_there_is_an_error_that_lists_those_that_are(published, name) -> None:
    with pytest.raises(InputError, match=r"published\.yaml: model\.name = .*there are GaLR, AMFMN, VSE\+\+, CLIP$"):
        load_options(published, [f"model.name={name}"])


def test_only_a_model_that_reads_local_features_must_say_where_they_are(published) -> None:
    with pytest.raises(InputError, match=r"dataset\.local_path is missing"):
        load_options(published, ["dataset.local_path=None"])


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_of_the_other_models(name) -> None:
    amfmn, vsepp = (load_options(f"option/{name}/{name}_{model}.yaml") for model in ("AMFMN", "VSEPP"))
    assert (amfmn.model.name, amfmn.model.cross_attention.att_type) == ("AMFMN", "soft_att")
    assert (vsepp.model.name, vsepp.optim.max_violation, amfmn.optim.max_violation) == ("VSE++", True, False)
    for options in (amfmn, vsepp):
        assert options.dataset.data_path.startswith("data/") and options.dataset.datatype == name.lower()
        if name != "DEMO":
            rate = 1e-4 if name == "RSICD" else 2e-4
            assert (options.optim.epochs, options.optim.lr, options.k_fold.nums) == (70, rate, 5)
