"""Read the local features of a data set from its file, and make those of new images by the rules that it names.

Our form is HDF5; of the published pickled `.npy` nothing is executed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

from layers.drea import DreaOptions, Regions, denoise, enhanced_adjacency
from util.images import square
from util.lists import match
from util.pickles import Array, load_pickled_npy
from util.regions.proposals import ProposalOptions, Prototypes, classify, propose
from utils import InputError, existing_file, some

Sample = tuple[np.ndarray, np.ndarray, np.ndarray]  # (S, S, 3) uint8, local_rep and local_adj (20, 20) float32
ZEROS, PROPOSALS, DETECTOR = "zeros", "proposals", "detector"
SHAPE = (20, 20)
LARGEST = float(np.finfo(np.float32).max)
ADVICE = "make it with: python -m util.build_local (docs/data.md), or set dataset.local_path"


def load_local(path: str | os.PathLike, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return local_rep and local_adj of the named images, each (N, 20, 20) float32; zeros for the path `zeros`.

    Raise InputError for a damaged file, and for images whose features are missing, not finite or not 20 x 20.
    """
    if str(path) == ZEROS:
        return np.zeros((len(names), *SHAPE), np.float32), np.zeros((len(names), *SHAPE), np.float32)
    path = existing_file(path, "local features", ADVICE)
    local_rep, local_adj = (_read_npy if path.suffix == ".npy" else _read_hdf5)(path, names)
    for what, array in (("local_rep", local_rep), ("local_adj", local_adj)):
        bad = [name for name, finite in zip(names, np.isfinite(array).all(axis=(1, 2)), strict=True) if not finite]
        if bad:
            raise InputError(f"local features {path}: {what} of {len(bad)} images is not finite: {some(bad)}")
    return local_rep, local_adj


def _read_hdf5(path: Path, names: Sequence[str]) -> tuple[np.ndarray, ...]:
    try:
        with h5py.File(path) as file:
            known = {name: row for row, name in enumerate(_stored(path, file, "name").asstr()[:])}
            rows = [known[key] for key in _keys(path, names, known)]
            tables = [_stored(path, file, key) for key in ("local_rep", "local_adj")]
            for table in tables:
                if table.shape != (len(known), *SHAPE) or table.dtype.kind not in "fiu":
                    raise InputError(f"local features {path}: must be {len(known)} x 20 x 20 numbers, got {table}")
            return tuple(np.asarray(table[:], np.float32)[rows] for table in tables)
    except InputError:
        raise
    except Exception as error:  # h5py raises errors of many kinds on damaged files
        raise InputError(f"local features {path} cannot be read as HDF5 (docs/data.md): {error}") from None


def _stored(path: Path, file: h5py.File, key: str) -> h5py.Dataset:
    """Return a data set whose values stand in this file. Raise InputError if HDF5 would fetch them elsewhere."""
    stored = file[key]
    if not isinstance(file.get(key, getlink=True), h5py.HardLink) or stored.external or stored.is_virtual:
        raise InputError(f"local features {path}: {key} takes its values from elsewhere; put them into the file")
    if stored.nbytes > 2000 * path.stat().st_size:  # packing saves a factor of 1032 at the very best
        raise InputError(f"local features {path}: {key} promises {stored.nbytes} bytes, more than the file can hold")
    return stored


def _read_npy(path: Path, names: Sequence[str]) -> tuple[np.ndarray, ...]:
    """Read the published dict {'local_rep': {stem + '.txt': 20 x 20 lists}, 'adj_matrix': {...}}."""
    tree = load_pickled_npy(path)
    arrays = []
    for what in ("local_rep", "adj_matrix"):
        table = tree.get(what) if isinstance(tree, dict) else None
        if not isinstance(table, dict):
            raise InputError(f"local features {path}: no table {what!r}; not the published form")
        keys = _keys(path, names, [key for key in table if isinstance(key, str)])
        arrays.append(np.array([_rows(path, key, table[key]) for key in keys], np.float32).reshape(-1, *SHAPE))
    return tuple(arrays)


