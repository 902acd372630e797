"""Read an option file, apply overrides, and check everything: `load_options(path, overrides) -> Options`."""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from option.options import ModelOptions, Options, Section, TextOptions
from utils import InputError, read_text, write_text

logger = logging.getLogger("galr")

# Published keys that nothing reads: accepted, and named once as unused. Those of `model` stand in GaLR's files.
UNUSED = ("dataset.data_split",)
UNUSED_OF_GALR = tuple(
    block + key
    for block in ("model.", "")
    for key in ("cross_attention", "fusion.correct_local_", "fusion.supplement_global_", "global_local_weight")
)
# Keys of which `null` (or "None") does not mean the default
NULL = {
    "model.pretrained": "none",
    "model.seq2vec.pretrained": False,
    "model.clip.weights": "none",
    "model.fusion.gate": "none",
    "dataset.cache": "none",
}


def _variants(union: Any, key: str) -> tuple[str, dict[str, type[Section]]]:
    blocks = get_args(get_args(union)[0])
    return key, {get_args(block.model_fields[key].annotation)[0]: block for block in blocks}


# Blocks of several forms: the key that chooses one, and the forms by its value.
VARIANTS = {"model": _variants(ModelOptions, "name"), "seq2vec": _variants(TextOptions, "arch")}


def load_options(path: str | os.PathLike, overrides: Sequence[str] = ()) -> Options:
    """Return the options of a YAML file with `key=value` overrides (`optim.lr=1e-4`).

    Published keys that nothing reads are named once on standard output.
    Raises InputError, naming file and key, for anything that the schema does not admit.

    >>> load_options("option/DEMO/DEMO_GaLR.yaml", ["optim.lr=1e-4"]).optim.lr
    0.0001
    """
    path = Path(path)
    if path.name.endswith("_GaLR_lite.yaml") and not path.exists():
        path = path.with_name(path.name.replace("_GaLR_lite", "_lite"))
        logger.info(f"note: the file is now called {path}")
    return changed_tree(_expanded(_read_yaml(path)), overrides, f"option file {path}")


def changed_tree(tree: dict[str, Any], overrides: Sequence[str], where: str) -> Options:
    """Return the options of a tree of blocks with `key=value` overrides. Raises InputError that begins with `where`."""
    for override in overrides:
        _override(tree, override)
    return check_options(_without_none(tree), where)


def check_options(tree: dict[str, Any], where: str) -> Options:
    """Return the options that a tree of blocks holds. Raises InputError that begins with `where`."""
    model = tree.get("model")
    is_galr = not isinstance(model, dict) or model.get("name", "GaLR") == "GaLR"
    if unused := _drop_unused(tree, UNUSED + (UNUSED_OF_GALR if is_galr else ())):
        logger.info(f"note: {where}: nothing reads {', '.join(unused)}")
    try:
        return Options.model_validate(tree)
    except ValidationError as error:
        raise InputError(f"{where}: " + "; ".join(map(_word, error.errors()))) from None


def save_options(options: Options, path: str | os.PathLike) -> None:
    """Write the options with all defaults filled in, as YAML."""
    write_text(path, yaml.safe_dump(options.to_dict(), sort_keys=False))


# ---------------------------------------------------------------- YAML and --set


