"""The report of all that was tried."""

from collections import Counter
from collections.abc import Mapping, Sequence

from benchmarks import report
from benchmarks.faults import damage, kills, long
from benchmarks.faults.outcome import Outcome, Outcomes

# At commit 56d6e32, before anything was done about it.
BEFORE: Mapping[str, str] = {
    kills.RANDOM: "21 of 26",
    kills.POINT: "20 of 39",
    "stop.txt, `mlflow run`": "0 of 4",
    damage.BITS: "2 of 400",
    "two runs on a new store, `python -m`": "0 of 7",
    "one run into two folders": "0 of 2",
}

# Has all faults; a report of another name has some.
REPORT = "faults"
# One fault of each part of the benchmark.
FIRST: Mapping[str, str] = {
    "damaged checkpoints": damage.BITS,
    "damaged files of finished members": damage.FINISHED,
    "stops of `python -m`": "stop.txt, `python -m`",
    "stops of `mlflow run`": "stop.txt, `mlflow run`",
    "random kills": kills.RANDOM,
    "kills of `mlflow run`": kills.RANDOM_MLFLOW,
    "kills at every point": kills.POINT,
    "disks": "disk of the outputs full",
    "pairs": "two runs on a new store, `python -m`",
    "long runs": long.LONG,
}


def write(outcomes: Outcomes, name: str) -> None:
    """Write `reports/<name>.md`."""
    faults = {fault: outcomes.of(fault) for fault in outcomes.faults()}
    goals = [
        report.Goal(
            text=f"{fault}: nothing lost, doubled or left over",
            measured=_share(found),
            is_reached=all(not one.problems for one in found),
        )
        for fault, found in faults.items()
    ]
    rows = [
        [fault, str(len(found)), str(_survived(found)), BEFORE.get(fault, ""), _seen(found)]
        for fault, found in faults.items()
    ]
    lost = [
        [fault, text]
        for fault, found in faults.items()
        for text, _ in Counter(p for one in found for p in one.problems).most_common(5)
    ]
    measured = [
        [fault, what, f"{value:.2f}"]
        for fault, found in faults.items()
        for what, value in _measured(found).items()
    ]
    tables = [
        report.Table(
            columns=("fault", "tries", "survived", "before", "what the user sees"), rows=rows
        )
    ]
    if measured:
        tables.append(
            report.Table(columns=("run", "figure", ""), rows=measured, title="What grows")
        )
    if lost:
        tables.append(
            report.Table(columns=("fault", "what was wrong"), rows=lost, title="Not survived")
        )
    report.write_report(
        name,
        title="Faults",
        module="benchmarks.faults",
        repetitions=f"{sum(map(len, faults.values()))} tries, each in a project of its own; two "
        "seeds of simple_cnn, 32 px, 3 epochs, on 48 images",
        goals=goals,
        tables=tables,
        notes=[
            "survived: afterwards the same command finishes; weights, history, validation "
            "predictions and cards equal an undisturbed run's bit for bit on the CPU; in MLflow no "
            "epoch, parameter, data set, artifact, version or metric is missing or doubled, "
            "nothing is RUNNING; no file that was begun is left; no traceback on the way",
            f"tried at {', '.join(outcomes.commits)}",
            *(_not_tried(faults) if name == REPORT else [f"the other faults: {REPORT}.md"]),
            "before: commit 56d6e32, by other scripts with the same meaning",
            "strange input (tables, images, folders, caches) is `make faults`",
        ],
    )


def _not_tried(faults: Mapping[str, object]) -> list[str]:
    missing = [part for part, fault in FIRST.items() if fault not in faults]
    return [f"not tried yet: {', '.join(missing)}"] if missing else []


def _survived(found: Sequence[Outcome]) -> int:
    return sum(not one.problems for one in found)


def _share(found: Sequence[Outcome]) -> str:
    return f"{_survived(found)} of {len(found)}"


def _seen(found: Sequence[Outcome]) -> str:
    """What was said most often, on a line that a table can hold."""
    said = Counter(one.said for one in found if one.said)
    return said.most_common(1)[0][0].replace("|", "/")[:200] if said else ""


def _measured(found: Sequence[Outcome]) -> dict[str, float]:
    values: dict[str, float] = {}
    for one in found:
        values |= {name: value for name, value in one.measured.items() if name != "seconds"}
    return values
