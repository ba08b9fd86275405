"""A member that trains in another process: what it shows and records travels to whoever began it.

The far end knows neither display nor tracker; the near end knows nothing of training. Over a
connection go

    from far:   (target, method, arguments, is_asked)    and at last ("end", kind, what)
    from near:  ("answer", value), ("refusal", message), ("stop", reason)
"""

import dataclasses
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pose.config import Recipe
from pose.device import keep_freed_memory
from pose.display import BatchProgress, Display
from pose.errors import DivergedError, InputError, one_line
from pose.history import Row
from pose.member_key import MemberKey
from pose.results import SeedResult
from pose.seeds.folder import FolderHere
from pose.seeds.job import SeedJob, SeedTracker
from pose.seeds.train import load_same_data, train_seed

# A bar that moves more often looks no smoother.
PROGRESS_SECONDS = 0.1
# These are about the seed's folder, which the near end knows by its own name.
ABOUT_THE_FOLDER = ("fetch_checkpoint", "log_checkpoint", "log_results")
# What reading and writing raise when the other end is gone.
GONE = (EOFError, ConnectionError)


class FarEnd:
    """The far end of a connection; its `stop` is a `pose.stop.Stop`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._reason: str | None = None

    def tell(self, target: str, method: str, *arguments: Any) -> None:
        """Have `method` called there."""
        self._connection.send((target, method, arguments, False))

    def ask(self, target: str, method: str, *arguments: Any) -> Any:
        """Have `method` called there; what it returned.

        Raises:
            InputError: it raised.
        """
        self._connection.send((target, method, arguments, True))
        while True:
            kind, value = self._connection.recv()
            if kind == "answer":
                return value
            if kind == "refusal":
                raise InputError(value)
            self._reason = value

    def end(self, kind: str, what: Any) -> None:
        """The last thing said: a `result`, or an error that is `diverged`, `input` or `bug`."""
        self._connection.send(("end", kind, what))

    def stop(self) -> str | None:
        """Why to stop, or None to go on."""
        while self._reason is None and self._connection.poll():
            _, self._reason = self._connection.recv()
        return self._reason


class FarDisplay:
    """A display whose lines and bars appear at the other end."""

    def __init__(self, end: FarEnd) -> None:
        self._end = end

    def say(self, text: str) -> None:
        """One line."""
        self._end.tell("display", "say", text)

    def draw_progress(self, done: int, total: int) -> None:
        """Nothing: what is drawn and decoded was drawn and decoded before."""

    cache_progress = check_progress = predict_progress = draw_progress

    def start_seed(
        self, member: MemberKey, recipe: Recipe, num_epochs_done: int, time_limit: float | None
    ) -> BatchProgress:
        """A member begins or goes on; returns what to call after each batch."""
        self._end.tell("display", "start_seed", member, recipe, num_epochs_done, time_limit)
        last = 0.0

        def progress(done: int, total: int) -> None:
            nonlocal last
            now = time.monotonic()
            if done == total or now - last > PROGRESS_SECONDS:
                last = now
                self._end.tell("progress", "advance", done, total)

        return progress

    def show_epoch(self, member: MemberKey, row: Row, best_epoch: int) -> None:
        """An epoch is complete."""
        self._end.tell("display", "show_epoch", member, row, best_epoch)


class FarTracker:
    """A tracker that records at the other end, where the seed's folder is the same."""

    def __init__(self, end: FarEnd) -> None:
        self._end = end

    def fetch_checkpoint(self, folder: Path) -> Path | None:
        """As the one at the other end."""
        found: Path | None = self._end.ask("tracker", "fetch_checkpoint")
        # The other end may name the folder in its own way.
        return folder / found.name if found else None

    def log_epochs(self, history: list[Row]) -> None:
        """As the one at the other end."""
        self._end.ask("tracker", "log_epochs", history)

    def log_tags(self, tags: dict[str, str]) -> None:
        """As the one at the other end."""
        self._end.ask("tracker", "log_tags", tags)

    def log_checkpoint(self, folder: Path) -> None:
        """As the one at the other end."""
        self._end.ask("tracker", "log_checkpoint")

    def log_results(self, folder: Path) -> None:
        """As the one at the other end."""
        self._end.ask("tracker", "log_results")

    def finish(self, status: str, stop_reason: str) -> None:
        """As the one at the other end."""
        self._end.ask("tracker", "finish", status, stop_reason)


