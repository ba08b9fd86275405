"""The decoded images of a list of files, on disk, memory-mapped.

A cache is built once and then shared: by all seeds, by validation, by later runs and by other
processes. Which files belong to it and what they mean is the caller's business.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from pose.errors import InputError
from pose.files import locked, write_text
from pose.images import BadImageError, read_image

# Part of every key: raise it when the same files would be decoded to other bytes.
FORMAT = 4

# Images that one task decodes and writes.
CHUNK = 64

# Shows that `done` of `total` images are decoded.
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageCache:
    """Decoded images in the order of the files they were asked for.

    Attributes:
        images: `(N, 3, size, size)` uint8. Memory-mapped: reading rows fills the system's page
            cache, not the process's own memory. Rows of bad files must not be used.
        digests: SHA-256 of each file's bytes, hexadecimal.
        bad: why a file could not be decoded, by row.
    """

    images: torch.Tensor
    digests: tuple[str, ...]
    bad: dict[int, str]


def default_cache_root() -> Path:
    """`$POSE_CACHE`, else `~/.cache/pose`."""
    return Path(os.environ.get("POSE_CACHE") or Path.home() / ".cache" / "pose")


def open_cache(
    files: Sequence[Path],
    size: int,
    *,
    cache_root: Path | None = None,
    num_workers: int = 0,
    progress: Progress | None = None,
) -> ImageCache:
    """The cache of `files` at `size` pixels, built if it is not there yet.

    The key is made of paths, sizes and times of modification, so a changed file gives a new
    cache. Two processes that ask for the same cache build it once; the second waits.

    Args:
        num_workers: threads that decode; 0: one per core.
        progress: called while building, from this thread.

    Raises:
        InputError: the cache's folder cannot be written to, or its disk is full.
    """
    root = cache_root or default_cache_root()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cache_root must be a folder that can be written to, got {str(root)!r} "
            f"({error.strerror}): give another --cache-root"
        ) from error
    folder = root / _key(files, size)
    if not (folder / "index.json").exists():
        with locked(root / f"{folder.name}.lock"):
            if not (folder / "index.json").exists():
                _build(folder, files, size, num_workers or os.cpu_count() or 1, progress)
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    shape = (len(files), 3, size, size)
    # Copy on write: torch asks for writable memory, and the file must never change.
    pixels = np.memmap(folder / "images.u8", dtype=np.uint8, mode="c", shape=shape)
    return ImageCache(
        images=torch.from_numpy(pixels),
        digests=tuple(index["digests"]),
        bad={int(row): reason for row, reason in index["bad"].items()},
    )


def _key(files: Sequence[Path], size: int) -> str:
    digest = hashlib.sha256(f"{FORMAT} {size}".encode())
    for path in files:
        try:
            stat = path.stat()
            version = f"{stat.st_size}\0{stat.st_mtime_ns}"
        except OSError:
            # A link to nowhere: one of the bad files, as everything that cannot be read.
            version = "unreadable"
        digest.update(f"\n{path.absolute()}\0{version}".encode())
    return f"{digest.hexdigest()[:20]}-{size}px"


def _build(
    folder: Path, files: Sequence[Path], size: int, num_workers: int, progress: Progress | None
) -> None:
    # What an interrupted build left behind; the lock says that nobody is at work in it.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shape = (len(files), 3, size, size)
    with open(folder / "images.u8", "wb") as handle:
        num_bytes = math.prod(shape)
        try:
            # Taken now: a disk that fills up later would kill the process at a write to the map.
            os.posix_fallocate(handle.fileno(), 0, num_bytes)
        except OSError as error:
            raise InputError(
                f"cache_root must have room for {num_bytes / 1e9:.1f} GB of decoded images, found "
                f"none in {folder.parent} ({error.strerror}): give another --cache-root"
            ) from error
    digests = [""] * len(files)
    bad: dict[int, str] = {}

    def decode(rows: range) -> None:
        # Written a chunk at a time: a memory-mapped file costs a page fault for every 4 KiB.
        chunk = np.zeros((len(rows), 3, size, size), dtype=np.uint8)
        for place, row in enumerate(rows):
            try:
                data = files[row].read_bytes()
                digests[row] = hashlib.sha256(data).hexdigest()
                chunk[place] = read_image(data, size).numpy()
            except (BadImageError, OSError) as error:
                bad[row] = str(error)
        _write_at(handle.fileno(), chunk, rows.start * math.prod(shape[1:]))

    with (
        open(folder / "images.u8", "r+b") as handle,
        concurrent.futures.ThreadPoolExecutor(num_workers) as pool,
    ):
        starts = range(0, len(files), CHUNK)
        tasks = [pool.submit(decode, range(len(files))[start : start + CHUNK]) for start in starts]
        try:
            for done, task in enumerate(concurrent.futures.as_completed(tasks), start=1):
                task.result()
                # While the others decode: at the end there is little left to wait for.
                os.fsync(handle.fileno())
                if progress:
                    progress(min(done * CHUNK, len(files)), len(files))
        except BaseException:
            for task in tasks:
                task.cancel()
            raise
    # The index comes last: a folder without one is no cache.
    index = {"digests": digests, "bad": {str(row): bad[row] for row in sorted(bad)}}
    write_text(folder / "index.json", json.dumps(index))


def _write_at(descriptor: int, values: np.ndarray, offset: int) -> None:
    """Write all of `values` at `offset`; the system may take less than it was given."""
    rest = memoryview(values).cast("B")
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written
