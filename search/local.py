"""Local features of new images: by the rules and prototypes that the training file names (docs/REGIONS.md)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

from layers.drea import DreaOptions, Regions, denoise, enhanced_adjacency
from util.regions.local_features import ADVICE, SHAPE
from util.regions.proposals import ProposalOptions, Prototypes, classify, propose
from utils import InputError, existing_file

ZEROS, PROPOSALS, DETECTOR = "zeros", "proposals", "detector"


@dataclass(frozen=True)
class LocalRules:
    """How the local features that a model was trained with were made.

    source: `zeros` (none), `proposals` (the rules and prototypes that follow, of the train images), or `detector` (its
    regions have to be given; an image without any gets zeros).
    """

    source: str
    drea: DreaOptions
    proposals: ProposalOptions | None = None
    prototypes: Prototypes | None = None

    def features(self, image: Image.Image, regions: Regions | None = None) -> tuple[np.ndarray, np.ndarray]:
        """local_rep and local_adj (20, 20) float32 of an image, from a detector's regions where they are given."""
        if self.source == ZEROS:
            return np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.float32)
        if regions is None and self.source == PROPOSALS:
            regions = classify(propose(image, self.proposals), self.prototypes)
        found = denoise(Regions.empty() if regions is None else regions, self.drea)
        return found.nodes, enhanced_adjacency(found.nodes, found.multiplicity, self.drea)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the same before and after JSON."""
        table = asdict(self)
        if self.proposals:
            table["proposals"]["shrink"] = list(self.proposals.shrink)
        if self.prototypes:
            table["prototypes"] = {name: part.tolist() for name, part in self.prototypes._asdict().items()}
        return table

    @classmethod
    def from_dict(cls, table: dict[str, Any]) -> LocalRules:
        """The rules that `to_dict` gave, also after JSON."""
        proposals, prototypes = table["proposals"], table["prototypes"]
        return cls(
            table["source"],
            DreaOptions(**table["drea"]),
            ProposalOptions(**proposals | {"shrink": tuple(proposals["shrink"])}) if proposals else None,
            Prototypes(**{name: np.array(part) for name, part in prototypes.items()}) if prototypes else None,
        )

    def digest(self) -> str:
        """The same for the same rules."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


def read_rules(path: str | Path) -> LocalRules:
    """The rules of `dataset.local_path`. Raises InputError for a file that is missing, damaged or does not name them.

    A published `.npy` names none: a detector made it.
    """
    if str(path) == ZEROS:
        return LocalRules(ZEROS, DreaOptions())
    path = existing_file(path, "local features", ADVICE)
    if path.suffix == ".npy":
        return LocalRules(DETECTOR, DreaOptions())
    try:
        with h5py.File(path) as file:
            attributes = {name: _plain(value) for name, value in file.attrs.items()}
    except Exception as error:  # h5py raises errors of many kinds on damaged files
        raise InputError(f"local features {path}: not the HDF5 form of docs/REGIONS.md, or damaged ({error})") from None
    try:
        drea = DreaOptions(**_group(attributes, "drea", DreaOptions))
        if attributes.get("source") != PROPOSALS:
            return LocalRules(DETECTOR, drea)
        proposals = _group(attributes, "proposals", ProposalOptions)
        proposals["shrink"] = tuple(int(number) for number in proposals["shrink"])
        prototypes = Prototypes(*(np.array(attributes[f"prototypes.{name}"]) for name in Prototypes._fields))
        return LocalRules(PROPOSALS, drea, ProposalOptions(**proposals), prototypes)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"local features {path}: its attributes do not say how they were made ({error}); make it anew with "
            "python -m util.build_local"
        ) from None


def _group(attributes: dict[str, Any], prefix: str, kind: type) -> dict[str, Any]:
    """The attributes `prefix.NAME` that are fields of the dataclass."""
    names = [field.name for field in fields(kind)]
    return {name: attributes[f"{prefix}.{name}"] for name in names if f"{prefix}.{name}" in attributes}


def _plain(value: Any) -> Any:
    """An attribute as Python's own numbers, text and lists."""
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
