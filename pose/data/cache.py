"""The decoded images of a list of files, on disk, memory-mapped.

A cache is built once and then shared: by all seeds, by validation, by later runs and by other
processes. Which files belong to it and what they mean is the caller's business.

A cache is not believed blindly. Its key has each file's path, size and time of modification. When
it is opened, files whose time of change differs from the index and `NUM_SAMPLES` more, spread
evenly, are hashed again, and pixels are compared with their checksums (all of a small cache, a
part of a large one). What does not agree is built anew, and the user is told.
"""

import concurrent.futures
import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import threading
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pose.data.decoding import Decoding, decode_file
from pose.data.shards import (
    ImageFile,
    absolute_name,
    read_file,
    reading_order,
    status_of,
    version_of,
)
from pose.data.streamed import Images
from pose.errors import InputError, one_line
from pose.files import (
    check_room,
    is_full,
    locked,
    no_room,
    read_bytes,
    reason_of,
    write_text,
)
from pose_models.framing import Framing, as_framing

# Part of every key: raise it when the same files would be decoded to other bytes.
FORMAT = 5

# Files that are hashed again when a cache is opened: with 64, spread evenly, replacing one file
# in twenty goes unnoticed in 4 cases out of 100.
NUM_SAMPLES = 64
# Bytes of pixels that are compared with their checksums at the same time.
CHECKED_BYTES = 64 << 20

# Images that one task decodes and writes: so many fit in the second-level cache.
CHUNK = 16

# The file that makes a folder a cache; it is written last.
INDEX = "index.json"
PIXELS = "images.u8"

# What else can be done where there is no room.
ADVICE = ", or decode them while they are needed: --cache stream"

# Shows that `done` of `total` images are decoded.
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageCache:
    """Decoded images in the order of the files they were asked for.

    Attributes:
        images: `(N, 3, S, S)` uint8, S the framing's canvas. Memory-mapped: reading rows fills the
            system's page cache, not the process's own memory; or streamed. Rows of bad files must
            not be used.
        digests: SHA-256 of each file's bytes, hexadecimal.
        bad: why a file could not be decoded, by row.
        folder: where it is on disk. What is made of the pixels may be kept there: it goes when they
            are made anew.
        notes: what a person should know about it, in lines.
    """

    images: Images
    digests: tuple[str, ...]
    bad: dict[int, str]
    folder: Path
    notes: tuple[str, ...] = ()


class DamagedError(Exception):
    """A cache that is there and must not be used; the message says why."""


def default_cache_root() -> Path:
    """`$POSE_CACHE`, else `~/.cache/pose`."""
    return Path(os.environ.get("POSE_CACHE") or "~/.cache/pose").expanduser()


def cache_root_of(named: str | None) -> Path:
    """The folder of decoded images that was named, else the default one."""
    return Path(named) if named else default_cache_root()


def open_cache(
    files: Sequence[ImageFile],
    size: int | Framing,
    *,
    cache_root: Path | None = None,
    num_workers: int = 0,
    progress: Progress | None = None,
    obey_exif: bool = True,
) -> ImageCache:
    """The cache of `files` at `size` pixels, or in another framing; built if not there yet.

    The key is made of paths, sizes and times of modification, so a changed file gives a new
    cache. Two processes that ask for the same cache build it once; the second waits. One that is
    damaged or no longer agrees with the files is built anew.

    A cache that was built here is returned before it is on disk: a thread sees to that, and the
    process does not end before it has. If it is killed earlier, the next one builds anew.

    Args:
        num_workers: threads that decode; 0: one per core.
        progress: called while building, from this thread.
        obey_exif: turn images as their metadata asks.

    Raises:
        InputError: the cache's folder cannot be written to, or its disk has no room.
    """
    root = cache_root or default_cache_root()
    decoding = Decoding(files, as_framing(size), obey_exif)
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder = root / key_of(decoding)
        with contextlib.suppress(DamagedError):
            if found := _find(folder, decoding):
                return found
        with contextlib.ExitStack() as lock:
            lock.enter_context(locked(root / f"{folder.name}.lock"))
            notes: tuple[str, ...] = ()
            try:
                if found := _find(folder, decoding):
                    return found
            except DamagedError as error:
                notes = (f"the decoded images in {folder} are made anew: {error}",)
            index = _build(folder, decoding, num_workers or os.cpu_count() or 1, progress)
            # Waiting for the disk takes longer than decoding; the lock is kept until then.
            args = (folder, index, lock.pop_all())
            threading.Thread(target=_save, args=args, name="save cache").start()
            return dataclasses.replace(_open(folder, decoding, index), notes=notes)
    except OSError as error:
        raise InputError(
            f"cache_root must be a folder that can be written to, got {str(root)[:200]!r} "
            f"({reason_of(error)}): give another --cache-root"
        ) from error


