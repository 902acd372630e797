"""Files of weights, read without running anything in them."""

from __future__ import annotations

import io
import logging
import os
import pickle
import re
import shlex
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from util.pickles import Type, scalar
from utils import InputError, existing_file, not_installed, one_line, some

logger = logging.getLogger("galr")


class Settings:
    """Stand in for the settings that training programs save beside the weights: take anything, keep nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


# NumPy's numbers among plain ones (a best score) are read by stand-ins, so that NumPy's own functions are never called.
NUMPY_SCALARS = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")] + [(Type, "numpy.dtype")]
SETTINGS = [
    (Settings, name)
    for name in "argparse.Namespace types.SimpleNamespace datetime.datetime datetime.timedelta pathlib.PosixPath "
    "pathlib.WindowsPath pathlib._local.PosixPath pathlib._local.WindowsPath".split()
]
WRAPPERS = "module.", "_orig_mod."  # prefixes of DataParallel and DistributedDataParallel, and of torch.compile


def load_torch(path: str | os.PathLike, what: str) -> Any:
    """Read a file of torch.save onto the CPU with `weights_only`; NumPy's numbers come as Python's.

    Raises InputError for a missing or damaged file and for one that holds more than tensors and plain containers.
    """
    path = existing_file(path, what)
    archive = zipfile.is_zipfile(path)
    if archive:
        _check_archive(path, what)
    # A file of before PyTorch 1.6 is read into memory first: from disk, a damaged length would first be allocated.
    with path.open("rb") if archive else io.BytesIO(path.read_bytes()) as file:
        try:
            with torch.serialization.safe_globals(NUMPY_SCALARS + SETTINGS):
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # PyTorch's message goes on to advise an unsafe way
            found = re.search(r"GLOBAL (\S+)", str(error))
            reason, way = "it is no archive of tensors", ""
            if found:
                reason, way = f"it names {found[1]}", "; if you trust it, save its state_dict alone (docs/data.md)"
            raise InputError(
                f"{what} {path} is damaged, or holds more than weights, and was not read ({reason}){way}"
            ) from None
        except MemoryError:
            raise
        except Exception as error:  # a damaged archive raises errors of many kinds
            raise InputError(f"{what} {path} is damaged ({one_line(error)})") from None


def _check_archive(path: Path, what: str) -> None:
    """Check every part of an archive of torch.save by its checksum (CRC-32), which PyTorch itself does not.

    Raises InputError for a damaged archive, for one that would unpack to more than its size (PyTorch compresses
    nothing), and for a program of torch.jit.save.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            packed = sum(part.file_size for part in archive.infolist()) > path.stat().st_size
            program = any(name.endswith("/constants.pkl") for name in archive.namelist())
            damaged = None if packed else archive.testzip()
    except Exception as error:  # a damaged archive raises errors of many kinds
        raise InputError(f"{what} {path} is damaged ({error})") from None
    if program:
        new = path.with_suffix(".weights.pt")
        code = f"import torch; torch.save(torch.jit.load({str(path)!r}, 'cpu').state_dict(), {str(new)!r})"
        raise InputError(
            f"{what} {path} is a TorchScript program, and was not run; if you trust it, this line converts it to a "
            f"file of weights, {new}: python -c {shlex.quote(code)}"
        )
    if packed:
        raise InputError(f"{what} {path} is a packed archive, not a file of torch.save, and was not read")
    if damaged:
        raise InputError(f"{what} {path} is damaged (the checksum of {damaged} is wrong)")


def weights_of(
    tree: Any, keys: tuple[str, ...] = ("model", "state_dict", "model_state_dict")
) -> dict[str, Tensor] | None:
    """Return the table of names and tensors in what `load_torch` gave: under the first key that is there, all of it, or
    the only table under any key.

    Prefixes that wrappers of the model put before all names are removed. None if there is no such table.
    """
    for key in keys:
        tree = tree.get(key, tree) if isinstance(tree, dict) else tree
    state = _table(tree)
    if state is None and keys and isinstance(tree, dict):
        tables = [found for value in dict.values(tree) if (found := _table(value))]
        state = tables[0] if len(tables) == 1 else None
    if state is None:
        return None
    while wrapper := next((wrapper for wrapper in WRAPPERS if all(name.startswith(wrapper) for name in state)), ""):
        torch.nn.modules.utils.consume_prefix_in_state_dict_if_present(state, wrapper)
    return state


