"""The index: vectors and records in Milvus, embedded in a folder NAME.db (Milvus Lite) or on a server (http://...).

Two collections: `galr`, a row for each picture or window of a scene, ranked exactly (index type FLAT) by the cosine;
and `galr_mark`, the index's mark: which model made its vectors, and how. Rows are named by a digest of path and window,
so that writing one again replaces it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import numpy as np
from pymilvus import DataType, MilvusClient
from pymilvus.exceptions import MilvusException

from utils import InputError, RunError

for chatty in ("pymilvus", "milvus_lite", "grpc"):  # they log errors that reach us as exceptions
    logging.getLogger(chatty).setLevel(logging.CRITICAL + 1)

ROWS, MARK = "galr", "galr_mark"
NOWHERE = 1000.0  # degrees: the place of what has none; Milvus Lite knows no missing numbers
PATH_BYTES = 4096
CHUNK = 40_000  # bytes of the mark in a row: a text field holds 65,535
MOST = 16_384  # answers that Milvus gives at once


class Record(NamedTuple):
    """What an index knows of a row. path: within the folder of images, with /. size, mtime_ns: of the file.

    top, bottom, left, right: its window in pixels. windows: how many the file has; 1 for a picture. west to north: its
    bounds in degrees, NOWHERE where the file does not say.
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

    @property
    def key(self) -> str:
        """The row's name."""
        window = (self.top, self.bottom, self.left, self.right) if self.windows > 1 else ()
        return hashlib.sha256(repr((self.path, window)).encode()).hexdigest()[:32]


class Hit(NamedTuple):
    """An answer: the cosine of the query and a row, its record and its vector (D,)."""

    score: float
    record: Record
    vector: np.ndarray


