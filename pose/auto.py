"""A plan from the data: what is tried for a part of the time, and what is trained for the rest.

The run `auto` has no recipe of its own. What a folder is like decides which networks, sizes and
framings are tried (`pose.search.candidates`); successive halving finds the best of them on folds of
the rows that will train. The rows that will validate the run decide nothing, so its score is as
honest as that of any run.
"""

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pose.config import MIN_SEED_SECONDS, Recipe, Setup, parse_time
from pose.data.cache import cache_root_of
from pose.data.folder import read_dataset
from pose.data.loaded import LoadedData, decode_dataset
from pose.data.source import find_dataset
from pose.data.split import split_rows
from pose.data.tensors import framing_of, load_recipe_data, training_data
from pose.device import keep_freed_memory, pick_device, pick_precision
from pose.display import Display
from pose.errors import DivergedError, InputError
from pose.files import write_text
from pose.member_key import MemberKey
from pose.named_runs import AUTO_BASE, ResolvedRun
from pose.records import read_record, record_text
from pose.reports.notes import describe_auto
from pose.results import AutoTrial
from pose.run import only_run_in
from pose.search.candidates import Candidate, find_candidates
from pose.search.fingerprint import take_fingerprint
from pose.search.halving import plan_rounds, survivors
from pose.seeds.train import build_fitted
from pose.stop import Stop, ending
from pose.tracking import TaskRecord, Tracker
from pose.training.loop import train
from pose.training.state import start_state
from pose.training.step import Step

FORMAT = 1
RECORD = "plan.json"
TEXT = "plan.md"
# The part of the budget that is for trying.
SEARCH_SHARE = 0.35
MIN_SECONDS = 120.0
# Folds of the rows that train: each round validates on another one.
NUM_FOLDS = 5
# Trials train and validate on so many images at most: they have seconds.
MAX_ROWS = 8000
MIN_ROWS_PER_CLASS = 20
# Building a network and compiling its first step, in seconds.
TRIAL_OVERHEAD = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """What is decided so far, kept in a file, so that an unfinished plan goes on.

    Attributes:
        identity: of data, budget and settings; another plan begins anew.
        run_id: of the plan in MLflow.
        rounds: how many candidates each round has, and the seconds of each trial.
        seconds: spent in earlier sessions and in this one, up to now.
        trials: those that are over.
        chosen: the candidate that won; None before that is known.
        rest: seconds for the members; None before.
        is_done: whether the members were trained to their end.
    """

    identity: str
    run_id: str
    rounds: tuple[tuple[int, float], ...] = ()
    seconds: float = 0.0
    trials: tuple[AutoTrial, ...] = ()
    chosen: int | None = None
    rest: float | None = None
    is_done: bool = False

    def scores(self, number: int) -> dict[int, float]:
        """The scores of a round, counted from 0, by candidate."""
        return {own.candidate: own.val_f1 for own in self.trials if own.round == number}


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


def check_budget(recipe: Recipe) -> float:
    """The budget in seconds.

    Raises:
        InputError: there is none, or too little to try anything and to train the members.
    """
    example = f"run=auto must have a budget of at least {MIN_SECONDS:.0f}s, such as budget=10m"
    if recipe.budget is None:
        raise InputError(f"{example}, got none")
    seconds = parse_time("budget", recipe.budget)
    least = max(MIN_SECONDS, 2 * MIN_SEED_SECONDS * len(recipe.members(recipe.seeds)))
    if seconds < least:
        raise InputError(f"{example}, got {recipe.budget}")
    return seconds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chosen:
    """What a plan came to.

    Attributes:
        run: what is to be trained; None where it was asked to stop before that was known.
        text: the plan and its reasons, for people.
        stop_reason: why it stopped, if it did.
    """

    run: ResolvedRun | None
    text: str = ""
    stop_reason: str | None = None


