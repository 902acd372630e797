"""Index a folder of pictures and scenes: the vectors of a trained model, in Milvus.

    python -m search.index [--model FOLDER | --path_opt FILE --resume CKPT] --images DIR --out INDEX.db [--add]
    python -m search.index --index INDEX.db --export FILE.parquet

A run that was stopped goes on with the same command. `--add` brings an index up to date: new and changed files are
encoded, rows of files that are gone are deleted.
"""

from __future__ import annotations

import argparse
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from search.encoder import add_model_and_scenes, digest_of, encode_records, read_model
from search.pictures import find_files, given_regions, records_of
from search.rasters import RasterRules
from search.store import PLACE, Index, Mark, Record, open_index
from util.encoder import Encoder
from util.run_log import StopSignals
from utils import Bar, InputError, Parser, atomic, check_writable_file, printable, run_command, some, write_text

logger = logging.getLogger("galr")

SCALES = (512,)  # pixels: the windows that scenes are cut into; what is longer than two of the largest is a scene
CHUNK = 4096  # rows that are exported at a time


def main() -> None:
    arguments = _parse()
    if arguments.export:
        export(arguments.index, Path(arguments.export))
        return
    find_files(arguments.images)  # before the model is loaded
    encoder, rules = read_model(arguments)
    with open_index(arguments.index, create=True) as index:
        mark = make_mark(arguments, encoder)
        check_mark(index, mark, arguments)
        build(index, mark, encoder, rules, arguments)


def make_mark(arguments: argparse.Namespace, encoder: Encoder) -> Mark:
    """Build the mark of the index that these arguments make."""
    return Mark(
        checkpoint=str(Path(arguments.resume).absolute()),
        sha256=digest_of(arguments.resume),
        options=encoder.options.to_dict(),
        words=list(encoder.words),
        rules=encoder.rules.to_dict(),
        images=str(arguments.images.absolute()),
        dim=encoder.sentences(["image"]).shape[1],
        scales=arguments.scales,
        bands=arguments.bands,
        stretch=arguments.stretch,
    )


def check_mark(index: Index, mark: Mark, arguments: argparse.Namespace) -> None:
    """Write the mark of a new index. Raises InputError where these vectors do not belong to an old or complete one."""
    known = index.mark
    if known is None:
        index.write_mark(mark)
        return
    faults = [fault for fault in known.differs(mark) if not (fault == "images" and arguments.moved)]
    if faults:
        raise InputError(
            f"index {index.address} was made with another {', '.join(faults)} (checkpoint {known.checkpoint}, images "
            f"{known.images}); give it what it was made with (--moved: this is the same folder, moved), or make "
            "another index"
        )
    if known.complete and not arguments.add:
        raise InputError(f"index {index.address} is there and complete; --add brings it up to date")


class Plan(NamedTuple):
    """Hold what a folder's index lacks.

    paths: all files of the folder, by name. records: rows to make. faults: why a file was left out. stale: keys of rows
    to delete at the end. gone: the number of files that are no longer there.
    """

    paths: dict[str, Path]
    records: list[Record]
    faults: dict[str, str]
    stale: list[str]
    gone: int


def make_plan(index: Index, root: Path, scales: Sequence[int], rules: RasterRules) -> Plan:
    """Compare the folder with the index: a file is done when all of its rows bear its size and time stamp."""
    files, faults, others = find_files(root)
    if others:
        kinds = [f"{number} {kind}" for kind, number in others.most_common()]
        logger.info(f"passed over, for they are no images: {some(kinds, 20)}")
    rows: dict[str, list[Record]] = {}
    for record in index.records():
        rows.setdefault(record.path, []).append(record)
    gone = rows.keys() - files.keys()
    stale = [row.key for name in gone for row in rows[name]]
    plan = Plan({name: root / name for name in files}, [], {fault: fault for fault in faults}, stale, len(gone))
    for name, status in Bar(files.items(), "reading heads", unit="file"):
        old, stamp = rows.get(name, []), (status.st_size, status.st_mtime_ns)
        here = {row.key for row in old if (row.size, row.mtime_ns) == stamp}
        if here and len(here) == len(old) == old[0].windows:
            continue
        wanted = []
        try:
            wanted = records_of(root, name, status, scales, rules)
        except (InputError, OSError) as error:
            plan.faults[name] = str(error)
        plan.records.extend(record for record in wanted if record.key not in here)
        plan.stale.extend({row.key for row in old} - {record.key for record in wanted})
    return plan


def build(index: Index, mark: Mark, encoder: Encoder, rules: RasterRules, arguments: argparse.Namespace) -> None:
    """Make the rows that the index lacks, then delete those of files that are gone, changed or unreadable."""
    plan = make_plan(index, arguments.images, arguments.scales, rules)
    readable = {name: path for name, path in plan.paths.items() if name not in plan.faults}
    regions = given_regions(arguments, readable, rules)
    with StopSignals() as stop:
        batches = encode_records(encoder, arguments.images, plan.records, rules, arguments.workers, regions)
        for records, vectors, faults in batches:
            plan.faults.update(faults)
            if records:
                index.put(records, vectors)
            stop.check()
    index.drop([*plan.stale, *(record.key for record in plan.records if record.path in plan.faults)])
    index.complete(mark)
    made = {record.path for record in plan.records} - plan.faults.keys()
    logger.info(
        f"{index.address}: {index.count()} rows; {len(made)} files new or changed, {plan.gone} gone; ask it with "
        f"python -m search.query --index {index.address} --text '...'"
    )
    if faults := sorted(plan.faults.values()):
        log = ""
        if Path(index.address).is_dir():  # of a server nothing is known here
            path = Path(index.address).with_suffix(".log")
            log = f" (all of them: {path})"
            write_text(path, "\n".join(map(printable, faults)) + "\n")
        logger.warning(f"{len(faults)} files were not read{log}: {some(faults)}")


def export(address: str, path: Path) -> None:
    """Write every row as Parquet: the record's fields, and `vector`. Raises InputError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_writable_file(path)
    with open_index(address) as index:
        kinds = {"path": pa.string()} | dict.fromkeys(PLACE, pa.float64())
        fields = [(name, kinds.get(name, pa.int64())) for name in Record._fields]
        schema = pa.schema([*fields, ("vector", pa.list_(pa.float32(), index.mark.dim))])
        rows = ({**record._asdict(), "vector": vector} for record, vector in index.rows())
        with atomic(path) as temporary, pq.ParquetWriter(temporary, schema) as file:
            while chunk := list(itertools.islice(rows, CHUNK)):
                file.write_table(pa.Table.from_pylist(chunk, schema))
        logger.info(f"written: {path}, {index.count()} rows")


def _parse() -> argparse.Namespace:
    parser = Parser(prog="python -m search.index", description="Index a folder of pictures and scenes.")
    add_model_and_scenes(parser, SCALES)
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of pictures and scenes, at any depth")
    text = "a folder NAME.db, or the address of a Milvus server (http://HOST:PORT)"
    parser.add_argument("--out", "--index", dest="index", required=True, metavar="INDEX", help=text)
    parser.add_argument("--add", action="store_true", help="bring an index up to date: new, changed and gone files")
    parser.add_argument("--moved", action="store_true", help="with --add: --images is the folder of before, moved")
    parser.add_argument("--export", metavar="FILE.parquet", help="write paths, records and vectors of an index")
    arguments = parser.parse_args()
    if not arguments.export and arguments.images is None:
        raise InputError("--images is missing (see python -m search.index --help)")
    return arguments


if __name__ == "__main__":
    run_command(main)
