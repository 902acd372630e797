"""Fuzz the readers of search/ as tests/fuzz.py does the others: scenes, and the files of an index.

    python tests/fuzz_search.py --minutes 20 [--readers scenes]

Each reader has a process that may take 2 GiB. A file outside that is opened meanwhile is a fault, too: Python's own
opens are watched by an audit hook, those of GDAL by inotify on the files that the inputs name.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import fuzz
import numpy as np
import rasterio
from rasterio.control import GroundControlPoint

from bench import peak_mib
from search.pictures import records_of
from search.rasters import RasterRules, open_scene
from search.store import Mark, Record, open_index
from tests.searching import write
from tests.test_search_forms import FORMS, WIDE
from tests.test_search_leaks import unopened
from utils import InputError, RunError

ROWS = 60
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


def make_index(folder: Path) -> None:
    """Write an index of several files: two flushes, rows that were replaced and deleted, rows in the log."""
    vectors = np.random.default_rng(0).normal(size=(ROWS, 8)).astype(np.float32)
    mark = Mark("m", "0" * 64, {"model": {}, "dataset": {}}, ["plane"], {}, "images", 8, [512], None, 2.0)
    records = [Record(f"a/{i}.png", 1, 1, 0, 8, 0, 8, 1) for i in range(ROWS)]
    with open_index(str(folder / "whole.db"), create=True) as index:
        index.write_mark(mark)
        for part in (slice(0, 30), slice(20, 50)):
            index.put(records[part], vectors[part])
            index.complete(mark)
        index.drop([records[3].key])
        index.put(records[50:], vectors[50:])


def indexes(folder: Path, rng: random.Random) -> None:
    """Open a spoilt index in a process of its own: Milvus Lite leaves threads, and address space, behind."""
    path = folder / "fuzzed.db"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(folder / "whole.db", path)
    spoilt = rng.choice(sorted(one for one in path.rglob("*") if one.is_file()))
    spoilt.write_bytes(fuzz.mutate(spoilt.read_bytes(), rng))
    child = multiprocessing.get_context("fork").Process(target=ask, args=(path, folder / "fault.txt"))
    child.start()
    child.join(fuzz.LONGEST - 5)
    if child.exitcode != 0:
        child.kill()
        child.join()
        shutil.copytree(path, folder / "spoilt.db", dirs_exist_ok=True)
        said = (folder / "fault.txt").read_text() if child.exitcode == 1 else ""
        raise AssertionError(f"{spoilt.name}: exit status {child.exitcode} {said}")


def ask(path: Path, fault: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    before = peak_mib()
    try:
        with contextlib.suppress(InputError, RunError), open_index(str(path)) as index:
            index.search(np.ones(8, np.float32), 20, 'path >= "a/"')
            index.find("a/7.png")
            list(index.rows())
        assert not strays, strays
        assert peak_mib() < before + 2048, f"{peak_mib() - before:.0f} MiB more"
    except BaseException:  # the parent tells of it
        fault.write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)


READERS: dict[str, Callable] = {"scenes": scenes, "indexes": indexes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20, help="in all (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other inputs (default 0)")
    parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS), help="default: both")
    parser.add_argument("--faults", type=Path, default=Path("faults"), help="folder for what went wrong")
    arguments = parser.parse_args()
    fuzz.MEMORY = 2 * 2**30
    with tempfile.TemporaryDirectory() as temporary:
        template = Path(temporary) / "template"
        scene_files(template / "scenes")
        for name in SECRETS:
            shutil.copy(template / "scenes/bands.tif", template / name)
        maker = multiprocessing.get_context("spawn").Process(target=make_index, args=(template,))
        maker.start()  # Milvus Lite leaves threads behind, which a fork does not bear
        maker.join()
        sys.addaudithook(watch)
        sys.exit(fuzz.fuzz([READERS[name] for name in arguments.readers], template, arguments))


if __name__ == "__main__":
    main()
