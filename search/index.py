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
from pathlib import Path

from search.encoder import add_model_and_scenes, digest_of, encode_records, read_model
from search.pictures import Found, find_files, given_regions, records_of
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
    found = find_files(arguments.images)  # before the model is loaded
    encoder, rules = read_model(arguments)
    with open_index(arguments.index, create=True) as index:
        mark = Mark(
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
        check_mark(index, mark, arguments)
        build(index, mark, found, encoder, rules, arguments)


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


def compare(
    index: Index, root: Path, found: Found, scales: list[int], rules: RasterRules
) -> tuple[list[Record], list[str], int]:
    """Return the rows that an index lacks, the keys of those to delete, and the number of files that are gone.

    A file is done when all of its rows bear its size and time stamp. What cannot be read joins `found.faults`.
    """
    rows: dict[str, list[Record]] = {}
    for record in index.records():
        rows.setdefault(record.path, []).append(record)
    gone, missing = rows.keys() - found.files.keys(), []
    stale = [row.key for name in gone for row in rows[name]]
    for name, status in Bar(found.files.items(), "reading heads", unit="file"):
        old, stamp = rows.get(name, []), (status.st_size, status.st_mtime_ns)
        here = {row.key for row in old if (row.size, row.mtime_ns) == stamp}
        if here and len(here) == len(old) == old[0].windows:
            continue
        wanted = []
        try:
            wanted = records_of(root, name, status, scales, rules)
        except (InputError, OSError) as error:
            found.faults[name] = str(error)
        missing += [record for record in wanted if record.key not in here]
        stale += {row.key for row in old} - {record.key for record in wanted}
    return missing, stale, len(gone)


def build(
    index: Index, mark: Mark, found: Found, encoder: Encoder, rules: RasterRules, arguments: argparse.Namespace
) -> None:
    """Make the rows that the index lacks, then delete those of files that are gone, changed or unreadable."""
    root, faults = arguments.images, found.faults
    if found.others:
        kinds = [f"{number} {kind}" for kind, number in found.others.most_common()]
        logger.info(f"passed over, for they are no images: {some(kinds, 20)}")
    missing, stale, gone = compare(index, root, found, arguments.scales, rules)
    regions = given_regions(arguments, {name: root / name for name in found.files if name not in faults}, rules)
    with StopSignals() as stop:
        for records, vectors, bad in encode_records(encoder, root, missing, rules, arguments.workers, regions):
            faults |= bad
            if records:
                index.put(records, vectors)
            stop.check()
    index.drop([*stale, *(record.key for record in missing if record.path in faults)])
    index.complete(mark)
    made = {record.path for record in missing} - faults.keys()
    logger.info(
        f"{index.address}: {index.count()} rows; {len(made)} files new or changed, {gone} gone; ask it with "
        f"python -m search.query --index {index.address} --text '...'"
    )
    if faults:
        log, said = "", sorted(faults.values())
        if Path(index.address).is_dir():  # of a server nothing is known here
            path = Path(index.address).with_suffix(".log")
            log = f" (all of them: {path})"
            write_text(path, "\n".join(map(printable, said)) + "\n")
        logger.warning(f"{len(said)} files were not read{log}: {some(said)}")


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
