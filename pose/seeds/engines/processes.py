"""Trains seeds in processes of their own on this machine, several at once."""

import dataclasses
import multiprocessing
from collections.abc import Iterator, Sequence

from pose.data.loaded import LoadedData
from pose.display import Display
from pose.results import SeedResult
from pose.seeds.engines.budget import Budget
from pose.seeds.engines.crew import Crew
from pose.seeds.engines.team import Team
from pose.seeds.job import OpenTracker, SeedJob
from pose.stop import Stop


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes:
    """An engine that trains seeds in processes of their own, several at once.

    Results come as members end; each is the work of one process, or of several. A request to stop
    reaches all; what they show and record is shown and recorded by the process that began them.

    Args:
        parallel: how many members train at the same time.
    """

    parallel: int

    def __call__(
        self,
        jobs: Sequence[SeedJob],
        open_tracker: OpenTracker,
        display: Display,
        stop: Stop,
        *,
        loaded: LoadedData,
        budget: Budget | None = None,
    ) -> Iterator[SeedResult]:
        """Train the seeds; each process finds the data of all jobs decoded.

        Raises:
            DivergedError: a seed's training is no longer finite; the others were stopped softly.
            DiedError: a process died; the others were trained to their end.
        """
        waiting, team = list(jobs), Team(open_tracker, display, budget)
        crews: dict[int, Crew] = {}
        try:
            while True:
                reason = stop() or ("error" if team.error else None)
                if reason:
                    waiting.clear()
                    team.ask_to_stop(reason)
                while waiting and len(team.members) < self.parallel:
                    near, far = multiprocessing.Pipe()
                    member = team.begin(waiting.pop(0), near)
                    taken = {crew.place for crew in crews.values()}
                    place = min(set(range(self.parallel)) - taken)
                    crews[id(member)] = Crew(member.job, far, loaded.digest, place)
                if not team.members:
                    break
                for crew in crews.values():
                    crew.end_if_broken()
                for member in team.hear():
                    how_it_died = crews.pop(id(member)).join()
                    if member.is_over:
                        yield from team.result_of(member)
                    else:
                        team.bury(member.job.key, how_it_died, member)
        finally:
            for crew in crews.values():
                crew.kill()
            for member in team.members:
                member.give_up("KILLED", "signal")
        team.raise_failures()
