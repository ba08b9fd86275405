"""Arrays kept in a file, with a checksum each: whole as they were written, or not there."""

import io
import zipfile
import zlib
from pathlib import Path

import numpy as np

from pose.files import atomic_path, read_bytes, remove_dead_partials


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a file by name; None where there is none, or it is damaged."""
    try:
        # A zip file, whose parts have checksums; never pickled objects.
        with np.load(io.BytesIO(read_bytes(path)), allow_pickle=False) as kept:
            return {name: kept[name] for name in kept.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Keep arrays, atomically.

    Raises:
        InputError: they cannot be written.
    """
    remove_dead_partials(path)
    with atomic_path(path) as partial, open(partial, "wb") as handle:
        np.savez(handle, **arrays)  # type: ignore[arg-type] # its stub takes them for the flag
