"""A sweep: what it tries, that each trial is a run, and that it goes on where it was stopped."""

import csv
import os
import re
from pathlib import Path

import mlflow
import pytest

from pose.config import Recipe, Setup, SweepSetup
from pose.display import NoDisplay
from pose.errors import InputError
from pose.named_runs import resolve_run
from pose.results import SweepResult
from pose.search.space import check_together, parse_space
from pose.search.study import Clock, Study
from pose.sweep import make_sweep_plan, sweep
from pose.tracking import Tracker
from tests.project import Project

TINY = {"model": "simple_cnn", "image_size": 16, "batch_size": 16, "num_epochs": 2, "seeds": (4,)}


def test_space_has_ranges_and_choices():
    rate, smoothing, epochs, model = parse_space(
        "learning_rate:1e-3..1e-2:log, label_smoothing:0|0.1,num_epochs:2..9,"
        "model:simple_cnn|pose_net"
    )
    assert (rate.low, rate.high, rate.is_log, rate.is_whole) == (0.001, 0.01, True, False)
    assert smoothing.choices == (0.0, 0.1)
    assert (epochs.low, epochs.high, epochs.is_whole) == (2, 9, True)
    assert model.choices == ("simple_cnn", "pose_net")
    assert rate.holds(0.002) and not rate.holds(0.1)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("speed:1..2", "got 'speed'"),
        ("seeds:1|2", "got 'seeds'"),
        ("learning_rate", "must look like"),
        ("learning_rate:1..2:linear", "must look like"),
        ("learning_rate:0..1:log", "from a positive number upwards"),
        ("learning_rate:2..1", "from low to high"),
        ("learning_rate:a..1", "type float for learning_rate, got 'a'"),
        ("num_epochs:1.5|2", "type int for num_epochs, got '1.5'"),
        ("learning_rate:0.1|nan", "got 'nan'"),
        ("model:a..b", "must have choices for model"),
        ("label_smoothing:0..2", "label_smoothing must be in [0, 1), got 2"),
        ("optimizer:adam|sgd", "optimizer must be one of"),
        ("batch_size:8|16,batch_size:4|8", "each setting once"),
        ("learning_rate:1e-3|0.001", "must have each value of learning_rate once"),
        ("num_epochs:1_0..2_0", "type int for num_epochs, got '1_0'"),
        ("learning_rate:١..٢", "type float for learning_rate, got '١'"),
        ("model:simple_cnn|", "type str for model, got ''"),
        # Nobody would fetch what it names.
        ("distil:demo|champion", "got 'distil'"),
        # Only what lies between the ends cannot be, or only both together.
        ("image_size:0..32", "got image_size=1: image_size must be in [16, 2048]"),
        ("accumulate:2|1000000,batch_size:8|10000", "got accumulate=1000000, batch_size=10000"),
        ("framing:resize|crop,crop_from:64|128", "got framing=resize, crop_from=64"),
        (f"learning_rate:{'9' * 5000}", f"got '{'9' * 100}'"),
    ],
)
def test_a_space_that_cannot_be_is_refused(text, found):
    with pytest.raises(InputError, match=re.escape(found)) as caught:
        check_together(parse_space(text), Recipe(model="simple_cnn", framing="resize"))
    assert len(str(caught.value)) < 800


def test_values_that_need_each_other_are_no_mistake():
    check_together(parse_space("crop_from:128|256,framing:crop"), Recipe())


def open_study(folder: Path) -> Study:
    return Study(
        folder / "study.log",
        "key",
        parse_space("learning_rate:1e-4..1e-1:log"),
        name="tiny_sweep",
        seed=0,
        num_warmup=1,
    )


def test_a_study_finds_better_values_and_prunes_the_hopeless(tmp_path):
    study = open_study(tmp_path)
    for _ in range(12):
        trial = study.ask()
        score = 1 - abs(trial.params["learning_rate"] - 0.03) * 10
        trial.report(score, 2)
        study.tell(trial, [score, score], 1.0)
    best = study.results()[0]
    assert abs(best.values["learning_rate"] - 0.03) < 0.02
    hopeless = study.ask()
    hopeless.report(-5.0, 2)
    assert hopeless.should_prune()
    study.tell_lost(hopeless, "pruned", 1.0)
    assert study.results()[-1].ending == "pruned"


