"""The files of a saved model, held to what was written when it was saved.

A flipped bit in weights predicts as readily as the right one.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pose_models.errors import ModelError

_BLOCK = 1 << 20


def sealed_text(values: Mapping[str, Any], folder: Path) -> str:
    """JSON of `values`, with the SHA-256 of each file in `folder`, and of the JSON itself."""
    files = {
        path.relative_to(folder).as_posix(): _file_digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    body = {**values, "files": files}
    return json.dumps({**body, "sha256": _digest(body)})


def read_sealed(path: Path) -> dict[str, Any]:
    """The values in the file `path`; the files beside it are those that it was written for.

    Models from before there were seals have none, and are taken as they are.

    Raises:
        ModelError: a file is damaged, gone, or another one.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        seal = values.pop("sha256", None)
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{path.name} must be that of a whole model, found: {error}") from error
    if seal is None and "files" not in values:
        return dict(values)
    if seal != _digest(values):
        raise ModelError(f"{path.name} must be as it was saved, found its checksum wrong")
    for name, expected in values.pop("files").items():
        file = path.parent / name
        if not file.is_file():
            raise ModelError(f"{name} must lie beside {path.name}, found that it is gone")
        if _file_digest(file) != expected:
            raise ModelError(f"{name} must be as it was saved, found its checksum wrong")
    return dict(values)


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
