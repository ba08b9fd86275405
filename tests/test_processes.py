"""Members in processes of their own end, go on and come out as members in this process do."""

import dataclasses
import importlib.util
import multiprocessing
import signal
import threading
import time
from multiprocessing import AuthenticationError
from pathlib import Path

import pytest
import torch

from pose.config import Recipe, Setup
from pose.display import NoDisplay
from pose.errors import InputError
from pose.named_runs import resolve_run
from pose.plan import make_plan
from pose.seeds import folder as seed_folder
from pose.seeds.engines import (
    Budget,
    Processes,
    engine_ready,
    num_at_once,
    pick_engine,
    train_here,
)
from pose.seeds.engines.reception import Reception, report
from pose.seeds.engines.team import Team
from pose.seeds.job import NoTracking, SeedJob
from pose.seeds.relay import FarEnd, train_elsewhere
from pose.seeds.shipping import at_hand
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


def assert_equal_weights(one: SeedJob, other: SeedJob) -> None:
    weights = [
        torch.load(job.output / seed_folder.WEIGHTS, weights_only=True) for job in (one, other)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


class Record(NoTracking):
    """A tracker that remembers the epochs and the end."""

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self.folders: list[Path] = []
        self.ends: list[tuple[str, str]] = []
        self.tags: dict[str, str] = {}

    def log_tags(self, tags: dict[str, str]) -> None:
        self.tags.update(tags)

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
        assert_equal_weights(one, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "magic"}, "engine must be one of local, processes, ray, got 'magic'"),
        ({"parallel": 2}, "parallel must be 1 with engine=local, got 2: add engine=processes"),
        ({"engine": "processes", "parallel": -1}, "parallel must be at least 0, got -1"),
        ({"gpus": 0.5}, "gpus must go with engine=ray, got engine=local"),
        ({"engine": "ray", "gpus": 1.5}, "gpus must be 0, a fraction of one, or a whole number"),
        ({"engine": "ray", "gpus": 1.0, "device": "cpu"}, "gpus must be 0 with device=cpu"),
        ({"engine": "ray", "device": "cuda:1"}, "device must be auto, cpu or cuda with engine=ray"),
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


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is an extra")
def test_members_on_a_cluster_are_the_same(tmp_path, stripes):
    here, there = jobs_in(tmp_path / "here", stripes), jobs_in(tmp_path / "there", stripes)
    loaded = load_job_data(here[0], NoDisplay())
    list(train_here(here, lambda job: Record(), NoDisplay(), lambda: None, loaded=loaded))

    records = {job.output: Record() for job in there}
    setup = Setup(engine="ray", device="cpu", threads=1, parallel=2)
    seen = Seen()
    before = signal.getsignal(signal.SIGTERM)
    with engine_ready(setup):
        assert num_at_once(setup, num_members=2) == 2
        train = pick_engine(setup)
        results = list(
            train(there, lambda job: records[job.output], seen, seen.stop, loaded=loaded)
        )
        assert {result.stop_reason for result in results} <= {"stop_file"}
        list(
            train(there, lambda job: records[job.output], NoDisplay(), lambda: None, loaded=loaded)
        )
    assert signal.getsignal(signal.SIGTERM) == before
    for one, other in zip(here, there, strict=True):
        record = records[other.output]
        assert record.epochs == [1, 2, 3, 4]
        assert record.ends[-1] == ("FINISHED", "epochs")
        assert set(record.tags) == {"trained_on"}
        assert_equal_weights(one, other)


def test_without_ray_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"not installed: pip install -r requirements-ray\.txt"):
        make_plan(resolve_run("ensemble_1", None, {}), Setup(engine="ray"))


def test_a_port_lets_in_who_has_its_key():
    with Reception("127.0.0.1") as reception:
        with pytest.raises((AuthenticationError, EOFError, ConnectionError)):
            report(reception.address, b"a guess", 7)
        with report(reception.address, reception.key, 3):
            deadline = time.monotonic() + 20
            while not (arrived := list(reception.arrived())):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        ((number, connection),) = arrived
        connection.close()
    assert number == 3


def test_a_member_whose_folder_is_elsewhere_sends_it_home(tmp_path, stripes):
    here, home = jobs_in(tmp_path / "here", stripes)[0], jobs_in(tmp_path / "home", stripes)[0]
    away = dataclasses.replace(home, output=tmp_path / "away" / "seed_4")
    loaded = load_job_data(here, NoDisplay())
    list(train_here([here], lambda job: Record(), NoDisplay(), lambda: None, loaded=loaded))

    def work(connection) -> None:
        end = FarEnd(connection)
        with connection, at_hand(end, away) as (job, tracker):
            assert job.output not in (home.output, away.output)
            train_elsewhere(end, job, loaded.digest, tracker)

    for reason in ("stop_file", "epochs"):
        record, seen = Record(), Seen()
        team = Team(lambda job, record=record: record, seen, None)
        near, far = multiprocessing.Pipe()
        member = team.begin(home, near)
        worker = threading.Thread(target=work, args=(far,))
        worker.start()
        while team.members:
            if reason == "stop_file" and seen.stop():
                team.ask_to_stop(reason)
            team.hear()
        worker.join()
        assert member.result.stop_reason == reason
    assert member.result.session_seconds < member.result.seconds  # it went on
    assert record.folders == [home.output]
    assert {path.name for path in home.output.iterdir()} == {
        *seed_folder.RESULTS,
        seed_folder.PREVIOUS_CHECKPOINT,
    }
    assert not away.output.parent.exists()
    assert_equal_weights(here, home)


def test_only_a_members_files_are_given_to_those_elsewhere(tmp_path):
    folder = seed_folder.FolderHere(tmp_path / "seed_4")
    folder.write(seed_folder.HISTORY, b"epoch")
    assert folder.read(seed_folder.HISTORY) == b"epoch"
    assert folder.read(seed_folder.WEIGHTS) is None
    for name in ("../seed_5/config.json", "other.txt"):
        with pytest.raises(InputError, match="a member's file must be one of"):
            folder.read(name)