@dataclass(frozen=True)
class Mark:
    """What made an index. Two indexes of one `maker` hold vectors of one space.

    checkpoint, sha256: its path and the digest of its content. options, words, rules: as the model takes them
    (`Options.to_dict`, its vocabulary, `LocalRules.to_dict`). images: the folder that paths are relative to. scales,
    bands, stretch: how scenes are cut and read. complete: whether every file was seen to.
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

    def differs(self, other: Mark) -> str:
        """In what two marks differ so that their vectors do not belong together; empty where they do."""
        names = {
            "sha256": "checkpoint",
            "words": "vocabulary",
            "rules": "rule of local features",
            "scales": "--scales",
            "bands": "--bands",
            "stretch": "--stretch",
            "images": "--images",
        }
        found = [name for field, name in names.items() if getattr(self, field) != getattr(other, field)]
        if self.options["model"] != other.options["model"]:
            found.append("model options")
        if self.options["dataset"]["image_size"] != other.options["dataset"]["image_size"]:
            found.append("dataset.image_size")
        return ", ".join(found)


def is_server(address: str) -> bool:
    """Whether it is a server's address, not a folder's."""
    return bool(re.match(r"(https?|tcp)://", address))


class Index:
    """An open index. Every method raises RunError where Milvus cannot go on."""

    def __init__(self, address: str, client: MilvusClient) -> None:
        self.address, self._client = address, client

    # ---------------------------------------------------------------- the mark

    def mark(self) -> Mark | None:
        """What made the index; None for a new one. Raises InputError for a damaged one."""
        with self._milvus("read"):
            if not self._client.has_collection(MARK):
                return None
            self._client.load_collection(MARK)
            rows = self._client.query(MARK, filter='key >= ""', output_fields=["key", "text"])
        text = "".join(row["text"] for row in sorted(rows, key=lambda row: row["key"]))
        if not text:
            return None  # killed between making the collection and writing the mark
        try:
            return Mark(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise InputError(f"index {self.address} is damaged, or of another kind ({error}); make it anew") from None

    def write_mark(self, mark: Mark) -> None:
        """Make the collections where they are missing, and write the mark."""
        text = json.dumps(asdict(mark))
        chunks = [text[i : i + CHUNK] for i in range(0, len(text), CHUNK)]
        with self._milvus("write"):
            self._make(ROWS, mark.dim, [("path", PATH_BYTES)], list(Record._fields[1:]))
            self._make(MARK, 2, [("text", 65_535)], [])
            none = [0.0, 1.0]  # Milvus wants a vector in every row
            self._client.upsert(
                MARK, [{"key": f"{i:04d}", "vector": none, "text": chunk} for i, chunk in enumerate(chunks)]
            )
            self._client.flush(MARK)

    def complete(self, mark: Mark) -> None:
        """Note that every file was seen to, and put everything on disk."""
        with self._milvus("write"):
            self._client.flush(ROWS)
        self.write_mark(replace(mark, complete=True))

    def _make(self, name: str, dim: int, texts: list[tuple[str, int]], numbers: list[str]) -> None:
        if self._client.has_collection(name):
            return
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=32)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
        for field, length in texts:
            schema.add_field(field, DataType.VARCHAR, max_length=length)
        for field in numbers:
            of_place = field in ("west", "south", "east", "north")
            schema.add_field(field, DataType.DOUBLE if of_place else DataType.INT64)
        index = MilvusClient.prepare_index_params()
        index.add_index("vector", index_type="FLAT", metric_type="COSINE")
        self._client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")

    # ---------------------------------------------------------------- rows

    def records(self) -> Iterator[Record]:
        """The records of all rows."""
        for row in self._rows(list(Record._fields)):
            yield _record(row)

    def vectors(self) -> Iterator[tuple[Record, np.ndarray]]:
        """The record and the vector (D,) float32 of every row."""
        for row in self._rows([*Record._fields, "vector"]):
            yield _record(row), np.asarray(row["vector"], np.float32)

    def _rows(self, fields: list[str]) -> Iterator[dict]:
        with self._milvus("read"):
            self._client.load_collection(ROWS)
            rows = self._client.query_iterator(ROWS, batch_size=8192, output_fields=fields)
        while True:
            with self._milvus("read"):
                batch = rows.next()
            if not batch:
                return
            yield from batch

    def put(self, records: Sequence[Record], vectors: np.ndarray) -> None:
        """Write rows (n, D), in place of those of the same name."""
        rows = [
            {"key": record.key, "vector": vector, **record._asdict()}
            for record, vector in zip(records, vectors, strict=True)
        ]
        with self._milvus("write"):
            self._client.upsert(ROWS, rows)

    def drop(self, keys: Sequence[str]) -> None:
        """Take rows out."""
        with self._milvus("write"):
            for i in range(0, len(keys), MOST):
                self._client.delete(ROWS, ids=list(keys[i : i + MOST]))

    def search(self, vector: np.ndarray, top: int, folder: str = "", bbox: Sequence[float] | None = None) -> list[Hit]:
        """The `top` rows of the largest cosine with a vector (D,), best first; equal ones by path and window.

        folder: only paths in it. bbox: only what meets these bounds (west, south, east, north; degrees).
        """
        conditions = []
        if name := folder.strip("/"):
            conditions += [f"path >= {_quoted(name + '/')}", f"path < {_quoted(name + '0')}"]  # 0 comes after /
        if bbox:
            west, south, east, north = map(float, bbox)
            conditions += [f"west <= {east}", f"east >= {west}", f"south <= {north}", f"north >= {south}"]
            conditions += [f"west < {NOWHERE}"]
        with self._milvus("read"):
            self._client.load_collection(ROWS)
            found = self._client.search(
                ROWS,
                [vector],
                limit=min(top, MOST),
                filter=" and ".join(conditions),
                output_fields=[*Record._fields, "vector"],
            )[0]
        hits = [Hit(hit["distance"], _record(hit["entity"]), np.asarray(hit["entity"]["vector"])) for hit in found]
        return sorted(hits, key=lambda hit: (-hit.score, hit.record))

    def find(self, path: str) -> list[tuple[Record, np.ndarray]]:
        """The rows of a path of the index: their records and vectors; none for any other path."""
        with self._milvus("read"):
            self._client.load_collection(ROWS)
            rows = self._client.query(
                ROWS, filter=f"path == {_quoted(path)}", output_fields=[*Record._fields, "vector"], limit=MOST
            )
        return sorted((_record(row), np.asarray(row["vector"], np.float32)) for row in rows)

    def count(self) -> int:
        """How many rows there are."""
        with self._milvus("read"):
            self._client.load_collection(ROWS)
            return self._client.query(ROWS, output_fields=["count(*)"])[0]["count(*)"]

    @contextlib.contextmanager
    def _milvus(self, what: str) -> Iterator[None]:
        """Turns an error of Milvus into one line."""
        try:
            yield
        except Exception as error:  # Milvus Lite lets errors of many kinds through
            if isinstance(error, (InputError, RunError, MemoryError)):
                raise
            raise RunError(_explain(self.address, what, error)) from None


def _quoted(text: str) -> str:
    """A text as Milvus reads it in a filter."""
    for character, escape in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        text = text.replace(character, escape)
    return f'"{text}"'


def _record(row: Any) -> Record:
    return Record(*(row[field] for field in Record._fields))


def _explain(address: str, what: str, error: Exception) -> str:
    reason = " ".join(str(getattr(error, "message", error)).split())[:200]
    if any(sign in reason for sign in ("No space left", "File too large", "Disk quota")):
        return f"index {address}: no room on the disk ({reason}); make room and run the same command again"
    advice = "it may be damaged: remove it and make it anew" if what == "read" else "run the same command again"
    return f"index {address} cannot be {'read' if what == 'read' else 'written'} ({reason}); {advice}"


# ---------------------------------------------------------------- opening


@contextlib.contextmanager
def open_index(address: str, create: bool = False) -> Iterator[Index]:
    """Open an index, a folder NAME.db or a server; one process at a time has a folder open.

    Raises InputError for one that is missing (unless `create`), damaged, in use, or in a folder that is not writable.
    """
    if not is_server(address):
        _check_folder(Path(address), create)
    try:
        client = MilvusClient(address)
    except Exception as error:  # as above
        raise InputError(_cannot_open(address, error)) from None
    try:
        index = Index(address, client)
        if not create and index.mark() is None:
            raise InputError(f"index {address} holds nothing; make it with python -m search.index")
        yield index
    finally:
        _close(address, client)


def read_mark(index: Index) -> Mark:
    """The mark of an index that is not new."""
    mark = index.mark()
    if mark is None:
        raise InputError(f"index {index.address} holds nothing; make it with python -m search.index")
    return mark


def _check_folder(path: Path, create: bool) -> None:
    if path.suffix != ".db":
        raise InputError(f"index {path}: the name of a folder that ends in .db, or a server's address (http://...)")
    if not path.exists() and not create:
        raise InputError(f"index {path} is not there; make it with python -m search.index")
    if path.exists() and not path.is_dir():
        raise InputError(f"index {path} is a file, not the folder of an index")
    if path.exists() and any(path.iterdir()) and not (path / "LOCK").exists():
        raise InputError(f"index {path} is a folder that holds other things; choose another name")
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"index {path}: you may not write to {there}, and Milvus Lite locks an index that it reads")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        try:
            with filelock.FileLock(path / "LOCK", timeout=0):  # the lock that Milvus Lite takes
                pass
        except filelock.Timeout:
            raise InputError(
                f"index {path} is in use by another program; wait for it, or serve it to many: milvus-lite server "
                f"--data-dir {path} --port 19530, and give http://127.0.0.1:19530 as the index"
            ) from None


def _cannot_open(address: str, error: Exception) -> str:
    if is_server(address):
        reason = " ".join(str(getattr(error, "message", error)).split())[:200]
        return f"no Milvus server answers at {address} ({reason})"
    return f"index {address} cannot be opened; it is damaged: remove it and make it anew"


def _close(address: str, client: MilvusClient) -> None:
    with contextlib.suppress(MilvusException):
        client.close()
    if not is_server(address):
        from milvus_lite.server_manager import server_manager_instance

        server_manager_instance.release_server(address)  # and with it the lock
