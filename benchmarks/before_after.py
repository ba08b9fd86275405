"""Images per second in training: another checkout of this repository against this one.

What `benchmarks.training` calls ours and compute only, measured in both in alternation: the code
of each checkout runs in a process of its own, with the same interpreter on the same images.

    git worktree add ../before 56d6e32
    python -m benchmarks.before_after --before ../before
"""

import argparse
import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import ours, report
from benchmarks.sides import measure_in_turn

ROOT = Path(__file__).parents[1]
# Run in the checkout that is measured: one line of JSON per line of input.
SERVE = """
import json, sys
from pathlib import Path
from benchmarks.training import our_side
folder, model, cache_root, num_images = sys.argv[1:]
side = our_side(Path(folder), model, Path(cache_root), int(num_images))
for _ in sys.stdin:
    print(json.dumps(next(side)), flush=True)
"""


def checkout_side(root: Path, arguments: tuple[str, ...]) -> Iterator[dict[str, float]]:
    """Images per second of the checkout at `root`; its process stops and ends with this one."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, *arguments],
        cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    while True:
        process.stdin.write("\n")
        process.stdin.flush()
        yield json.loads(process.stdout.readline())


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ours.add_dataset_option(parser)
    parser.add_argument("--before", type=Path, required=True, help="the other checkout")
    parser.add_argument("--model", default="simple_cnn")
    parser.add_argument("--num-images", type=int, default=640, help="images per epoch")
    parser.add_argument("--num-turns", type=int, default=5)
    report.add_options(parser, "before_after")
    args = parser.parse_args()
    with (
        ours.data_folder(args.dataset, args.num_images) as folder,
        tempfile.TemporaryDirectory() as before_cache,
        tempfile.TemporaryDirectory() as after_cache,
    ):
        sides = {}
        for name, root, cache in (
            ("before", args.before.absolute(), before_cache),
            ("after", ROOT, after_cache),
        ):
            arguments = (str(folder), args.model, cache, str(args.num_images))
            sides[name] = functools.partial(checkout_side, root, arguments)
        measured = measure_in_turn(sides, args.num_turns)
    rows, goals = [], []
    for key, about in (("ours", "training, end to end"), ("compute", "compute only")):
        before, after = ([turn[key] for turn in measured[name]] for name in sides)
        ratios = report.ratios(after, before)
        rows.append([about, report.spread(before, 1), report.spread(after, 1)])
        rows[-1].append(report.spread(ratios, 3))
        goals.append(
            report.Goal(
                text=f"{about}: as fast as before, within the range of the turns",
                measured=f"{report.spread(ratios, 3)}x",
                is_reached=max(ratios) >= 1,
            )
        )
    commit = subprocess.run(
        ["git", "-C", str(args.before), "log", "-1", "--format=%h %s"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    report.write_report(
        args.report,
        title=f"Training `{args.model}` before and after, images per second",
        module="benchmarks.before_after",
        repetitions=f"{args.num_turns} turns in alternation, the waiting side stopped: an epoch of "
        f"{args.num_images} images and as many images of compute only around it, after one epoch "
        "to warm up; median (lowest-highest); ratios turn by turn",
        goals=goals,
        tables=[
            report.Table(
                columns=("", "before, images/s", "after, images/s", "after / before"), rows=rows
            )
        ],
        notes=[f"Before: {commit}. After: the commit below."],
    )


if __name__ == "__main__":
    main()
