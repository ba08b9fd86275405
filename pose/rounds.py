"""The rounds of a plan: candidates are tried, recorded and dropped, up to the one that wins."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pose.config import Recipe, Setup
from pose.display import Display
from pose.errors import InputError
from pose.results import AutoTrial
from pose.search.halving import seconds_of_each, survivors
from pose.search.places import Here
from pose.search.progress import Progress, ProgressFile
from pose.search.states import States
from pose.search.trial import TrialJob, Tried, trial_recipe
from pose.seeds.engines import num_at_once, num_turns
from pose.stop import Stop
from pose.tracking import TaskRecord, Tracker

# Seconds of a trial besides its training, before the first one is measured.
TRIAL_OVERHEAD = 1.5
# Settings by which candidates differ, as parameters of their runs.
TRIED = ("model", "pretrained", "image_size", "framing", "high_pass", "augmentation")


@dataclasses.dataclass(kw_only=True)
class Rounds:
    """Tries the candidates of a plan, fewer in each round.

    Attributes:
        file: keeps what is decided.
        recipes: of the candidates.
        engine: tries them.
        states: where they got to.
        record: of the plan in MLflow; trials are nested in it by `tracker`.
    """

    file: ProgressFile
    setup: Setup
    display: Display
    stop: Stop
    recipes: list[Recipe]
    engine: Here
    states: States
    record: TaskRecord
    tracker: Tracker
    _overheads: list[float] = dataclasses.field(default_factory=list)

    def run(self, progress: Progress) -> tuple[Progress, str | None]:
        """Try in rounds; why it was stopped, or None with the winner."""
        self.engine.prepare(self.recipes)
        if reason := self.stop():
            return self.file.save(progress), reason
        progress = self.file.begin(progress, len(self.recipes))
        going: list[int] = list(range(len(self.recipes)))
        for number, (size, seconds) in enumerate(progress.rounds):
            if number and self.file.is_late(progress):
                # Validating many squares takes its time: what is left belongs to the members.
                break
            going = going[:size]
            for tried in self._try(going, number, seconds, progress):
                if tried.state is not None:
                    self.states.keep(tried.trial.candidate, number, tried.state)
                trials = (*progress.trials, tried.trial)
                progress = self.file.save(dataclasses.replace(progress, trials=trials))
            if len(progress.scores(number)) < len(going):
                return self.file.save(progress), self.stop()
            going = list(survivors(progress.scores(number), len(going)))
            if len(going) == 1:
                break
        num_members = len(self.recipes[0].members(self.recipes[0].seeds))
        progress = dataclasses.replace(progress, at_once=num_at_once(self.setup, num_members))
        progress = self.file.finish(progress, going[0])
        self.states.forget(but=last_state(self.states, progress))
        for line in self.file.lines(progress):
            self.display.say(line)
        return progress, None

    def _try(
        self, going: Sequence[int], number: int, seconds: float, progress: Progress
    ) -> Iterator[Tried]:
        """The trials of a round that are not over yet, as they end, up to a request to stop."""
        at_once = self.engine.num_at_once(len(going))
        seconds = seconds_of_each(seconds, len(going), at_once)
        waiting = [index for index in going if index not in progress.scores(number)]
        # When its turn has come, a job has as long as those before it leave to it.
        of = self._whole_seconds(progress)
        jobs = (self._job(index, number, seconds, of) for index in waiting)
        for job, tried in self.engine(jobs):
            self._overheads.append(tried.trial.seconds - job.limit)
            self._log(str(job), tried.trial)
            yield tried

    def _whole_seconds(self, progress: Progress) -> float:
        """Of the training that a trial is the beginning of: a member's, as far as that is known."""
        tried = sum(
            seconds_of_each(seconds, size, self.engine.num_at_once(size))
            for size, seconds in progress.rounds
        )
        num = len(self.recipes[0].members(self.recipes[0].seeds))
        return max(self.file.rest / num_turns(num, num_at_once(self.setup, num)), 2 * tried)

    def _job(self, index: int, number: int, seconds: float, of: float) -> TrialJob:
        overhead = float(np.mean(self._overheads or [TRIAL_OVERHEAD]))
        return TrialJob(
            candidate=index,
            round=number,
            recipe=trial_recipe(self.recipes[index]),
            limit=max(seconds - overhead, 0.5),
            of=of,
            device=self.setup.device,
            precision=self.setup.precision,
            state=self._state_before(index, number),
        )

    def _state_before(self, index: int, number: int) -> bytes | None:
        try:
            return self.states.find(index, number - 1)
        except InputError as error:
            self.display.say(f"warning: {error}; candidate {index + 1} begins anew")
            return None

    def _log(self, name: str, trial: AutoTrial) -> None:
        changes = {name: getattr(self.recipes[trial.candidate], name) for name in TRIED}
        self.display.say(
            f"{name}: val_f1 {trial.val_f1:.4f}, area {trial.val_auc:.4f} after "
            f"{trial.num_epochs:.1f} epochs, "
            f"{trial.images_per_second:.0f} images/s, {trial.seconds:.0f} s"
        )
        try:
            record = self.tracker.open_task("trial", name, {}, below=self.record.run_id)
            record.log_params({**changes, "round": trial.round + 1})
            scores = {
                "val_f1": trial.val_f1,
                "val_auc": trial.val_auc,
                "time/images_per_second": trial.images_per_second,
            }
            record.log(scores, {}, "", [])
            record.finish("FINISHED")
        except InputError as error:
            # The plan is kept in its folder; what waits for nobody is not worth the night.
            self.display.say(f"warning: {name} is not recorded: {error}")


def last_state(states: States, progress: Progress) -> Path | None:
    """Where the chosen candidate got to; None where it was not tried, or diverged."""
    rounds = [own.round for own in progress.trials if own.candidate == progress.chosen]
    if not rounds:
        return None
    path = states.path(progress.chosen or 0, rounds[-1])
    return path if path.exists() else None
