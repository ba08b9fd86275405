"""A plan from the data: what is tried for a part of the time, and what is trained for the rest.

The run `auto` has no recipe of its own. What a folder is like decides which networks, sizes and
framings are tried (`pose.search.candidates`); successive halving finds the best of them on a fold
of the rows that will train, and the first member goes on where the winner's trials ended. The rows
that will validate the run decide nothing, so its score is as honest as that of any run.
"""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

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
from pose.rounds import Rounds, last_state
from pose.run import only_run_in
from pose.search.candidates import Candidate, find_candidates, pretrained_among
from pose.search.fingerprint import Fingerprint, take_fingerprint
from pose.search.places import Here, trial_engine
from pose.search.pretrained import available, names_for
from pose.search.progress import Progress, ProgressFile, read_progress
from pose.search.states import States
from pose.search.trial import TrialData, part_to_try
from pose.seeds.engines import engine_ready
from pose.stop import Stop, ending
from pose.tracking import TaskRecord, Tracker

RECORD = "plan.json"
TEXT = "plan.md"
MIN_SECONDS = 120.0
# Members that would learn for fewer epochs are better one than three.
MIN_EPOCHS = 12


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
                rounds = Rounds(
                    file=self._file, setup=self._setup, display=self._display, stop=self._stop,
                    recipes=recipes, engine=engine, record=record, tracker=tracker,
                    states=self._states,
                )  # fmt: skip
                progress, reason = rounds.run(progress)
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
        path = last_state(self._states, progress)
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
