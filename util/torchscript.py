"""The weights in a TorchScript archive (OpenAI's files of CLIP are such), read without running its code."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils import InputError

TYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
DEEPEST = 100  # modules within modules


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive of `torch.jit.save`, and not one of `torch.save`."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def load_torchscript(path: Path, what: str) -> dict[str, Tensor]:
    """The tensors of the module in the archive, by name, on the CPU.

    Its classes are stood in for by plain tables of their attributes. Raises InputError for a damaged archive, and for
    one that holds more than modules, tensors and plain values.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"the checksum of {damaged} is wrong")
            root = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(root) as file:
                module = _Reader(file, archive, root.removesuffix("data.pkl")).load()
        state: dict[str, Tensor] = {}
        _collect(module, "", state, 0)
        return state
    except Exception as error:  # a hostile pickle can raise anything
        raise InputError(f"{what} {path} was not read: {' '.join(str(error).split())[:200]}") from None


class _Module:
    """Stands in for a class of the archive's code: a table of what it holds."""

    def __init__(self, *_: object) -> None:
        self.held: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.held = state


class _Reader(pickle.Unpickler):
    """Admits modules, tensors and plain containers; everything else that the pickle names is refused."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file)
        self.archive, self.folder = archive, folder
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Module
        if module == "torch" and name in TYPES:
            return TYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch.jit._pickle" and (name.startswith("build_") or name == "restore_type_tag"):
            return lambda values, *_: values
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is neither a module nor a tensor")

    def persistent_load(self, place: Any) -> Tensor:
        kind, dtype, key, _, numbers = place
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError("it refers to something that is no storage")
        if key not in self.storages:
            part = self.archive.getinfo(f"{self.folder}data/{key}")
            if part.file_size != part.compress_size or part.file_size != numbers * dtype.itemsize:
                raise ValueError(f"storage {key} has another size than it says")
            content = bytearray(self.archive.read(part))
            self.storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return self.storages[key]


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    """A view of a storage; PyTorch refuses one that goes beyond it."""
    return storage.as_strided(size, stride, offset)


def _collect(module: _Module, prefix: str, state: dict[str, Tensor], depth: int) -> None:
    if not isinstance(module, _Module) or depth > DEEPEST:
        raise ValueError("it holds no module, or modules without end")
    for name, value in module.held.items():
        if isinstance(value, Tensor):
            state[f"{prefix}{name}"] = value
        elif isinstance(value, _Module):
            _collect(value, f"{prefix}{name}.", state, depth + 1)
