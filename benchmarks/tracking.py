"""What recording an epoch costs, and how soon training starts.

After every epoch the checkpoint and the history are written and the epoch's metrics go to MLflow
(here sqlite). Each is timed, with the state of a real `simple_cnn`, against an epoch of 10 s.

    python -m benchmarks.tracking
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import ours, report
from benchmarks.startup import measure_starts
from pose.seeds import folder as seed_folder
from pose.seeds.job import SeedJob
from pose.tracking import DataRecord, RunRequest, SeedRecord, Tracker
from pose.training.state import TrainState

EPOCH_SECONDS = 10
ROW_KEYS = (
    *("train_loss", "train_acc", "train_f1", "val_loss", "val_acc", "val_f1"),
    *("learning_rate", "epoch_seconds", "images_per_second"),
)


def trained_state() -> TrainState:
    """A state after one step, so that the optimizer has its moments, with best weights."""
    recipe = ours.frozen_recipe("simple_cnn")
    data = ours.random_data(4, recipe.image_size, 2, torch.device("cpu"))
    step = ours.new_step(data, recipe, ("0", "1"), precision="float32")
    step(data.train_rows)
    state = step.state
    state.best_weights = {key: value.clone() for key, value in state.model.state_dict().items()}
    return state


def open_seed_record(folder: Path) -> SeedRecord:
    """The run of a seed in a new store in `folder`."""
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    recipe = ours.frozen_recipe("simple_cnn", seeds=(0,))
    request = RunRequest(
        name="run",
        recipe_digest=recipe.digest(),
        dataset_digest="0",
        seeds=recipe.seeds,
        settings={},
        tags={},
        folder=folder,
    )
    job = SeedJob(run="run", recipe=recipe, seed=0, dataset=folder, output=folder)
    data = DataRecord(ids=["0", "1"], labels=["a", "b"], folder=folder, digest="0")
    tags = {"model_format": "pickle"}
    record = Tracker().open_run(request)
    record.begin(folder)
    return record.open_seed(job, tags, {"seed": 0}, data)


def milliseconds(work: Callable[[], None]) -> float:
    """How long `work` takes."""
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)


def time_epochs(num_epochs: int) -> dict[str, list[float]]:
    """Milliseconds of each part of recording, one item per epoch."""
    state = trained_state()
    parts: dict[str, list[float]] = {"checkpoint": [], "history": [], "metrics": []}
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        record = open_seed_record(folder)
        for epoch in range(1, num_epochs + 2):
            state.history.append({"epoch": epoch, **dict.fromkeys(ROW_KEYS, 0.5)})
            works = {
                "checkpoint": lambda: seed_folder.write_checkpoint(folder, state.state_dict()),
                "history": lambda: seed_folder.write_history(folder, state.history),
                "metrics": lambda: record.log_epochs(state.history),
            }
            taken = {name: milliseconds(work) for name, work in works.items()}
            if epoch > 1:  # the first opens files and connections
                for name, value in taken.items():
                    parts[name].append(value)
    return parts


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ours.add_dataset_option(parser)
    parser.add_argument("--num-images", type=int, default=3000)
    parser.add_argument("--num-epochs", type=int, default=100)
    parser.add_argument("--num-starts", type=int, default=3)
    parser.add_argument("--run", default="ensemble_2", help="the run that is started")
    report.add_options(parser, "tracking")
    args = parser.parse_args()
    parts = time_epochs(args.num_epochs)
    parts["together"] = [sum(epoch) for epoch in zip(*parts.values(), strict=True)]
    share = [value / (10 * EPOCH_SECONDS) for value in parts["together"]]
    with ours.data_folder(args.dataset, args.num_images) as folder:
        starts = measure_starts(folder, args.run, args.num_starts)
    report.write_report(
        args.report,
        title="What recording costs",
        module="benchmarks.tracking",
        repetitions=f"{args.num_epochs} epochs after the first, {args.num_starts} pairs of starts; "
        "median (lowest-highest)",
        goals=[
            report.Goal(
                text="recording under 2 % of an epoch of 10 s",
                measured=f"{report.spread(share, 2)} %",
                is_reached=statistics.median(share) < 2,
            ),
            report.Goal(
                text="first step under 10 s after the imports, decoding included",
                measured=f"{report.spread(starts['first'], 2)} s",
                is_reached=statistics.median(starts["first"]) < 10,
            ),
        ],
        tables=[
            report.Table(
                columns=("per epoch", "ms"),
                rows=[[name, report.spread(values, 1)] for name, values in parts.items()],
            ),
            report.Table(
                columns=("start", "seconds from imports done to first optimizer step"),
                rows=[[name, report.spread(values, 2)] for name, values in starts.items()],
                title=f"Starting `--run {args.run}` (first: no cache, no store; second: with both)",
            ),
        ],
    )


if __name__ == "__main__":
    main()
