"""Write the card of a model folder: README.md in the form of the Hugging Face hub, metadata in YAML first."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import yaml

from option import Options
from postprocessing.recall import SIX
from postprocessing.results import FoldScore, Results
from postprocessing.tables import NARROW, TIES, gallery_of, label, six_cells, table
from utils import InputError, checked, read_text

PAPER = "Yuan et al., Remote Sensing Cross-Modal Text-Image Retrieval Based on Global and Local Information, TGRS 2022"


class Made(NamedTuple):
    """Hold how a model came about.

    epoch, rsum: of the best checkpoint, the latter the sum of six recalls on validation; commit: of the code; split:
    names of train and validation images, by part; weights: their type and size, in words.
    """

    name: str
    options: Options
    words: int
    fold: int
    epoch: int | None
    rsum: float | None
    commit: str | None
    split: dict[str, list[str]]
    results: Results | None
    weights: str

    @property
    def lists(self) -> str:
        """Return the name of the folder of the caption lists."""
        return Path(self.options.dataset.data_path).name

    def score(self) -> FoldScore | None:
        """Return the test score of this fold; None if it has none."""
        return next((score for score in self.results.folds if score.fold == self.fold), None) if self.results else None


def read_notes(path: Path) -> tuple[dict[str, Any], str]:
    """Read Markdown that may begin with metadata between two lines of --- -> metadata, text. Raise InputError."""
    text = read_text(path, "card notes")
    if not text.startswith("---\n"):
        return {}, text.strip()
    block, _, rest = text.removeprefix("---\n").partition("\n---\n")
    try:
        metadata = yaml.safe_load(block)
    except yaml.YAMLError as error:
        raise InputError(f"card notes {path}: the metadata is not YAML ({' '.join(str(error).split())})") from None
    return checked(dict[str, Any], metadata, f"card notes {path}, metadata (such as license: mit)"), rest.strip()


def card(made: Made, metadata: dict[str, Any], notes: str) -> str:
    """Return the card as Markdown, with what its maker adds: metadata that replace ours, and text."""
    metadata = metadata_of(made) | metadata
    words = f" ({made.words} words; others are read as unknown)" if made.words else ""
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---",
        f"# {made.name}",
        "Vectors of remote-sensing images and of English sentences, compared by one similarity: find images by a "
        f"sentence, and sentences by an image. Trained with the framework of GaLR ({PAPER}).",
        notes,
        f"## Use\n\n{USE.format(name=made.name)}",
        f"## Data\n\n{data_text(made)}",
        f"## Recipe\n\n{recipe(made)}",
        f"## Scores\n\n{scores(made)}",
        f"## Limits\n\n{LIMITS.format(words=words)}",
        f"## Licence\n\n{LICENCE.format(license=metadata['license'])}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


USE = """In a clone of the code, with this folder as `models/{name}`:

```python
from engine import load_pretrained

encoder = load_pretrained("models/{name}")
images, sentences = encoder.images(["a.jpg", "b.jpg"]), encoder.sentences(["boats in a harbor"])
print(encoder.similarity(images, sentences))  # (2, 1)
```

```
python -m search.index --model models/{name} --images MY_PICTURES --out my.db
python -m search.page --index my.db
python test_single.py --resume models/{name} --set dataset.data_path=LISTS dataset.image_path=IMAGES
```"""

LIMITS = """\
- It saw optical images from above (three bands), at the ground resolutions and places of its train
  images. On radar, thermal or oblique images its answers mean little.
- It reads English sentences like its train captions{words}. It does not count, and does not understand "no" and "not".
- It ranks. A high similarity is no proof that a thing is there. Do not base decisions about people on it.
- Scores depend on the lists and on how ties count: compare them with scores of the same lists only."""

LICENCE = """\
Weights: `{license}`. Images and captions are not in this folder; each data set has its own terms. The code is
under the MIT licence."""


def metadata_of(made: Made) -> dict[str, Any]:
    """Return the metadata of the hub; results of the fold as a model-index, ties at random."""
    dataset = made.options.dataset.datatype
    metadata = {
        "license": "unknown",
        "language": ["en"],
        "pipeline_tag": "feature-extraction",
        "tags": ["galr", "remote-sensing", "image-text-retrieval", "cross-modal-retrieval"],
        "datasets": [dataset],
        "metrics": ["recall"],
    }
    if score := made.score():
        flat = score.flat("random")
        result = {
            "task": {"type": "image-text-retrieval", "name": "Image-text retrieval, ties at random"},
            "dataset": {"type": dataset, "name": made.lists, "split": score.split},
            "metrics": [{"type": "recall", "name": label(key), "value": round(flat[key], 2)} for key in (*SIX, "mr")],
        }
        metadata["model-index"] = [{"name": made.name, "results": [result]}]
    return metadata


def data_text(made: Made) -> str:
    """Return the lists, and how many images trained and validated."""
    text = f"Lists `{made.lists}`, data set `{made.options.dataset.datatype}`"
    if not made.split:
        return f"{text}; the names of the images are not known."
    counts = ", ".join(f"{len(names)} images {part}" for part, names in made.split.items())
    return f"{text}: {counts}; `split.json` names them."


def recipe(made: Made) -> str:
    """Return what came of the recipe as a table, and its options that differ from their defaults as YAML."""
    rows = {
        "model": made.options.model.name,
        "local branch": "yes" if made.options.model.reads_local else "no",
        "seed": made.options.seed,
        "fold": made.fold,
        "best epoch, from 0": "not known" if made.epoch is None else made.epoch,
        "its mR on validation, ties against": "not known" if made.rsum is None else f"{made.rsum / 6:.2f}",
        "code": made.commit or "not known",
        "weights": made.weights,
    }
    options = yaml.safe_dump(made.options.model_dump(exclude_defaults=True), sort_keys=False)
    cells = [["", "value"], *([name, str(value)] for name, value in rows.items())]
    return f"{table(cells)}\n\nOptions that differ from their defaults:\n\n```yaml\n{options}```"


def scores(made: Made) -> str:
    """Return the scores of this fold with both kinds of ties and chance, plain and after what test.py did to them."""
    score = made.score()
    if score is None:
        return "test.py has not scored this run."
    rows = []
    for part, summary in made.results.parts().items():
        of_fold = next(one for one in summary.folds if one.fold == made.fold)
        rows += [[part or "plain", ties, *six_cells(of_fold.flat(ties))] for ties in ("against", "random")]
    gallery = gallery_of([score], made.results.lists)
    return f"{gallery}. {TIES}\n\n{table([['scores', 'ties', *NARROW], *rows])}"
