"""An archive of the original's layout, brought into MLflow as a finished run that can vote."""

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from pose.archive import CHECKPOINT, STATISTICS, Archive, ArchivedSeed, read_archive
from pose.config import DataSetup, ImportSetup, Recipe
from pose.data.classes import ClassList
from pose.data.folder import read_dataset
from pose.data.source import locate_dataset
from pose.display import Display
from pose.errors import InputError, first_few, known, printable
from pose.files import make_folder
from pose.member_key import MemberKey
from pose.model_card import ModelCard, write_card
from pose.named_runs import check_run_name
from pose.predictions import Predictions, write_predictions
from pose.reports import plots
from pose.results import RunResult, SeedResult, spread
from pose.run import claim_folder, only_run_in
from pose.seeds import folder as seed_folder
from pose.seeds.job import SeedJob
from pose.stop import ending
from pose.tracking import RunRecord, RunRequest, Tracker

# Instead of the digest of data that nobody has seen.
UNKNOWN_DATA = "unknown"
STOP_REASON = "imported"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportPlan:
    """An archive that was read, and what it will be called.

    Attributes:
        name: of the run.
        folder: where the seeds' folders will lie.
        dataset: the data folder that it was trained on, where one was named or found.
    """

    setup: ImportSetup
    archive: Archive
    name: str
    folder: Path
    dataset: Path | None

    @property
    def recipe(self) -> Recipe:
        """What is known of how it was trained."""
        return Recipe(
            model=self.archive.model,
            image_size=self.archive.image_size,
            seeds=tuple(own.seed for own in self.archive.seeds),
            exif="ignore",
        )

    def settings(self) -> dict[str, Any]:
        """What decides how an image becomes the network's input, as a card's recipe has it."""
        names = ("model", "image_size", "framing", "exif", "high_pass")
        return {name: getattr(self.recipe, name) for name in names}

    def tags(self) -> dict[str, str]:
        """The tags of the run and its members in MLflow."""
        return {
            "run": self.name,
            "model": self.archive.model,
            "recipe": f"imported from {self.archive.folder.absolute().name}",
            "is_changed": "false",
            "model_format": "pickle",
            "registry_name": self.setup.registry_name,
            "imported": str(self.archive.folder.absolute()),
        }


def plan_import(setup: ImportSetup) -> ImportPlan:
    """Read an archive to the end; nothing is written before all of it is known to be whole.

    Raises:
        InputError: it cannot be imported; the message names the file that is to blame.
    """
    folder = Path(setup.archive or "").expanduser()
    name = setup.run_name or re.sub(r"[^A-Za-z0-9_-]", "_", folder.absolute().name)
    check_run_name(name)
    own_folder = Path(setup.output_root) / name
    if own_folder.absolute().resolve() in (folder.resolve(), *folder.resolve().parents):
        raise InputError(
            f"archive must lie outside {own_folder}, where its run will: give another --run-name "
            "or --output-root"
        )
    dataset = locate_dataset(DataSetup(dataset=setup.dataset))
    if dataset is None and setup.dataset is not None:
        raise InputError(f"dataset must be a folder that is here, got {setup.dataset!r}")
    if dataset is not None and setup.dataset is None and setup.classes is not None:
        # ./dataset is not what was trained on merely because it is there.
        dataset = None
    classes = _classes(setup, dataset)
    archive = read_archive(folder, classes, setup.image_size, setup.model)
    return ImportPlan(setup=setup, archive=archive, name=name, folder=own_folder, dataset=dataset)


def _classes(setup: ImportSetup, dataset: Path | None) -> ClassList:
    """The classes in the order of the logits: as given, or as the data folder has them."""
    labels = setup.labels()
    if dataset is None:
        if not labels:
            raise InputError(
                "classes must be given, the labels in the order of the networks' outputs (such as "
                "classes=0,1), or dataset, whose labels are taken in their order"
            )
        return ClassList(labels=labels, names=labels, mirrors=tuple(range(len(labels))))
    found = read_dataset(dataset)
    found.raise_if_fatal()
    classes = found.classes
    if not labels or labels == classes.labels:
        return classes
    if set(labels) != set(classes.labels):
        raise InputError(
            f"classes must be the labels of {dataset} ({known(map(printable, classes.labels))}), "
            f"got {first_few(map(printable, labels))}"
        )
    places = [classes.labels.index(label) for label in labels]
    return ClassList(
        labels=labels,
        names=tuple(classes.names[place] for place in places),
        mirrors=tuple(
            -1 if classes.mirrors[p] < 0 else places.index(classes.mirrors[p]) for p in places
        ),
    )


def import_archive(plan: ImportPlan, tracker: Tracker, display: Display) -> RunResult:
    """Record an archive as a finished run; one that was begun and cut short goes on.

    Raises:
        InputError: it was imported before.
    """
    archive = plan.archive
    for note in archive.notes:
        display.say(f"warning: {note}")
    with only_run_in(plan.folder):
        record = tracker.open_run(_request(plan))
        with ending(record.finish):
            moved = claim_folder(plan.folder, record.run_id, record.is_continued)
            if moved:
                display.say(f"the earlier results of {plan.name} are kept in {moved}")
            record.begin(plan.folder)
            finished = record.finished_members()
            results = []
            for own in archive.seeds:
                result = finished.get(MemberKey(own.seed)) or _import_seed(plan, own, record)
                results.append(result)
                display.say(
                    f"{result.key}: {archive.model}, val_f1 {result.val_f1:.4f} at epoch "
                    f"{result.best_epoch} of {result.num_epochs}"
                )
            _log_summary(plan, record, results)
        record.complete()
    return RunResult(
        run_id=record.run_id,
        folder=plan.folder,
        members=results,
        stop_reason=None,
        seeds_page=record.seeds_page(),
    )


