"""Print the table of all keys, or values of an option file.

python -m option                                                          the table of docs/training.md
python -m option --path_opt FILE [--set KEY=VALUE ...] --get dataset.vocab_path k_fold.nums
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from operator import attrgetter
from typing import Annotated, Any, Literal, get_args, get_origin

from option.load import all_keys, load_options
from utils import Parser, run_command

BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
KINDS = {int: "integer", float: "number", str: "text", bool: "`True`, `False`"}


def table() -> str:
    """Return all keys as a Markdown table: key, values, default, meaning."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for key, forms, field in all_keys():
        default = "needed" if field.is_required() else "none" if field.default is None else f"`{field.default}`"
        row = key, values(field.annotation, field.metadata), default, field.description
        rows.setdefault(row, []).extend(forms[-1:])
    lines = ["| key | values | default | meaning |", "|---|---|---|---|"]
    for (key, *cells), having in rows.items():
        only = f" ({', '.join(dict.fromkeys(having))})" if having else ""
        lines.append(f"| `{key}`{only} | {' | '.join(cells)} |")
    return "\n".join(lines)


def values(kind: Any, bounds: Sequence[Any] = ()) -> str:
    """Return in words what a key of this type may hold.

    >>> values(Literal["fp32", "bf16"])
    '`fp32`, `bf16`'
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return values(parts[0], parts[1].metadata)
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin is list:
        return "list of " + values(parts[0])
    if parts:
        return ", ".join(values(part) for part in parts if part is not type(None))
    limits = [f"{BOUNDS[at]} {getattr(bound, at)}" for bound in bounds for at in BOUNDS if hasattr(bound, at)]
    return f"{KINDS[kind]} {', '.join(limits)}".strip()


def main() -> None:
    parser = Parser(prog="python -m option", description="Print the table of all keys, or values of an option file.")
    parser.add_options(required=False)
    parser.add_argument("--get", nargs="+", metavar="KEY", help="print the values of these keys, one a line")
    arguments, _ = parser.parse_known_args()  # the run scripts hand on what they were given
    if not arguments.get:
        print(table())
        return
    logging.getLogger("galr").setLevel(logging.WARNING)  # no notes among the values
    options = load_options(arguments.path_opt, arguments.set)
    for key in arguments.get:
        print(attrgetter(key)(options))


if __name__ == "__main__":
    run_command(main)
