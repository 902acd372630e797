"""Count the functions of this repository that one training batch passes, from its first image read to its loss.

python -m docs.notes.count_functions        (after exec/DEMO/run_GaLR_demo.sh, which makes the data)
"""

from __future__ import annotations

import os
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
counting = []


def profile(frame: FrameType, event: str, _: Any) -> None:
    """Note every function of this repository from the call of train_batches on; report when the loss returns."""
    file, name = frame.f_code.co_filename, frame.f_code.co_qualname
    if not file.startswith(ROOT) or "site-packages" in file:
        return
    if name == "train_batches":
        counting.append(True)
    if counting and event == "call" and not name.rsplit(".", 1)[-1].startswith("<"):
        seen[file.removeprefix(ROOT), name] = None
    if counting and event == "return" and file.endswith("layers/loss.py") and name.endswith(".forward"):
        for at, count in Counter(at for at, _ in seen).most_common():
            print(f"{count:4} {at}: {', '.join(name for other, name in seen if other == at)}")
        print(f"{len(seen)} functions in {len({at for at, _ in seen})} files", flush=True)
        os._exit(0)


if __name__ == "__main__":
    folder = tempfile.mkdtemp()
    keys = f"dataset.cache=none dataset.workers=0 k_fold.nums=1 logs.ckpt_save_path={folder} logs.logger_name={folder}"
    sys.argv = ["train.py", "--path_opt", "option/DEMO/DEMO_GaLR.yaml", "--device", "cpu", "--set", *keys.split()]
    threading.setprofile(profile)
    sys.setprofile(profile)
    train.main()
