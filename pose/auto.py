"""A plan from the data: what is tried for a part of the time, and what is trained for the rest.

The run `auto` has no recipe of its own. What a folder is like decides which networks, sizes and
framings are tried (`pose.search.candidates`); successive halving finds the best of them on a fold
of the rows that will train, and the first member goes on where the winner's trials ended. The rows
that will validate the run decide nothing, so its score is as honest as that of any run.
"""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from pose.cluster import check_ray
from pose.config import MIN_SEED_SECONDS, Recipe, Setup, parse_time
from pose.data.cache import cache_root_of
from pose.data.folder import read_dataset
from pose.data.loaded import LoadedData
from pose.data.source import find_dataset
from pose.data.tensors import load_recipe_data
from pose.data.twin_search import group_twins
from pose.device import keep_freed_memory, pick_device
from pose.display import Display
from pose.errors import InputError
from pose.files import write_text
from pose.named_runs import AUTO_BASE, ResolvedRun
from pose.reports.notes import describe_auto
from pose.results import AutoTrial
from pose.run import only_run_in
from pose.search.candidates import Candidate, find_candidates, pretrained_among
from pose.search.fingerprint import Fingerprint, take_fingerprint
from pose.search.halving import seconds_of_each, survivors
from pose.search.places import Here, trial_engine
from pose.search.pretrained import available, names_for
from pose.search.progress import Progress, ProgressFile, read_progress
from pose.search.states import States
from pose.search.trial import TrialData, TrialJob, Tried, part_to_try, trial_recipe
from pose.seeds.engines import engine_ready, num_at_once, num_turns
from pose.stop import Stop, ending
from pose.tracking import TaskRecord, Tracker

