"""All faults, one after another, and the report.

Every outcome is kept as it comes: stopped, the same command goes on.

    python -m benchmarks.faults --work build/faults
    python -m benchmarks.faults --only kills --tries 200
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import report
from benchmarks.faults import damage, disks, kills, long, pairs, stops, summary
from benchmarks.faults.lab import Lab
from benchmarks.faults.outcome import Outcome, Outcomes, Try


def tries_of(part: str, lab: Lab, count: int) -> Iterator[Try]:
    """The tries of a part of the benchmark.

    Args:
        count: how many random kills; of other faults there are so many that it fits.
    """
    few = -(-count // 10)
    match part:
        case "kills":
            yield from kills.random_kills(lab, count)
        case "mlflow_kills":
            yield from kills.random_kills_of_mlflow(lab, 2 * few)
        case "points":
            yield from kills.every_point(lab)
        case "stops":
            yield from stops.stops(lab, few)
        case "mlflow_stops":
            yield from stops.stops_of_mlflow(lab, 1)
        case "pairs":
            yield from pairs.pairs(lab, few)
        case "disks" if disks.can_mount():
            yield from disks.disks(lab)
        case "damage":
            yield from damage.flipped_bits(lab, 8 * count)
            yield from damage.finished_members(lab)
        case "long":
            yield from long.long_runs(lab)


PARTS = (
    *("damage", "stops", "kills", "disks", "pairs"),
    *("mlflow_stops", "mlflow_kills", "points", "long"),
)


def main() -> None:
    """Try what was not tried yet, then write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/faults"), help="where they happen")
    parser.add_argument(
        "--only", nargs="*", choices=PARTS, default=PARTS, help="none: the report of what was tried"
    )
    parser.add_argument("--tries", type=int, default=50, help="random kills")
    report.add_options(parser, summary.REPORT)
    args = parser.parse_args()
    outcomes = Outcomes(args.work / "outcomes.jsonl")
    lab = Lab(args.work) if args.only else None
    for part in args.only:
        assert lab is not None
        for one in tries_of(part, lab, args.tries):
            if one not in outcomes:
                _try(one, outcomes)
    summary.write(outcomes, args.report)


def _try(one: Try, outcomes: Outcomes) -> None:
    started = time.monotonic()
    try:
        outcome = one.run()
    # One try that could not be judged must not cost the others.
    except Exception as error:
        outcome = Outcome(problems=(f"{type(error).__name__}: {error}"[:300],))
    outcomes.add(one, outcome)
    verdict = "; ".join(outcome.problems) or "survived"
    print(f"{one.fault}, {one.name}: {verdict} ({time.monotonic() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
