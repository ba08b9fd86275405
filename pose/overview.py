"""What runs there are, as values and as a table for a terminal."""

import dataclasses
from collections.abc import Sequence

from pose.errors import printable
from pose.results import Spread


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOverview:
    """A run in a line.

    Attributes:
        run_id: of the parent run in MLflow.
        data: name of the data folder.
        num_finished, num_promised: its members.
        state: `complete`, `at work`, `stopped` with the reason, or `damaged`.
        val_f1: best validation macro F1 of the finished members; None where none is finished.
        ensemble_f1: of the newest vote of this run alone, on rows that no member trained on.
        num_rows: those rows.
        started: seconds since 1970.
        command: continues the run; empty in runs from before 0.2.
    """

    run_id: str
    name: str
    data: str
    num_finished: int
    num_promised: int
    state: str
    val_f1: Spread | None
    ensemble_f1: float | None
    num_rows: int
    started: float
    command: str


HEADER = ("run", "data", "members", "state", "val_f1 mean", "ensemble", "age", "run id")


def runs_table(runs: Sequence[RunOverview], now: float) -> str:
    """A line per run; each validation score says what it is.

    Args:
        now: seconds since 1970.
    """
    lines = [HEADER, *(_line(run, now) for run in runs)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    table = [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    legend = (
        "val_f1 mean: best validation macro F1 over members; ensemble: macro F1 of the newest vote "
        "(on so many rows that no member trained on)"
    )
    return "\n".join((*table, "", legend))


def _line(run: RunOverview, now: float) -> tuple[str, ...]:
    ensemble = "" if run.ensemble_f1 is None else f"{run.ensemble_f1:.4f} ({run.num_rows})"
    return (
        printable(run.name),
        printable(run.data),
        f"{run.num_finished} of {run.num_promised}",
        run.state,
        "" if run.val_f1 is None else str(run.val_f1),
        ensemble,
        age_text(now - run.started),
        run.run_id,
    )


def age_text(seconds: float) -> str:
    """`45 s`, `12 min`, `5 h` or `3 d`."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
