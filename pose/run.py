"""A run: all its members under one parent, begun or continued, and their summary."""

import dataclasses
import json
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pose.config import Setup
from pose.data.cache import ImageCache, cache_root_of
from pose.data.exclusion import ids_csv
from pose.data.loaded import LoadedData
from pose.data.source import DEMO_MARKER, find_dataset
from pose.data.survey import OPENERS
from pose.data.tensors import framing_of, load_recipe_data
from pose.data.twin_search import with_twins
from pose.data.twin_table import TWINS_FILE
from pose.device import describe, keep_freed_memory
from pose.display import Display
from pose.ensembling.out_of_fold import OutOfFold, score_folds
from pose.ensembling.suspects import SUSPECTS_FILE, suspects_csv
from pose.ensembling.validated import Validated, look_at
from pose.errors import InputError, first_few, one_line, printable
from pose.files import is_partial, locked, read_bytes, remove_partials, write_text, writing
from pose.member_key import MemberKey
from pose.named_runs import ResolvedRun
from pose.plan import Plan
from pose.predictions import Predictions, read_predictions, write_predictions
from pose.reports.notes import describe_seeds
from pose.restore import restore_results
from pose.results import RunResult, SeedResult, spread
from pose.seeds import folder as seed_folder
from pose.seeds.engines import Budget, engine_ready, num_at_once, pick_engine
from pose.seeds.job import SeedJob
from pose.seeds.train import write_head_start
from pose.stop import Stop, ending
from pose.sync import lock_of
from pose.tracking import DataRecord, RunRecord, RunRequest, SeedRecord, Tracker
from pose.weights import keep_weights

# Says in a run's folder which run it belongs to.
OWNER_FILE = "training.json"
OUT_OF_FOLD = "out_of_fold.csv"
# The part of the rows above which members that know too little are the likelier reason.
MANY_SUSPECTS = 0.2
EXCLUDED = "excluded.csv"


def train_run(plan: Plan, tracker: Tracker, display: Display, stop: Stop) -> RunResult:
    """Train the members of a run, or those that an unfinished run of the same identity lacks.

    Raises:
        InputError: nothing to train on, a value that cannot be used, or a run of that name that
            is at work already.
    """
    keep_freed_memory()
    with only_run_in(plan.folder), engine_ready(plan.setup):
        loaded = load_planned_data(plan, display)
        record = tracker.open_run(_request(plan, loaded))
        with ending(record.finish):
            if record.unlike:
                display.say(f"beginning anew: the unfinished run {record.unlike}")
            moved = claim_folder(plan.folder, record.run_id, record.is_continued)
            if moved:
                display.say(f"the earlier results of {plan.run.name} are kept in {moved}")
            if record.is_continued:
                display.say(f"continuing the unfinished training {record.run_id}")
            record.begin(plan.folder)
            record.log_text(loaded.dataset.report(), "data_report.txt")
            for name, text in plan.texts.items():
                record.log_text(text, name)
            if loaded.twins:
                record.log_text(loaded.twins.csv(), TWINS_FILE)
            if loaded.dataset.excluded:
                record.log_text(ids_csv(loaded.dataset.excluded), EXCLUDED)
                own = (record.run_id, plan.recipe.exclude_sha256 or "")
                _say_returned(plan.run.name, own, loaded, tracker, display)
            _say_transfer(plan, loaded, record, display)
            if not record.is_continued:
                _give_head_start(plan, loaded, display)
            # A store that refuses is found before training; one that is away is waited for.
            record.settle()
            results = _train_members(plan, loaded, record, tracker, display, stop)
            finished = [result for result in results if result.is_finished]
            validated = look_at(_val_predictions(plan, record, finished))
            folds = plan.recipe.folds
            out_of_fold = score_folds(validated.members, folds) if folds else None
            if finished:
                _log_suspects(plan, loaded, record, validated, display)
                _log_summary(plan, record, finished, out_of_fold, validated)
                _log_page(plan, loaded, record, finished, validated, display)
        is_complete = len(finished) == len(plan.recipe.members(record.seeds))
        if is_complete:
            record.complete()
        else:
            record.finish("KILLED", stop() or "")
    return RunResult(
        run_id=record.run_id,
        folder=plan.folder,
        members=results,
        stop_reason=None if is_complete else stop(),
        seeds_page=record.seeds_page(),
        out_of_fold=out_of_fold,
    )


