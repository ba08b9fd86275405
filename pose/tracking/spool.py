"""What a run records, on disk and in order before it is sent: a file of JSON lines.

A line is a record, or says that one has been delivered:

    {"crc32": "5d0f8a11", "seq": 7, "at": 1764250000000, "do": "epochs", "rows": [{...}]}
    {"crc32": "90c31b7e", "delivered": 7}

Lines are only ever appended, and a record is on disk before its caller goes on. A line that a kill
cut short counts as never written, and is closed by a control character; any other that is not as
it was written is lost. Earlier versions wrote lines without a checksum. Files are named relative
to the spool's folder, with the SHA-256 of what they held. What the records mean is decided in
`pose.tracking.deliveries`.
"""

import dataclasses
import hashlib
import json
import os
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pose.errors import InputError
from pose.files import ANY_SIZE, O_CLOEXEC, O_NONBLOCK, read_bytes, reason_of, writing

# In the run's folder, beside those of its seeds.
SPOOL = "spool.jsonl"
# ASCII's CANCEL, which JSON never holds: what stands before it in a line was never written.
_CANCEL = b"\x18"
_SEAL = b'{"crc32": "%08x", '
# More than any run records; all numbers up to the last are looked at.
_MAX_NUMBER = 10_000_000
_SEAL_LENGTH = len(_SEAL % 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One thing to be recorded.

    Attributes:
        seq: from 1, in the order in which things happened.
        at: when, in milliseconds since 1970.
        do: what kind of thing.
        values: what JSON can hold.
    """

    seq: int
    at: int
    do: str
    values: dict[str, Any]


class Spool:
    """The records of one run; for one process at a time, and any of its threads.

    Raises:
        InputError: what is at `path` cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._records: list[Record] = []
        self._waiting: dict[int, Record] = {}
        self._facts: dict[int, dict[str, Any]] = {}
        # What ends the line that a kill or a full disk cut short.
        self._closing = b""
        self._last_seq = 0
        self._lost: list[int] = []
        if os.path.lexists(path):
            self._read()

    @property
    def folder(self) -> Path:
        """What the names of files are relative to: the run's folder."""
        return self.path.parent

    def _read(self) -> None:
        try:
            data = read_bytes(self.path)
        except OSError as error:
            raise InputError(
                f"{self.path} must be the record of its run, found: {reason_of(error)}: remove it, "
                "or give another --run-name"
            ) from error
        *lines, rest = data.split(b"\n")
        num_at_end = 0
        for line in lines:
            num_before = len(self._records)
            if not self._take(line):
                num_at_end += _may_be_record(line)
            elif len(self._records) > num_before:
                num_at_end = 0
        if rest:
            self._closing = b"\n" if self._take(rest) else _CANCEL + b"\n"
        self._find_lost(num_at_end if _SEAL[:11] in data else 0)
        self._waiting = {r.seq: r for r in self._records if r.seq not in self._facts}

    def _take(self, line: bytes) -> bool:
        """Whether a line is as it was written; what it says is kept."""
        try:
            values = json.loads(_unsealed(line))
            if "delivered" in values:
                self._facts[_number(values.pop("delivered"))] = values
            else:
                head = {name: values.pop(name) for name in ("seq", "at", "do")}
                _number(head["seq"])
                self._records.append(Record(**head, values=values))
        except (ValueError, TypeError, KeyError, AttributeError):
            return False
        return True

    def _find_lost(self, num_at_end: int) -> None:
        """The numbers that no line has; `num_at_end` damaged ones follow the last record."""
        read = {record.seq for record in self._records}
        last = max(read, default=0) + num_at_end
        self._last_seq = max(last, *self._facts, 0) if self._facts else last
        self._lost = sorted(set(range(1, self._last_seq + 1)) - read - set(self._facts))

    def append(self, do: str, **values: Any) -> Record:
        """Add a record; it is on disk when this returns.

        Raises:
            InputError: it cannot be written.
        """
        with self._lock, writing(self.path):
            seq = self._last_seq + 1
            record = Record(seq=seq, at=int(time.time() * 1000), do=do, values=values)
            self._write({"seq": seq, "at": record.at, "do": do, **values}, is_safe=True)
            self._last_seq = seq
            self._records.append(record)
            self._waiting[seq] = record
            return record

    def mark(self, record: Record, **facts: Any) -> None:
        """`record` has been delivered; `facts` are what its delivery told."""
        with self._lock:
            # A mark that a power cut takes away means that the record is delivered once more.
            self._write({"delivered": record.seq, **facts}, is_safe=False)
            self._facts[record.seq] = facts
            self._waiting.pop(record.seq, None)

    def _write(self, line: dict[str, Any], *, is_safe: bool) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC
        body = json.dumps(line).encode()
        data = self._closing + _SEAL % zlib.crc32(body) + body[1:] + b"\n"
        self._closing = _CANCEL + b"\n"
        descriptor = os.open(self.path, flags, 0o666)
        try:
            while data:
                data = data[os.write(descriptor, data) :]
            if is_safe:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._closing = b""

    def lost(self) -> list[int]:
        """The numbers of records that were damaged before they were delivered."""
        with self._lock:
            return list(self._lost)

    def forget_lost(self) -> None:
        """Somebody has been told: they are not waited for, nor told of again."""
        with self._lock:
            for seq in self._lost:
                self._write({"delivered": seq, "lost": True}, is_safe=False)
                self._facts[seq] = {"lost": True}
            self._lost = []

    def waiting(self) -> list[Record]:
        """What has not been delivered, in order."""
        with self._lock:
            return list(self._waiting.values())

    def next_waiting(self) -> Record | None:
        """The first that has not been delivered."""
        with self._lock:
            return next(iter(self._waiting.values()), None)

    def records(self, *kinds: str) -> list[Record]:
        """All records of some kinds, in order; all there are without kinds."""
        with self._lock:
            return [record for record in self._records if not kinds or record.do in kinds]

    def facts(self, record: Record) -> dict[str, Any]:
        """What the delivery of a record told; nothing before it."""
        with self._lock:
            return self._facts.get(record.seq, {})


def waiting_in(output_root: Path, name: str = "*") -> Iterator[Path]:
    """The folders of runs in whose spools something waits, or was lost and nobody was told.

    Args:
        name: of the run's folder; default: all.
    """
    for path in sorted(output_root.glob(f"{name}/{SPOOL}")):
        spool = Spool(path)
        if spool.waiting() or spool.lost():
            yield path.parent


def _unsealed(line: bytes) -> bytes:
    """The JSON of a line, held to its checksum; an earlier version's line as it is.

    Raises:
        ValueError: it is not as it was written.
    """
    if line.startswith((b'{"seq": ', b'{"delivered": ')):
        return line
    body = b"{" + line[_SEAL_LENGTH:]
    if line[:_SEAL_LENGTH] == _SEAL % zlib.crc32(body[:-1]):
        # The line break is what was damaged.
        return body[:-1]
    if line[:_SEAL_LENGTH] != _SEAL % zlib.crc32(body):
        raise ValueError("wrong checksum")
    return body


def _number(value: object) -> int:
    """A record's number; lines without a checksum may hold anything in its place."""
    if not isinstance(value, int) or not 0 < value <= _MAX_NUMBER:
        raise ValueError("no number of a record")
    return value


def _may_be_record(line: bytes) -> bool:
    """Whether a line that is not as it was written held a record: no mark, nor cut short."""
    mark = b'"delivered"'
    is_mark = sum(x != y for x, y in zip(line[_SEAL_LENGTH:], mark, strict=False)) <= 3
    return not (line.endswith(_CANCEL) or (is_mark and len(line) > _SEAL_LENGTH + len(mark)))


def digests(folder: Path, paths: Iterable[Path]) -> dict[str, str]:
    """The SHA-256 of files, by their names relative to `folder`."""
    return {str(path.relative_to(folder)): file_digest(path) for path in paths}


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes.

    Raises:
        OSError: it cannot be read.
    """
    return hashlib.sha256(read_bytes(path, ANY_SIZE)).hexdigest()
