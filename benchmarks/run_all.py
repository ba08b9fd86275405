"""All benchmarks that need no GPU, in under 15 minutes, and one table of the goals at the end.

Each runs in a process of its own, with settings that fit the time; its report says which. The demo
data is drawn once for all of them.

    make bench
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import ours, report

# Names of the benchmarks and their options; without these each is longer and more exact.
BENCHMARKS = {
    "tracking": "--num-epochs 100 --num-starts 2",
    "decoding": "--num-turns 3 --num-starts 1",
    "memory": "--num-turns 3 --num-steps 10",
    "prediction": "--num-turns 1 --num-images 1000",
    "step": "--num-turns 3",
    "training": "--num-turns 3 --num-batches 6 --num-images 1500",
    "time_to_f1": "--seconds 25",
    "quality": "--num-epochs 2",
}


def main() -> None:
    """Run them and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ours.add_dataset_option(parser)
    parser.add_argument("--only", nargs="*", choices=BENCHMARKS, default=list(BENCHMARKS))
    args = parser.parse_args()
    lines, failed = [], []
    with ours.data_folder(args.dataset, 3000) as folder:
        for name in args.only:
            started = time.perf_counter()
            # Under a name of their own: a short run does not replace a long one's report.
            short = f"{name}_short"
            command = [sys.executable, "-m", f"benchmarks.{name}", "--dataset", str(folder)]
            command += ["--report", short, *BENCHMARKS[name].split()]
            print(f"== {name}", flush=True)
            done = subprocess.run(command, cwd=Path(__file__).parents[1])
            print(f"== {name} took {time.perf_counter() - started:.0f} s", flush=True)
            if done.returncode:
                failed.append(name)
                continue
            for goal in report.read_goals(report.REPORTS / f"{short}.md"):
                lines.append([*goal, f"benchmarks/reports/{short}.md"])
    print(report.Table(columns=(*report.GOALS_HEADER, "report"), rows=lines).markdown())
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