class Auto:
    """A plan at work.

    Args:
        run: `champion` with the settings that were given, under the name of the run.
        given: names of those settings; no candidate changes them.
    """

    def __init__(
        self, run: ResolvedRun, given: Collection[str], setup: Setup, display: Display, stop: Stop
    ) -> None:
        if setup.add_seeds:
            raise InputError(
                "add_seeds must go with a run whose recipe is known: give run=champion with the "
                "settings that plan.md names"
            )
        unplanned = sorted({"weights", "pretrained", "distil"} & set(given))
        if unplanned:
            raise InputError(
                f"{unplanned[0]} must go with a run whose network is known, got it with run=auto: "
                "give run=finetune or run=champion"
            )
        self._budget = check_budget(run.recipe)
        self._run = run
        self._given = frozenset(given) - {"budget", "seeds"}
        self._setup = setup
        self._display = display
        self._stop = stop
        self._folder = Path(setup.output_root) / f"{run.name}_plan"
        self._started = time.monotonic()

    def text(self) -> str:
        """What would be tried, for people.

        Raises:
            InputError: nothing to train on.
        """
        dataset = read_dataset(find_dataset(self._setup, self._display))
        dataset.raise_if_fatal()
        found = take_fingerprint(dataset)
        names = [f"{own.name}: {own.reason}" for own in find_candidates(found, self._given)]
        return "\n".join((*found.lines(), *(f"candidate {name}" for name in names)))

    @property
    def path(self) -> Path:
        """The file of what is decided so far."""
        return self._folder / RECORD

    def choose(self, tracker: Tracker) -> Chosen:
        """Try the candidates, unless an unfinished plan has a winner already.

        Raises:
            InputError: nothing to train on, or too little time for the members.
        """
        keep_freed_memory()
        with only_run_in(self._folder):
            return self._choose(tracker)

    def complete(self) -> None:
        """The members are trained: the same command would plan anew."""
        progress = dataclasses.replace(read_progress(self.path), is_done=True)
        write_text(self.path, record_text(progress, FORMAT))

    def _choose(self, tracker: Tracker) -> Chosen:
        folder = find_dataset(self._setup, self._display)
        dataset = read_dataset(folder)
        dataset.raise_if_fatal()
        found = take_fingerprint(dataset)
        candidates = find_candidates(found, self._given)
        recipes = [self._recipe_of(candidate) for candidate in candidates]
        loaded = load_recipe_data(
            folder,
            recipes[0],
            cache_root_of(self._setup.cache_root),
            self._setup.num_workers,
            self._display.cache_progress,
        )
        for line in (*loaded.lines(), *found.lines()):
            self._display.say(line)
        progress, record = self._open(loaded, candidates, tracker)
        with ending(record.finish):
            if progress.chosen is None:
                trying = _Trying(self, loaded, recipes, record, tracker)
                progress, reason = trying.run(progress)
                if reason:
                    record.finish("KILLED", reason)
                    return Chosen(run=None, stop_reason=reason)
            text = describe_auto(
                self._run.name, found.lines(), [(own.name, own.reason) for own in candidates],
                progress.trials, progress.chosen or 0, self._rest_text(loaded, progress),
            )  # fmt: skip
            write_text(self._folder / TEXT, text)
            record.log({}, {"chosen": candidates[progress.chosen or 0].name}, text,
                       [self._folder / TEXT])  # fmt: skip
        record.finish("FINISHED")
        return Chosen(run=self._chosen_run(candidates[progress.chosen or 0], progress), text=text)

    def _recipe_of(self, candidate: Candidate) -> Recipe:
        return dataclasses.replace(self._run.recipe, **dict(candidate.changes))

    def _chosen_run(self, candidate: Candidate, progress: Progress) -> ResolvedRun:
        changes = {**dict(candidate.changes), "budget": f"{progress.rest:.0f}s"}
        return ResolvedRun(
            name=self._run.name,
            base=AUTO_BASE,
            recipe=dataclasses.replace(self._run.recipe, **changes),
            changes={**self._run.changes, **changes},
        )

    def _rest_text(self, loaded: LoadedData, progress: Progress) -> str:
        recipe = self._run.recipe
        members = len(recipe.members(recipe.seeds))
        return (
            f"{progress.seconds:.0f} of {self._budget:.0f} s went into this; {members} members "
            f"share the other {progress.rest:.0f} s. "
            + (
                "With folds every row validates somebody, and decided here as well: the score of "
                "the run is a little flattering."
                if recipe.folds
                else f"The rows that validate them ({recipe.val_fraction:.0%} of "
                f"{len(loaded.dataset.ids)}) decided nothing here."
            )
        )

    def _open(
        self, loaded: LoadedData, candidates: tuple[Candidate, ...], tracker: Tracker
    ) -> tuple[Progress, TaskRecord]:
        """The unfinished plan of the same identity, or a new one, with its run in MLflow."""
        settings = {
            "recipe": self._run.recipe.identity(),
            "seeds": self._run.recipe.seeds,
            "budget": self._budget,
            "candidates": [own.changes for own in candidates],
            "data": loaded.digest,
        }
        text = json.dumps(settings, sort_keys=True)
        identity = hashlib.sha256(text.encode()).hexdigest()[:16]
        before = None
        if self.path.exists():
            with contextlib.suppress(InputError):
                before = read_progress(self.path)
        tags = {"run": f"{self._run.name}_plan", "dataset": str(loaded.dataset.folder.absolute())}
        is_same = before is not None and before.identity == identity and not before.is_done
        if before is not None and is_same and not self._setup.fresh:
            self._display.say(f"continuing the unfinished plan {before.run_id}")
            record = tracker.open_task_again(before.run_id, "plan", tags["run"])
            # A run that somebody deleted has another one in its place.
            return dataclasses.replace(before, run_id=record.run_id), record
        record = tracker.open_task("plan", tags["run"], tags)
        return Progress(identity=identity, run_id=record.run_id), record

    def save(self, progress: Progress) -> Progress:
        """Keep what is decided, with the time that it has taken so far."""
        now = time.monotonic()
        progress = dataclasses.replace(progress, seconds=progress.seconds + now - self._started)
        self._started = now
        write_text(self.path, record_text(progress, FORMAT))
        return progress

    def begin(self, progress: Progress, num_candidates: int) -> Progress:
        """The rounds, which fill the part of the budget that is for trying."""
        if progress.rounds:
            return progress
        progress = self.save(progress)
        left = SEARCH_SHARE * self._budget - progress.seconds
        rounds = plan_rounds(num_candidates, max(left, 0.0), TRIAL_OVERHEAD)
        return self.save(
            dataclasses.replace(
                progress, rounds=tuple((own.num_candidates, own.seconds) for own in rounds)
            )
        )

    def finish(self, progress: Progress, chosen: int) -> Progress:
        """The winner, and what time it has.

        Raises:
            InputError: too little is left for its members.
        """
        progress = self.save(progress)
        rest = self._budget - progress.seconds
        recipe = self._run.recipe
        least = MIN_SEED_SECONDS * len(recipe.members(recipe.seeds))
        if rest < least:
            raise InputError(
                f"budget must leave {least:.0f} s for the members after decoding and trying, "
                f"found {rest:.0f} s left of {self._budget:.0f}: give more"
            )
        return self.save(dataclasses.replace(progress, chosen=chosen, rest=round(rest)))


