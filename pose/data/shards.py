"""Images in tar files, as WebDataset has them: what is in a tar, and the bytes of its members.

A tar is read as a list of names with places in the file, once, from its beginning to its end.
Nothing is unpacked; links, devices and names that lead out of it are never followed.
"""

import contextlib
import dataclasses
import itertools
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from pose.errors import InputError, one_line, printable
from pose.files import O_CLOEXEC, O_NONBLOCK, kind_of, read_bytes, reason_of

TAR_SUFFIX = ".tar"
# Files outside of tars that lie together, by their names.
FILES_PER_SHARD = 1000
# What lies between two members is read with them up to so many bytes: a disk needs as long to find
# the second.
READ_OVER = 1 << 20
# What a reader of a damaged tar stumbles over: sizes that are no numbers, below zero or endless.
_DAMAGE = (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError, MemoryError)


@dataclasses.dataclass(frozen=True, slots=True)
class TarMember:
    """A file in a tar file, not unpacked.

    Attributes:
        tar: the tar file.
        inner: the member's name in it.
        offset: where its bytes begin in the tar file.
        size: how many they are.
    """

    tar: Path
    inner: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.tar}/{self.inner}"

    @property
    def name(self) -> str:
        """Its name without folders, and the tar's."""
        return f"{self.tar.name}/{self.inner}"

    @property
    def suffix(self) -> str:
        """As that of a path."""
        return os.path.splitext(self.inner)[1]


# Where an image's bytes are.
ImageFile = Path | TarMember


def read_file(file: ImageFile) -> bytes:
    """The bytes of an image file.

    Raises:
        OSError: they cannot be read; as `pose.files.read_bytes`.
    """
    if isinstance(file, Path):
        return read_bytes(file)
    with _opened(file.tar) as handle:
        data = os.pread(handle.fileno(), file.size, file.offset)
    if len(data) < file.size:
        raise OSError(f"{file.tar.name} has become shorter")
    return data


def status_of(file: ImageFile) -> os.stat_result:
    """What the system says of an image file, or of the tar that it is in.

    Raises:
        OSError: it cannot be asked.
    """
    return (file if isinstance(file, Path) else file.tar).stat()


def version_of(file: ImageFile) -> str:
    """What a file's bytes go with, as far as the system says it without reading them."""
    try:
        status = status_of(file)
    except OSError:
        # A link to nowhere: a bad file, like everything that cannot be read.
        return "unreadable"
    return f"{status.st_size}\0{status.st_mtime_ns}"


def absolute_name(file: ImageFile) -> str:
    """What no other image file is called, now."""
    if isinstance(file, Path):
        return str(file.absolute())
    return f"{file.tar.absolute()}\0{file.inner}\0{file.offset}\0{file.size}"


def absolute_file(file: ImageFile) -> ImageFile:
    """The same file for whoever works in another folder."""
    if isinstance(file, Path):
        return file.absolute()
    return dataclasses.replace(file, tar=file.tar.absolute())


def reading_order(files: Sequence[ImageFile]) -> list[int]:
    """The rows of `files` in the order to read them all in: each tar from its start to its end."""
    rows = list(range(len(files)))
    if any(isinstance(file, TarMember) for file in files):
        rows.sort(key=lambda row: _place(files[row]))
    return rows


