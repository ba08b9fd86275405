"""What `run=auto` chooses and reaches, beside each of its candidates trained for the same time.

Through the commands that users type, each in a process of its own: training with a budget, then the
vote on test images that nothing has seen. The folders are the textures of `benchmarks.textures`
(scikit-image is needed for these), scikit-learn's digits and the drawn poses.

    python -m benchmarks.auto --data textures
    python -m benchmarks.auto --candidates --budget 6m digits=2m --repetitions 3 --near 0.1
"""

import argparse
import csv
import dataclasses
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks import ours, report
from benchmarks.front_door import ROOT, read_labels, score
from benchmarks.peers.__main__ import lay_out
from benchmarks.suspects import write_digits
from benchmarks.textures import write_textures
from pose.config import typed
from pose.data.folder import read_dataset
from pose.metrics import f1_of
from pose.search.candidates import find_candidates
from pose.search.fingerprint import take_fingerprint
from pose.search.progress import SEARCH_SHARE

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
    """One training and its vote, whose table of predictions has probabilities."""

    test_f1: float
    seconds: float
    chosen: str
    table: Path


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
        table=work / "predictions.csv",
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


def measure(
    name: str, folder: Folder, root: Path, args: argparse.Namespace
) -> dict[str, list[Outcome]]:
    """The outcomes of `auto`, and of each candidate where that is asked."""
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
                own = kept.add(key, own)
            outcomes.setdefault(side, []).append(own)
            print(name, side, own, flush=True)
    return outcomes


def _sides(folder: Folder, names: Sequence[str] | None) -> dict[str, list[str]]:
    """Options of `train` by what is compared: `auto`, and candidates that it chooses from.

    Args:
        names: of candidates; empty: all; None: none of them.
    """
    sides = {"auto": ["--run", "auto"]}
    if names is not None:
        found = take_fingerprint(read_dataset(folder.path))
        for candidate in find_candidates(found):
            if names and candidate.name not in names:
                continue
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
        path, table = self._path(key, ".json"), self._path(key, ".csv")
        if path is None or table is None or not path.exists():
            return None
        return Outcome(**json.loads(path.read_text()), table=table)

    def add(self, key: str, outcome: Outcome) -> Outcome:
        """Keep an outcome and its table; the outcome with the table that is kept."""
        path, table = self._path(key, ".json"), self._path(key, ".csv")
        if path is None or table is None:
            return outcome
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(outcome.table, table)
        values = dataclasses.asdict(outcome)
        del values["table"]
        path.write_text(json.dumps(values))
        return dataclasses.replace(outcome, table=table)

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
    parser.add_argument(
        "--candidates", nargs="*", metavar="NAME",
        help="those of these names, each with the budget; without names all",
    )  # fmt: skip
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
            folder = make_folder(name, Path(root), args.num_images)
            outcomes = measure(name, folder, Path(root), args)
            tables += [_table(name, outcomes), *_mixtures(name, outcomes, folder.truth)]
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
            f"to {SEARCH_SHARE:.0%} on trying.",
            f"Threads: {torch.get_num_threads()}.",
            *(
                [f"Other candidates than {', '.join(args.candidates)} were not trained."]
                if args.candidates
                else []
            ),
            *(["Some outcomes are of earlier commits: --keep had them."] if args.keep else []),
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


def _mixtures(
    name: str, outcomes: dict[str, list[Outcome]], truth: Mapping[str, str]
) -> Iterator[report.Table]:
    """What two members reach: two of the best candidate, or one of each of the best two."""
    sides = [side for side, own in outcomes.items() if side != "auto" and len(own) > 1]
    sides.sort(key=lambda side: -statistics.median(own.test_f1 for own in outcomes[side]))
    if len(sides) < 2:
        return
    labels = sorted(set(truth.values()))
    indices = np.array([labels.index(label) for label in truth.values()])
    first, second = (
        [_read_probs(own.table, tuple(truth), labels) for own in outcomes[side]]
        for side in sides[:2]
    )
    pairs = {
        f"two members of {sides[0]}": list(itertools.combinations(first, 2)),
        f"one of {sides[0]}, one of {sides[1]}": list(itertools.product(first, second)),
    }
    yield report.Table(
        title=f"{name}: two members together",
        columns=("members", "pairs", "test macro F1"),
        rows=[
            [
                members,
                str(len(own)),
                report.spread([f1_of((one + other) / 2, indices) for one, other in own], 3),
            ]
            for members, own in pairs.items()
        ],
    )


def _read_probs(table: Path, ids: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """The probabilities `(N, K)` of a vote for ids and labels."""
    with open(table, encoding="utf-8", newline="") as handle:
        rows = {row["id"]: row for row in csv.DictReader(handle)}
    return np.array([[float(rows[own][f"p_{label}"]) for label in labels] for own in ids])


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
