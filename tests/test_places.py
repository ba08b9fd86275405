"""Trials of a plan side by side: on a cluster, and in processes of this machine."""

import importlib.util
import multiprocessing
import os
import signal
import time
from pathlib import Path

import mlflow
import pytest
from calls import halve, kill
from said import Said

from pose.auto import Auto
from pose.cluster import Tasks, joined
from pose.config import Setup
from pose.display import NoDisplay
from pose.errors import DiedError, InputError
from pose.named_runs import resolve_auto
from pose.search import progress as progress_file
from pose.search.halving import seconds_of_each
from pose.search.progress import read_progress
from pose.tracking import Tracker
from pose.workers import Workers

GIVEN = {"model": "simple_cnn", "batch_size": 16, "image_size": 24, "budget": "5m"}
TWO = {"parallel": 2, "threads": 1, "device": "cpu"}
PLAN = Path("outputs", "auto_plan", "plan.json")
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is an extra")


@pytest.fixture(scope="module")
def cluster():
    with joined(2):
        yield


def busy_cpus() -> float:
    import ray

    return ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0)


def test_a_round_lasts_no_longer_side_by_side():
    assert seconds_of_each(10.0, 5, 1) == 10
    assert seconds_of_each(10.0, 6, 2) == 20
    # Three turns of two, two and one.
    assert seconds_of_each(10.0, 5, 2) == pytest.approx(50 / 3)
    assert seconds_of_each(10.0, 5, 5) == 50


def test_without_ray_a_plan_is_refused_before_it_looks_at_anything(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    setup = Setup(engine="ray", dataset="nowhere")
    with pytest.raises(InputError, match=r"not installed: pip install -r requirements-ray\.txt"):
        Auto(resolve_auto(None, GIVEN), tuple(GIVEN), setup, NoDisplay(), lambda: None)


@pytest.fixture
def plan(tmp_path, monkeypatch, stripes):
    """Chooses among two candidates, side by side on an engine, until asked to stop."""
    monkeypatch.setattr(progress_file, "SEARCH_SHARE", 0.02)
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")

    def choose(engine, said, stop=lambda: None):
        setup = Setup(dataset=str(stripes), cache_root="cache", engine=engine, **TWO)
        return Auto(resolve_auto(None, GIVEN), tuple(GIVEN), setup, said, stop).choose(Tracker())

    return choose


def assert_whole(chosen, progress, said) -> None:
    """Whether both candidates were tried once in a round, each with a run of its own."""
    assert len(set(said.trials)) == len(said.trials) == len(progress.trials)
    tried = [(own.candidate, own.round) for own in progress.trials]
    assert sorted(tried[:2]) == [(0, 0), (1, 0)]
    # Unless one of them was far behind, both went on in a second round.
    assert sorted(tried[2:]) in ([], [(0, 1), (1, 1)])
    assert all(own.num_epochs > 0 and own.val_auc > 0 for own in progress.trials)
    # Members have two places as well, and one turn is worth training.
    assert progress.at_once == 2
    assert len(chosen.run.recipe.seeds) >= 2
    client = mlflow.MlflowClient()
    nested = client.search_runs(["0"], f"tags.mlflow.parentRunId = '{progress.run_id}'")
    assert sorted(run.info.run_name for run in nested) == sorted(said.trials)
    assert {run.info.status for run in nested} == {"FINISHED"}


@needs_ray
def test_trials_on_a_cluster_stop_softly_and_are_not_repeated(plan, cluster):
    said = Said()
    stopped = plan("ray", said, lambda: "stop_file" if said.trials else None)
    assert (stopped.run, stopped.stop_reason) == (None, "stop_file")
    before = read_progress(PLAN)
    assert len(before.trials) == len(said.trials) == 1
    chosen = plan("ray", said)
    progress = read_progress(PLAN)
    assert progress.trials[0] == before.trials[0]
    assert_whole(chosen, progress, said)


def test_trials_in_processes_are_as_those_of_this_process(plan):
    said = Said()
    chosen = plan("processes", said)
    assert multiprocessing.active_children() == []
    assert_whole(chosen, read_progress(PLAN), said)


def test_processes_answer_as_calls_end_and_a_dead_one_is_named():
    with Workers() as workers:
        answers = list(workers(halve, 12, iter((4, 1, 2)), lambda: None, at_once=2))
        assert dict(answers) == {4: 3, 1: 12, 2: 6}
        assert answers[0] == (1, 12)
        assert list(workers(halve, 12, [1], lambda: "signal", at_once=2)) == []
        with pytest.raises(RuntimeError, match="0: ZeroDivisionError: division by zero"):
            list(workers(halve, 12, [0], lambda: None, at_once=1))
        with pytest.raises(DiedError, match=r"found dead: round_1 \(killed by SIGKILL\); the same"):
            list(workers(kill, 12, ["round_1"], lambda: None, at_once=1))
        assert len(multiprocessing.active_children()) == 1
    assert multiprocessing.active_children() == []


@needs_ray
def test_a_call_whose_process_dies_is_started_again_and_one_given_up_is_named(cluster, tmp_path):
    tasks = Tasks(num_cpus=1, num_gpus=0)

    # Inside, so that they travel by value: the cluster has no tests.
    def die_once(folder: str, name: str) -> str:
        try:
            os.mkdir(f"{folder}/{name}")
        except FileExistsError:
            return name.upper()
        os.kill(os.getpid(), signal.SIGKILL)
        return ""

    def die(folder: str, name: str) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def refuse(folder: str, name: str) -> None:
        raise InputError(f"{name} must be seen")

    def wait_long(folder: str, name: str) -> None:
        os.mkdir(f"{folder}/{name}")
        time.sleep(600)

    found = tasks(die_once, str(tmp_path), ["one", "two"], lambda: None, at_once=2)
    assert sorted(found) == [("one", "ONE"), ("two", "TWO")]
    with pytest.raises(InputError, match="^images must be seen$"):
        list(tasks(refuse, None, ["images"], lambda: None, at_once=1))
    with pytest.raises(DiedError, match=r"found dead: round_1 \(.*; the same command goes on"):
        list(tasks(die, None, ["round_1"], lambda: None, at_once=1))

    def stop() -> str | None:
        return "signal" if (tmp_path / "long").exists() else None

    assert list(tasks(wait_long, str(tmp_path), ["long"], stop, at_once=1)) == []
    deadline = time.monotonic() + 20
    while busy_cpus():
        assert time.monotonic() < deadline, "a call is still under way"
        time.sleep(0.1)
