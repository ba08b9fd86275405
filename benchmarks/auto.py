"""What `run=auto` chooses and reaches, beside each of its candidates trained for the same time.

Through the commands that users type, each in a process of its own: training with a budget, then the
vote on test images that nothing has seen. The folders are the textures of `benchmarks.textures`
(scikit-image is needed for these), scikit-learn's digits and the drawn poses.

    python -m benchmarks.auto --data textures
    python -m benchmarks.auto --candidates --budget 6m digits=2m --repetitions 3 --near 0.1
"""

import argparse
import dataclasses
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import ours, report
from benchmarks.front_door import ROOT, read_labels, score
from benchmarks.peers.__main__ import lay_out
from benchmarks.suspects import write_digits
from benchmarks.textures import write_textures
from pose.config import typed
from pose.data.folder import read_dataset
from pose.search.candidates import find_candidates
from pose.search.fingerprint import take_fingerprint

DATA = ("textures", "digits", "demo")
TEXTURES_GOAL, TEXTURES_AIM = 0.85, 0.92
# How far auto may be from the best of its candidates, in macro-F1.
MARGIN = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder:
    """A data folder with test images, and their labels by id."""

    path: Path
    truth: dict[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """One training and its vote."""

    test_f1: float
    seconds: float
    chosen: str = ""


def make_folder(name: str, root: Path, num_images: int) -> Folder:
    """The data of a name, made in `root`."""
    if name == "textures":
        path = write_textures(root / name, num_train=2400, num_test=600)
        return Folder(path=path, truth=read_labels(path / "test_solution.csv"))
    if name == "digits":
        kept, truth = lay_out(write_digits(root / "all"), 597, root / name)
    else:
        with ours.data_folder(None, num_images) as demo:
            # The drawing is removed at the end; what is laid out are links to it.
            copied = root / "all"
            subprocess.run(["cp", "-r", str(demo), str(copied)], check=True)
        kept, truth = lay_out(copied, num_images // 5, root / name)
    tests = kept / "test_images"
    tests.mkdir()
    for path in (root / name / "by_label" / "test").glob("*/*"):
        (tests / path.name).symlink_to(path.resolve())
    return Folder(path=kept, truth=truth)


def train_and_vote(folder: Folder, work: Path, name: str, options: Sequence[str]) -> Outcome:
    """Train a run and let it vote, by the commands; their folder is `work`.

    Raises:
        RuntimeError: a command failed.
    """
    started = time.monotonic()
    output = _run(work, "train", "--run-name", name, "--dataset", str(folder.path), *options)
    seconds = time.monotonic() - started
    vote = ["--run", name, "--dataset", str(folder.path), "--probabilities", "true"]
    _run(work, "ensemble", *vote)
    found = re.search(r"^Chosen: \*\*(.+?)\*\*", output, re.MULTILINE)
    return Outcome(
        test_f1=score(work / "predictions.csv", folder.truth),
        seconds=seconds,
        chosen=found[1] if found else "",
    )


def _run(work: Path, command: str, *options: str) -> str:
    work.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", f"entrypoints.{command}", *options],
        cwd=work,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "MLFLOW_TRACKING_URI": f"sqlite:///{work.absolute()}/mlflow.db",
            "POSE_CACHE": str(work.absolute() / "cache"),
        },
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{command} failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def measure(name: str, root: Path, args: argparse.Namespace) -> dict[str, list[Outcome]]:
    """The outcomes of `auto`, and of each candidate where that is asked."""
    folder = make_folder(name, root, args.num_images)
    outcomes: dict[str, list[Outcome]] = {}
    kept = _Kept(args.keep)
    budget = _budget_of(args.budget, name)
    for repetition in range(args.repetitions):
        seeds = ",".join(str(3 * repetition + number) for number in range(args.seeds))
        for number, (side, options) in enumerate(_sides(folder, args.candidates).items()):
            if repetition and not _is_near(side, outcomes, args.near):
                continue
            work = root / f"work_{repetition}_{number}"
            key = f"{name}, {budget}, seeds {seeds}, {side}"
            if (own := kept.find(key)) is None:
                limits = ["--budget", budget, "--seeds", seeds]
                own = train_and_vote(folder, work, f"run_{number}", [*options, *limits])
                kept.add(key, own, work / "predictions.csv")
            outcomes.setdefault(side, []).append(own)
            print(name, side, own, flush=True)
    return outcomes


def _sides(folder: Folder, with_candidates: bool) -> dict[str, list[str]]:
    """Options of `train` by what is compared: `auto`, and the candidates that it chooses from."""
    sides = {"auto": ["--run", "auto"]}
    if with_candidates:
        found = take_fingerprint(read_dataset(folder.path))
        for candidate in find_candidates(found):
            options = [f"--{key}={typed(value)}" for key, value in candidate.changes]
            sides[candidate.name] = ["--run", "champion", *options]
    return sides


def _is_near(side: str, outcomes: dict[str, list[Outcome]], near: float) -> bool:
    """Whether a candidate was so near to the best of the first repetition that it is repeated."""
    best = max(own[0].test_f1 for own in outcomes.values())
    return side == "auto" or outcomes[side][0].test_f1 >= best - near


def _budget_of(budgets: Sequence[str], name: str) -> str:
    """The budget of a folder: `name=time` before a time for all."""
    own = dict(budget.split("=") for budget in budgets if "=" in budget)
    return own.get(name) or next(budget for budget in budgets if "=" not in budget)


class _Kept:
    """Outcomes in files, and the votes' probabilities: hours are not measured in one go."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def find(self, key: str) -> Outcome | None:
        """The outcome of an earlier command, if there is one."""
        path = self._path(key, ".json")
        return Outcome(**json.loads(path.read_text())) if path and path.exists() else None

    def add(self, key: str, outcome: Outcome, predictions: Path) -> None:
        """Keep an outcome and the table of the vote."""
        path, table = self._path(key, ".json"), self._path(key, ".csv")
        if path and table:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(predictions, table)
            path.write_text(json.dumps(dataclasses.asdict(outcome)))

    def _path(self, key: str, suffix: str) -> Path | None:
        if self._folder is None:
            return None
        return self._folder / (re.sub(r"[^a-z0-9.]+", "_", key.lower()) + suffix)


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument(
        "--budget", nargs="+", default=["10m"], help="of each run, or of those of a folder: name=2m"
    )
    parser.add_argument("--seeds", type=int, default=1, help="members of each run")
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--candidates", action="store_true", help="each of them with the budget")
    parser.add_argument(
        "--near", type=float, default=1.0, metavar="F1",
        help="candidates further from the best one in the first repetition are not repeated",
    )  # fmt: skip
    parser.add_argument("--num-images", type=int, default=3000, help="images of the demo data")
    parser.add_argument("--keep", type=Path, help="folder of outcomes; those in it stand")
    report.add_options(parser, "auto")
    args = parser.parse_args()
    tables, goals = [], []
    for name in args.data:
        with tempfile.TemporaryDirectory() as root:
            outcomes = measure(name, Path(root), args)
        tables.append(_table(name, outcomes))
        goals += _goals(name, outcomes, _budget_of(args.budget, name))
    report.write_report(
        args.report,
        title="A plan from the data: what it chooses and reaches",
        module="benchmarks.auto",
        repetitions=f"{args.repetitions} of {args.seeds} member(s) each, one after another; "
        f"candidates further than {args.near:g} from the best one once",
        goals=goals,
        tables=tables,
        notes=[
            "The score is that of the vote on test images; of textures, these are crops of other "
            "photographs than those that train.",
            f"A candidate has the whole budget ({' '.join(args.budget)}), of which auto spends up "
            "to 40 % on trying.",
            f"Threads: {torch.get_num_threads()}.",
        ],
    )


def _table(name: str, outcomes: dict[str, list[Outcome]]) -> report.Table:
    rows = [
        [
            side,
            report.spread([outcome.test_f1 for outcome in own], 3),
            report.spread([outcome.seconds for outcome in own]),
            "; ".join(outcome.chosen for outcome in own),
        ]
        for side, own in outcomes.items()
    ]
    columns = ("run", "test macro F1", "seconds of the command", "chosen")
    return report.Table(title=name, columns=columns, rows=rows)


def _goals(name: str, outcomes: dict[str, list[Outcome]], budget: str) -> list[report.Goal]:
    medians = {side: statistics.median(o.test_f1 for o in own) for side, own in outcomes.items()}
    auto = medians.pop("auto")
    goals = []
    if name == "textures":
        goals.append(
            report.Goal(
                text=f"textures: {TEXTURES_GOAL} in {budget} on photographs that no crop trained "
                f"on; aim {TEXTURES_AIM}",
                measured=f"{auto:.3f}",
                is_reached=auto >= TEXTURES_GOAL,
            )
        )
    if medians:
        best = max(medians, key=lambda side: medians[side])
        goals.append(
            report.Goal(
                text=f"{name}: within {MARGIN} of the best candidate",
                measured=f"{auto:.3f} against {medians[best]:.3f} ({best})",
                is_reached=auto >= medians[best] - MARGIN,
            )
        )
    return goals


if __name__ == "__main__":
    main()
