"""A sweep: a recipe tried with other values, each trial a run of its own, and the best of them."""

import csv
import dataclasses
import hashlib
import io
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pose.config import Recipe, Setup, SweepSetup, typed
from pose.display import Display, ForwardingDisplay
from pose.errors import DivergedError, InputError
from pose.files import make_folder, write_text
from pose.history import Row
from pose.member_key import MemberKey
from pose.named_runs import NAMED_RUNS, ResolvedRun
from pose.plan import Plan, make_plan
from pose.reports.notes import describe_sweep
from pose.results import SweepResult, TrialResult
from pose.run import load_planned_data, train_run
from pose.search.space import Dimension, check_together, one_at_a_time, parse_space
from pose.search.study import Clock, Study, import_optuna
from pose.seeds.engines import engine_ready
from pose.stop import Stop, ending
from pose.tracking import RunRecord, RunRequest, Tracker

if TYPE_CHECKING:
    import optuna

STUDY_FILE = "study.log"
TRIALS_FILE = "trials.csv"
# Of the best values: a score of seeds that chose them would flatter.
NEW_SEEDS = (100, 101, 102)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """A sweep before its first step.

    Attributes:
        setup: what is tried, and how long.
        base: the run as it is without the sweep.
        project: what `mlflow run` is given for this project, where the user is.
    """

    setup: SweepSetup
    base: Plan
    space: tuple[Dimension, ...]
    project: str = "."

    @property
    def name(self) -> str:
        """Of the sweep's run and folder."""
        return f"{self.base.run.name}_sweep"

    @property
    def folder(self) -> Path:
        """Where the study and the trials' folders lie."""
        return Path(self.base.setup.output_root) / self.name

    def digest(self) -> str:
        """What two commands must share to mean one sweep; more trials or time continue it."""
        identity = {
            "recipe": self.base.recipe.identity(),
            "seeds": self.base.recipe.seeds,
            "space": [dataclasses.asdict(dimension) for dimension in self.space],
            "sampler_seed": self.setup.sampler_seed,
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    def trial(self, name: str, values: dict[str, Any]) -> Plan:
        """The run of a trial.

        Raises:
            InputError: values that cannot be used.
        """
        run = self.base.run
        return make_plan(
            ResolvedRun(
                name=name,
                base=run.base,
                recipe=dataclasses.replace(run.recipe, **values),
                changes={**run.changes, **values},
            ),
            dataclasses.replace(self.base.setup, output_root=str(self.folder)),
        )

    def command(self, values: dict[str, Any]) -> str:
        """The command that trains `values` as a run of its own, with seeds that chose nothing."""
        run, dataset = self.base.run, self.base.setup.dataset
        plain = NAMED_RUNS[run.base].recipe if run.base else Recipe()
        changes = {
            field.name: getattr(run.recipe, field.name)
            for field in dataclasses.fields(Recipe)
            if field.name != "seeds"
            and getattr(run.recipe, field.name) != getattr(plain, field.name)
        }
        settings = {
            **({"run": run.base} if run.base else {}),
            **({"dataset": dataset} if dataset else {}),
            **changes,
            **values,
            "seeds": NEW_SEEDS,
        }
        words = (f"-P {shlex.quote(f'{k}={typed(v)}')}" for k, v in settings.items())
        run_it = f"mlflow run {shlex.quote(self.project)} -e train --env-manager local"
        return " ".join((run_it, *words))


def make_sweep_plan(
    run: ResolvedRun, setup: SweepSetup, run_setup: Setup, project: str = "."
) -> SweepPlan:
    """The plan of a sweep, checked as far as possible without its data.

    Args:
        project: as in `SweepPlan`.

    Raises:
        InputError: a value that cannot be used, or Optuna is not installed.
    """
    if run_setup.add_seeds or run_setup.fresh:
        raise InputError("add_seeds and fresh must be left out: a sweep goes on by itself")
    import_optuna()
    plan = SweepPlan(
        setup=setup,
        base=make_plan(run, run_setup),
        space=parse_space(setup.space or ""),
        project=project,
    )
    check_together(plan.space, run.recipe)
    for values in one_at_a_time([own for own in plan.space if own.choices]):
        plan.trial(run.name, values)
    return plan


def sweep(plan: SweepPlan, tracker: Tracker, display: Display, stop: Stop) -> SweepResult:
    """Try values until the trials or the time are used up; an unfinished sweep goes on.

    Raises:
        InputError: nothing to train on, or values that no model can be built with.
    """
    # Made ready once, not for every trial.
    with engine_ready(plan.base.setup):
        return _sweep(plan, tracker, display, stop)


def _sweep(plan: SweepPlan, tracker: Tracker, display: Display, stop: Stop) -> SweepResult:
    loaded = load_planned_data(plan.base, display)
    record = tracker.open_run(
        RunRequest(
            name=plan.name,
            recipe_digest=plan.digest(),
            dataset_digest=loaded.digest,
            seeds=(),
            settings={"space": plan.setup.space},
            tags={"dataset": str(loaded.dataset.folder.absolute())},
            folder=plan.folder,
            kind="sweep",
        )
    )
    with ending(record.finish):
        if record.is_continued:
            display.say(f"continuing the sweep {record.run_id}")
        make_folder(plan.folder)
        record.begin(plan.folder)
        study = _open_study(plan, f"{plan.digest()}_{loaded.digest}")
        reason = _Trials(plan, study, tracker.for_trials(record.run_id), display, stop).run()
        result = _summarise(plan, study.results(), record, reason)
    if reason is None:
        record.complete()
    else:
        record.finish("KILLED", reason)
    return result


def _open_study(plan: SweepPlan, key: str) -> Study:
    recipe = plan.base.recipe
    study = Study(
        plan.folder / STUDY_FILE,
        key,
        plan.space,
        name=plan.name,
        seed=plan.setup.sampler_seed,
        num_warmup=max(1, recipe.num_epochs // 4),
    )
    base = {dimension.name: getattr(recipe, dimension.name) for dimension in plan.space}
    if study.is_new and all(dimension.holds(base[dimension.name]) for dimension in plan.space):
        # So that one sees whether the sweep was worth it.
        study.try_first(base)
    return study


class _Trials:
    """The trials of a sweep, one after another."""

    def __init__(
        self, plan: SweepPlan, study: Study, tracker: Tracker, display: Display, stop: Stop
    ) -> None:
        self._plan = plan
        self._study = study
        self._tracker = tracker
        self._display = display
        self._stop = stop
        self._clock = Clock(plan.setup.seconds())
        # What the runs say of data and device is the same for all of them.
        self._said: set[str] = set()

    def run(self) -> str | None:
        """Why it was stopped, or None if there is nothing left to try."""
        while self._has_more():
            reason = self._stop() or self._try_next()
            if reason:
                return reason
        return None

    def _has_more(self) -> bool:
        trials = self._study.results()
        return len(trials) < self._plan.setup.trials and self._clock.has_room(trials)

    def _try_next(self) -> str | None:
        """Train one trial; why it was stopped, or None if it is over in one way or the other."""
        trial = self._study.ask()
        name = self._study.run_name(trial)
        values = ", ".join(f"{key}={typed(value)}" for key, value in trial.params.items())
        self._display.say(f"trial {name}: {values}")
        self._clock.start()
        results = self._study.results()
        num_epochs = self._plan.base.recipe.num_epochs
        watched = _Watched(self._display, trial, num_epochs, self._said)

        def stop() -> str | None:
            if watched.is_hopeless:
                return "pruned"
            return self._stop() or ("sweep_budget" if self._clock.is_over(results) else None)

        try:
            result = train_run(self._plan.trial(name, trial.params), self._tracker, watched, stop)
        except DivergedError as error:
            self._study.tell_lost(trial, "diverged", self._clock.elapsed())
            self._display.say(f"trial {name}: {error}")
            return None
        except InputError as error:
            raise InputError(f"trial {name} ({values}): {error}") from error
        seconds = self._clock.elapsed()
        if result.stop_reason is None:
            self._study.tell(trial, [member.val_f1 for member in result.members], seconds)
            self._display.say(f"trial {name}: val_f1 {result.val_f1()}, {seconds:.0f} s")
        elif result.stop_reason == "pruned":
            self._study.tell_lost(trial, "pruned", seconds)
            self._display.say(f"trial {name}: below the median of the others, ended early")
        elif result.stop_reason == "sweep_budget":
            self._study.tell_lost(trial, "out of time", seconds)
            self._display.say(f"trial {name}: cut short, the time is up")
        else:
            return result.stop_reason
        return None


class _Watched(ForwardingDisplay):
    """What is shown of a trial, and what its epochs say of its prospects."""

    def __init__(
        self, display: Display, trial: "optuna.Trial", num_epochs: int, said: set[str]
    ) -> None:
        super().__init__(display)
        self._trial = trial
        self._num_epochs = num_epochs
        self._said = said
        self._members: list[MemberKey] = []
        self.is_hopeless = False

    def say(self, text: str) -> None:
        """One line, unless an earlier trial said it."""
        if text not in self._said:
            self._said.add(text)
            super().say(text)

    def show_epoch(self, member: MemberKey, row: Row, best_epoch: int) -> None:
        """An epoch is complete, and measured against the other trials at the same one."""
        super().show_epoch(member, row, best_epoch)
        if member not in self._members:
            self._members.append(member)
        before = self._members.index(member) * self._num_epochs
        self._trial.report(row["val_f1"], before + int(row["epoch"]))
        # A member's last epoch decides nothing: what is trained may as well be kept.
        is_last = int(row["epoch"]) == self._num_epochs
        self.is_hopeless = not is_last and self._trial.should_prune()


def _summarise(
    plan: SweepPlan, trials: list[TrialResult], record: RunRecord, stop_reason: str | None
) -> SweepResult:
    """Record the trials as a table, and the best of them."""
    best = trials[0] if trials and trials[0].val_f1 else None
    result = SweepResult(
        run_id=record.run_id,
        name=plan.name,
        folder=plan.folder,
        trials=trials,
        stop_reason=stop_reason,
        command=plan.command(best.values) if best else "",
    )
    path = plan.folder / TRIALS_FILE
    write_text(path, _trials_csv(trials, [dimension.name for dimension in plan.space]))
    record.log_file(path)
    record.log_summary(
        metrics={
            "num_trials": len(trials),
            **({"val_f1_mean": best.val_f1.mean} if best and best.val_f1 else {}),
        },
        tags={"best_run": best.name} if best else {},
        note=describe_sweep(result),
    )
    return result


def _trials_csv(trials: Sequence[TrialResult], names: Sequence[str]) -> str:
    """A row per trial, the best first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", *names, "val_f1_mean", "val_f1_std", "ending", "seconds"])
    for trial in trials:
        score = [trial.val_f1.mean, trial.val_f1.std] if trial.val_f1 else ["", ""]
        values = [typed(trial.values[name]) for name in names]
        writer.writerow([trial.name, *values, *score, trial.ending, f"{trial.seconds:.1f}"])
    return text.getvalue()