class _Loader(yaml.SafeLoader):
    """Refuse aliases, a few lines of which can stand for a tree without end, and keys that are given twice."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "an alias (*name); write the value out", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str) or key in seen:
                fault = "is given twice" if isinstance(key, str) else "is not a name"
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} {fault}", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    text = read_text(path, "option file", "the shipped ones are option/*/*.yaml")
    try:
        tree = yaml.load(text, Loader=_Loader)
    except Exception as error:  # besides YAMLError: dates and numbers that are none raise errors of many kinds
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", error)
        where = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"option file {path}{where}: not YAML ({str(problem)[:200]})") from None
    if not isinstance(tree, dict):
        raise InputError(f"option file {path}: expected blocks such as model:, dataset:, optim:, k_fold:")
    return tree


def _override(tree: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"--set {override}: expected KEY=VALUE, such as optim.lr=1e-4")
    *blocks, last = key.split(".")
    for block in blocks:
        tree = tree.setdefault(block, {})
        if not isinstance(tree, dict):
            raise InputError(f"--set {override}: {block} is a value, not a block of options")
    try:
        value = yaml.load(text, Loader=_Loader)
    except Exception:  # as in _read_yaml
        raise InputError(f"--set {override}: the value is not YAML") from None
    tree[last] = _expanded(value, key)


def _without_none(tree: dict, prefix: str = "") -> dict:
    """Drop keys that hold nothing (`null`, or the string "None" of published files), so that their default holds."""
    kept = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            kept[key] = _without_none(value, f"{prefix}{key}.")
        elif value is not None and value != "None":
            kept[key] = value
        elif prefix + key in NULL:
            kept[key] = NULL[prefix + key]
    return kept


def _expanded(value: Any, key: str = "") -> Any:
    """Fill in `~` and environment variables (`$DATA`, `${DATA}`). Raises InputError for a variable that is not set."""
    if isinstance(value, dict):
        return {name: _expanded(part, name) for name, part in value.items()}
    if isinstance(value, str):
        value = os.path.expandvars(os.path.expanduser(value))  # noqa: PTH111 (a Path would drop a slash at the end)
        if unset := re.search(r"\$(\{[A-Za-z_]\w*\}|[A-Za-z_]\w*)", value):
            raise InputError(f"{key}: {value}: the environment variable {unset[1].strip('{}')} is not set")
    return value


def _drop_unused(tree: dict, unused: tuple[str, ...], prefix: str = "") -> list[str]:
    dropped = []
    for key in list(tree):
        name = prefix + key
        if name.startswith(unused):
            dropped.append(name)
            del tree[key]
        elif isinstance(tree[key], dict):
            dropped += _drop_unused(tree[key], unused, name + ".")
    return dropped


# ---------------------------------------------------------------- words for what is wrong


def _word(fault: dict[str, Any]) -> str:
    """Return one fault of a ValidationError in words that name its key."""
    place, chosen = [], {}  # without the names of the forms, which pydantic puts behind their block
    for before, part in zip(("", *fault["loc"]), fault["loc"], strict=False):
        if before in VARIANTS:
            chosen[before] = part
        elif not str(part).startswith(("literal", "constrained-str")):
            place.append(str(part))
    name = ".".join(place)
    match fault["type"]:
        case "extra_forbidden":
            return f"unknown key {name}" + _hint(place, chosen)
        case "missing":
            return f"{name} is missing"
        case "value_error":
            return fault["msg"].removeprefix("Value error, ")
        case "model_type" | "model_attributes_type":
            return f"{name} is a block of options, not a value"
        case "union_tag_invalid" | "union_tag_not_found":
            key, forms = VARIANTS[place[-1]]
            return f"{name}.{key} = {fault['input'].get(key)!r:.200}: there are {', '.join(forms)}"
    return f"{name} = {fault['input']!r:.200}: {fault['msg']}"


def _hint(place: list[str], chosen: dict[str, str]) -> str:
    """Return what to say of an unknown key: the form that has it, the nearest known key, or all keys of its block."""
    *blocks, last = place
    if blocks and blocks[-1] in VARIANTS:
        _, forms = VARIANTS[blocks[-1]]
        if owners := [name for name, form in forms.items() if last in form.model_fields]:
            return f": it belongs to {' and '.join(owners)}, not to {chosen[blocks[-1]]}"
    others = {name for block in chosen for name in VARIANTS[block][1]} - set(chosen.values())
    known = {name for name, forms, _ in all_keys() if not others & set(forms)}
    prefix = "".join(f"{block}." for block in blocks)
    siblings = sorted({name[len(prefix) :].partition(".")[0] for name in known if name.startswith(prefix)})
    near = [prefix + name for name in difflib.get_close_matches(last, siblings, n=1, cutoff=0.75)]
    near += [name for name in sorted(known) if name.rpartition(".")[2] == last]
    return f" (nearest known key: {near[0]})" if near else f" (known keys: {', '.join(siblings)})"


def all_keys(
    section: type[Section] = Options, prefix: str = "", forms: tuple[str, ...] = ()
) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """Yield every key, the values that choose its blocks, such as ("GaLR", "gru"), and its field."""
    for name, field in section.model_fields.items():
        inner = [part for part in (field.annotation, *get_args(field.annotation)) if isinstance(part, type)]
        blocks = [part for part in inner if issubclass(part, Section)]
        for block in blocks:
            tags = tuple(tag for tag, form in VARIANTS.get(name, ("", {}))[1].items() if form is block)
            yield from all_keys(block, f"{prefix}{name}.", forms + tags)
        if not blocks:
            yield prefix + name, forms, field