def _find(folder: Path, decoding: Decoding) -> ImageCache | None:
    """The cache in `folder`; None if there is none, or only what an interrupted build left.

    Raises:
        DamagedError: it must not be used.
    """
    try:
        index = json.loads(read_bytes(folder / INDEX))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DamagedError(f"{INDEX} cannot be read ({type(error).__name__})") from None
    check_index(index, len(decoding.files), ("checksums", "changed"))
    try:
        found = (folder / PIXELS).stat().st_size
    except OSError as error:
        raise DamagedError(f"{PIXELS}: {reason_of(error)}") from None
    if found != decoding.num_bytes:
        raise DamagedError(f"{PIXELS} has {found} bytes instead of {decoding.num_bytes}")
    check_files(decoding.files, index)
    cache = _open(folder, decoding, index)
    _check_pixels(cache, index, decoding)
    return cache


def check_index(index: Any, num_files: int, numbers: Sequence[str]) -> None:
    """Check what an index says: digests, reasons of bad files, and `numbers` of each file.

    Raises:
        DamagedError: not what was written.
    """
    try:
        is_whole = (
            all(len(index[key]) == num_files for key in ("digests", *numbers))
            and all(isinstance(digest, str) for digest in index["digests"])
            and all(isinstance(n, int) for key in numbers for n in index[key])
            and all(0 <= int(row) < num_files for row in index["bad"])
            and all(isinstance(reason, str) for reason in index["bad"].values())
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        is_whole = False
    if not is_whole:
        raise DamagedError(f"{INDEX} is damaged")


def spread_rows(count: int, limit: int) -> list[int]:
    """At most `limit` of `count` rows, spread evenly, the first and the last among them."""
    return sorted(set(np.linspace(0, count - 1, min(count, limit)).astype(int).tolist()))


def check_files(files: Sequence[ImageFile], index: dict[str, Any]) -> None:
    """Check files that seem changed, and a sample of the others.

    Raises:
        DamagedError: a file has other bytes than those that were decoded.
    """
    suspects = {row for row, path in enumerate(files) if changed_at(path) != index["changed"][row]}
    for row in sorted(suspects | set(spread_rows(len(files), NUM_SAMPLES))):
        try:
            digest = hashlib.sha256(read_file(files[row])).hexdigest()
        except OSError:
            digest = ""
        if digest != index["digests"][row]:
            raise DamagedError(f"{files[row].name} has other bytes than when it was decoded")


def _check_pixels(cache: ImageCache, index: dict[str, Any], decoding: Decoding) -> None:
    """Check a sample of the pixels.

    Raises:
        DamagedError: pixels are not those that were decoded.
    """
    limit = max(NUM_SAMPLES, CHECKED_BYTES // decoding.image_bytes)
    for row in spread_rows(len(decoding.files), limit):
        if zlib.crc32(cache.images[row].numpy().data) != index["checksums"][row]:
            raise DamagedError(f"the pixels of {decoding.files[row].name} are damaged")


def changed_at(file: ImageFile) -> int:
    """When a file's bytes or name last changed, by the system's clock: no program can set it."""
    try:
        return status_of(file).st_ctime_ns
    except OSError:
        return 0


def _open(folder: Path, decoding: Decoding, index: dict[str, Any]) -> ImageCache:
    # Copy on write: torch asks for writable memory, and the file must never change.
    shape = (len(decoding.files), 3, decoding.size, decoding.size)
    pixels = np.memmap(folder / PIXELS, dtype=np.uint8, mode="c", shape=shape)
    return ImageCache(
        images=torch.from_numpy(pixels),
        digests=tuple(index["digests"]),
        bad={int(row): reason for row, reason in index["bad"].items()},
        folder=folder,
    )


def key_of(decoding: Decoding) -> str:
    """A name for what comes of files: others have other paths, sizes or times of modification."""
    turned = "" if decoding.obey_exif else " as stored"
    framed = "" if decoding.framing.rule == "resize" else f" {decoding.framing.rule}"
    digest = hashlib.sha256(f"{FORMAT} {decoding.size}{turned}{framed}".encode())
    for file in decoding.files:
        digest.update(os.fsencode(f"\n{absolute_name(file)}\0{version_of(file)}"))
    return f"{digest.hexdigest()[:20]}-{decoding.size}px"


def _build(
    folder: Path, decoding: Decoding, num_workers: int, progress: Progress | None
) -> dict[str, Any]:
    """Decode the files into the cache's pixels; returns what its index has to say.

    Nothing is left of what could not be built whole.

    Raises:
        InputError: the disk has no room.
        OSError: the folder cannot be written to.
    """
    # What an interrupted build left behind; the lock says that nobody else is at work in it.
    _remove(folder)
    room = (folder.parent, decoding.num_bytes, "cache_root", "decoded images", ADVICE)
    check_room(*room)
    try:
        folder.mkdir(parents=True)
        return _decode_all(folder, decoding, num_workers, progress)
    except BaseException as error:
        _remove(folder)
        if isinstance(error, OSError) and is_full(error):
            raise no_room(*room) from error
        raise


def _remove(folder: Path) -> None:
    """Make room at `folder`, whatever is there."""
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder, ignore_errors=True)
    else:
        # `rmtree` opens what it is given, and would wait for ever at a pipe.
        folder.unlink(missing_ok=True)


def _decode_all(
    folder: Path, decoding: Decoding, num_workers: int, progress: Progress | None
) -> dict[str, Any]:
    files, image_shape = decoding.files, (3, decoding.size, decoding.size)
    digests = [""] * len(files)
    checksums = [0] * len(files)
    # Before they are read: a file that changes meanwhile is a suspect at once.
    changed = [changed_at(path) for path in files]
    bad: dict[int, str] = {}

    thread = threading.local()
    ways = [(decoding.framing, decoding.obey_exif)]

    def decode(rows: Sequence[int]) -> None:
        # Written, not mapped: a memory-mapped file costs a page fault for every 4 KiB. One array
        # per thread: new ones for each task cost 4 % of the time.
        if not hasattr(thread, "chunk"):
            thread.chunk = np.empty((CHUNK, *image_shape), dtype=np.uint8)
        chunk = thread.chunk[: len(rows)]
        for place, row in enumerate(rows):
            digests[row], pixels, reason = decode_file(files[row], ways)
            if reason:
                bad[row] = reason
            chunk[place] = 0 if reason else pixels[0]
            checksums[row] = zlib.crc32(chunk[place])
        _write_rows(handle.fileno(), chunk, rows)

    with (
        open(folder / PIXELS, "wb") as handle,
        concurrent.futures.ThreadPoolExecutor(num_workers) as pool,
    ):
        _reserve(handle.fileno(), decoding.num_bytes)
        order = reading_order(files)
        starts = range(0, len(files), CHUNK)
        tasks = [pool.submit(decode, order[start : start + CHUNK]) for start in starts]
        try:
            for done, task in enumerate(concurrent.futures.as_completed(tasks), start=1):
                task.result()
                if progress:
                    progress(min(done * CHUNK, len(files)), len(files))
        except BaseException:
            for task in tasks:
                task.cancel()
            raise
    return {
        "digests": digests,
        "checksums": checksums,
        "changed": changed,
        "bad": {str(row): bad[row] for row in sorted(bad)},
    }


def _reserve(descriptor: int, num_bytes: int) -> None:
    """Take the room on disk now, not when half of the images are decoded."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, num_bytes)
            return
        except OSError as error:
            # Some file systems cannot do this.
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise
    # macOS has no such call: room is taken as it is written.
    os.truncate(descriptor, num_bytes)


def _save(folder: Path, index: dict[str, Any], lock: contextlib.ExitStack) -> None:
    """Bring the pixels to the disk, then write the index: a folder without one is no cache."""
    with lock:
        try:
            with open(folder / PIXELS, "rb") as handle:
                os.fsync(handle.fileno())
            write_text(folder / INDEX, json.dumps(index))
        except (OSError, InputError) as error:
            warnings.warn(
                f"the decoded images could not be kept in {folder} ({one_line(error)}): this run "
                "goes on with them, the next one decodes again",
                stacklevel=1,
            )


def _write_rows(descriptor: int, images: np.ndarray, rows: Sequence[int]) -> None:
    """Write `images` `(n, 3, S, S)` where `rows` `(n,)` lie: at once, if they lie together."""
    image_bytes = images[0].nbytes
    if rows == list(range(rows[0], rows[0] + len(rows))):
        _write_at(descriptor, images, rows[0] * image_bytes)
        return
    for image, row in zip(images, rows, strict=True):
        _write_at(descriptor, image, row * image_bytes)


def _write_at(descriptor: int, values: np.ndarray, offset: int) -> None:
    """Write all of `values` at `offset`; the system may take less than it was given."""
    rest = values.data.cast("B")
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written