def _request(plan: ImportPlan) -> RunRequest:
    data = {} if plan.dataset is None else {"dataset": str(plan.dataset.absolute())}
    return RunRequest(
        name=plan.name,
        recipe_digest=plan.archive.digest(),
        dataset_digest=UNKNOWN_DATA,
        seeds=plan.recipe.seeds,
        is_unique=True,
        settings=_params(plan),
        folder=plan.folder,
        tags={**plan.tags(), **data},
    )


def _params(plan: ImportPlan) -> dict[str, Any]:
    """What is known, and nothing else: other settings would be guesses."""
    return {
        **plan.settings(),
        "recipe": plan.tags()["recipe"],
        "num_classes": len(plan.archive.classes),
    }


def _import_seed(plan: ImportPlan, own: ArchivedSeed, record: RunRecord) -> SeedResult:
    """Write a seed's folder, record it, and register its model."""
    key = MemberKey(own.seed)
    folder = plan.folder / key.folder
    _write_folder(plan, own, folder)
    job = SeedJob(
        run=plan.name,
        recipe=plan.recipe,
        seed=own.seed,
        dataset=plan.dataset or plan.archive.folder,
        output=folder,
    )
    seed_record = record.open_seed(job, plan.tags(), {**key.tags(), **_params(plan)}, None)
    with ending(seed_record.finish):
        seed_record.log_epochs(own.history)
        seed_record.log_results(folder)
    seed_record.finish("FINISHED", STOP_REASON)
    return SeedResult(
        seed=own.seed,
        stop_reason=STOP_REASON,
        best_epoch=int(own.best["epoch"]),
        val_f1=own.best["val_f1"],
        num_epochs=len(own.history),
        seconds=sum(row.get("epoch_seconds", 0.0) for row in own.history),
        session_seconds=0.0,
        history=own.history,
    )


def _write_folder(plan: ImportPlan, own: ArchivedSeed, folder: Path) -> None:
    """All that a finished seed leaves, as far as it is known; the weights under our names."""
    make_folder(folder)
    for name in (seed_folder.HISTORY, seed_folder.HISTORY_PLOT, CHECKPOINT):
        if (own.folder / name).is_file():
            shutil.copyfile(own.folder / name, folder / name)
    for path in (own.folder.parent / STATISTICS, own.folder / STATISTICS):
        if path.is_file():
            shutil.copyfile(path, folder / STATISTICS)
    seed_folder.write_weights(folder / seed_folder.WEIGHTS, own.weights)
    write_card(folder / seed_folder.CONFIG, _card(plan, own))
    classes = plan.archive.classes
    # Which rows validated it is unknown, so it has not one: no score can be made of them.
    unknown = Predictions(
        ids=(), probs=np.zeros((0, len(classes)), dtype=np.float32), class_labels=classes.labels
    )
    write_predictions(folder / seed_folder.VAL_PREDICTIONS, unknown)


def _card(plan: ImportPlan, own: ArchivedSeed) -> ModelCard:
    classes = plan.archive.classes
    return ModelCard(
        model=plan.archive.model,
        image_size=plan.archive.image_size,
        labels=classes.labels,
        names=classes.names,
        mirrors=classes.mirrors,
        run=plan.name,
        seed=own.seed,
        val_f1=own.best["val_f1"],
        best_epoch=int(own.best["epoch"]),
        dataset_digest=UNKNOWN_DATA,
        recipe=plan.settings(),
        weights_sha256=seed_folder.weights_sha256(own.weights),
    )


def _log_summary(plan: ImportPlan, record: RunRecord, results: list[SeedResult]) -> None:
    scores = spread([result.val_f1 for result in results])
    best = max(results, key=lambda result: result.val_f1)
    histories = {result.key: result.history for result in results}
    if all("val_loss" in row for history in histories.values() for row in history):
        path = plan.folder / "seeds.png"
        plots.write_figure(lambda: plots.plot_seeds(histories, f"{plan.name}, imported"), path)
        record.log_file(path)
    record.log_summary(
        metrics={
            "val_f1_mean": scores.mean,
            "val_f1_std": scores.std,
            "val_f1_best": best.val_f1,
        },
        tags={"best_seed": str(best.seed)},
        note=_note(plan, results),
    )


def _note(plan: ImportPlan, results: list[SeedResult]) -> str:
    lines = [
        f"### {plan.name}: imported",
        "",
        f"{len(results)} seeds of {plan.archive.model} from `{plan.archive.folder.absolute()}`. "
        f"Their best validation macro F1, **{spread([own.val_f1 for own in results])}**, is the "
        "archive's own; which images validated them is not known, so votes of them have no score.",
        "",
        "| seed | val_f1 | best epoch | epochs |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {own.seed} | {own.val_f1:.4f} | {own.best_epoch} | {own.num_epochs} |"
        for own in results
    ]
    return "\n".join(lines) + "\n"
