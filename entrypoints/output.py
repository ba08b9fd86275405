"""Standard streams that a command outlives: its reader may leave, and a log's disk fill up."""

import codecs
import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO, cast

from pose.files import is_full, reason_of


class _Enduring:
    """A text stream; when nothing can be written any more, what follows goes nowhere.

    Attributes:
        reason: why, for people; empty where all was written, or its reader left.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.reason = ""

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        if error.errno != errno.EPIPE:
            self.reason = "disk full" if is_full(error) else reason_of(error)
        # By the descriptor: the stream keeps what it could not write, and tries again at the end.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


@contextlib.contextmanager
def enduring_output() -> Iterator[None]:
    """Let nothing that happens to standard output or standard error end the work in the block.

    What their encoding lacks is written as escapes.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # It was closed: the next file that is opened would get its number, and what is printed.
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _endure(sys.stdout, 1), _endure(sys.stderr, 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def _endure(stream: TextIO | None, descriptor: int) -> TextIO:
    if stream is None:
        stream = io.TextIOWrapper(io.FileIO(descriptor, "w", closefd=False), encoding="utf-8")
    if isinstance(stream, io.TextIOWrapper):
        # ASCII is what a locale says that nobody has set; click writes UTF-8 then, and so do we.
        is_ascii = codecs.lookup(stream.encoding).name == "ascii"
        encoding = "utf-8" if is_ascii else stream.encoding
        stream.reconfigure(encoding=encoding, errors="backslashreplace")
    return cast(TextIO, _Enduring(stream))


def lost_output() -> str:
    """Why something that was printed is lost; empty where nothing is, or its reader left."""
    return str(getattr(sys.stdout, "reason", ""))
