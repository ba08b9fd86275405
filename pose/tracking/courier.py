"""Sends what waits in a spool, apart from whoever works: in order, and again until it arrives."""

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from pose.errors import InputError, one_line
from pose.tracking.spool import Record, Spool

# How often a run says that it is at work.
HEARTBEAT_SECONDS = 30
# Between two tries while the store is away.
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 5.0


class Courier:
    """A thread that delivers records.

    Args:
        deliver: brings one record to the store and returns what is to be remembered of it; a
            failure means that it is tried again.
        beat: says that the run is at work.
        say: tells a person, in one line.

    Attributes:
        trouble: why the last try failed; None if it did not.
    """

    def __init__(
        self,
        spool: Spool,
        deliver: Callable[[Record], dict[str, Any]],
        beat: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        self._spool = spool
        self._deliver = deliver
        self._beat = beat
        self._say = say
        self.trouble: Exception | None = None
        self._changed = threading.Condition()
        self._has_news = False
        self._is_hurried = False
        self._is_over = False
        # Tries are counted, so that a waiter knows which began after it came.
        self._num_tries = 0
        self._last_failed = 0
        self._is_trying = False
        self._thread = threading.Thread(target=self._work, name="courier", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There is something new in the spool."""
        with self._changed:
            self._has_news = True
            self._changed.notify_all()

    def flush(self, seconds: float | None = None) -> bool:
        """Wait until all has arrived, a try has failed, or `seconds` have passed.

        Returns:
            Whether all has arrived.
        """
        with self._changed:
            expected = self._num_tries + (not self._is_trying)
            self._has_news = self._is_hurried = True
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: (
                    self._is_over
                    or self._last_failed >= expected
                    or self._spool.next_waiting() is None
                ),
                seconds,
            )
        return self._spool.next_waiting() is None

    def close(self, seconds: float | None = None) -> bool:
        """Flush and end; what has not arrived stays in the spool."""
        is_empty = self.flush(seconds)
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        return is_empty

    def _work(self) -> None:
        try:
            self._deliver_all()
        finally:
            # Nobody waits for a thread that is gone.
            with self._changed:
                self._is_over = True
                self._changed.notify_all()

    def _deliver_all(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while not self._is_over:
            record = self._spool.next_waiting()
            if record is None:
                if not self._rest(HEARTBEAT_SECONDS, lambda: self._has_news):
                    # A store that is away is noticed, and said, with the next record.
                    with contextlib.suppress(Exception):
                        self._beat()
            elif self._try(record):
                pause = FIRST_PAUSE_SECONDS
            else:
                self._rest(pause, lambda: self._is_hurried)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _rest(self, seconds: float, is_called: Callable[[], bool]) -> bool:
        """Whether the rest was cut short."""
        with self._changed:
            cut_short = self._changed.wait_for(lambda: self._is_over or is_called(), seconds)
            self._has_news = self._is_hurried = False
            return cut_short

    def _try(self, record: Record) -> bool:
        with self._changed:
            self._num_tries += 1
            self._is_trying = True
        error: Exception | None = None
        try:
            self._spool.mark(record, **self._deliver(record))
        # Whatever a store, a library or a file does, the record waits and work goes on.
        except Exception as failure:
            error = failure
        self._tell(error)
        with self._changed:
            self._is_trying = False
            self.trouble = error
            if error is not None:
                self._last_failed = self._num_tries
            self._changed.notify_all()
        return error is None

    def _tell(self, error: Exception | None) -> None:
        """One line when trouble begins, and one when it is over."""
        if error is not None and self.trouble is None:
            reason = str(error) if isinstance(error, InputError) else one_line(error)
            self._say(
                f"warning: {reason}; work goes on, and its records wait in {self._spool.path}"
            )
        elif error is None and self.trouble is not None:
            self._say("the tracking store takes records again: what waited is on its way")
