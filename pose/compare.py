"""A comparison: two runs or votes on the validation rows that no member of either trained on."""

import csv
import dataclasses
import io
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pose import compare_page
from pose.config import CompareSetup
from pose.data.folder import refuse_input
from pose.display import Display
from pose.ensembling.comparison import Comparison, Contestant, Side, compare, meet
from pose.ensembling.held_out import groups_of
from pose.ensembling.members import RegisteredMember
from pose.errors import InputError, first_few
from pose.files import file_to_write, make_folder, refuse_foreign, write_text
from pose.reports.notes import describe_comparison
from pose.result_pages import unfitted, write_page
from pose.results import Compared, Further
from pose.stop import ending
from pose.tracking import FoundSide, TaskRecord, Tracker
from pose.vote import combine_probs

FORMAT = 1


def compare_runs(setup: CompareSetup, tracker: Tracker, display: Display) -> Compared:
    """Compare two runs or votes; write report.html, comparison.json and comparison.csv.

    Raises:
        InputError: a run is not there, they are of different data or classes, or have too few rows
            in common.
    """
    tracker.check_place()
    with tempfile.TemporaryDirectory() as staging:
        sides = _find(setup, tracker, display, Path(staging))
        pair, class_labels = _meet(sides, tracker, Path(staging))
    result = compare(*pair, class_labels)
    folder = Path(setup.out_dir)
    written = _files_to_write(folder)
    names = "_".join(result.names)
    tags = {
        "run": " vs ".join(result.names),
        "compared": ",".join(side.run_id for side in sides),
        "dataset_digest": next(iter(_digests(sides)), ""),
    }
    record = tracker.open_task("compare", f"compare_{names}"[:250], tags)
    with ending(record.finish):
        pictures = compare_page.find_pictures(_data_folder(setup, sides), pair, display)
        texts = {
            "comparison.json": _json(result, sides),
            "comparison.csv": _csv(pair, class_labels),
        }
        for name, text in texts.items():
            write_text(written[name], text)
        page = written[compare_page.NAME]
        if not write_page(
            page, lambda: compare_page.render(result, pair, class_labels, pictures), display
        ):
            del written[compare_page.NAME]
        _record(record, result, list(written.values()))
    record.finish("FINISHED")
    return Compared(
        run_id=record.run_id,
        folder=folder,
        comparison=result,
        further=_further(result, sides),
        winner=_winner(result, sides),
    )


def _files_to_write(folder: Path) -> dict[str, Path]:
    """What is written into `folder`, which is made, by name."""
    names = (compare_page.NAME, "comparison.json", "comparison.csv")
    refuse_input(folder, folder.absolute().parent, "out_dir")
    refuse_foreign(folder, names, "comparison.json", "out_dir")
    make_folder(folder)
    return {name: file_to_write(folder / name, "out_dir") for name in names}


def _find(
    setup: CompareSetup, tracker: Tracker, display: Display, staging: Path
) -> tuple[FoundSide, FoundSide]:
    first, second = (
        tracker.find_side(text, setup.registry_name, staging / f"side_{number}")
        for number, text in enumerate(setup.pair())
    )
    if first.run_id == second.run_id:
        raise InputError(f"runs must be two different ones, both are {first.run_id}")
    if first.name == second.name:
        first, second = (
            dataclasses.replace(side, name=f"{side.name} ({side.run_id[:8]})")
            for side in (first, second)
        )
    for side in (first, second):
        display.say(
            f"{'vote' if side.is_vote else 'run'}: {side.name}, {side.run_id}, "
            f"{len(side.members)} of {side.num_promised} members"
        )
        if unfitted(side.how) != side.how:
            display.say(
                f"  {side.name} was fitted on labelled rows; compared is the "
                f"{unfitted(side.how).rule} vote of its members, each looking once"
            )
    return first, second


def _digests(sides: Sequence[FoundSide]) -> tuple[str, ...]:
    """The data that members were trained on; those of old versions do not say."""
    found = (member.dataset_digest for side in sides for member in side.members)
    return tuple(dict.fromkeys(digest for digest in found if digest))


