"""Search UCM's test pictures with one sentence a class, and print the share of right ones among the first ten.

    python -m docs.notes.box_precision --model models/rs_lite --data data

The gallery is the 420 test images of both UCM lists, 20 of each class, none of which the model has seen. The sentences
were written before any answer was looked at. Chance is 20 / 420 = 0.048.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engine import load_pretrained
from util.lists import read_names
from utils import Parser, run_command

SENTENCES = {  # UCM's classes in the order of their image numbers, a hundred each
    "agricultural": "a field of crops with straight furrows",
    "airplane": "airplanes parked at an airport",
    "baseballdiamond": "a baseball diamond with bare earth and green grass",
    "beach": "a beach with white waves and sand",
    "buildings": "large buildings with flat roofs in a city",
    "chaparral": "dry land with many small scattered bushes",
    "denseresidential": "many houses standing close together",
    "forest": "a dense forest of green trees",
    "freeway": "cars on a straight freeway with several lanes",
    "golfcourse": "a golf course with sand bunkers and turf",
    "harbor": "boats moored side by side in a harbor",
    "intersection": "two roads crossing each other at an intersection",
    "mediumresidential": "houses with gardens along a street in a residential area",
    "mobilehomepark": "rows of mobile homes in a park",
    "overpass": "a road that crosses over another one on an overpass",
    "parkinglot": "many cars parked in a parking lot",
    "river": "a river winding through trees",
    "runway": "a runway with white markings on it",
    "sparseresidential": "a single house surrounded by trees and lawn",
    "storagetanks": "round white storage tanks",
    "tenniscourt": "tennis courts surrounded by trees",
}


def main() -> None:
    parser = Parser(prog="python -m docs.notes.box_precision", description="Score one sentence a class on UCM.")
    parser.add_argument("--model", default="models/rs_lite", help="model folder (default models/rs_lite)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets (default data)")
    arguments = parser.parse_args()
    lists = (read_names(arguments.data / name, "test") for name in ("ucm_precomp", "ucm_amfmn_precomp"))
    names = list(dict.fromkeys(name for part in lists for name in part))
    classes = np.array([(int(Path(name).stem) - 1) // 100 for name in names])
    encoder = load_pretrained(arguments.model)
    images = encoder.images([str(arguments.data / "ucm_precomp/images" / name) for name in names])
    sims = np.asarray(encoder.similarity(images, encoder.sentences(list(SENTENCES.values()))))
    scores = []
    for place, (name, sentence) in enumerate(SENTENCES.items()):
        first_ten = classes[np.argsort(-sims[:, place], kind="stable")[:10]]
        scores.append(float((first_ten == place).mean()))
        print(f"{scores[-1]:4.1f}  {name:18} {sentence}")
    print(f"{np.mean(scores):5.3f} on average over {len(SENTENCES)} sentences, {len(names)} pictures")


if __name__ == "__main__":
    run_command(main)