def test_a_trial_that_was_cut_short_is_begun_again_under_its_name(tmp_path):
    study = open_study(tmp_path)
    study.tell(study.ask(), [0.5], 1.0)
    cut = study.ask()
    name, values = study.run_name(cut), cut.params
    again = open_study(tmp_path)
    assert len(again.results()) == 1
    trial = again.ask()
    assert (again.run_name(trial), trial.params) == (name, values)
    again.tell(trial, [0.6], 1.0)
    assert again.ask().params != values


def test_no_trial_begins_that_would_not_fit(tmp_path):
    study = open_study(tmp_path)
    study.tell(study.ask(), [0.5], 40.0)
    assert Clock(90).has_room(study.results())
    assert not Clock(70).has_room(study.results())
    assert Clock(40).is_over(study.results())
    assert Clock(None).has_room(study.results())


@pytest.fixture
def run_sweep(tmp_path, stripes, monkeypatch):
    """Runs a tiny sweep in a folder of its own, again and again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def run(stop=lambda: None, **settings) -> SweepResult:
        setup = SweepSetup(space="learning_rate:1e-3|1e-2,optimizer:adam|adamw", **settings)
        run_setup = Setup(dataset=str(stripes), device="cpu", run_name="tiny")
        plan = make_sweep_plan(resolve_run(None, "tiny", TINY), setup, run_setup)
        return sweep(plan, Tracker(), NoDisplay(), stop)

    return run


def runs_of(kind: str, **tags: str):
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{os.getcwd()}/mlflow.db")
    text = " and ".join(f"tags.{k} = '{v}'" for k, v in {"kind": kind, **tags}.items())
    return client.search_runs(["0"], text, order_by=["attributes.start_time ASC"])


def test_a_stopped_sweep_goes_on_in_its_runs(run_sweep):
    asked = iter(range(10**6))
    # In the middle of the second trial: a trial has two epochs of three batches.
    result = run_sweep(lambda: "stop_file" if next(asked) > 12 else None, trials=3)
    assert result.stop_reason == "stop_file"
    assert len(result.trials) == 1
    assert [run.info.status for run in runs_of("train")] == ["FINISHED", "KILLED"]
    result = run_sweep(trials=3)
    assert result.stop_reason is None
    assert len(result.trials) == 3
    (parent,) = runs_of("sweep")
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["num_trials"] == 3
    trials = runs_of("train", sweep_run_id=parent.info.run_id)
    assert [run.info.status for run in trials] == ["FINISHED"] * 3
    assert {run.data.params["learning_rate"] for run in trials} <= {"0.001", "0.01"}
    scores = {run.info.run_name: run.data.metrics["val_f1_mean"] for run in trials}
    assert scores == {trial.name: trial.val_f1.mean for trial in result.trials}
    assert parent.data.tags["best_run"] == max(scores, key=scores.get) == result.trials[0].name
    # More trials continue a finished sweep.
    assert len(run_sweep(trials=4).trials) == 4
    assert len(runs_of("sweep")) == 1
    with open(result.folder / "trials.csv", newline="", encoding="utf-8") as handle:
        assert len(list(csv.DictReader(handle))) == 4


def test_a_sweep_through_mlflow_run_ends_with_the_command_for_its_best(tmp_path, stripes):
    project = Project(tmp_path / "project")
    settings = {**TINY, "seeds": 4, "dataset": stripes, "run_name": "tiny"}
    settings |= {"space": "learning_rate:1e-3|1e-2", "trials": 1, "device": "cpu"}
    out = project.mlflow_run("sweep", **settings)
    (parent,) = project.runs("sweep")
    (trial,) = project.runs("train", sweep_run_id=parent.info.run_id)
    assert trial.data.tags["mlflow.parentRunId"] == parent.info.run_id
    (command,) = [line for line in out.splitlines() if line.startswith("mlflow run . -e train")]
    rate = trial.data.params["learning_rate"]
    assert f"-P dataset={stripes}" in command and f"-P learning_rate={rate}" in command
    assert "-P model=simple_cnn " in command and command.endswith("-P seeds=100,101,102")
    # `mlflow run` refuses a parameter that is there twice.
    assert command.count("-P seeds=") == 1
    error = project.run(
        *project.mlflow_command("sweep", space="learning_rate:fast", dataset=stripes), code=1
    )
    assert "error: space must have values of type float for learning_rate, got 'fast'" in error
    assert "Traceback" not in error.split("error: space")[0]
