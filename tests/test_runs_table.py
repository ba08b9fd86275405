"""What there is, in the terminal; and the next command, ready to paste."""

import re
import shlex
import time

import mlflow
import pytest

from entrypoints.next_step import command_line, from_words
from entrypoints.runs import next_command
from pose.overview import age_text, runs_table
from pose.tracking import Tracker


@pytest.mark.parametrize(
    ("project", "words", "command"),
    [
        (None, ["--run", "a b", "--fresh"], "python -m entrypoints.train --run 'a b'"),
        (None, ["--fresh", "--seeds=1"], "python -m entrypoints.train --seeds=1"),
        (
            "/a clone",
            ["--run", "none", "--model", "x", "--fresh", "true"],
            "mlflow run '/a clone' -e train --env-manager local -P model=x",
        ),
    ],
)
def test_a_command_is_given_back_in_the_form_it_was_typed_in(project, words, command):
    assert from_words("train", project, words) == command


def test_values_are_quoted_for_the_shell():
    text = command_line("data", ".", dataset="my data; rm x")
    assert shlex.split(text)[-2:] == ["-P", "dataset=my data; rm x"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0 s"), (59, "59 s"), (3600, "1 h"), (200000, "2 d")]
)
def test_an_age_has_one_unit(seconds, text):
    assert age_text(seconds) == text


@pytest.fixture
def tracker(tmp_path, monkeypatch) -> Tracker:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    mlflow.set_tracking_uri(None)
    yield Tracker()
    mlflow.set_tracking_uri(None)


def add_run(kind: str, metrics: dict[str, float], **tags: str) -> str:
    client = mlflow.MlflowClient()
    name = f"seed_{tags['seed']}" if kind == "seed" else kind
    run_id = client.create_run("0", run_name=name, tags={"kind": kind, **tags}).info.run_id
    for key, value in metrics.items():
        client.log_metric(run_id, key, value)
    client.set_terminated(run_id, "FINISHED" if tags.get("is_complete") == "true" else "KILLED")
    return run_id


def test_runs_are_listed_with_what_they_have_and_what_comes_next(tracker):
    assert tracker.list_runs() == []
    demo = "python -m entrypoints.train --run demo --dataset demo"
    assert next_command([], None) == demo
    done = add_run("train", {}, run="mine", seeds="1,2", is_complete="true", dataset="/x/birds")
    for seed, f1 in (("1", 0.8), ("2", 0.9)):
        add_run("seed", {"best_val_f1": f1}, seed=seed, parent_run_id=done, stop_reason="patience")
    (run,) = tracker.list_runs()
    assert next_command([run], ".") == "mlflow run . -e ensemble --env-manager local -P run=mine"
    add_run("ensemble", {"val_f1": 0.95, "val_rows": 60}, parents=done)
    time.sleep(0.01)
    open_run = add_run(
        "train", {}, run="next", seeds="1,2,3", is_complete="false", stop_reason="stop_file",
        command="python -m entrypoints.train --run next",
    )  # fmt: skip
    add_run("seed", {}, seed="1", parent_run_id=open_run, stop_reason="stop_file")

    runs = tracker.list_runs()
    newest, oldest, *_ = runs_table(runs, now=runs[0].started + 7200).splitlines()[1:]
    assert newest.split() == ["next", "0", "of", "3", "stopped", "(stop_file)", "2", "h", open_run]
    assert re.split(" {2,}", oldest) == [
        "mine", "birds", "2 of 2", "complete", "0.8500 ± 0.0707", "0.9500 (60)", "2 h", done,
    ]  # fmt: skip
    assert next_command(runs, None) == "python -m entrypoints.train --run next"
    assert next_command(runs[1:], None) == "mlflow ui"


def test_a_run_whose_tag_was_edited_hides_no_other(tracker):
    add_run("train", {}, run="mine", seeds="1,2", is_complete="true", dataset="/x/birds")
    add_run("train", {}, run="edited", seeds="one, two", is_complete="true", dataset="/x/birds")
    states = {run.name: run.state for run in tracker.list_runs()}
    assert states == {"mine": "complete", "edited": "damaged (tag seeds)"}