def shards_of(files: Sequence[ImageFile]) -> list[list[int]]:
    """The rows of each tar in the order of its members, and of other files by the thousand."""
    shards: dict[str | int, list[int]] = {}
    num_single = 0
    for row in reading_order(files):
        file = files[row]
        if isinstance(file, TarMember):
            shards.setdefault(str(file.tar), []).append(row)
        else:
            shards.setdefault(num_single // FILES_PER_SHARD, []).append(row)
            num_single += 1
    return list(shards.values())


def announce(files: Iterable[ImageFile]) -> None:
    """Have the system bring members of tars into its memory, in the order in which they lie.

    A hint: nothing is said where it cannot be given.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    members = sorted((file for file in files if isinstance(file, TarMember)), key=_place)
    for tar, own in itertools.groupby(members, key=lambda member: member.tar):
        with contextlib.suppress(OSError), _opened(tar) as handle:
            for start, end in _ranges(own):
                os.posix_fadvise(handle.fileno(), start, end - start, os.POSIX_FADV_WILLNEED)


def _ranges(members: Iterable[TarMember]) -> Iterator[tuple[int, int]]:
    """Start and end of the parts of a tar that its members, in order, lie in."""
    start = end = -1
    for member in members:
        if start >= 0 and member.offset - end > READ_OVER:
            yield start, end
            start = -1
        start, end = (member.offset if start < 0 else start), member.offset + member.size
    yield start, end


def _place(file: ImageFile) -> tuple[str, int]:
    return (str(file), 0) if isinstance(file, Path) else (str(file.tar), file.offset)


def list_tar(path: Path) -> tuple[list[TarMember], dict[str, str]]:
    """The files in a tar in their order, and what else is in it, by name, with what it is.

    Folders and hidden files are left out.

    Raises:
        InputError: it is not a whole tar file.
    """
    members: list[TarMember] = []
    odd: dict[str, str] = {}
    try:
        with _opened(path) as handle:
            for info in _infos(handle):
                name = str(PurePosixPath(info.name))
                if info.isdir() or _is_hidden(name):
                    continue
                if (what := _oddity(info)) is not None:
                    odd[info.name] = what
                else:
                    members.append(TarMember(path, name, info.offset_data, info.size))
    except _DAMAGE as error:
        found = one_line(error) or type(error).__name__
        raise _not_whole(path, found) from None
    except OSError as error:
        raise _not_whole(path, reason_of(error)) from None
    return members, odd


def _not_whole(path: Path, found: str) -> InputError:
    return InputError(
        f"{printable(str(path))} must be a whole tar file without compression, found: {found}; "
        "make it again, or move it away"
    )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    # A pipe that nobody writes to is opened at once; on a file the flag does nothing.
    descriptor = os.open(path, os.O_RDONLY | O_NONBLOCK | O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as handle:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(f"{kind_of(mode)}, not a file")
        yield handle


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") and part != ".." for part in name.split("/"))


def _oddity(info: tarfile.TarInfo) -> str | None:
    """Why a member is not read; None for a plain file within the tar's own tree."""
    if info.issym() or info.islnk():
        return "a link: not followed"
    if not info.isreg() or info.issparse():
        return "not a plain file"
    if info.name.startswith("/") or ".." in info.name.split("/"):
        return "a name that leads out of the tar"
    try:
        info.name.encode()
    except UnicodeEncodeError:
        return "a name that is not UTF-8"
    return None


def _infos(handle: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The headers of an open tar, which must be whole: tarfile takes damage for the end.

    Raises:
        tarfile.TarError, ValueError: it is not.
    """
    num_bytes = os.fstat(handle.fileno()).st_size
    with tarfile.open(fileobj=handle, mode="r:", encoding="utf-8") as tar:
        end = 0
        while (info := tar.next()) is not None:
            if info.size < 0 or tar.offset <= end:
                raise ValueError(f"a damaged header at byte {info.offset}")
            end = tar.offset
            if info.offset_data + info.size > num_bytes:
                raise ValueError(f"its end is missing, behind {printable(info.name)[:100]}")
            # It would keep them all.
            tar.members = []  # type: ignore[attr-defined]
            yield info
    # Where the next header would be, a block of zeros says that none comes.
    if num_bytes - end < tarfile.BLOCKSIZE:
        raise ValueError("its end is missing")
    handle.seek(end)
    while block := handle.read(1 << 16):
        if block.strip(b"\0"):
            raise ValueError(f"a damaged header, or a second tar, behind byte {end}")
