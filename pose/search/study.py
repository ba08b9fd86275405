"""What has been tried and what to try next: Optuna's study, kept in a file."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pose.errors import InputError
from pose.files import make_folder
from pose.results import TrialResult, spread
from pose.search.space import Dimension

if TYPE_CHECKING:
    import optuna

# So many trials run to their end before one is measured against their median.
UNPRUNED_TRIALS = 4


def import_optuna() -> Any:
    """Optuna, quiet.

    Raises:
        InputError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise InputError(
            "a sweep must have Optuna, found it not installed: "
            "pip install -r requirements-sweep.txt"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


class Study:
    """A search for the values with the highest score; one that was cut short goes on.

    Args:
        path: the file that keeps it; it may keep others too.
        key: what names this one in the file.
        space: the settings and their values.
        name: the trials are called by it, with a number.
        seed: of the choice of values.
        num_warmup: steps of a trial before it may be pruned.
    """

    def __init__(
        self,
        path: Path,
        key: str,
        space: Sequence[Dimension],
        *,
        name: str,
        seed: int,
        num_warmup: int,
    ) -> None:
        library = import_optuna()
        self._states = library.trial.TrialState
        self._distributions = {d.name: _distribution(d) for d in space}
        make_folder(path.parent)
        storage = library.storages.JournalStorage(
            library.storages.journal.JournalFileBackend(str(path))
        )
        self._study: optuna.Study = library.create_study(
            storage=storage,
            study_name=key,
            direction="maximize",
            load_if_exists=True,
            pruner=library.pruners.MedianPruner(
                n_startup_trials=UNPRUNED_TRIALS, n_warmup_steps=num_warmup
            ),
        )
        # Another seed after a restart, or the first random values would be drawn again.
        self._study.sampler = library.samplers.TPESampler(seed=seed + len(self._study.trials))
        # Several studies in one file: their trials must differ in name.
        keys = [study.study_name for study in storage.get_all_studies()]
        self._name = name + (f"_{keys.index(key)}" if keys.index(key) else "")
        self.is_new = not self._study.trials
        for trial in self._study.get_trials(states=(self._states.RUNNING,)):
            # Cut short: begun again under its name, so that its run goes on.
            self._study.tell(trial.number, state=self._states.FAIL)
            self.try_first(trial.params, run=self.run_name(trial))

    def try_first(self, values: dict[str, Any], run: str | None = None) -> None:
        """Put `values` before all that would be chosen."""
        self._study.enqueue_trial(values, user_attrs={"run": run} if run else None)

    def run_name(self, trial: "optuna.Trial | optuna.trial.FrozenTrial") -> str:
        """The name of a trial's run."""
        return str(trial.user_attrs.get("run", f"{self._name}_{trial.number}"))

    def ask(self) -> "optuna.Trial":
        """The next trial; its `params` are the values."""
        return self._study.ask(self._distributions)

    def tell(self, trial: "optuna.Trial", scores: Sequence[float], seconds: float) -> None:
        """A trial is finished: a score per seed, and how long it took."""
        trial.set_user_attr("scores", list(scores))
        trial.set_user_attr("seconds", seconds)
        self._study.tell(trial, spread(scores).mean)

    def tell_lost(self, trial: "optuna.Trial", why: str, seconds: float) -> None:
        """A trial has ended without a score: `pruned` or `diverged`."""
        trial.set_user_attr("why", why)
        trial.set_user_attr("seconds", seconds)
        self._study.tell(trial, state=self._states.PRUNED)

    def results(self) -> list[TrialResult]:
        """All trials that are over, the best first, those without a score last."""
        found = [
            TrialResult(
                name=self.run_name(trial),
                values=dict(trial.params),
                val_f1=spread(trial.user_attrs["scores"])
                if trial.state == self._states.COMPLETE
                else None,
                ending=trial.user_attrs.get("why", "finished"),
                seconds=trial.user_attrs["seconds"],
            )
            for trial in self._study.get_trials(states=(self._states.COMPLETE, self._states.PRUNED))
        ]
        return sorted(found, key=lambda trial: -trial.val_f1.mean if trial.val_f1 else 1)


class Clock:
    """The time of a search: what the trials before took, and the one at work.

    Args:
        seconds: the budget; None: without end.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._started = time.monotonic()

    def start(self) -> None:
        """A trial begins."""
        self._started = time.monotonic()

    def elapsed(self) -> float:
        """Seconds since the trial began."""
        return time.monotonic() - self._started

    def is_over(self, trials: Sequence[TrialResult]) -> bool:
        """Whether `trials` and the one at work have used the time up."""
        spent = sum(trial.seconds for trial in trials) + self.elapsed()
        return self._seconds is not None and spent >= self._seconds

    def has_room(self, trials: Sequence[TrialResult]) -> bool:
        """Whether one more trial, as long as the longest of `trials`, is likely to fit."""
        if self._seconds is None:
            return True
        times = [trial.seconds for trial in trials]
        return sum(times) + max(times, default=0.0) <= self._seconds


def _distribution(dimension: Dimension) -> "optuna.distributions.BaseDistribution":
    kinds = import_optuna().distributions
    distribution: optuna.distributions.BaseDistribution
    if dimension.choices:
        distribution = kinds.CategoricalDistribution(dimension.choices)
    else:
        kind = kinds.IntDistribution if dimension.is_whole else kinds.FloatDistribution
        distribution = kind(dimension.low, dimension.high, log=dimension.is_log)
    return distribution
