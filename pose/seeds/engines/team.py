"""The members that train elsewhere, as the process that began them sees them."""

import dataclasses
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait

from pose.display import Display
from pose.errors import DiedError, first_few
from pose.member_key import MemberKey
from pose.results import SeedResult
from pose.seeds.engines.budget import Budget
from pose.seeds.job import OpenTracker, SeedJob
from pose.seeds.relay import GONE, NearEnd

# How often a request to stop is looked for while no member says anything.
LOOK_SECONDS = 0.2


class Team:
    """The members at work, and what became of those that failed.

    Attributes:
        members: at work, in the order in which they began.
        error: what a member failed with; the others are to be stopped then.
    """

    def __init__(self, open_tracker: OpenTracker, display: Display, budget: Budget | None) -> None:
        self._open_tracker = open_tracker
        self._display = display
        self._budget = budget
        self.members: list[NearEnd] = []
        self.error: Exception | None = None
        self._died: list[str] = []

    def begin(self, job: SeedJob, connection: Connection) -> NearEnd:
        """A member begins, at the other end of `connection`."""
        if self._budget is not None:
            job = dataclasses.replace(job, time_limit=self._budget.share())
        member = NearEnd(
            job=job,
            tracker=self._open_tracker(job),
            display=self._display,
            connection=connection,
            started=time.monotonic(),
        )
        self.members.append(member)
        return member

    def welcome_back(self, member: NearEnd, connection: Connection) -> None:
        """A member that was lost is at work again, at the other end of `connection`."""
        member.go_on(connection)
        if member not in self.members:
            self.members.append(member)

    def ask_to_stop(self, reason: str) -> None:
        """Have all members stop after their batch."""
        for member in self.members:
            member.ask_to_stop(reason)

    def hear(self) -> list[NearEnd]:
        """Do what members say, or wait a moment; those that are no longer at work.

        They have ended, or are gone without a word.
        """
        ready = wait([member.connection for member in self.members], LOOK_SECONDS)
        left = []
        for member in [one for one in self.members if one.connection in ready]:
            try:
                member.hear()
                is_left = member.is_over
            except GONE:
                is_left = True
            if is_left:
                member.connection.close()
                self.members.remove(member)
                left.append(member)
        return left

    def result_of(self, member: NearEnd) -> Iterator[SeedResult]:
        """The result of a member that has ended; none where it failed."""
        self.error = self.error or member.error
        if member.result is not None:
            if self._budget is not None:
                elapsed = time.monotonic() - member.started
                self._budget.spend(member.result.seconds, elapsed - member.result.session_seconds)
            yield member.result

    def bury(self, key: MemberKey, how: str, member: NearEnd | None) -> None:
        """A member has died; say so, and let the others go on.

        Args:
            member: None: it has not even begun.
        """
        self._died.append(f"{key} ({how})")
        self._display.say(
            f"warning: the process of {key} has died ({how})"
            f"{'; the others go on' if self.members else ''}"
        )
        if member is not None:
            member.give_up("KILLED", "killed")

    def raise_failures(self) -> None:
        """Raise what members failed with, now that none is at work.

        Raises:
            DivergedError, InputError: a member's own.
            DiedError: a process died.
        """
        if self.error is not None:
            raise self.error
        if self._died:
            raise DiedError(
                f"every member's process must live to its end, found dead: "
                f"{first_few(self._died)}; the same command goes on from their last epoch"
            )
