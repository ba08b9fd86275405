"""The Markdown report of a benchmark: what ran, on what, what came out, which goals it reaches."""

import argparse
import dataclasses
import datetime
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from pose.device import cpu_info, describe

REPORTS = Path(__file__).parent / "reports"
PACKAGES = ("torch", "torchvision", "pillow", "numpy", "mlflow")
GOALS_HEADER = ("goal", "measured", "reached")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goal:
    """What was aimed at and what came out.

    Attributes:
        is_reached: None where this run cannot say.
    """

    text: str
    measured: str
    is_reached: bool | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Columns and rows, all text."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""

    def markdown(self) -> str:
        """The table, under its title if it has one."""
        lines = [f"### {self.title}", ""] if self.title else []
        lines += [_row(self.columns), _row(["---"] * len(self.columns)), *map(_row, self.rows)]
        return "\n".join(lines)


def add_options(parser: argparse.ArgumentParser, name: str) -> None:
    """The option that every benchmark has."""
    parser.add_argument(
        "--report", default=name, help="name of the report, benchmarks/reports/<name>.md"
    )


def spread(values: Sequence[float], digits: int = 0) -> str:
    """`median (lowest-highest)`."""
    low, high = min(values), max(values)
    middle = statistics.median(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f}-{high:,.{digits}f})"


def ratios(values: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """Turn by turn, so that what slowed both down cancels out."""
    return [value / base for value, base in zip(values, baseline, strict=True)]


def write_report(  # noqa: PLR0913 - each is a part of the report, and all are named
    name: str,
    *,
    title: str,
    module: str,
    repetitions: str,
    goals: Sequence[Goal],
    tables: Sequence[Table],
    notes: Sequence[str] = (),
    device: torch.device | None = None,
) -> Path:
    """Write `reports/<name>.md`, print it, and return where it is.

    Args:
        module: the benchmark's, such as `benchmarks.training`; the command is made from it.
        repetitions: what was repeated how often, in words.
    """
    goal_rows = [(goal.text, goal.measured, _verdict(goal.is_reached)) for goal in goals]
    facts = [
        ("command", f"`{_command(module)}`"),
        ("commit", commit()),
        ("date", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("hardware", _hardware(device or torch.device("cpu"))),
        ("versions", _versions()),
        ("repetitions", repetitions),
    ]
    parts = [
        f"# {title}",
        Table(columns=GOALS_HEADER, rows=goal_rows).markdown(),
        *(table.markdown() for table in tables),
        "\n".join(f"* {note}" for note in notes),
        Table(columns=("", ""), rows=facts, title="How it was measured").markdown(),
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    path = REPORTS / f"{name}.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(text, flush=True)
    return path


def read_goals(path: Path) -> list[tuple[str, str, str]]:
    """The rows of a report's first table: goal, measured, reached."""
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n\n")[1].splitlines()[2:]:
        goal, measured, reached = (cell.strip() for cell in line.strip("|").split("|"))
        rows.append((goal, measured, reached))
    return rows


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _verdict(is_reached: bool | None) -> str:
    return {True: "yes", False: "no", None: "not measured here"}[is_reached]


def _command(module: str) -> str:
    # Folders by their last part: where they lie on this machine is nobody's business.
    arguments = [Path(a).name if a.startswith("/") else a for a in sys.argv[1:]]
    return " ".join(["python -m", module, *arguments])


def commit() -> str:
    """The commit checked out, and whether the measured code differs from it."""
    root = Path(__file__).parents[1]
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(
            root, "status", "--porcelain", "--", "pose", "entrypoints", "benchmarks/*.py"
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown (no git checkout)"
    return f"{commit} with uncommitted changes" if changed else commit


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _hardware(device: torch.device) -> str:
    cpu = describe(torch.device("cpu"), torch.float32).split("(")[1].split(",")[0]
    info = cpu_info()
    if "cpu family" in info:
        # A virtual machine's name for its processor may be that of several generations.
        cpu += f" (family {info['cpu family']}, model {info['model']})"
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    text = f"{cpu}, {os.cpu_count()} cores, {pages / 2**30:.0f} GiB memory"
    if device.type == "cuda":
        text = f"{torch.cuda.get_device_name(device)}; {text}"
    return text


def _versions() -> str:
    found = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)