def _rows(path: Path, key: str, table: Any) -> list[list[float]]:
    rows = [_listed(row) for row in _listed(table)]  # NumPy must not see them unchecked: a list may hold itself
    if [len(row) for row in rows] != [SHAPE[1]] * SHAPE[0] or not all(map(_fits, chain.from_iterable(rows))):
        raise InputError(f"local features {path}: {key}: must be a table of 20 x 20 numbers of float32")
    return rows


def _fits(value: Any) -> bool:
    return type(value) in (float, int) and not abs(value) > LARGEST  # NaN is named later


def _listed(value: Any) -> Sequence[Any]:
    """Return the items of an array or a list; none of anything else."""
    value = value.value if isinstance(value, Array) else value
    value = value.tolist() if isinstance(value, np.ndarray) else value
    return value if isinstance(value, list | tuple) else ()


def _keys(path: Path, names: Sequence[str], known: Iterable[str]) -> list[str]:
    keys = match(names, known, f"local features {path}")
    absent = [name for name, key in zip(names, keys, strict=True) if key is None]
    if absent:
        raise InputError(
            f"local features {path}: {len(absent)} of {len(keys)} images have none: {some(absent)}; {ADVICE}"
        )
    return [key for key in keys if key is not None]


# ---------------------------------------------------------------- new images


@dataclass(frozen=True)
class LocalRules:
    """Make local features of new images as those of the training were made.

    source: `zeros` (none), `proposals` (the rules and prototypes that follow, of the train images), or `detector` (its
    regions have to be given; an image without any gets zeros).
    """

    source: str
    drea: DreaOptions
    proposals: ProposalOptions | None = None
    prototypes: Prototypes | None = None

    def features(self, image: Image.Image, regions: Regions | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return local_rep and local_adj (20, 20) float32 of an image, from a detector's regions if they are given."""
        if self.source == ZEROS:
            return np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.float32)
        if regions is None:
            proposed = self.source == PROPOSALS
            regions = classify(propose(image, self.proposals), self.prototypes) if proposed else Regions.empty()
        found = denoise(regions, self.drea)
        return found.nodes, enhanced_adjacency(found.nodes, found.multiplicity, self.drea)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that are the same before and after JSON."""
        return json.loads(json.dumps(asdict(self), default=np.ndarray.tolist))

    @classmethod
    def from_dict(cls, table: dict[str, Any]) -> LocalRules:
        """Build the rules that `to_dict` gave."""
        drea = DreaOptions(**table["drea"])
        if table["source"] != PROPOSALS:
            return cls(table["source"], drea)
        proposals = ProposalOptions(**table["proposals"] | {"shrink": tuple(map(int, table["proposals"]["shrink"]))})
        prototypes = Prototypes(**{name: np.array(part) for name, part in table["prototypes"].items()})
        return cls(PROPOSALS, drea, proposals, prototypes)


def read_rules(path: str | Path) -> LocalRules:
    """Read the rules of `dataset.local_path`; a published `.npy` names none, for a detector made it.

    Raises InputError for a file that is missing, damaged, or does not say how it was made.
    """
    if str(path) == ZEROS:
        return LocalRules(ZEROS, DreaOptions())
    path = existing_file(path, "local features", ADVICE)
    if path.suffix == ".npy":
        return LocalRules(DETECTOR, DreaOptions())
    table: dict[str, dict[str, Any]] = {"drea": {}, "proposals": {}, "prototypes": {}, "source": {}}
    try:
        with h5py.File(path) as file:
            for key, value in file.attrs.items():
                rules, _, name = key.partition(".")
                table.setdefault(rules, {})[name] = value.tolist() if hasattr(value, "tolist") else value
        table["prototypes"].pop("description", None)
        source = PROPOSALS if table["source"].get("") == PROPOSALS else DETECTOR
        return LocalRules.from_dict(table | {"source": source})
    except Exception as error:  # h5py raises errors of many kinds on damaged files
        raise InputError(
            f"local features {path}: not the HDF5 form of docs/data.md, damaged, or without attributes that say how "
            f"they were made ({type(error).__name__}: {error}); make it anew with python -m util.build_local"
        ) from None


def sample(image: Image.Image, size: int, rules: LocalRules, regions: Regions | None = None) -> Sample:
    """Resize a picture of any size to a square as in training, and make its local features."""
    return square(image, size), *rules.features(image, regions)