RECORD = "plan.json"
TEXT = "plan.md"
MIN_SECONDS = 120.0
# Members that would learn for fewer epochs are better one than three.
MIN_EPOCHS = 12
# Seconds of a trial besides its training, before the first one is measured.
TRIAL_OVERHEAD = 1.5
# Settings by which candidates differ, as parameters of their runs.
TRIED = ("model", "pretrained", "image_size", "framing", "high_pass", "augmentation")


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
        head_start: the state that the first member goes on from; None: it begins from scratch.
        stop_reason: why it stopped, if it did.
    """

    run: ResolvedRun | None
    text: str = ""
    head_start: Path | None = None
    stop_reason: str | None = None

    @property
    def texts(self) -> dict[str, str]:
        """What the run keeps of it as artifacts, by file name."""
        return {TEXT: self.text}


class Auto:
    """A plan at work.

    Args:
        run: `champion` with the settings that were given, under the name of the run.
        given: names of those settings; no candidate changes them.
    """

    def __init__(
        self, run: ResolvedRun, given: Collection[str], setup: Setup, display: Display, stop: Stop
    ) -> None:
        if setup.engine == "ray":
            check_ray()
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
        least = MIN_SEED_SECONDS * len(run.recipe.members(run.recipe.seeds))
        self._folder = Path(setup.output_root) / f"{run.name}_plan"
        self._file = ProgressFile(self._folder / RECORD, check_budget(run.recipe), least)
        self._states = States(self._folder)
        self._run = run
        self._given = frozenset(given) - {"budget", "seeds"}
        self._has_seeds = "seeds" in given
        self._setup = setup
        self._display = display
        self._stop = stop

    def text(self) -> str:
        """What would be tried, for people.

        Raises:
            InputError: nothing to train on.
        """
        dataset = read_dataset(find_dataset(self._setup, self._display))
        dataset.raise_if_fatal()
        found = take_fingerprint(dataset)
        # Nothing is fetched to say what would be tried.
        candidates = find_candidates(found, self._given, self._pretrained_names())
        names = [
            f"{own.name}: {own.reason}"
            + (" (if its weights can be had)" if "pretrained" in dict(own.changes) else "")
            for own in candidates
        ]
        title = f"run: {self._run.name} (planned from the data), budget {self._file.budget:.0f} s"
        return "\n".join((title, *found.lines(), *(f"candidate {name}" for name in names)))

    def choose(self, tracker: Tracker) -> Chosen:
        """Try the candidates, unless an unfinished plan has a winner already.

        Raises:
            InputError: nothing to train on, or too little time for the members.
        """
        keep_freed_memory()
        with only_run_in(self._folder), engine_ready(self._setup):
            return self._choose(tracker)

    def complete(self) -> None:
        """The members are trained: the same command would plan anew."""
        self._file.save(dataclasses.replace(read_progress(self._file.path), is_done=True))
        self._states.forget()

    def _choose(self, tracker: Tracker) -> Chosen:
        folder = find_dataset(self._setup, self._display)
        dataset = read_dataset(folder)
        dataset.raise_if_fatal()
        found = take_fingerprint(dataset)
        plainest = find_candidates(found, self._given)[0]
        loaded = load_recipe_data(
            folder,
            self._recipe_of(plainest),
            cache_root_of(self._setup.cache_root),
            self._setup.num_workers,
            self._display.cache_progress,
            self._setup.cache,
        )
        is_grouped = loaded.dataset.groups.alike is not None
        twins = loaded if is_grouped else group_twins(loaded)
        assert twins.dataset.groups.alike is not None
        found = found.with_twins(twins.dataset.groups.alike)
        if found.has_to_keep_twins and self._may_keep_twins():
            loaded = twins
            self._keep_twins()
        # Weights are fetched where a network is going to be tried with them.
        wanted = find_candidates(found, self._given, self._pretrained_names())
        names = available(pretrained_among(wanted), self._display.say)
        candidates = find_candidates(found, self._given, names)
        recipes = [self._recipe_of(candidate) for candidate in candidates]
        for line in (*loaded.lines(), *found.lines()):
            self._display.say(line)
        identity = self._identity(loaded, candidates)
        before = None if self._setup.fresh else self._file.find(identity)
        if before is None or before.chosen is None:
            progress, record = self._open(loaded, identity, before, tracker)
            with ending(record.finish), self._engine(loaded, recipes) as engine:
                trying = _Trying(
                    file=self._file, setup=self._setup, display=self._display, stop=self._stop,
                    recipes=recipes, engine=engine, record=record, tracker=tracker,
                    states=self._states,
                )  # fmt: skip
                progress, reason = trying.run(progress)
                if reason:
                    record.finish("KILLED", reason)
                    return Chosen(run=None, stop_reason=reason)
                text = self._describe(found, candidates, loaded, progress)
                path = self._folder / TEXT
                write_text(path, text)
                winner = candidates[progress.chosen or 0]
                record.log({}, {"chosen": winner.name}, text, [path])
            record.finish("FINISHED")
        else:
            progress, winner = before, candidates[before.chosen]
            text = self._describe(found, candidates, loaded, before)
        return Chosen(
            run=self._chosen_run(winner, progress, len(loaded.dataset.ids)),
            text=text,
            head_start=self._head_start(progress),
        )

    def _engine(
        self, loaded: LoadedData, recipes: Sequence[Recipe]
    ) -> AbstractContextManager[Here]:
        setup = self._setup
        data = TrialData(
            dataset=part_to_try(loaded, recipes[0]),
            cache_root=cache_root_of(setup.cache_root).absolute(),
            num_workers=setup.num_workers,
            cache=setup.cache,
        )
        return trial_engine(setup, data, self._display, self._stop)

    def _pretrained_names(self) -> tuple[str, ...]:
        return names_for(pick_device(self._setup.device).type)

    def _may_keep_twins(self) -> bool:
        return "group_near_twins" not in self._given and self._run.recipe.keep_groups

    def _keep_twins(self) -> None:
        """From here on no split comes between near twins."""
        self._display.say("near twins stay on one side of every split (group_near_twins)")
        recipe = dataclasses.replace(self._run.recipe, group_near_twins=True)
        changes = {**self._run.changes, "group_near_twins": True}
        self._run = dataclasses.replace(self._run, recipe=recipe, changes=changes)

    def _recipe_of(self, candidate: Candidate) -> Recipe:
        return dataclasses.replace(self._run.recipe, **dict(candidate.changes))

    def _seeds(self, progress: Progress, num_images: int) -> tuple[int, ...]:
        """The seeds that were given, or as many of the usual ones as learn for some epochs."""
        recipe = self._run.recipe
        if self._has_seeds or recipe.folds:
            return recipe.seeds
        rate = progress.rate_of(progress.chosen or 0)
        if not rate:
            # Nothing was tried, or nothing ended an epoch: nobody knows how far members come.
            return recipe.seeds
        images = rate * (progress.rest or 0.0)
        epochs = images / max(1.0, (1 - recipe.val_fraction) * num_images)
        return recipe.seeds[: max(1, int(epochs / MIN_EPOCHS)) * progress.at_once]

    def _chosen_run(self, candidate: Candidate, progress: Progress, num_images: int) -> ResolvedRun:
        seeds = self._seeds(progress, num_images)
        changes = {**dict(candidate.changes), "budget": f"{progress.rest:.0f}s"}
        recipe = dataclasses.replace(self._run.recipe, **changes, seeds=seeds)
        return ResolvedRun(
            name=self._run.name,
            base=AUTO_BASE,
            recipe=recipe,
            changes={**self._run.changes, **changes, "seeds": recipe.seeds_text()},
        )

    def _head_start(self, progress: Progress) -> Path | None:
        """Where the winner's trials ended, if a member may know the rows that they knew.

        With folds the first member is validated by some of them.
        """
        path = _last_state(self._states, progress)
        return None if self._run.recipe.folds else path

    def _describe(
        self,
        found: Fingerprint,
        candidates: Sequence[Candidate],
        loaded: LoadedData,
        progress: Progress,
    ) -> str:
        """The plan and its reasons as Markdown."""
        recipe, num_images = self._run.recipe, len(loaded.dataset.ids)
        num_members = len(recipe.members(self._seeds(progress, num_images)))
        is_usual = num_members == len(recipe.members(recipe.seeds))
        fewer = "" if is_usual else f" (more would learn for fewer than {MIN_EPOCHS} epochs each)"
        has_start = self._head_start(progress) is not None
        start = "; the first goes on from its trials" if has_start else ""
        flattery = (
            "With folds every row validates somebody, and decided here as well: the score of the "
            "run is a little flattering."
            if recipe.folds
            else f"The rows that validate them ({recipe.val_fraction:.0%} of {num_images}) decided "
            "nothing here."
        )
        return describe_auto(
            self._run.name,
            found.lines(),
            [(own.name, own.reason) for own in candidates],
            progress.trials,
            progress.chosen or 0,
            f"{progress.seconds:.0f} of {self._file.budget:.0f} s went into this. Members for the "
            f"other {progress.rest:.0f} s: {num_members}{fewer}{start}. {flattery}",
        )

    def _identity(self, loaded: LoadedData, candidates: Sequence[Candidate]) -> str:
        """What two commands must share to mean one plan."""
        settings = {
            "recipe": self._run.recipe.identity(),
            "seeds": self._run.recipe.seeds,
            "budget": self._file.budget,
            "candidates": [own.changes for own in candidates],
            "data": loaded.digest,
        }
        text = json.dumps(settings, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _open(
        self, loaded: LoadedData, identity: str, before: Progress | None, tracker: Tracker
    ) -> tuple[Progress, TaskRecord]:
        """The unfinished plan, or a new one, with its run in MLflow."""
        tags = {"run": f"{self._run.name}_plan", "dataset": str(loaded.dataset.folder.absolute())}
        if before is not None:
            self._display.say(f"continuing the unfinished plan {before.run_id}")
            record = tracker.open_task_again(before.run_id, "plan", tags["run"])
            # A run that somebody deleted has another one in its place.
            return dataclasses.replace(before, run_id=record.run_id), record
        self._file.set_aside()
        self._states.forget()
        record = tracker.open_task("plan", tags["run"], tags)
        return Progress(identity=identity, run_id=record.run_id), record


@dataclasses.dataclass(kw_only=True)
class _Trying:
    """The rounds of a plan.

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
        self.states.forget(but=_last_state(self.states, progress))
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


def _last_state(states: States, progress: Progress) -> Path | None:
    """Where the chosen candidate got to; None where it was not tried, or diverged."""
    rounds = [own.round for own in progress.trials if own.candidate == progress.chosen]
    if not rounds:
        return None
    path = states.path(progress.chosen or 0, rounds[-1])
    return path if path.exists() else None
