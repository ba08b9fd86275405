"""Files on disk: reading what may be anything, atomic writing, and locks between processes.

What the files mean belongs to the callers.
"""

import contextlib
import errno
import glob
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pose.errors import InputError

try:
    import fcntl
except ImportError:  # Windows; what takes no lock works there
    fcntl = None  # type: ignore[assignment]

# Windows lacks them.
O_NONBLOCK = getattr(os, "O_NONBLOCK", 0)
O_CLOEXEC = getattr(os, "O_CLOEXEC", 0)

# A larger file in a folder of images is not an image: a photograph of 200 megapixels takes
# 40 MB as JPG and 600 MB without compression.
MAX_BYTES = 1 << 30
# For files of weights, which may be as large as memory is.
ANY_SIZE = 1 << 62
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe (FIFO)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class NotAFileError(OSError):
    """Something that is there, but is not a file, or is too large to read; the message names it."""


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary sibling of `path` to write to; it takes the place of `path` at the end.

    A kill at any moment leaves either the old file or the new one, whole. On an exception the
    old file stays and the temporary one is removed.

    Raises:
        InputError: it cannot be written; the message says why, and what room there is.
    """
    # A name may have 255 bytes, including what is added to it here.
    name = path.name.encode(errors="surrogateescape")[:200].decode(errors="ignore")
    partial = path.with_name(f".{name}.{os.getpid()}.partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            with open(partial, "rb") as written:
                os.fsync(written.fileno())
            os.replace(partial, path)
            # The rename itself must be on disk too, or a power cut may bring the old file back.
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure of the file system in the block into a line about `path`.

    Raises:
        InputError: it cannot be written; the message says why, and what room there is.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = _why_not_written(error)
        if reason is None:
            raise
        if reason == "disk full":
            reason += f", {megabytes(_free(path))} free"
        raise InputError(
            f"{path} must be written, found: {reason}; the same command goes on once it can be"
        ) from error


def make_folder(folder: Path) -> None:
    """Make `folder` where there is none.

    Raises:
        InputError: it cannot be made; the message says why.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def _why_not_written(error: BaseException) -> str | None:
    """What the system said; torch says something else about a file that it could not write."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError):
            return "disk full" if is_full(found) else reason_of(found)
        found = found.__cause__ or found.__context__
    return None


def is_full(error: OSError) -> bool:
    """Whether a disk or somebody's share of it has no room left."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_room(folder: Path, num_bytes: int, option: str, what: str, advice: str = "") -> None:
    """Ask before it is taken: a disk that fills up to see whether it is large enough is full.

    Raises:
        InputError: the disk of `folder`, which `option` names, has no room for `num_bytes`.
    """
    if _free(folder) < num_bytes:
        raise no_room(folder, num_bytes, option, what, advice)


def no_room(folder: Path, num_bytes: int, option: str, what: str, advice: str = "") -> InputError:
    """The error of a disk that has no room for `what`; `advice` ends the line."""
    return InputError(
        f"{option} must have room for {megabytes(num_bytes)} of {what}, found "
        f"{megabytes(_free(folder))} free in {folder} (disk full): give another "
        f"--{option.replace('_', '-')}{advice}"
    )


def megabytes(num_bytes: int) -> str:
    """A number of bytes for people."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def _free(path: Path) -> int:
    place = path.absolute()
    while not place.is_dir():
        place = place.parent
    return shutil.disk_usage(place).free


def remove_partials(folder: Path) -> None:
    """Remove what killed writers left below `folder`. Nobody may be writing there."""
    for left in folder.rglob(".*.partial"):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink(missing_ok=True)


def is_partial(path: Path) -> bool:
    """Whether a name is one of those that `atomic_path` writes to."""
    return path.name.startswith(".") and path.suffix == ".partial"


def remove_dead_partials(path: Path) -> None:
    """Remove what killed processes of this machine left of `path`; others may be writing it."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        pid = left.name.removesuffix(".partial").rpartition(".")[2]
        if pid.isdecimal() and not is_alive(int(pid)):
            with contextlib.suppress(OSError):
                left.unlink()