def train_elsewhere(
    end: FarEnd,
    job: SeedJob,
    dataset_digest: str,
    tracker: SeedTracker | None = None,
    followers: Sequence[Connection] = (),
) -> None:
    """Train `job` in this process for whoever is at the other end.

    Args:
        dataset_digest: of the data there, which must be the data here.
        tracker: default: one that records there, where the job's folder is the same.
        followers: connections to the job's other processes.

    Raises:
        EOFError, ConnectionError: nobody is there any more, or one of the other processes is not.
            The next start goes on from the checkpoint.
    """
    keep_freed_memory()
    display = FarDisplay(end)
    try:
        loaded = load_same_data(job, dataset_digest, display)
        tracker = tracker or FarTracker(end)
        end.end("result", train_seed(job, loaded, tracker, display, end.stop, followers))
    except GONE:
        raise
    except DivergedError as error:
        end.end("diverged", str(error))
    except InputError as error:
        end.end("input", str(error))
    except Exception as error:
        end.end("bug", f"{type(error).__name__}: {one_line(error)}")


@dataclasses.dataclass(eq=False)
class NearEnd:
    """The near end of a member's connection: does what the member says.

    Attributes:
        started: by the monotonic clock.
        result: how it ended; None before.
        error: what it failed with.
    """

    job: SeedJob
    tracker: SeedTracker
    display: Display
    connection: Connection
    started: float
    result: SeedResult | None = None
    error: Exception | None = None
    _advance: BatchProgress = lambda done, total: None
    _is_finished: bool = False
    _is_asked_to_stop: bool = False

    @property
    def is_over(self) -> bool:
        """Whether the member has said how it ended."""
        return self.result is not None or self.error is not None

    def go_on(self, connection: Connection) -> None:
        """The member was lost and is at work again, at the other end of `connection`."""
        self.connection.close()
        self.connection = connection
        self._is_asked_to_stop = False

    def ask_to_stop(self, reason: str) -> None:
        """Have the member stop after its batch."""
        if not self._is_asked_to_stop:
            self._is_asked_to_stop = True
            self._send(("stop", reason))

    def _send(self, message: tuple[str, Any]) -> None:
        # A member that is gone is noticed where it is read from.
        try:
            self.connection.send(message)
        except OSError:
            return

    def hear(self) -> None:
        """Do the next thing that the member says.

        Raises:
            EOFError, ConnectionError: it is gone.
        """
        target, method, *rest = self.connection.recv()
        if target == "end":
            self._end(method, rest[0])
            return
        arguments, is_asked = rest
        try:
            value = self._do(target, method, arguments)
        except InputError as error:
            # The member fails by it, as it would by its own tracker.
            self._send(("refusal", str(error)))
            return
        if is_asked:
            self._send(("answer", value))

    def _do(self, target: str, method: str, arguments: tuple[Any, ...]) -> Any:
        if target == "progress":
            return self._advance(*arguments)
        if target == "folder":
            return getattr(FolderHere(self.job.output), method)(*arguments)
        if method in ABOUT_THE_FOLDER:
            arguments = (self.job.output,)
        value = getattr(self.display if target == "display" else self.tracker, method)(*arguments)
        if method == "start_seed":
            self._advance = value
        self._is_finished |= method == "finish"
        return value

    def _end(self, kind: str, what: Any) -> None:
        name = str(self.job.key)
        if kind == "result":
            self.result = what
        elif kind == "diverged":
            self.error = DivergedError(f"{name}: {what}")
        elif kind == "input":
            self.error = InputError(what)
        else:
            self.error = RuntimeError(f"{name}: {what}")

    def give_up(self, status: str, stop_reason: str) -> None:
        """Record how the member ended, where it could not say so itself."""
        if not self._is_finished:
            self._is_finished = True
            self.tracker.finish(status, stop_reason)
