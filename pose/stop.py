"""How work ends before its time: soft requests to stop, and what is recorded of an interruption."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

STOP_FILE = "stop.txt"

# Says why to stop, or None to go on. Whoever works asks it between two batches.
Stop = Callable[[], str | None]


class StopRequest:
    """Remembers that somebody asked to stop: a stop file, Ctrl-C, SIGTERM. A `Stop`.

    Until it is asked for the first time, nobody is at work who could come to a good end, and a
    signal ends the process at once.

    Args:
        folders: where `stop.txt` would be. One that is there already is left over from an earlier
            run, and asks for nothing until it is touched.
    """

    def __init__(self, *folders: Path) -> None:
        files = dict.fromkeys(folder / STOP_FILE for folder in folders)
        self._left_over = {path: _stamp(path) for path in files}
        self._interrupted_at: float | None = None
        self._is_asked = False
        self.reason: str | None = None

    def __call__(self) -> str | None:
        """`stop_file` or `signal` once asked to stop, else None."""
        self._is_asked = True
        if self.reason is None and self._is_fresh():
            self.reason = "stop_file"
        return self.reason

    def has_stale_file(self) -> bool:
        """Whether a stop file from before lies in one of the folders."""
        return any(old is not None and _stamp(path) == old for path, old in self._left_over.items())

    def _is_fresh(self) -> bool:
        return any(_stamp(path) not in (None, old) for path, old in self._left_over.items())

    def listen(
        self, *, ends_with_parent: bool, leave: Callable[[int], NoReturn] = os._exit
    ) -> None:
        """Take Ctrl-C and SIGTERM as requests from now on; a second Ctrl-C interrupts at once.

        Args:
            ends_with_parent: also stop when the process that started this one is gone: a killed
                `mlflow run` must not leave its work running unseen. One that was started with
                nohup or & must outlive its shell.
            leave: ends the process with an exit code where an exception would not: libraries
                that are being imported make other errors of it.
        """
        self._leave = leave
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)
        if ends_with_parent:
            ask_for_signal_when_parent_dies(signal.SIGTERM)
            if is_orphan():
                signal.raise_signal(signal.SIGTERM)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._is_asked:
            os.write(2, b"\nstopped before training began\n")
            if _is_importing(frame):
                self._leave(128 + number)
            raise SystemExit(128 + number)
        now = time.monotonic()
        if number == signal.SIGINT:
            # `mlflow run` passes one Ctrl-C on as SIGINT and SIGTERM, so only a later SIGINT
            # is a second wish.
            if self._interrupted_at is not None and now - self._interrupted_at > 0.5:
                raise KeyboardInterrupt
            self._interrupted_at = now
        if self.reason is None:
            self.reason = "signal"
            os.write(2, b"\nstopping after this batch (Ctrl-C again: at once)\n")


class Ending:
    """Ends a command that has no good end before its own: `SystemExit`, wherever it is at work.

    So everything that it has begun is cleared away. A second Ctrl-C ends it at once.

    Args:
        request: asks for it too, by its files.
        is_endless: being asked is how it ends, and no failure.
    """

    # Between two looks at the files, and at whether it may end where it is.
    SECONDS = 0.2
    # After which it ends in any case.
    PATIENCE = 10.0

    def __init__(self, request: StopRequest, *, is_endless: bool = False) -> None:
        self._request = request
        self._is_endless = is_endless
        self._asked_at: float | None = None
        self._code = 0
        self.is_asked = False

    def listen(self, *, ends_with_parent: bool) -> None:
        """Take Ctrl-C, SIGTERM and stop files as wishes to end; as `StopRequest.listen`."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGALRM, self._end)
        threading.Thread(target=self._watch, daemon=True).start()
        if ends_with_parent:
            ask_for_signal_when_parent_dies(signal.SIGTERM)
            if is_orphan():
                signal.raise_signal(signal.SIGTERM)

    def _watch(self) -> None:
        while self._request() is None:
            time.sleep(self.SECONDS)
        main = threading.main_thread().ident
        if main is not None:
            signal.pthread_kill(main, signal.SIGTERM)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._asked_at is not None:
            # `mlflow run` passes one Ctrl-C on as SIGINT and SIGTERM.
            if number == signal.SIGINT and now - self._asked_at > 0.5:
                os._exit(128 + number)
            return
        self._asked_at, self._code = now, 0 if self._is_endless else 128 + number
        again = "" if self._is_endless else ": the same command can be given again"
        os.write(2, f"\nstopped ({self._request.reason or 'signal'}){again}\n".encode())
        self._end(number, frame)

    def _end(self, number: int, frame: FrameType | None) -> None:
        waits = time.monotonic() - (self._asked_at or 0) < self.PATIENCE
        if waits and (_is_importing(frame) or _is_recording(frame)):
            # The first would make another error of it, the second would leave the database locked.
            signal.setitimer(signal.ITIMER_REAL, self.SECONDS)
            return
        self.is_asked = True
        raise SystemExit(self._code)


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What no later file of that name shares; None where there is none.

    Not a time alone: clocks are set back, and a file's is another machine's on a shared disk.
    """
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _is_recording(frame: FrameType | None) -> bool:
    """Whether a transaction of MLflow's database may be open."""
    places = (f"{os.sep}sqlalchemy{os.sep}", f"{os.sep}mlflow{os.sep}store{os.sep}")
    while frame is not None:
        if any(place in frame.f_code.co_filename for place in places):
            return True
        frame = frame.f_back
    return False


def ask_for_signal_when_parent_dies(number: int) -> None:
    """Only Linux can; elsewhere a killed `mlflow run` leaves its work to finish."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, number)


def is_orphan() -> bool:
    """Whether the process that started this one was gone before anybody could ask.

    What MLflow starts is in MLflow's session and leads none of its own; whoever inherits an
    orphan is in another.
    """
    session = os.getsid(0)
    try:
        return session != os.getpid() and os.getsid(os.getppid()) != session
    except ProcessLookupError:  # died between the two calls, after which the signal comes
        return False


def becomes_orphan(seconds: float = 0.5) -> bool:
    """Whether the process that started this one is gone, or is going to be within `seconds`.

    The signal of its death comes with the end of its first thread; it may have others.
    """
    deadline = time.monotonic() + seconds
    while not is_orphan():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@contextlib.contextmanager
def ending(finish: Callable[[str, str], None]) -> Iterator[None]:
    """Report it if the block is cut short; a block that ends by itself reports for itself.

    Args:
        finish: called with MLflow's status and the reason: the error's `status` and `stop_reason`
            (`FAILED` and `error` where it has none), or `KILLED` and `signal`.
    """
    try:
        yield
    except Exception as error:
        finish(getattr(error, "status", "FAILED"), getattr(error, "stop_reason", "error"))
        raise
    except BaseException:
        finish("KILLED", "signal")
        raise
