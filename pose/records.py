"""Plain values kept as JSON with the number of their format: files that outlive this version."""

import dataclasses
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pose.errors import InputError, one_line
from pose.files import read_bytes

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")


def record_text(record: "DataclassInstance", version: int, leave_out: Collection[str] = ()) -> str:
    """The record as JSON, some of its values left out: equal records have equal texts."""
    values = dataclasses.asdict(record)
    kept = {name: value for name, value in values.items() if name not in leave_out}
    return json.dumps({"format": version, **kept}, indent=1) + "\n"


def read_record(path: Path, newest: int, expected: str, make: Callable[[dict[str, Any]], T]) -> T:
    """What `record_text` gave, in this version or an earlier one.

    Args:
        newest: the format of this version.
        expected: what the file must be, for the message: `lock must be a whole ensemble.json`.
        make: the record from its values by name.

    Raises:
        InputError: the file is missing or damaged, or from a newer version of this software.
    """
    try:
        values = json.loads(read_bytes(path).decode())
        version = int(values.pop("format"))
        if version > newest:
            raise InputError(
                f"{path} must be of format {newest} or older, found {version}: update this software"
            )
        return make(values)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{expected}, found: {one_line(error)}") from error
