"""Fuzz the reader of scenes as tests/fuzz.py does the others.

    python tests/fuzz_search.py --minutes 20

Its process may take 2 GiB. A file outside that is opened meanwhile is a fault, too: Python's own opens are watched by
an audit hook, those of GDAL by inotify on the files that the inputs name.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import fuzz
import numpy as np
import rasterio
from rasterio.control import GroundControlPoint

from search.pictures import records_of
from search.rasters import RasterRules, open_scene
from tests.searching import write
from tests.test_search_forms import FORMS, WIDE
from tests.test_search_leaks import unopened

SECRETS = ("secret.tif", "fuzzed.tif.ovr", "fuzzed.tif.msk", "fuzzed.tfw", "fuzzed.tif.aux.xml", "fuzzed_RPC.TXT")
LIBRARIES = (sys.prefix, sys.base_prefix, str(Path(np.__file__).parents[1]), str(Path(__file__).resolve().parents[1]))
INSIDE = ("/proc/self/", "/dev/", "/usr/", *LIBRARIES)
strays: list[str] = []


def watch(event: str, arguments: tuple) -> None:
    """Note a file outside the working folder that Python opens."""
    if event == "open" and isinstance(arguments[0], str):
        path = os.path.abspath(arguments[0])  # noqa: PTH100 - called at every open
        if not path.startswith((os.getcwd(), tempfile.gettempdir(), *INSIDE)):  # noqa: PTH109
            strays.append(path)


def scene_files(folder: Path) -> None:
    """Write a small scene of every form that is read."""
    for i, save in enumerate((FORMS | WIDE).values()):
        (folder / str(i)).mkdir(parents=True)
        path = save(folder / str(i))
        path.rename(folder / f"{i}{path.suffix}")
    bands = np.random.default_rng(0).integers(0, 256, (9, 48, 48), np.uint8)
    points = [GroundControlPoint(y, x, 15 + x, 45 - y) for y in (0, 9) for x in (0, 9)]
    write(folder / "a.jp2", bands[:3], driver="JP2OpenJPEG", crs="EPSG:32633")
    with rasterio.open(write(folder / "bands.tif", bands, gcps=points, crs="EPSG:4326"), "r+") as file:
        file.update_tags(ns="OVERVIEW", FILE="secret.tif")
        file.build_overviews([2])


def scenes(folder: Path, rng: random.Random) -> None:
    source = rng.choice(sorted(path for path in (folder / "scenes").iterdir() if path.suffix not in ("", ".xml")))
    path = folder / f"fuzzed{source.suffix}"
    path.write_bytes(fuzz.mutate(source.read_bytes(), rng))
    strays.clear()
    with unopened(*(folder / name for name in SECRETS)):
        records = records_of(folder, path.name, path.stat(), [512], RasterRules())
        with open_scene(path) as scene:
            scene.overview(64)
            scene.read(rng.choice(records).window)
    assert not strays, strays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20, help="in all (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other inputs (default 0)")
    parser.add_argument("--faults", type=Path, default=Path("faults"), help="folder for what went wrong")
    arguments = parser.parse_args()
    fuzz.MEMORY = 2 * 2**30
    with tempfile.TemporaryDirectory() as temporary:
        template = Path(temporary) / "template"
        scene_files(template / "scenes")
        for name in SECRETS:
            shutil.copy(template / "scenes/bands.tif", template / name)
        sys.addaudithook(watch)
        sys.exit(fuzz.fuzz([scenes], template, arguments))


if __name__ == "__main__":
    main()
