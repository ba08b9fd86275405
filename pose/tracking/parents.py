"""Which run a command means: its unfinished one, one to add seeds to, or a new one."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import Run

from pose.config import typed
from pose.data.exclusion import read_excluded
from pose.errors import InputError
from pose.results import FINISHED_REASONS
from pose.tracking import registry
from pose.tracking.store import PARENT_TAG, Store, is_dead, process_tags
from pose.tracking.tags import BEGUN_TAG, begun_of, seeds_of, silence_of

# After so much silence a run of another machine counts as dead.
SILENCE_SECONDS = 600
# The ids that a run did without, among its artifacts.
EXCLUDED_FILE = "excluded.csv"
# On parents: a digest of what a flip does to each class.
MIRRORS_TAG = "mirrors_digest"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRequest:
    """A run to begin, to continue, or to add seeds to.

    Attributes:
        name, recipe_digest, dataset_digest: what two commands must share to mean one run.
        seeds: those that the run promises.
        add_seeds: add these to the newest finished run instead; none: do not.
        fresh: begin anew even if an unfinished one could be continued.
        settings: the recipe's by name; says how an unfinished run differs.
        tags: of the parent, besides those that say what it is.
        folder: the run's, where its spool is.
        mirrors: what a flip does to the classes, which the data's digest leaves out; "": unknown.
        kind: its tag `kind`: `train`, or `sweep` for a run of runs.
        is_unique: refuse it where a finished run is the same.
    """

    name: str
    recipe_digest: str
    dataset_digest: str
    seeds: tuple[int, ...]
    add_seeds: tuple[int, ...] = ()
    fresh: bool = False
    settings: Mapping[str, Any]
    tags: Mapping[str, str]
    folder: Path
    mirrors: str = ""
    kind: str = "train"
    is_unique: bool = False

    def identity(self) -> dict[str, str]:
        """As tags of the parent run."""
        return {
            "run": self.name,
            "recipe_digest": self.recipe_digest,
            "dataset_digest": self.dataset_digest,
        }

    def has_mirrors(self, recorded: str | None) -> bool:
        """Whether a run's own mirrors are these, as far as both are known.

        Runs from before 0.2 have not recorded theirs.
        """
        return self.mirrors == recorded or not (self.mirrors and recorded)


def find_parent(store: Store, experiment_id: str, request: RunRequest) -> Run | None:
    """The run that `request` goes on with, or None for a new one.

    Raises:
        InputError: seeds are to be added, and there is no finished run to add them to, or a
            finished run is the same and must not be made again.
    """
    wanted = " and ".join(f"tags.{key} = '{value}'" for key, value in request.identity().items())
    found = store.client.search_runs(
        [experiment_id],
        f"tags.kind = '{request.kind}' and {wanted}",
        order_by=["attributes.start_time DESC"],
    )
    found = sorted(found, key=begun_of, reverse=True)
    found = [run for run in found if request.has_mirrors(run.data.tags.get(MIRRORS_TAG))]
    if request.add_seeds:
        return _find_grown(found, request)
    if request.fresh:
        return None
    if request.is_unique and (complete := next(filter(registry.is_complete, found), None)):
        raise InputError(
            f"archive must not be imported twice, it is the run {request.name}, "
            f"{complete.info.run_id}: vote with it, or give another --run-name"
        )
    same_seeds = [run for run in found if seeds_of(run) == request.seeds]
    newest = same_seeds[0] if same_seeds else None
    if newest is None or request.kind == "sweep":
        # A finished sweep goes on too: with more trials or time there is more to try.
        return newest
    return None if registry.is_complete(newest) else newest


def _find_grown(found: Sequence[Run], request: RunRequest) -> Run:
    """The newest run that is finished, or was finished and lacks seeds that were added."""
    for run in found:
        has_added = "added_seeds" in run.data.tags
        if registry.is_complete(run) or has_added:
            if registry.is_complete(run) and set(request.add_seeds) <= set(seeds_of(run)):
                raise InputError(
                    f"add_seeds must name seeds that run {run.info.run_id} lacks, it has "
                    f"{run.data.tags['seeds']}"
                )
            return run
    raise InputError(
        f"add_seeds must find a finished run of {request.name} with the same recipe and data, "
        "found none: train it first, without add_seeds"
    )


def refuse_living(parent: Run) -> None:
    """Refuse to go on with a run that somebody else works on.

    Raises:
        InputError: a process is at work on `parent`, here or elsewhere.
    """
    tags = parent.data.tags
    if parent.info.status != "RUNNING" or is_dead(tags):
        return
    age = silence_of(parent)
    is_here = tags.get("host") == process_tags()["host"]
    if is_here or age < SILENCE_SECONDS:
        raise InputError(
            f"run must not be at work already, but {tags['run']} is, as {parent.info.run_id} in "
            f"process {tags.get('pid')} on {tags.get('host')} (last heard of {age:.0f} s ago): "
            "wait for it, or give another --run-name"
        )


def next_begun(store: Store, experiment_id: str) -> int:
    """What `begun_of` is to be of a run that begins now: later than of any other."""
    latest = int(time.time() * 1000)
    # MLflow sorts tags as texts; times of these centuries have one length.
    for order in (f"tags.{BEGUN_TAG} DESC", "attributes.start_time DESC"):
        newest = store.client.search_runs(
            [experiment_id], "tags.recipe_digest != ''", order_by=[order], max_results=1
        )
        latest = max([latest, *(begun_of(run) + 1 for run in newest)])
    return latest


def unlike_text(store: Store, experiment_id: str, request: RunRequest) -> str:
    """How the newest run of this name differs, if it is unfinished.

    A new one begins then, and whoever expected the old one to go on should know why it does not.
    """
    found = store.client.search_runs(
        [experiment_id],
        f"tags.kind = '{request.kind}' and tags.run = '{request.name}'",
        order_by=["attributes.start_time DESC"],
    )
    other = max(found, key=begun_of, default=None)
    if other is None or registry.is_complete(other):
        return ""
    differences = []
    if other.data.tags.get("dataset_digest") != request.dataset_digest:
        differences.append("data")
    if not request.has_mirrors(other.data.tags.get(MIRRORS_TAG)):
        differences.append("the mirrors in classes.csv")
    if seeds_of(other) != request.seeds:
        now = ",".join(map(str, request.seeds))
        differences.append(f"seeds ({other.data.tags.get('seeds')}, now {now})")
    children = store.client.search_runs(
        [experiment_id], f"tags.`{PARENT_TAG}` = '{other.info.run_id}'", max_results=1
    )
    params = children[0].data.params if children else {}
    for name, value in request.settings.items():
        if name in params and params[name] != typed(value):
            differences.append(f"{name} ({params[name]}, now {typed(value)})")
    return f"{other.info.run_id} differs in {', '.join(differences) or 'its recipe'}"


def excluded_before(
    store: Store, run: str, own: tuple[str, str], staging: Path
) -> tuple[str, set[str]] | None:
    """The newest run of a name that another table excluded images from: its id, and theirs.

    Args:
        own: the id of the run that asks, and the digest of the ids that it excludes.
        staging: a folder for what is brought.
    """
    for found in store.search_runs(f"tags.kind = 'train' and tags.run = '{run}'"):
        digest = found.data.tags.get("exclude_sha256")
        run_id = found.info.run_id
        if digest is None or run_id == own[0]:
            continue
        if digest == own[1]:
            return None
        path = store.client.download_artifacts(run_id, EXCLUDED_FILE, str(staging))
        return run_id, set(read_excluded(Path(path)))
    return None


def close_dead_runs(store: Store, experiment_id: str) -> None:
    """End as KILLED the runs of this machine whose process is gone."""
    running = store.client.search_runs(
        [experiment_id],
        f"attributes.status = 'RUNNING' and tags.host = '{process_tags()['host']}'",
    )
    for run in running:
        if is_dead(run.data.tags):
            is_finished = run.data.tags.get("stop_reason") in FINISHED_REASONS
            if not is_finished:
                store.set_tags(run.info.run_id, {"stop_reason": "killed"})
            store.client.set_terminated(run.info.run_id, "FINISHED" if is_finished else "KILLED")