def bring_weights(run: ResolvedRun, setup: Setup, tracker: Tracker) -> ResolvedRun:
    """The same run, the registered weights that it starts from brought to this machine.

    Raises:
        InputError: they are not in the tracking store.
    """
    assert run.recipe.weights is not None
    with tempfile.TemporaryDirectory() as staging:
        path = tracker.fetch_weights(run.recipe.weights, Path(staging))
        digest = keep_weights(path, cache_root_of(setup.cache_root))
    recipe = dataclasses.replace(run.recipe, weights_sha256=run.recipe.weights_sha256 or digest)
    return dataclasses.replace(run, recipe=recipe)


def load_planned_data(plan: Plan, display: Display) -> LoadedData:
    """The data, checked: what can be wrong with the input is found before a run exists.

    Raises:
        InputError: there is none, or the plan cannot be carried out on it.
    """
    loaded = load_recipe_data(
        find_dataset(plan.setup, display),
        plan.recipe,
        plan.cache_root,
        plan.setup.num_workers,
        display.cache_progress,
        plan.setup.cache,
    )
    for line in loaded.lines():
        display.say(line)
    display.say(f"device: {describe(plan.device, plan.precision)}")
    plan.check_data(loaded.dataset)
    loaded = with_twins(loaded, plan.recipe, _decode_tests(plan, loaded, display))
    assert loaded.twins is not None
    for line in (*plan.warnings(loaded.dataset), *loaded.twins.warnings()):
        display.say(f"warning: {line}")
    return loaded


def _decode_tests(plan: Plan, loaded: LoadedData, display: Display) -> ImageCache | None:
    """The test images, decoded as a vote will want them; None where there are none, or no room."""
    if not loaded.dataset.test_files:
        return None
    try:
        return OPENERS[plan.setup.cache](
            loaded.dataset.test_files,
            framing_of(plan.recipe),
            cache_root=plan.cache_root,
            num_workers=plan.setup.num_workers,
            progress=display.cache_progress,
            obey_exif=plan.recipe.exif == "obey",
        )
    except InputError as error:
        # A vote needs them, training does not.
        display.say(f"warning: near twins among the test images are not looked for: {error}")
        return None


def _say_transfer(plan: Plan, loaded: LoadedData, record: RunRecord, display: Display) -> None:
    """Show and record what is taken of the weights that training starts from, if there are any."""
    transfer = plan.transfer(loaded.dataset.classes.labels)
    if transfer is not None:
        for line in transfer.lines():
            display.say(line)
        record.log_text("\n".join(transfer.lines()) + "\n", "weights.txt")


def _give_head_start(plan: Plan, loaded: LoadedData, display: Display) -> None:
    """Let the first member go on from where a trial of its recipe ended, if there was one."""
    if plan.head_start is None:
        return
    job = _job(plan, loaded, plan.recipe.members(plan.recipe.seeds)[0])
    try:
        seconds = write_head_start(job, loaded, plan.head_start)
    except InputError as error:
        display.say(f"warning: {error}; {job.key} begins from scratch")
        return
    display.say(f"{job.key}: goes on from its trials, which trained it for {seconds:.0f} s")


def _say_returned(
    name: str, own: tuple[str, str], loaded: LoadedData, tracker: Tracker, display: Display
) -> None:
    """One line where a table of `exclude` brings images back that the one before left out.

    Args:
        name: of the run.
        own: its id, and the digest of what it excludes.
    """
    try:
        with tempfile.TemporaryDirectory() as staging:
            found = tracker.excluded_before(name, own, Path(staging))
    except InputError:
        # Nothing that training needs: a store that is away is said elsewhere.
        return
    if found is None:
        return
    run_id, before = found
    returned = before & set(loaded.dataset.ids)
    if returned:
        display.say(
            f"warning: {len(returned)} images that run {run_id} left out are used again, since "
            f"exclude no longer names them: {first_few(map(printable, sorted(returned)))}; to "
            f"leave out both, give its {EXCLUDED} as well, behind a comma"
        )


def _request(plan: Plan, loaded: LoadedData) -> RunRequest:
    return RunRequest(
        name=plan.run.name,
        recipe_digest=plan.recipe.digest(),
        dataset_digest=loaded.digest,
        mirrors=loaded.dataset.classes.mirrors_digest(),
        seeds=plan.recipe.seeds,
        add_seeds=plan.setup.add_seeds,
        fresh=plan.setup.fresh,
        settings=plan.shared_params(),
        folder=plan.folder,
        tags={
            **_tags(plan, loaded),
            "dataset": str(loaded.dataset.folder.absolute()),
        },
    )


