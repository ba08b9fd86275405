"""What a plan from the data has decided so far: a file, so that an unfinished plan goes on."""

import dataclasses
import time
from pathlib import Path
from typing import Any

from pose.errors import InputError
from pose.files import write_text
from pose.records import read_record, record_text
from pose.results import AutoTrial
from pose.search.halving import plan_rounds

FORMAT = 1
# The part of the budget that is for trying, unless one candidate is far ahead before. In 0.25 of
# six minutes on one core nothing learned enough of the textures to be chosen by.
SEARCH_SHARE = 0.4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """What is decided so far.

    Attributes:
        identity: of data, budget and settings; another plan begins anew.
        run_id: of the plan in MLflow.
        rounds: how many candidates each round has, and the seconds of each trial.
        seconds: spent in earlier sessions and in this one, up to now.
        trials: those that are over.
        chosen: the candidate that won; None before that is known.
        rest: seconds for the members; None before.
        is_done: whether the members were trained to their end.
        at_once: how many members train side by side.
    """

    identity: str
    run_id: str
    rounds: tuple[tuple[int, float], ...] = ()
    seconds: float = 0.0
    trials: tuple[AutoTrial, ...] = ()
    chosen: int | None = None
    rest: float | None = None
    is_done: bool = False
    at_once: int = 1

    def scores(self, number: int) -> dict[int, float]:
        """The scores of a round, counted from 0, by candidate."""
        return {own.candidate: own.score for own in self.trials if own.round == number}

    def rate_of(self, candidate: int) -> float:
        """The images per second of a candidate's last trial; 0 where it had none."""
        rates = [own.images_per_second for own in self.trials if own.candidate == candidate]
        return rates[-1] if rates else 0.0


def read_progress(path: Path) -> Progress:
    """What `record_text` wrote of it.

    Raises:
        InputError: it is missing or damaged.
    """

    def make(values: dict[str, Any]) -> Progress:
        trials = tuple(AutoTrial(**own) for own in values.pop("trials"))
        rounds = tuple((int(size), float(seconds)) for size, seconds in values.pop("rounds"))
        return Progress(**values, trials=trials, rounds=rounds)

    return read_record(path, FORMAT, f"{path} must be a whole plan", make)


class ProgressFile:
    """The file, and the clock of a plan.

    Args:
        budget: seconds for trying and for the members.
        least: seconds that the members must have.
    """

    def __init__(self, path: Path, budget: float, least: float) -> None:
        self.path = path
        self.budget = budget
        self._least = least
        self._started = time.monotonic()

    @property
    def rest(self) -> float:
        """Seconds for the members where all the time for trying is used."""
        return (1 - SEARCH_SHARE) * self.budget

    def find(self, identity: str) -> Progress | None:
        """The unfinished plan of this identity; None where there is none."""
        try:
            found = read_progress(self.path)
        except InputError:
            return None
        return found if found.identity == identity and not found.is_done else None

    def set_aside(self) -> None:
        """Keep what an earlier plan decided under another name."""
        if self.path.exists():
            self.path.replace(self.path.with_name(f"{self.path.stem}.{int(time.time())}.json"))

    def save(self, progress: Progress) -> Progress:
        """Keep what is decided, with the time that it has taken so far."""
        progress = dataclasses.replace(progress, seconds=self._spent(progress))
        self._started = time.monotonic()
        # Left out where it is 1: earlier versions read that.
        leave_out = ("at_once",) if progress.at_once == 1 else ()
        write_text(self.path, record_text(progress, FORMAT, leave_out))
        return progress

    def _spent(self, progress: Progress) -> float:
        return progress.seconds + time.monotonic() - self._started

    def begin(self, progress: Progress, num_candidates: int) -> Progress:
        """The rounds, which fill the part of the budget that is for trying.

        Raises:
            InputError: decoding has left too little for the members.
        """
        if progress.rounds:
            return progress
        left = self.budget - self._spent(progress)
        if left < self._least:
            # Nothing is kept of it: what is decoded is, and the same command has the time then.
            self.path.unlink(missing_ok=True)
            raise InputError(
                f"budget must leave {self._least:.0f} s for the members after decoding, found "
                f"{max(left, 0):.0f} s left of {self.budget:.0f}: give more, or repeat the "
                "command, which finds the images decoded"
            )
        progress = self.save(progress)
        left = SEARCH_SHARE * self.budget - progress.seconds
        rounds = plan_rounds(num_candidates, max(left, 0.0))
        return self.save(
            dataclasses.replace(
                progress, rounds=tuple((own.num_candidates, own.seconds) for own in rounds)
            )
        )

    def is_late(self, progress: Progress) -> bool:
        """Whether the part of the budget that is for trying is used up."""
        return progress.seconds >= SEARCH_SHARE * self.budget

    def finish(self, progress: Progress, chosen: int) -> Progress:
        """The winner, and what time it has: never less than its members must have.

        Starting again and again after stops takes time as well.
        """
        progress = self.save(progress)
        rest = max(self.budget - progress.seconds, self._least)
        return self.save(dataclasses.replace(progress, chosen=chosen, rest=round(rest)))

    def lines(self, progress: Progress) -> list[str]:
        """A line where the members end later than the budget."""
        late = progress.seconds + (progress.rest or 0.0) - self.budget
        if late < 1:
            return []
        return [
            f"warning: {progress.seconds:.0f} of {self.budget:.0f} s went into trying and into "
            f"starting again; the members have {progress.rest:.0f} s, the least that they need, "
            f"and end {late:.0f} s later than the budget"
        ]
