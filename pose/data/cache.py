"""The decoded images of a list of files, on disk, memory-mapped.

A cache is built once and then shared: by all seeds, by validation, by later runs and by other
processes. Which files belong to it and what they mean is the caller's business.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pose.errors import InputError
from pose.files import locked, read_bytes, write_text
from pose_models.decode import BadImageError, read_image

# Part of every key: raise it when the same files would be decoded to other bytes.
FORMAT = 4

# Images that one task decodes and writes: what they take stays in the second-level cache.
CHUNK = 16

# The file that makes a folder a cache; it is written last.
INDEX = "index.json"
PIXELS = "images.u8"

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

    A cache that was built here is returned before it is on disk: a thread sees to that, and the
    process does not end before. If it is killed before, the next one builds anew.

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
    if not (folder / INDEX).exists():
        with contextlib.ExitStack() as lock:
            lock.enter_context(locked(root / f"{folder.name}.lock"))
            if not (folder / INDEX).exists():
                index = _build(folder, files, size, num_workers or os.cpu_count() or 1, progress)
                # Waiting for the disk takes longer than decoding; the lock is kept until then.
                args = (folder, index, lock.pop_all())
                threading.Thread(target=_save, args=args, name="save cache").start()
                return _open(folder, len(files), size, index)
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    return _open(folder, len(files), size, index)


def _open(folder: Path, num_images: int, size: int, index: dict[str, Any]) -> ImageCache:
    # Copy on write: torch asks for writable memory, and the file must never change.
    shape = (num_images, 3, size, size)
    pixels = np.memmap(folder / PIXELS, dtype=np.uint8, mode="c", shape=shape)
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
) -> dict[str, Any]:
    """Decode `files` into the cache's pixels; returns what its index has to say."""
    # What an interrupted build left behind; the lock says that nobody is at work in it.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    image_shape = (3, size, size)
    image_bytes = math.prod(image_shape)
    digests = [""] * len(files)
    bad: dict[int, str] = {}

    thread = threading.local()

    def decode(rows: range) -> None:
        # Written, not mapped: a memory-mapped file costs a page fault for every 4 KiB. One array a
        # thread: new ones for each task cost 4 % of the time.
        if not hasattr(thread, "chunk"):
            thread.chunk = np.empty((CHUNK, *image_shape), dtype=np.uint8)
        chunk = thread.chunk[: len(rows)]
        for place, row in enumerate(rows):
            try:
                data = read_bytes(files[row])
                digests[row] = hashlib.sha256(data).hexdigest()
                chunk[place] = read_image(data, size)
            except (BadImageError, OSError) as error:
                bad[row] = str(error)
                chunk[place] = 0
        _write_at(handle.fileno(), chunk, rows.start * image_bytes)

    with (
        open(folder / PIXELS, "wb") as handle,
        concurrent.futures.ThreadPoolExecutor(num_workers) as pool,
    ):
        _reserve(handle.fileno(), len(files) * image_bytes, folder.parent)
        starts = range(0, len(files), CHUNK)
        tasks = [pool.submit(decode, range(len(files))[start : start + CHUNK]) for start in starts]
        try:
            for done, task in enumerate(concurrent.futures.as_completed(tasks), start=1):
                task.result()
                if progress:
                    progress(min(done * CHUNK, len(files)), len(files))
        except BaseException:
            for task in tasks:
                task.cancel()
            raise
    return {"digests": digests, "bad": {str(row): bad[row] for row in sorted(bad)}}


def _reserve(descriptor: int, num_bytes: int, root: Path) -> None:
    """Take the room on disk now, not when half of the images are decoded."""
    try:
        os.posix_fallocate(descriptor, 0, num_bytes)
    except OSError as error:
        raise InputError(
            f"cache_root must have room for {num_bytes / 1e9:.1f} GB of decoded images, found "
            f"none in {root} ({error.strerror}): give another --cache-root"
        ) from error


def _save(folder: Path, index: dict[str, Any], lock: contextlib.ExitStack) -> None:
    """Bring the pixels to the disk, then write the index: a folder without one is no cache."""
    with lock:
        try:
            with open(folder / PIXELS, "rb") as handle:
                os.fsync(handle.fileno())
            write_text(folder / INDEX, json.dumps(index))
        except OSError as error:
            warnings.warn(
                f"the decoded images could not be kept in {folder} ({error.strerror}): this run "
                "goes on with them, the next one decodes again",
                stacklevel=1,
            )


def _write_at(descriptor: int, values: np.ndarray, offset: int) -> None:
    """Write all of `values` at `offset`; the system may take less than it was given."""
    rest = values.data.cast("B")
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written