class _Trying:
    """The rounds of a plan."""

    def __init__(
        self,
        auto: Auto,
        loaded: LoadedData,
        recipes: list[Recipe],
        record: TaskRecord,
        tracker: Tracker,
    ) -> None:
        self._auto = auto
        self._recipes = recipes
        self._record = record
        self._tracker = tracker
        self._display, self._stop, self._setup = auto._display, auto._stop, auto._setup
        rows = _rows_to_try(loaded, recipes[0])
        self._part = loaded.dataset.take(rows.tolist())
        self._decoded: dict[Any, LoadedData] = {}

    def run(self, progress: Progress) -> tuple[Progress, str | None]:
        """Try in rounds; why it was stopped, or None with the winner."""
        for recipe in self._recipes:
            self._load(recipe)
            if reason := self._stop():
                return self._auto.save(progress), reason
        progress = self._auto.begin(progress, len(self._recipes))
        going: list[int] = list(range(len(self._recipes)))
        for number, (size, seconds) in enumerate(progress.rounds):
            going = going[:size]
            for index in going:
                if index in progress.scores(number):
                    continue
                trial, reason = self._try(index, number, seconds)
                if reason is not None or trial is None:
                    return self._auto.save(progress), reason
                trials = (*progress.trials, trial)
                progress = self._auto.save(dataclasses.replace(progress, trials=trials))
            going = list(survivors(progress.scores(number), len(going)))
        return self._auto.finish(progress, going[0]), None

    def _load(self, recipe: Recipe) -> LoadedData:
        framing = framing_of(recipe)
        if framing not in self._decoded:
            self._decoded[framing] = decode_dataset(
                self._part,
                framing,
                cache_root=cache_root_of(self._setup.cache_root),
                num_workers=self._setup.num_workers,
                progress=self._display.cache_progress,
                obey_exif=recipe.exif == "obey",
            )
        return self._decoded[framing]

    def _try(self, index: int, number: int, seconds: float) -> tuple[AutoTrial | None, str | None]:
        """Train a candidate for some seconds; or why it was stopped."""
        # Each round validates on a fold of its own.
        recipe = dataclasses.replace(self._recipes[index], folds=NUM_FOLDS, budget=None)
        loaded = self._load(recipe)
        device = pick_device(self._setup.device)
        key = MemberKey(recipe.seeds[0], number % NUM_FOLDS + 1)
        started = time.monotonic()
        data = training_data(loaded, recipe, key, device)
        labels = loaded.dataset.classes.labels
        state = start_state(partial(build_fitted, recipe, labels, data), recipe, key.seed, device)
        step = Step(state, data, recipe, pick_precision(self._setup.precision, device))
        try:
            reason = train(step, stop=self._stop, time_limit=max(seconds, 0.5))
        except DivergedError:
            reason = "diverged"
        if reason == self._stop():
            return None, reason
        rates = [row["images_per_second"] for row in state.history]
        trial = AutoTrial(
            candidate=index,
            round=number,
            val_f1=0.0 if reason == "diverged" else state.best_val_f1,
            num_epochs=state.num_epochs_done,
            images_per_second=float(np.median(rates)) if rates else 0.0,
            seconds=time.monotonic() - started,
        )
        self._log(trial)
        return trial, None

    def _log(self, trial: AutoTrial) -> None:
        changes = {
            name: getattr(self._recipes[trial.candidate], name)
            for name in ("model", "image_size", "framing", "high_pass", "augmentation")
        }
        name = f"round_{trial.round + 1}_candidate_{trial.candidate + 1}"
        self._display.say(
            f"{name}: val_f1 {trial.val_f1:.4f} after {trial.num_epochs} epochs, "
            f"{trial.images_per_second:.0f} images/s, {trial.seconds:.0f} s"
        )
        try:
            record = self._tracker.open_task("trial", name, {}, below=self._record.run_id)
            record.log_params({**changes, "round": trial.round + 1})
            scores = {"val_f1": trial.val_f1, "time/images_per_second": trial.images_per_second}
            record.log(scores, {}, "", [])
            record.finish("FINISHED")
        except InputError as error:
            # The plan is kept in its folder; what waits for nobody is not worth the night.
            self._display.say(f"warning: {name} is not recorded: {error}")


def _rows_to_try(loaded: LoadedData, recipe: Recipe) -> np.ndarray:
    """The rows of the data that trials may know: of those that will train, some thousand."""
    if recipe.folds:
        rows = np.arange(len(loaded.dataset.ids))
    else:
        dataset = loaded.dataset
        rows, _ = split_rows(dataset.labels, recipe, MemberKey(recipe.seeds[0]), dataset.groups)
    if len(rows) <= MAX_ROWS:
        return np.sort(rows)
    labels, rng = loaded.dataset.labels[rows], np.random.default_rng(0)
    drawn = []
    for label in np.unique(labels):
        own = rng.permutation(rows[labels == label])
        # Of a rare class, more than its share: each fold must have some.
        drawn.append(own[: max(MIN_ROWS_PER_CLASS, round(MAX_ROWS * len(own) / len(rows)))])
    return np.sort(np.concatenate(drawn))
