"""What a run records, on disk and in order before it is sent: a file of JSON lines.

A line is a record, or says that one has been delivered:

    {"seq": 7, "at": 1764250000000, "do": "epochs", "seed": 76, "rows": [{"epoch": 3, ...}]}
    {"delivered": 7}

Lines are only ever appended, and a record is on disk before its caller goes on. A line that a kill
cut short counts as never written. Files are named relative to the spool's folder, with the SHA-256
of what they held. What the records mean is decided in `pose.tracking.deliveries`.
"""

import dataclasses
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pose.errors import InputError
from pose.files import ANY_SIZE, O_CLOEXEC, O_NONBLOCK, read_bytes, reason_of, writing

# In the run's folder, beside those of its seeds.
SPOOL = "spool.jsonl"


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
        self._is_torn = False
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
        self._is_torn = bool(data) and not data.endswith(b"\n")
        for line in data.splitlines():
            try:
                values = json.loads(line)
                if "delivered" in values:
                    self._facts[values.pop("delivered")] = values
                else:
                    head = {name: values.pop(name) for name in ("seq", "at", "do")}
                    self._records.append(Record(**head, values=values))
            except (ValueError, TypeError, KeyError, AttributeError):
                # Cut short: whoever wrote it was killed before going on.
                continue
        self._waiting = {r.seq: r for r in self._records if r.seq not in self._facts}

    def append(self, do: str, **values: Any) -> Record:
        """Add a record; it is on disk when this returns.

        Raises:
            InputError: it cannot be written.
        """
        with self._lock, writing(self.path):
            seq = self._records[-1].seq + 1 if self._records else 1
            record = Record(seq=seq, at=int(time.time() * 1000), do=do, values=values)
            self._write({"seq": seq, "at": record.at, "do": do, **values}, is_safe=True)
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
        data = (b"\n" if self._is_torn else b"") + json.dumps(line).encode() + b"\n"
        self._is_torn = True
        descriptor = os.open(self.path, flags, 0o666)
        try:
            while data:
                data = data[os.write(descriptor, data) :]
            if is_safe:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._is_torn = False

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
    """The folders of runs in whose spools something waits.

    Args:
        name: of the run's folder; default: all.
    """
    for path in sorted(output_root.glob(f"{name}/{SPOOL}")):
        if Spool(path).waiting():
            yield path.parent


def digests(folder: Path, paths: Iterable[Path]) -> dict[str, str]:
    """The SHA-256 of files, by their names relative to `folder`."""
    return {str(path.relative_to(folder)): file_digest(path) for path in paths}


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes.

    Raises:
        OSError: it cannot be read.
    """
    return hashlib.sha256(read_bytes(path, ANY_SIZE)).hexdigest()