def _meet(
    sides: tuple[FoundSide, FoundSide], tracker: Tracker, staging: Path
) -> tuple[tuple[Contestant, Contestant], tuple[str, ...]]:
    """The sides on their common rows, and the classes."""
    if len(_digests(sides)) > 1:
        of = "; ".join(
            f"{side.name}: {first_few(_digests([side]))} ({side.dataset or 'folder unknown'})"
            for side in sides
        )
        raise InputError(
            f"runs must be trained on the same data, found digests of different data: {of}"
        )
    first, second = (_side(side, tracker, staging / side.run_id) for side in sides)
    return meet(first, second), first.members[0].class_labels


def _side(found: FoundSide, tracker: Tracker, staging: Path) -> Side:
    how = unfitted(found.how)
    groups = groups_of(found.members)
    num_seeds = max(groups) + 1
    return Side(
        name=found.name,
        members=tuple(
            tracker.fetch_val_predictions(member, staging / str(number))
            for number, member in enumerate(found.members)
        ),
        groups=groups,
        seeds=tuple(_seed_name(found.members[groups.index(group)]) for group in range(num_seeds)),
        combine=lambda probs: combine_probs(probs, how),
    )


def _seed_name(member: RegisteredMember) -> str:
    return f"{member.run} seed {member.seed}"


def _data_folder(setup: CompareSetup, sides: Sequence[FoundSide]) -> Path | None:
    """The data folder that was named, else the first that is still where it was."""
    named = [setup.dataset] if setup.dataset else [side.dataset for side in sides]
    return next((Path(text) for text in named if text and os.path.isdir(text)), None)


def _json(result: Comparison, sides: Sequence[FoundSide]) -> str:
    values = {
        "format": FORMAT,
        **dataclasses.asdict(result),
        # JSON has no number for a seed that predicted none of the rows.
        "single_f1": [[None if np.isnan(f1) else f1 for f1 in own] for own in result.single_f1],
        "run_ids": [side.run_id for side in sides],
        "members": [[member.uri for member in side.members] for side in sides],
        "difference": result.difference,
        "margin": result.margin,
        "is_settled": result.is_settled,
        "more_seeds": result.more_seeds(),
        "sentence": result.sentence(),
    }
    for line, own in zip(values["classes"], result.classes, strict=True):
        line["difference"] = own.difference
    return json.dumps(values, indent=1) + "\n"


def _csv(pair: tuple[Contestant, Contestant], class_labels: Sequence[str]) -> str:
    """A row per common row: id, label, and both predictions with their probabilities."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ("first", "second")
    writer.writerow(
        ["id", "label", *(f"{kind}_{name}" for name in names for kind in ("pred", "confidence"))]
    )
    rows = pair[0].rows
    preds = [own.preds for own in pair]
    for row, image_id in enumerate(rows.ids):
        cells = [image_id, class_labels[rows.labels[row]]]
        for own, predicted in zip(pair, preds, strict=True):
            cells += [class_labels[predicted[row]], f"{own.combined[row, predicted[row]]:.6f}"]
        writer.writerow(cells)
    return text.getvalue()


def _record(record: TaskRecord, result: Comparison, files: Sequence[Path]) -> None:
    test = result.mcnemar
    metrics = {
        "f1_difference": result.difference,
        "f1_margin": result.margin,
        "f1_first": result.f1[0],
        "f1_second": result.f1[1],
        "acc_first": result.accuracy[0],
        "acc_second": result.accuracy[1],
        "num_rows": float(result.num_rows),
        "mcnemar_p": test.p_value,
        "only_first_right": float(test.only_first),
        "only_second_right": float(test.only_second),
    }
    record.log(
        metrics=metrics,
        tags={"is_settled": str(result.is_settled).lower()},
        note=describe_comparison(result),
        files=files,
    )


def _winner(result: Comparison, sides: Sequence[FoundSide]) -> str | None:
    better = next((side for side in sides if side.name == result.better), None)
    if better is None or better.is_vote or not result.is_settled:
        return None
    return better.members[0].run


def _further(result: Comparison, sides: Sequence[FoundSide]) -> tuple[Further, int] | None:
    """The training whose further seeds would tell most, and how many; None: none would."""
    seeds, counts = result.components.seeds, result.components.num_seeds
    more = 1 if min(counts) < 2 else result.more_seeds()
    trainings = [number for number, side in enumerate(sides) if not side.is_vote]
    if more is None or not trainings:
        return None
    most = max(trainings, key=lambda number: np.inf if counts[number] < 2 else seeds[number])
    found = sides[most]
    run = Further(name=found.members[0].run, command=found.command, seeds=found.seeds)
    return run, more
