"""Members in processes of their own end, go on and come out as members in this process do."""

import dataclasses
from pathlib import Path

import pytest
import torch

from pose.config import Recipe, Setup
from pose.display import NoDisplay
from pose.errors import InputError
from pose.seeds import folder as seed_folder
from pose.seeds.engines import Budget, Processes, train_here
from pose.seeds.job import NoTracking, SeedJob
from pose.seeds.train import load_job_data

SEEDS = (4, 5)
TINY = Recipe(model="simple_cnn", image_size=32, batch_size=16, num_epochs=4, seeds=SEEDS)


def jobs_in(folder: Path, dataset: Path) -> list[SeedJob]:
    job = SeedJob(
        run="tiny",
        recipe=TINY,
        seed=0,
        dataset=dataset,
        output=folder,
        device="cpu",
        precision="float32",
        threads=1,
    )
    return [dataclasses.replace(job, seed=seed, output=folder / f"seed_{seed}") for seed in SEEDS]


class Record(NoTracking):
    """A tracker that remembers the epochs and the end."""

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self.folders: list[Path] = []
        self.ends: list[tuple[str, str]] = []

    def log_epochs(self, history) -> None:
        self.epochs = [int(row["epoch"]) for row in history]

    def log_results(self, folder: Path) -> None:
        self.folders.append(folder)

    def finish(self, status: str, stop_reason: str) -> None:
        self.ends.append((status, stop_reason))


class Seen(NoDisplay):
    """A display that asks to stop once it has shown an epoch."""

    def __init__(self) -> None:
        self.num_epochs = 0

    def show_epoch(self, seed, row, best_epoch) -> None:
        self.num_epochs += 1

    def stop(self) -> str | None:
        return "stop_file" if self.num_epochs else None


def test_members_apart_stop_together_go_on_and_are_the_same(tmp_path, stripes):
    here, apart = jobs_in(tmp_path / "here", stripes), jobs_in(tmp_path / "apart", stripes)
    loaded = load_job_data(here[0], NoDisplay())
    records = {job.output: Record() for job in here + apart}

    def record_of(job: SeedJob) -> Record:
        return records[job.output]

    list(train_here(here, record_of, NoDisplay(), lambda: None, loaded=loaded))

    seen, engine = Seen(), Processes(parallel=2)
    results = list(engine(apart, record_of, seen, seen.stop, loaded=loaded))
    assert {result.stop_reason for result in results} == {"stop_file"}
    assert [records[job.output].ends for job in apart] == [[("KILLED", "stop_file")]] * 2
    assert all(len(records[job.output].epochs) < TINY.num_epochs for job in apart)

    results = list(engine(apart, record_of, NoDisplay(), lambda: None, loaded=loaded))
    assert {result.seed for result in results} == set(SEEDS)
    for one, other in zip(here, apart, strict=True):
        ours, theirs = records[one.output], records[other.output]
        assert theirs.epochs == ours.epochs
        assert theirs.folders == [other.output]
        assert theirs.ends[-1] == ours.ends[-1] == ("FINISHED", "epochs")
        weights = [
            torch.load(job.output / seed_folder.WEIGHTS, weights_only=True) for job in (one, other)
        ]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "magic"}, "engine must be one of local, processes, ray, got 'magic'"),
        ({"parallel": 2}, "parallel must be 1 with engine=local, got 2: add engine=processes"),
        ({"engine": "processes", "parallel": -1}, "parallel must be at least 0, got -1"),
        ({"threads": -1}, "threads must be at least 0, got -1"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Setup(**options)


def test_members_at_the_same_time_have_as_many_times_the_budget():
    assert Budget(30, 3).share() == 5
    assert Budget(30, 3, parallel=3).share() == 25
    two = Budget(30, 3, parallel=2)  # two turns
    assert two.share() == 10
    two.spend(10, 5)
    two.spend(10, 5)
    assert two.share() == 10
