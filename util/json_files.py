"""JSON files of a known form, checked against a description of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from util.errors import InputError
from util.files import read_json


class Entry(BaseModel):
    """A JSON object with at least these keys, of exactly these types; others are passed over."""

    model_config = ConfigDict(strict=True, extra="ignore")


def read_as(form: Any, path: Path, what: str) -> Any:
    """Read a JSON file of a form: an Entry, or containers of them. Raises InputError that names the first fault."""
    return checked(form, read_json(path, what), f"{what} {path}")


def checked(form: Any, value: Any, where: str) -> Any:
    """The value as the form describes it. Raises InputError that names the first fault and its place."""
    try:
        return TypeAdapter(form).validate_python(value)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        place = [str(part + 1) if isinstance(part, int) else part for part in fault["loc"]]
        entry = f", entry {' '.join(place)}" if place else ""
        raise InputError(f"{where}{entry}: {fault['msg']}") from None
