"""Index a folder of pictures and scenes: the vectors of a trained model, in Milvus.

    python -m search.index [--model FOLDER | --path_opt FILE --resume CKPT] --images DIR --out INDEX.db [--add]
    python -m search.index --index INDEX.db --export FILE.parquet

A run that was stopped goes on with the same command. `--add` brings an index up to date: new and changed files are
encoded, rows of files that are gone are deleted.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from search.encoder import load_encoder
from search.pictures import (
    BATCH,
    Pictures,
    add_model,
    add_scene_options,
    check_scene_options,
    find_files,
    given_regions,
    picture_size,
    read_options,
    records_of,
)
from search.rasters import RasterRules
from search.store import Index, Mark, Record, open_index, read_mark
from util.device import pick_device
from util.encoder import Encoder
from util.model_folder import weights_file
from util.run_log import StopSignals
from utils import Bar, InputError, Parser, atomic, check_writable_file, printable, run_command, some, write_text

logger = logging.getLogger("galr")

SCALES = (512,)  # pixels: the windows that scenes are cut into
CHUNK = 4096  # rows that are exported at a time


def main() -> None:
    arguments = _parse()
    if arguments.export:
        export(arguments.index, Path(arguments.export))
        return
    options, local, rules = read_options(arguments)
    find_files(Path(arguments.images))  # before the model is loaded
    with open_index(arguments.index, create=True) as index:
        encoder = load_encoder(options, arguments.resume, pick_device(arguments.device), local)
        mark = make_mark(arguments, encoder)
        check_mark(index, mark, arguments)
        build(index, mark, encoder, rules, arguments)


def make_mark(arguments: argparse.Namespace, encoder: Encoder) -> Mark:
    """Build the mark of the index that these arguments make."""
    options, size = encoder.options, encoder.options.dataset.image_size
    zeros = np.zeros((1, 20, 20), np.float32)
    dim = encoder.encode(np.zeros((1, size, size, 3), np.uint8), zeros, zeros).shape[1]
    with weights_file(arguments.resume).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Mark(
        checkpoint=str(Path(arguments.resume).absolute()),
        sha256=digest,
        options=options.to_dict(),
        words=list(encoder.words),
        rules=encoder.rules.to_dict(),
        images=str(Path(arguments.images).absolute()),
        dim=dim,
        scales=list(arguments.scales),
        bands=list(arguments.bands) if arguments.bands else None,
        stretch=arguments.stretch,
    )


def check_mark(index: Index, mark: Mark, arguments: argparse.Namespace) -> None:
    """Write the mark of a new index. Raises InputError where these vectors do not belong to an old or complete one."""
    known = index.mark()
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


class Change(NamedTuple):
    """Hold rows to make, with the faults met in planning them, and the keys of rows to delete, by file.

    files: all that the folder holds.
    """

    files: list[str]
    records: list[Record]
    faults: dict[str, str]
    stale: dict[str, list[str]]


def plan(index: Index, root: Path, scales: Sequence[int], rules: RasterRules) -> Change:
    """Compare the folder with the index: a file is done when all of its rows bear its size and time stamp."""
    files, faults_of_names, others = find_files(root)
    if others:
        kinds = [f"{number} {kind}" for kind, number in others.most_common()]
        logger.info(f"passed over, for they are no images: {some(kinds, 20)}")
    rows: dict[str, list[Record]] = {}
    for record in index.records():
        rows.setdefault(record.path, []).append(record)
    change = Change(list(files), [], {fault: fault for fault in faults_of_names}, {})
    for name in rows.keys() - files.keys():
        change.stale[name] = [row.key for row in rows[name]]
    for name, status in Bar(files.items(), "reading heads", unit="file"):
        stamp = (status.st_size, status.st_mtime_ns)
        here = {row.key for row in rows.get(name, []) if (row.size, row.mtime_ns) == stamp}
        if here and len(here) == len(rows[name]) == rows[name][0].windows:
            continue
        try:
            wanted = records_of(root, name, status, scales, rules)
        except (InputError, OSError) as error:
            change.faults[name] = str(error)
            wanted = []
        change.records.extend(record for record in wanted if record.key not in here)
        keys = {record.key for record in wanted}
        if old := [row.key for row in rows.get(name, []) if row.key not in keys]:
            change.stale[name] = old
    return change


def build(index: Index, mark: Mark, encoder: Encoder, rules: RasterRules, arguments: argparse.Namespace) -> None:
    """Make the rows that the index lacks, then delete those of files that are gone, changed or unreadable."""
    root = Path(arguments.images)
    change = plan(index, root, arguments.scales, rules)
    names = [name for name in change.files if name not in change.faults]
    regions = given_regions(arguments, names, lambda name: picture_size(root / name, rules))
    pictures = Pictures(root, change.records, encoder.options.dataset.image_size, encoder.rules, rules, regions)
    with StopSignals() as stop, Bar(total=len(change.records), desc="encoding", unit="picture") as bar:
        for records, samples in pictures.batches(BATCH, arguments.workers):
            stop.check()
            good = [i for i, one in enumerate(samples) if not isinstance(one, InputError)]
            change.faults.update({records[i].path: str(samples[i]) for i in set(range(len(samples))).difference(good)})
            if good:
                parts = (np.stack(part) for part in zip(*(samples[i] for i in good), strict=True))
                index.put([records[i] for i in good], encoder.encode(*parts))
            bar.update(len(records))
    index.drop([key for keys in change.stale.values() for key in keys])
    index.drop([record.key for record in change.records if record.path in change.faults])
    index.complete(mark)
    _report(index, change, Path(arguments.index))


def _report(index: Index, change: Change, path: Path) -> None:
    made = {record.path for record in change.records} - change.faults.keys()
    gone = change.stale.keys() - made - change.faults.keys()
    logger.info(
        f"{index.address}: {index.count()} rows; {len(made)} files new or changed, {len(gone)} gone; ask it with "
        f"python -m search.query --index {index.address} --text '...'"
    )
    if change.faults:
        faults, log = sorted(change.faults.values()), ""
        if path.is_dir():  # of a server nothing is known here
            log = f" (all of them: {path.with_suffix('.log')})"
            write_text(path.with_suffix(".log"), "\n".join(map(printable, faults)) + "\n")
        logger.warning(f"{len(faults)} files were not read{log}: {some(faults)}")


def export(address: str, path: Path) -> None:
    """Write every row as Parquet: the record's fields, and `vector`. Raises InputError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_writable_file(path)
    with open_index(address) as index:
        vector = pa.list_(pa.float32(), read_mark(index).dim)
        kinds = {"path": pa.string()} | dict.fromkeys(("west", "south", "east", "north"), pa.float64())
        schema = pa.schema([(name, kinds.get(name, pa.int64())) for name in Record._fields] + [("vector", vector)])
        count, rows = 0, index.rows(vectors=True)
        with atomic(path) as temporary, pq.ParquetWriter(temporary, schema) as file:
            while chunk := list(itertools.islice(rows, CHUNK)):
                table = [record._asdict() | {"vector": one} for record, one in chunk]
                file.write_table(pa.Table.from_pylist(table, schema))
                count += len(chunk)
    logger.info(f"written: {path}, {count} rows")


def _parse() -> argparse.Namespace:
    parser = Parser(prog="python -m search.index", description="Index a folder of pictures and scenes.")
    add_model(parser)
    parser.add_argument("--images", metavar="DIR", help="folder of pictures and scenes, at any depth")
    parser.add_argument(
        "--out",
        "--index",
        dest="index",
        required=True,
        metavar="INDEX",
        help="a folder NAME.db, or the address of a Milvus server (http://HOST:PORT)",
    )
    parser.add_argument("--add", action="store_true", help="bring an index up to date: new, changed and gone files")
    parser.add_argument("--moved", action="store_true", help="with --add: --images is the folder of before, moved")
    add_scene_options(parser, SCALES, "windows of scenes: what is longer than two of the largest (default 512)")
    parser.add_argument("--export", metavar="FILE.parquet", help="write paths, records and vectors of an index")
    arguments = parser.parse_args()
    if not arguments.export and arguments.images is None:
        raise InputError("--images is missing (see python -m search.index --help)")
    check_scene_options(arguments)
    return arguments


if __name__ == "__main__":
    run_command(main)
