"""Count the functions of this repository that one training batch passes, from its first image read to its loss.

python -m docs.notes.count_functions        (after exec/DEMO/run_GaLR_demo.sh, which makes the data)
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import train

ROOT = str(Path(__file__).resolve().parents[2]) + "/"
seen: dict[tuple[str, str], None] = {}
state = {"armed": False, "counting": False, "done": False}


def profile(frame: FrameType, event: str, _: Any) -> None:
    """Note every function of this repository between the first batch's first image and the return of its loss."""
    file, name = frame.f_code.co_filename, frame.f_code.co_qualname
    if state["done"] or event not in ("call", "return"):
        return
    if file.endswith("/data.py") and name == "train_batches":
        state["armed"] = True  # the images are read once before this, to check them
    if state["armed"] and name.endswith("__getitem__") and file.startswith(ROOT + "util/"):
        state["counting"] = True
    if not state["counting"] or not file.startswith(ROOT):
        return
    if event == "call" and not name.rsplit(".", 1)[-1].startswith("<"):
        seen[file.removeprefix(ROOT), name] = None
    if event == "return" and file.endswith("layers/loss.py") and name.endswith(".forward"):
        state["done"] = True


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        keys = f"dataset.cache=none dataset.workers=0 optim.epochs=1 k_fold.nums=1 logs.ckpt_save_path={folder}/c"
        sys.argv = ["train.py", "--path_opt", "option/DEMO/DEMO_GaLR.yaml", "--device", "cpu", "--set", *keys.split()]
        sys.argv.append(f"logs.logger_name={folder}/l")
        threading.setprofile(profile)
        sys.setprofile(profile)
        train.main()
    for file, count in Counter(file for file, _ in seen).most_common():
        print(f"{count:4} {file}: {', '.join(name for at, name in seen if at == file)}")
    print(f"{len(seen)} functions in {len({file for file, _ in seen})} files")
