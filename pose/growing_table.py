"""A table that grows in a file beside the one it becomes, and goes on where a kill cut it short."""

import csv
import io
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pose.errors import InputError
from pose.files import ANY_SIZE, O_NONBLOCK, atomic_path, locked, read_bytes, writing


class GrowingTable:
    """A CSV file beside the table to be, with its first rows so far.

    Its name holds the identity of what the rows say, so another command never goes on with it.
    A second file has a line per row: where the row ends, and the CRC-32 of all up to there. A row
    that is not as it was written would be a wrong answer that nobody sees.

    Args:
        say: told what must be written again.
    """

    def __init__(self, out_path: Path, identity: str, say: Callable[[str], None]) -> None:
        self._out_path = out_path
        self._path = out_path.with_name(f".{out_path.name[:150]}.{identity}.partial")
        self._sums_path = self._path.with_suffix(".sums")
        self._say = say
        self._end, self._sum = 0, 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other commands from adding to it meanwhile; one without rows is removed."""
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self._path, wait=False))
            except BlockingIOError:
                raise InputError(
                    f"out_path must not be in the making already, but another command is at work "
                    f"on {self._out_path}: wait for it"
                ) from None
            try:
                yield
            finally:
                if not self._path.exists() or not self._path.stat().st_size:
                    self._path.unlink(missing_ok=True)
                    self._sums_path.unlink(missing_ok=True)

    def names(self) -> set[str]:
        """The first cells of its rows.

        From the first one on that is not as it was written, all are removed.
        """
        data = read_bytes(self._path, ANY_SIZE)
        sums = _read_sums(self._sums_path)
        num_good = self._count_good(data, sums)
        whole = data[: self._end].decode()
        if self._end < len(data):
            # Cut short by a kill, unless what is there should have been a whole row.
            is_cut = num_good < len(sums) and sums[num_good][0] > len(data)
            if not is_cut:
                self._say(
                    f"warning: of what was predicted before, only the first {max(num_good - 1, 0)} "
                    f"images are as they were written ({self._path.name}: its checksum is wrong); "
                    "the others are predicted again"
                )
        with writing(self._out_path):
            _write_sums(self._sums_path, sums[:num_good], "w")
            os.truncate(self._path, self._end)
        return {row[0] for row in list(csv.reader(io.StringIO(whole, newline="")))[1:]}

    def _count_good(self, data: bytes, sums: Sequence[tuple[int, int]]) -> int:
        """How many rows, the header among them, are as they were written."""
        for number, (end, expected) in enumerate(sums):
            found = zlib.crc32(data[self._end : end], self._sum)
            if not self._end < end <= len(data) or found != expected:
                return number
            self._end, self._sum = end, found
        return len(sums)

    def append(self, rows: Sequence[dict[str, str]]) -> None:
        """Add rows, under a header if it is new."""
        if not rows:
            return
        cells = [] if self._end else [list(rows[0])]
        lines = [_line(row) for row in [*cells, *(list(row.values()) for row in rows)]]
        sums = []
        for line in lines:
            self._end, self._sum = self._end + len(line), zlib.crc32(line, self._sum)
            sums.append((self._end, self._sum))
        # The checksums first: what a kill then cuts short is the last row alone.
        with writing(self._out_path):
            _write_sums(self._sums_path, sums, "a")
            with open(self._path, "ab") as handle:
                handle.write(b"".join(lines))

    def finish(self) -> None:
        """Put it in the table's place."""
        if self._out_path.suffix.lower() == ".parquet":
            import pandas as pd

            texts = {"file": str, "label": str, "name": str}
            frame = pd.read_csv(self._path, dtype=texts, keep_default_na=False)
            with atomic_path(self._out_path) as partial:
                frame.to_parquet(partial)
            self._path.unlink()
            return
        with writing(self._out_path):
            os.replace(self._path, self._out_path)


def _line(cells: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _read_sums(path: Path) -> list[tuple[int, int]]:
    """Where each row ends and the checksum up to there, as far as these lines are whole."""
    sums = []
    try:
        for line in read_bytes(path, ANY_SIZE).splitlines():
            end, _, crc = line.decode().partition(" ")
            sums.append((int(end), int(crc, 16)))
    except (OSError, ValueError):
        # Gone, or cut short; what is not held to a checksum does not count.
        pass
    return sums


def _write_sums(path: Path, sums: Sequence[tuple[int, int]], mode: str) -> None:
    # What else may be in its place is never followed or waited for.
    flags = os.O_NOFOLLOW | O_NONBLOCK
    with open(path, mode, opener=lambda name, own: os.open(name, own | flags, 0o666)) as handle:
        handle.write("".join(f"{end} {crc:08x}\n" for end, crc in sums))
