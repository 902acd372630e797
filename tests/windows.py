"""Run a command as if on Windows: no `resource`, no C library of the process, no fsync of folders, no os.pwrite.

python tests/windows.py train.py --path_opt tiny.yaml ...
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from pathlib import Path
from typing import Any

from tiny import shortened

plain_library, plain_open = ctypes.CDLL, os.open


class Library(plain_library):
    def __init__(self, name: str | None, *args: Any, **kwargs: Any) -> None:
        if name is None:
            raise TypeError("LoadLibrary() argument 1 must be str, not None")
        super().__init__(name, *args, **kwargs)


def open_file(path: Any, *args: Any, **kwargs: Any) -> int:
    if Path(path).is_dir():
        raise PermissionError(13, "Permission denied", str(path))
    return plain_open(path, *args, **kwargs)


if __name__ == "__main__":
    ctypes.CDLL, os.open, sys.modules["resource"] = Library, open_file, None
    del os.pwrite, os.fork
    sys.argv = sys.argv[1:]
    from utils import run_command

    with shortened():
        run_command(importlib.import_module(sys.argv[0].removesuffix(".py")).main)
