"""Keep vectors and records in Milvus: in a folder NAME.db (Milvus Lite) or on a server (http://HOST:PORT).

Two collections: `galr`, a row for each picture or window of a scene, ranked exactly by the cosine; and `galr_mark`, the
index's mark: the model that made its vectors, and the options. A row's key is a digest of path and window, so a row
that is written again replaces the old one. `MILVUS_TOKEN` is the token of a server that asks for one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import grpc
import numpy as np
from pymilvus import DataType, MilvusClient, MilvusException

from utils import InputError, RunError, check_writable, one_line, printable

for chatty in ("pymilvus", "milvus_lite", "grpc"):  # they log errors that reach us as exceptions
    logging.getLogger(chatty).setLevel(logging.CRITICAL + 1)

ROWS, MARK = "galr", "galr_mark"
NOWHERE = 1000.0  # degrees: the place of what has none; Milvus Lite knows no missing numbers
PLACE = ("west", "south", "east", "north")
CHUNK = 40_000  # bytes of the mark in a row: a text field holds 65,535
MOST = 16_384  # rows that Milvus gives at once
SERVER = re.compile(r"(https?|tcp)://")
BATCH = 8192  # rows that are read at a time
LARGE = 50_000  # rows from which FAISS scans a folder's vectors, in two thirds of the time of Milvus Lite's own code
FLAT = {"index_type": "FLAT", "metric_type": "COSINE"}
SCAN = {"index_type": "IVF_FLAT", "metric_type": "COSINE", "params": {"params": {"nlist": 1}}}  # one list holds all
ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})


class Record(NamedTuple):
    """Describe a row. path: within the folder of images, with /. size, mtime_ns: of the file.

    top, bottom, left, right: its window in pixels. windows: how many the file has; 1 for a picture. west to north: its
    bounds in degrees, NOWHERE where the file does not say; east is beyond 180 where they cross that meridian.
    """

    path: str
    size: int
    mtime_ns: int
    top: int
    bottom: int
    left: int
    right: int
    windows: int
    west: float = NOWHERE
    south: float = NOWHERE
    east: float = NOWHERE
    north: float = NOWHERE

    def __str__(self) -> str:
        """Return the path, and the window in it if it is one of several, fit to be shown."""
        where = f" [rows {self.top}-{self.bottom}, columns {self.left}-{self.right}]" if self.windows > 1 else ""
        return printable(self.path) + where

    @property
    def key(self) -> str:
        return hashlib.sha256(repr((self.path, self.window if self.windows > 1 else ())).encode()).hexdigest()[:32]

    @property
    def window(self) -> tuple[int, int, int, int]:
        """Return first row, end row, first column, end column."""
        return self.top, self.bottom, self.left, self.right

    @property
    def place(self) -> list[float] | None:
        """Return west, south, east, north from -180 to 180, west > east where they cross that meridian; or None."""
        if self.west == NOWHERE:
            return None
        return [self.west, self.south, self.east - 360 * (self.east > 180), self.north]


class Hit(NamedTuple):
    """Hold a row that was found: its cosine with the query, record, vector (D,), and near-duplicates, best first."""

    score: float
    record: Record
    vector: np.ndarray
    duplicates: Sequence[Record] = ()

    def __str__(self) -> str:
        return str(self.record) + (f" (and {len(self.duplicates)} alike)" if self.duplicates else "")


class Mark(NamedTuple):
    """Describe the model and the options that made an index.

    checkpoint, sha256: its path and the digest of its content. options, words, rules: as the model takes them
    (`Options.to_dict`, its vocabulary, `LocalRules.to_dict`). images: the folder that paths are relative to. scales,
    bands, stretch: how scenes are cut and read. complete: every file was seen to.
    """

    checkpoint: str
    sha256: str
    options: dict[str, Any]
    words: list[str]
    rules: dict[str, Any]
    images: str
    dim: int
    scales: list[int]
    bands: list[int] | None
    stretch: float
    complete: bool = False

    def differs(self, other: Mark) -> list[str]:
        """Return the names of what differs so that the vectors of two marks do not belong together."""
        mine, its = (
            mark._asdict()
            | {"checkpoint": mark.sha256, "model": mark.options["model"]}
            | {"image_size": mark.options["dataset"]["image_size"]}
            for mark in (self, other)
        )
        names = ("words", "rules", "images", "scales", "bands", "stretch", "checkpoint", "model", "image_size")
        return [name for name in names if mine[name] != its[name]]


class Index:
    """Read and write an open index by Milvus's client, whose errors `open_index` puts into one line.

    mark: that of the index; None for a new one.
    """

    def __init__(self, address: str, client: MilvusClient) -> None:
        self.address, self.client, self.mark = address, client, None
        for name in filter(client.has_collection, (ROWS, MARK)):
            client.load_collection(name)
        if not client.has_collection(MARK):
            return
        rows = client.query(MARK, filter='key >= ""', output_fields=["key", "text"])
        text = "".join(row["text"] for row in sorted(rows, key=lambda row: row["key"]))
        try:  # without text, it was killed between making the collection and writing the mark
            self.mark = Mark(**json.loads(text)) if text else None
        except (ValueError, TypeError) as error:
            raise InputError(f"index {address} is damaged, or of another kind ({error}); make it anew") from None

    def write_mark(self, mark: Mark) -> None:
        """Make the collections where they are missing, and write the mark."""
        none = [0.0, 1.0]  # Milvus wants a vector in every row
        self._make(ROWS, mark.dim, "path", 4096, Record._fields[1:])
        self._make(MARK, len(none), "text", 65_535)
        text = json.dumps(mark._asdict())
        chunks = [text[i : i + CHUNK] for i in range(0, len(text), CHUNK)]
        self.client.upsert(MARK, [{"key": f"{i:04d}", "vector": none, "text": one} for i, one in enumerate(chunks)])
        self.client.flush(MARK)
        self.mark = mark

    def _make(self, name: str, dim: int, text: str, most_bytes: int, numbers: Sequence[str] = ()) -> None:
        if self.client.has_collection(name):
            return
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=32)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
        schema.add_field(text, DataType.VARCHAR, max_length=most_bytes)
        for field in numbers:
            schema.add_field(field, DataType.DOUBLE if field in PLACE else DataType.INT64)
        how = {"schema": schema, "index_params": vector_index(FLAT), "consistency_level": "Strong"}
        self.client.create_collection(name, **how)

    def complete(self, mark: Mark) -> None:
        """Note that every file was seen to, flush everything to disk, and let FAISS scan a large folder."""
        self.client.flush(ROWS)
        kind = self.client.describe_index(ROWS, "vector") or {}
        is_large = not SERVER.match(self.address) and self.count() >= LARGE
        if is_large and kind.get("index_type") != SCAN["index_type"]:
            self.client.release_collection(ROWS)
            if kind:  # not where a run was killed after the next line
                self.client.drop_index(ROWS, "vector")
            self.client.create_index(ROWS, vector_index(SCAN))
            self.client.load_collection(ROWS)
        self.write_mark(mark._replace(complete=True))

    def rows(self, where: str = "") -> Iterator[tuple[Record, np.ndarray]]:
        """Yield the record and the vector (D,) float32 of every row that meets a filter of Milvus."""
        return ((_record(row), np.asarray(row["vector"], np.float32)) for row in self._query(where, "vector"))

    def records(self) -> Iterator[Record]:
        return map(_record, self._query(""))

    def _query(self, where: str, *more: str) -> Iterator[dict[str, Any]]:
        fields = [*Record._fields, *more]
        found = self.client.query_iterator(ROWS, batch_size=BATCH, filter=where, output_fields=fields)
        while batch := found.next():
            yield from batch

    def find(self, path: str) -> list[tuple[Record, np.ndarray]]:
        """Return the rows of a path, in the order of their windows; none for a path that is not in the index."""
        return sorted(self.rows(f"path == {quoted(path)}"), key=lambda row: row[0])

    def put(self, records: Sequence[Record], vectors: np.ndarray) -> None:
        """Write rows (n, D), in place of those of the same key."""
        pairs = zip(records, vectors, strict=True)
        self.client.upsert(ROWS, [{"key": one.key, "vector": vector, **one._asdict()} for one, vector in pairs])

    def drop(self, keys: Sequence[str]) -> None:
        for i in range(0, len(keys), MOST):
            self.client.delete(ROWS, ids=list(keys[i : i + MOST]))

    def count(self) -> int:
        return self.client.query(ROWS, output_fields=["count(*)"])[0]["count(*)"]

    def search(self, vector: np.ndarray, top: int, where: str = "") -> list[Hit]:
        """Return the `top` rows of the largest cosine with a vector (D,), best first; equal ones by path and window.

        where: a filter of Milvus that they meet.
        """
        fields = [*Record._fields, "vector"]
        [found] = self.client.search(ROWS, [vector], limit=min(top, MOST), filter=where, output_fields=fields)
        hits = [Hit(hit["distance"], _record(hit["entity"]), np.asarray(hit["entity"]["vector"])) for hit in found]
        return sorted(hits, key=lambda hit: (-hit.score, hit.record))


def vector_index(how: dict[str, Any]) -> Any:
    """Return what Milvus takes to index the vectors in one of its ways, such as FLAT."""
    index = MilvusClient.prepare_index_params()
    index.add_index("vector", **how)
    return index


def quoted(text: str) -> str:
    """Return a text as Milvus reads it in a filter."""
    return f'"{text.translate(ESCAPES)}"'


def _record(row: Any) -> Record:
    return Record(*(row[field] for field in Record._fields))


@contextlib.contextmanager
def open_index(address: str, create: bool = False) -> Iterator[Index]:
    """Open an index, a folder NAME.db or a server; one process at a time has a folder open.

    Raises InputError for one that is missing (unless `create`), damaged, in use, or in a folder that is not writable;
    RunError where Milvus cannot go on.
    """
    is_server = bool(SERVER.match(address))
    if not is_server:
        _check_folder(Path(address), create)
    client = None
    try:
        client = MilvusClient(address, token=os.environ.get("MILVUS_TOKEN", ""))
        index = Index(address, client)
        if index.mark is None and not create:
            raise InputError(f"index {address} holds nothing; make it with python -m search.index")
        yield index
    except (MilvusException, grpc.RpcError) as error:
        advice = "is the server there, and MILVUS_TOKEN set if it asks for one?"
        if not is_server:
            advice = "make room if the disk is full; if not, it may be damaged: remove it and make it anew"
        reason = one_line(getattr(error, "message", error))
        raise RunError(f"index {address}: Milvus failed ({reason}); {advice}") from None
    finally:
        if client:
            with contextlib.suppress(Exception):
                client.close()
        if not is_server:
            from milvus_lite.server_manager import server_manager_instance

            server_manager_instance.release_server(address)  # and with it the lock


def _check_folder(path: Path, create: bool) -> None:
    if path.suffix != ".db":
        raise InputError(f"index {path}: the name of a folder that ends in .db, or a server's address (http://...)")
    if not path.exists() and not create:
        raise InputError(f"index {path} is not there; make it with python -m search.index")
    if path.is_file() or (path.exists() and any(path.iterdir()) and not (path / "LOCK").exists()):
        raise InputError(f"index {path} is there and is no index; choose another name")
    check_writable(path, "Milvus Lite locks every index that it opens; index")
    path.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(path / "LOCK", timeout=0):  # that Milvus Lite takes
            pass
    except filelock.Timeout:
        raise InputError(
            f"index {path} is in use by another program; wait for it, or serve it to many: milvus-lite server "
            f"--data-dir {path} --port 19530, and give http://127.0.0.1:19530 as the index"
        ) from None
