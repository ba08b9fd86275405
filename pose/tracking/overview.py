"""The runs that there are, from the records of the store."""

from collections import defaultdict
from pathlib import PurePath

from mlflow.entities import Run

from pose.errors import InputError
from pose.overview import RunOverview
from pose.results import FINISHED_REASONS, spread
from pose.tracking import registry
from pose.tracking.store import PARENT_TAG, Store, is_dead
from pose.tracking.tags import seeds_of


def list_runs(store: Store) -> list[RunOverview]:
    """The training runs of the store, newest first; trials of sweeps are left out."""
    found = store.search_runs("tags.kind = 'train'")
    parents = [run for run in found if PARENT_TAG not in run.data.tags]
    members: dict[str, dict[str, Run]] = defaultdict(dict)
    for child in reversed(store.search_runs("tags.kind = 'seed'")):
        members[child.data.tags.get("parent_run_id", "")][str(child.info.run_name)] = child
    votes: dict[str, Run] = {}
    for vote in reversed(store.search_runs("tags.kind = 'ensemble'")):
        votes[vote.data.tags.get("parents", "")] = vote
    return [
        _overview(run, list(members[run.info.run_id].values()), votes.get(run.info.run_id))
        for run in parents
    ]


def _overview(run: Run, members: list[Run], vote: Run | None) -> RunOverview:
    tags = run.data.tags
    finished = [own for own in members if own.data.tags.get("stop_reason") in FINISHED_REASONS]
    scores = [m.data.metrics["best_val_f1"] for m in finished if "best_val_f1" in m.data.metrics]
    num_folds = max((int(own.data.params.get("folds", 0)) for own in members), default=0)
    problem, num_seeds = None, 0
    try:
        num_seeds = len(seeds_of(run))
    except InputError:
        # Edited by hand. One run that nobody can use must not hide the others.
        problem = "damaged (tag seeds)"
    return RunOverview(
        run_id=run.info.run_id,
        name=tags.get("run", run.info.run_name or ""),
        data=PurePath(tags.get("dataset", "")).name,
        num_finished=len(finished),
        num_promised=max(num_seeds * max(1, num_folds), len(finished)),
        state=_state(run) if problem is None else problem,
        val_f1=spread(scores) if scores else None,
        ensemble_f1=vote.data.metrics.get("val_f1") if vote else None,
        num_rows=int(vote.data.metrics.get("val_rows", 0)) if vote else 0,
        started=run.info.start_time / 1000,
        command=tags.get("command", ""),
    )


def _state(run: Run) -> str:
    if registry.is_complete(run):
        return "complete"
    if run.info.status == "RUNNING" and not is_dead(run.data.tags):
        return "at work"
    reason = run.data.tags.get("stop_reason", "")
    return f"stopped ({reason})" if reason else "stopped"