def _table(tree: Any) -> OrderedDict[str, Tensor] | None:
    """Return the tensors by their names, without numbers and texts that stand among them; None if it is no table."""
    if not isinstance(tree, dict):
        return None
    state = OrderedDict(
        (name, value) for name, value in dict.items(tree) if not isinstance(value, int | float | str | None)
    )
    if not state or not all(isinstance(name, str) and isinstance(x, Tensor) for name, x in state.items()):
        return None
    if any(x.layout != torch.strided or x.device.type != "cpu" or x.is_quantized for x in state.values()):
        return None  # not dense, or not in memory
    state._metadata = _versions(getattr(tree, "_metadata", None))
    return state


def of_module(state: dict[str, Tensor], wanted: Collection[str], where: str) -> dict[str, Tensor]:
    """Return the weights of a module out of those of a larger one, by the prefix that fits; say which.

    wanted: the names of the module. Raises InputError, which begins with `where`, if several prefixes fit alike.
    """
    prefixes = Counter(name[: -len(end)] for name in state for end in wanted if name == end or name.endswith(f".{end}"))
    (prefix, fits), *others = prefixes.most_common(2) or [("", 0)]
    if prefix == "" or prefixes[""] == fits or fits < len(wanted) / 2:
        return state
    if others and others[0][1] == fits:
        both = f"{prefix} and {others[0][0]}"
        raise InputError(f"{where}: the file holds several such networks, under {both}; save one of them alone")
    inner = OrderedDict((name, value) for name, value in state.items() if name.startswith(prefix))
    inner._metadata = OrderedDict(getattr(state, "_metadata", {}))
    torch.nn.modules.utils.consume_prefix_in_state_dict_if_present(inner, prefix)
    rest = f"; {len(state) - len(inner)} other tensors are left out" if len(inner) < len(state) else ""
    logger.info(f"{where}: taken from {prefix}*{rest}")
    return inner


def _versions(metadata: Any) -> OrderedDict[str, dict[str, int]]:
    """Return the versions of modules that PyTorch stores beside a table of weights, and nothing else of it."""
    found = dict.items(metadata) if isinstance(metadata, dict) else ()
    return OrderedDict(
        (name, {"version": of_module["version"]})
        for name, of_module in found
        if isinstance(name, str) and isinstance(of_module, dict) and type(of_module.get("version")) is int
    )


def read_weights(path: str | os.PathLike, what: str) -> dict[str, Tensor]:
    """Read a table of finite weights: a file of torch.save or of safetensors, by content. Raises InputError."""
    return finite_weights(read_tree(path, what), f"{what} {path}")


def read_tree(path: str | os.PathLike, what: str) -> Any:
    """Read what a file of torch.save or of safetensors holds, which of both by its content."""
    path = existing_file(path, what)
    with path.open("rb") as file:
        if file.read(9)[8:] != b"{":  # of safetensors' header, behind its length
            return load_torch(path, what)
    with not_installed(f"{what} {path}"):
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{what} {path} is damaged ({error})") from None


def finite_weights(tree: Any, where: str, ignored: Collection[str] = ()) -> dict[str, Tensor]:
    """Return the table of weights in what `read_tree` gave. Raises InputError that begins with `where`."""
    state = weights_of(tree)
    if state is None:
        held = f", but {some([str(key) for key in tree], 8)}" if isinstance(tree, dict) and tree else ""
        raise InputError(f"{where}: not a table of names and tensors{held}")
    for name in ignored:
        state.pop(name, None)
    check_finite(state, where)
    return state


def check_finite(weights: dict[str, Tensor], where: str) -> None:
    """Raise InputError, which begins with `where`, for weights with NaN or infinity."""
    if spoilt := [name for name, value in weights.items() if not torch.isfinite(value).all()]:
        raise InputError(f"{where}: weights that are not finite in {len(spoilt)} tensors: {some(spoilt)}")