def _tags(plan: Plan, loaded: LoadedData) -> dict[str, str]:
    is_drawn = (loaded.dataset.folder / DEMO_MARKER).exists()
    excluded = loaded.dataset.excluded
    return {
        **plan.tags(),
        **({"data": "demo: the figures are drawn"} if is_drawn else {}),
        **({"excluded": str(len(excluded))} if excluded else {}),
        **({"exclude_sha256": plan.recipe.exclude_sha256 or ""} if excluded else {}),
    }


def _params(plan: Plan, loaded: LoadedData, member: MemberKey) -> dict[str, Any]:
    return {
        **plan.params(member),
        "num_classes": len(loaded.dataset.classes),
        "num_images": len(loaded.dataset.ids),
        "dataset": loaded.dataset.folder.absolute(),
        "dataset_digest": loaded.digest,
    }


def _train_members(
    plan: Plan,
    loaded: LoadedData,
    record: RunRecord,
    tracker: Tracker,
    display: Display,
    stop: Stop,
) -> list[SeedResult]:
    """The results of the members in their order, up to the first that was asked to stop."""
    finished = record.finished_members()
    promised = plan.recipe.members(record.seeds)
    for key in promised:
        if key in finished:
            display.say(f"{key}: finished before, val_f1 {finished[key].val_f1:.4f}")
    folders = {key: _job(plan, loaded, key).output for key in finished}
    restore_results(plan.run.name, record.run_id, folders, tracker, display)
    labels_of = loaded.dataset.classes.labels
    data = DataRecord(
        ids=loaded.dataset.ids,
        labels=[labels_of[index] for index in loaded.dataset.labels],
        folder=loaded.dataset.folder,
        digest=loaded.digest,
    )

    def open_tracker(job: SeedJob) -> SeedRecord:
        params = _params(plan, loaded, job.key)
        return record.open_seed(job, _tags(plan, loaded), params, data)

    results = dict(finished)
    jobs = [_job(plan, loaded, key) for key in promised if key not in finished]
    budget = _budget(plan, len(promised), finished.values())
    train = pick_engine(plan.setup)
    for result in train(jobs, open_tracker, display, stop, loaded=loaded, budget=budget):
        results[result.key] = result
        if result.is_finished:
            display.say(
                f"{result.key}: val_f1 {result.val_f1:.4f} at epoch {result.best_epoch} of "
                f"{result.num_epochs} ({result.stop_reason}), {result.seconds:.0f} s"
            )
    return [results[key] for key in promised if key in results]


def _job(plan: Plan, loaded: LoadedData, member: MemberKey) -> SeedJob:
    return SeedJob(
        run=plan.run.name,
        recipe=plan.recipe,
        seed=member.seed,
        fold=member.fold,
        dataset=loaded.dataset.folder,
        output=plan.folder / member.folder,
        cache_root=plan.cache_root,
        num_workers=plan.setup.num_workers,
        cache=plan.setup.cache,
        device=plan.setup.device,
        precision=plan.setup.precision,
        threads=plan.threads // plan.setup.processes_per_seed,
        processes=plan.setup.processes_per_seed,
    )


def _budget(plan: Plan, num_members: int, finished: Iterable[SeedResult]) -> Budget | None:
    """The time that the recipe's budget has for the members to come.

    An added one has as much as each of the first had.
    """
    share = plan.recipe.member_seconds()
    if share is None:
        return None
    budget = Budget(share * num_members, num_members, num_at_once(plan.setup, num_members))
    for result in finished:
        budget.spend(result.seconds)
    return budget


def _val_predictions(
    plan: Plan, record: RunRecord, finished: Iterable[SeedResult]
) -> dict[MemberKey, Predictions]:
    """Those of finished members, from their folders.

    With folds, whose score needs them all, those that are gone come from MLflow.
    """
    found = {}
    for key in (result.key for result in finished):
        path = plan.folder / key.folder / seed_folder.VAL_PREDICTIONS
        if not path.exists() and plan.recipe.folds:
            path = record.fetch_val_predictions(key, path.parent)
        if path.exists():
            found[key] = read_predictions(path)
    return found


def _log_suspects(
    plan: Plan, loaded: LoadedData, record: RunRecord, validated: Validated, display: Display
) -> None:
    """The labels that members contradict which did not train on them, as a table of the run."""
    held_out, suspects = validated.every_row, validated.suspects
    if held_out is None:
        return
    path = plan.folder / SUSPECTS_FILE
    write_text(path, suspects_csv(suspects, held_out.ids, loaded.dataset.classes.labels))
    record.log_file(path)
    # Datasets have a few per cent of wrong labels (Northcutt et al., 2021, arXiv:2103.14749).
    is_doubtful = len(suspects) > MANY_SUSPECTS * len(held_out.ids)
    doubt = "; so many say more of the members than of the labels" if is_doubtful else ""
    display.say(f"label suspects: {len(suspects)} of {held_out.rows_text()}, {path}{doubt}")


