"""Make the local features of new images as those of the training were made."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

from layers.drea import DreaOptions, Regions, denoise, enhanced_adjacency
from util.images import square
from util.regions.local_features import ADVICE, SHAPE
from util.regions.proposals import ProposalOptions, Prototypes, classify, propose
from utils import InputError, existing_file

Sample = tuple[np.ndarray, np.ndarray, np.ndarray]  # (S, S, 3) uint8, local_rep and local_adj (20, 20) float32
ZEROS, PROPOSALS, DETECTOR = "zeros", "proposals", "detector"


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
    try:
        with h5py.File(path) as file:
            attributes = {key: one.tolist() if hasattr(one, "tolist") else one for key, one in file.attrs.items()}
    except Exception as error:  # h5py raises errors of many kinds on damaged files
        raise InputError(f"local features {path}: not the HDF5 form of docs/data.md, or damaged ({error})") from None
    try:
        table: dict[str, Any] = {"source": PROPOSALS if attributes.get("source") == PROPOSALS else DETECTOR}
        for prefix, kind in (("drea", DreaOptions), ("proposals", ProposalOptions), ("prototypes", Prototypes)):
            names = {f"{prefix}.{field.name}": field.name for field in fields(kind)}
            table[prefix] = {names[key]: value for key, value in attributes.items() if key in names}
        return LocalRules.from_dict(table)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"local features {path}: its attributes do not say how they were made ({error}); make it anew with "
            "python -m util.build_local"
        ) from None


def sample(image: Image.Image, size: int, rules: LocalRules, regions: Regions | None = None) -> Sample:
    """Resize a picture of any size to a square as in training, and make its local features."""
    return square(image, size), *rules.features(image, regions)