def is_alive(pid: int) -> bool:
    """Whether there is a process with this number on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        # Somebody else's.
        pass
    return True


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, in UTF-8."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """What the file `path` holds; for many small files, in two thirds of `Path.read_bytes`'s time.

    Raises:
        NotAFileError: a folder, a pipe, a device or a socket, which might never end; or a file of
            more than `limit` bytes.
        OSError: it cannot be read.
    """
    # A pipe that nobody writes to is opened at once; on a file the flag does nothing.
    descriptor = os.open(path, os.O_RDONLY | O_NONBLOCK | O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise NotAFileError(f"{kind_of(status.st_mode)}, not a file")
        if status.st_size > limit:
            raise NotAFileError(f"a file of {status.st_size / 1e6:.0f} MB")
        data = os.read(descriptor, status.st_size)
        if len(data) == status.st_size:
            return data
        # Shrunk meanwhile, interrupted, or more than a system gives at once.
        parts = [data]
        rest = status.st_size - len(data)
        while rest and (data := os.read(descriptor, rest)):
            parts.append(data)
            rest -= len(data)
        return b"".join(parts)
    finally:
        os.close(descriptor)


def kind_of(mode: int) -> str:
    """What a mode of `os.stat` is, in words."""
    return next((words for is_kind, words in _KINDS if is_kind(mode)), "a file")


def reason_of(error: OSError) -> str:
    """Why a file cannot be read, in a few words without its name."""
    return (error.strerror or str(error)).lower() if error.errno else str(error)


def file_to_write(path: Path, option: str) -> Path:
    """Where a file that was named by `option` is to be written: `path`, links followed.

    Raises:
        InputError: its folder is not one or cannot be written to, or something other than a file
            is there, which would be replaced: a folder, a device, a pipe.
    """
    target = Path(os.path.realpath(path))
    if any(
        str(place.absolute()).startswith(("/dev/", "/proc/", "/sys/")) for place in (path, target)
    ):
        # Standard output may be a file today: to put another in its place is never what was meant.
        raise InputError(f"{option} must be a file in a folder, got {_short(path)}, of the system")
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG
    except (OSError, ValueError) as error:
        why = reason_of(error) if isinstance(error, OSError) else str(error)
        raise InputError(
            f"{option} must be a file that can be written, got {_short(path)} ({why})"
        ) from None
    if not stat.S_ISREG(mode):
        raise InputError(
            f"{option} must be a file in a folder that exists, got {_short(path)}, which is "
            f"{kind_of(mode)}"
        )
    if not target.parent.is_dir():
        raise InputError(f"{option} must be a file in a folder that exists, got {_short(path)}")
    if not os.access(target.parent, os.W_OK):
        raise InputError(f"{option} must be in a folder that can be written to, got {_short(path)}")
    return target


def refuse_foreign(folder: Path, names: Iterable[str], mark: str, option: str) -> None:
    """Keep outputs from replacing files of their names that are somebody else's.

    Args:
        mark: the file that tells that all are ours.

    Raises:
        InputError: such a file is there, and `mark` is not.
    """
    there = [name for name in names if os.path.lexists(folder / name)]
    if there and not os.path.lexists(folder / mark):
        raise InputError(
            f"{option} must not hold another {there[0]}, got {_short(folder)}, which has one: "
            "give another folder"
        )


def is_a_table(head: bytes) -> bool:
    """Whether a file that begins so may be one of our tables: every row has two cells or more."""
    rows = head[: head.rfind(b"\n") + 1].splitlines() or [head]
    return b"\0" not in head and all(b"," in row for row in rows)


def is_a_record(head: bytes) -> bool:
    """Whether a file that begins so may be JSON that we wrote."""
    return head.startswith(b"{")


def is_parquet(head: bytes) -> bool:
    """Whether a file begins as Parquet does."""
    return head.startswith(b"PAR1")


def refuse_other_kind(path: Path, option: str, is_kind: Callable[[bytes], bool]) -> None:
    """Keep an output from replacing a file of another kind: a database, a program, a text.

    Args:
        is_kind: whether a file that begins so may be replaced.

    Raises:
        InputError: one that may not is there.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(
            f"{option} must be a file that can be written, got {_short(path)} ({reason_of(error)})"
        ) from None
    if head and not is_kind(head):
        raise InputError(
            f"{option} must not replace a file of another kind, got {_short(path)}, which is not "
            "what would be written there: give another name, or remove it"
        )


def _short(path: Path) -> str:
    text = str(path)
    return repr(text if len(text) < 200 else f"{text[:100]}...{text[-60:]}")


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock file `path`; it is free again when the process ends, however it ends.

    Raises:
        BlockingIOError: another process holds it and `wait` is false.
        InputError: something other than a file is in its place, or the system has no such locks.
        OSError: it cannot be made.
    """
    if fcntl is None:
        raise InputError("pose needs Linux or macOS, found no fcntl: on Windows use WSL")
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _open_lock(path)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InputError(f"the lock {path} must be a plain file: remove what is there")
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def _open_lock(path: Path) -> int:
    """A descriptor of the lock file. What is there is never followed, emptied or waited for."""
    flags = os.O_CREAT | os.O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC
    try:
        return os.open(path, os.O_RDWR | flags, 0o666)
    except PermissionError:
        if not path.exists():
            raise
        # Somebody else's file: it can be locked all the same.
        return os.open(path, os.O_RDONLY | flags & ~os.O_CREAT)
    except OSError as error:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise InputError(
                f"the lock {path} must be a plain file: remove what is there"
            ) from error
        raise