def _log_summary(
    plan: Plan,
    record: RunRecord,
    finished: list[SeedResult],
    out_of_fold: OutOfFold | None,
    validated: Validated,
) -> None:
    """The members together: mean, spread, table, bands, and the scores over all folds."""
    # Imported here: matplotlib takes a second, and the first epoch comes long before.
    from pose.reports import plots

    val_f1 = spread([result.val_f1 for result in finished])
    best = max(finished, key=lambda result: result.val_f1)
    path = plan.folder / "seeds.png"
    histories = {result.key: result.history for result in finished}
    title = f"{plan.run.name}: {len(finished)} {'members' if plan.recipe.folds else 'seeds'}"
    plots.write_figure(lambda: plots.plot_seeds(histories, title), path)
    record.log_file(path)
    if out_of_fold:
        path = plan.folder / OUT_OF_FOLD
        write_predictions(path, out_of_fold.predictions)
        record.log_file(path)
    record.log_summary(
        metrics={
            "val_f1_mean": val_f1.mean,
            "val_f1_std": val_f1.std,
            "val_f1_best": best.val_f1,
            **({"num_label_suspects": len(validated.suspects)} if validated.every_row else {}),
            **(_fold_metrics(out_of_fold) if out_of_fold else {}),
        },
        tags={f"best_{name}": value for name, value in best.key.tags().items()},
        note=describe_seeds(
            plan.run, finished, len(plan.recipe.members(record.seeds)), out_of_fold
        ),
    )


def _fold_metrics(out_of_fold: OutOfFold) -> dict[str, float]:
    """The scores over all folds as metrics of the run."""
    seeds = spread([scores["f1"] for scores in out_of_fold.seeds.values()])
    return {
        **{f"oof_{name}": value for name, value in out_of_fold.ensemble.items()},
        **{f"oof_f1/seed_{seed}": scores["f1"] for seed, scores in out_of_fold.seeds.items()},
        "oof_f1_mean": seeds.mean,
        "oof_f1_std": seeds.std,
        "fold_f1_std": spread(list(out_of_fold.folds.values())).std,
    }


def _log_page(
    plan: Plan,
    loaded: LoadedData,
    record: RunRecord,
    finished: list[SeedResult],
    validated: Validated,
    display: Display,
) -> None:
    # Imported here as in `_log_summary`: the page has drawings.
    from pose import result_pages

    path = plan.folder / result_pages.NAME
    title = f"{plan.run.name}: {plan.run.title()}"
    if result_pages.write_page(
        path,
        lambda: result_pages.run_page(title, plan.recipe, loaded, finished, validated, plan.folder),
        display,
    ):
        record.log_file(path)


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Keep other processes from training into the same folder."""
    with ExitStack() as lock:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock.enter_context(locked(lock_of(folder), wait=False))
        except BlockingIOError:
            raise InputError(
                f"run_name must not be in training already, but {folder} is at work in another "
                "process: wait for it, or give another --run-name"
            ) from None
        except OSError as error:
            raise InputError(
                f"output_root must be a folder that can be written to, found: {one_line(error)}"
            ) from error
        yield


def claim_folder(folder: Path, run_id: str, is_continued: bool) -> Path | None:
    """Make `folder` that of the run; results of another one are moved aside.

    Returns:
        Where they were moved to, or None if there were none.
    """
    moved = None
    owner = _owner(folder)
    with writing(folder):
        # What a kill left of the first file is nothing to keep.
        is_used = folder.exists() and any(not is_partial(path) for path in folder.iterdir())
        if owner != run_id and is_used:
            moved = _aside(folder, owner or time.strftime("%Y%m%d-%H%M%S"))
            folder.rename(moved)
        set_aside = _aside(folder, run_id)
        if is_continued and set_aside.exists() and not folder.exists():
            set_aside.rename(folder)
        folder.mkdir(parents=True, exist_ok=True)
        remove_partials(folder)
    write_text(folder / OWNER_FILE, json.dumps({"parent_run_id": run_id}) + "\n")
    return moved


def _owner(folder: Path) -> str | None:
    try:
        return str(json.loads(read_bytes(folder / OWNER_FILE))["parent_run_id"])
    except (OSError, ValueError, KeyError, TypeError):
        # Missing, or only half written: the folder is somebody else's, and is moved aside.
        return None


def _aside(folder: Path, owner: str) -> Path:
    return folder.with_name(f"{folder.name}.{owner[:15]}")
