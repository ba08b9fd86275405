"""What is recorded while the tracking store is away, and a server that goes and comes."""

import dataclasses
import json
import os
import sys
import time
from pathlib import Path

import mlflow
import pytest
import torch
from server import Server

from pose.config import Recipe, Setup
from pose.display import NoDisplay
from pose.errors import InputError
from pose.named_runs import resolve_run
from pose.plan import Plan, make_plan
from pose.run import train_run
from pose.seeds import folder as seed_folder
from pose.seeds.job import NoTracking, SeedJob
from pose.seeds.train import load_job_data, train_seed
from pose.sync import send_waiting
from pose.tracking import Tracker, courier
from pose.tracking.spool import SPOOL, Spool
from pose.tracking.system import watch_system

NUM_EPOCHS = 6
SMALL = {
    "model": "simple_cnn", "image_size": 32, "batch_size": 16, "num_epochs": NUM_EPOCHS,
    "seeds": (1, 2),
}  # fmt: skip


# The file


def test_records_come_back_in_order_with_what_their_delivery_told(tmp_path):
    spool = Spool(tmp_path / SPOOL)
    first, second = spool.append("seed", seed=1), spool.append("epochs", seed=1, rows=[])
    spool.mark(first, run_id="abc")
    again = Spool(tmp_path / SPOOL)
    assert again.records() == [first, second]
    assert again.waiting() == [second]
    assert again.facts(first) == {"run_id": "abc"}
    assert again.append("end").seq == 3


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "link to nowhere"])
def test_what_cannot_be_a_spool_is_named(tmp_path, kind):
    path = tmp_path / SPOOL
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case _:
            path.symlink_to("nowhere")
    with pytest.raises(InputError, match=r"spool\.jsonl must be the record of its run, found: "):
        Spool(path)


def test_a_spool_that_cannot_be_written_is_named(tmp_path):
    spool = Spool(tmp_path / SPOOL)
    spool.path.mkdir()
    with pytest.raises(InputError, match=r"spool\.jsonl must be written, found: is a directory"):
        spool.append("text", text="", name="a.txt")


def test_a_line_that_was_cut_short_counts_as_never_written(tmp_path):
    spool = Spool(tmp_path / SPOOL)
    first = spool.append("seed", seed=1)
    whole = spool.path.read_bytes()
    spool.append("epochs", seed=1, rows=[{"epoch": 1}])
    for length in range(len(whole) + 1, spool.path.stat().st_size - 1):
        cut = tmp_path / "cut.jsonl"
        cut.write_bytes(spool.path.read_bytes()[:length])
        torn = Spool(cut)
        assert torn.records() == [first]
        assert torn.append("end").seq == 2
        assert [record.do for record in Spool(cut).waiting()] == ["seed", "end"]


def damaged(path, number, change):
    """The spool with its line `number` changed."""
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number] = change(lines[number])
    path.write_bytes(b"".join(lines))
    return Spool(path)


@pytest.mark.parametrize("number", [1, 2])
def test_a_damaged_line_is_a_lost_record_wherever_the_damage_is(tmp_path, number):
    spool = Spool(tmp_path / SPOOL)
    for epoch in range(3):
        spool.append("epochs", rows=[{"epoch": epoch}])
    whole = spool.path.read_bytes()
    for place in range(len(whole.splitlines()[number])):

        def flip(line, at=place):
            return line[:at] + bytes([line[at] ^ 1]) + line[at + 1 :]

        spool.path.write_bytes(whole)
        found = damaged(spool.path, number, flip)
        assert found.lost() == [number + 1]
        assert [record.seq for record in found.waiting()] == [
            n for n in (1, 2, 3) if n != number + 1
        ]
    for change in (lambda line: line[:20] + b"\n", lambda line: b"\xff garbage\n"):
        spool.path.write_bytes(whole)
        found = damaged(spool.path, number, change)
        assert found.lost() == [number + 1]
    # Its number is never given again, or a mark of the old one would hide the new one.
    assert found.append("end").seq == 4
    found.forget_lost()
    again = Spool(spool.path)
    assert again.lost() == []
    assert again.append("end").seq == 5


def test_a_damaged_record_that_had_been_delivered_is_no_loss(tmp_path):
    spool = Spool(tmp_path / SPOOL)
    spool.mark(spool.append("text"))
    found = damaged(spool.path, 0, lambda line: line[:30] + b"?" + line[31:])
    assert (found.lost(), found.waiting()) == ([], [])
    assert found.append("text").seq == 2
    # A mark that is damaged means that the record is delivered once more.
    spool.path.unlink()
    spool = Spool(spool.path)
    spool.mark(spool.append("text"))
    found = damaged(spool.path, 1, lambda line: line[:30] + b"?" + line[31:])
    assert (found.lost(), len(found.waiting())) == ([], 1)


def test_a_line_cut_short_by_a_kill_is_no_loss_whatever_follows(tmp_path):
    spool = Spool(tmp_path / SPOOL)
    first = spool.append("text", text="a")
    spool.append("text", text="b")
    spool.path.write_bytes(spool.path.read_bytes()[:-9])
    torn = Spool(spool.path)
    torn.mark(first)
    assert (Spool(spool.path).lost(), Spool(spool.path).waiting()) == ([], [])
    torn.append("end")
    assert [record.do for record in Spool(spool.path).waiting()] == ["end"]
    assert Spool(spool.path).lost() == []


def test_spools_of_earlier_versions_are_read(tmp_path):
    path = tmp_path / SPOOL
    path.write_text(
        '{"seq": 1, "at": 5, "do": "open", "store": "x"}\n{"delivered": 1}\n'
        '{"seq": 2, "at": 6, "do": "te\n{"seq": 2, "at": 6, "do": "text", "text": "a"}\n'
        '{"delivered": null}\n{"delivered": 99999999999}\n{"seq": "3", "at": 7, "do": "end"}\n'
        '{"seq": 3, "at'
    )
    spool = Spool(path)
    assert ([record.seq for record in spool.waiting()], spool.lost()) == ([2], [])
    assert spool.append("end").seq == 3
    assert [record.do for record in Spool(path).waiting()] == ["text", "end"]
    assert Spool(path).lost() == []


def test_a_courier_outlives_failing_heartbeats_and_tries_again_until_it_arrives(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(courier, "HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(courier, "FIRST_PAUSE_SECONDS", 0.01)
    spool, said, arrived, beats = Spool(tmp_path / SPOOL), [], [], []

    def beat():
        beats.append(1)
        raise OSError("away")

    def deliver(record):
        if len(arrived) == 1 and len(said) == 0:
            raise OSError("away")
        arrived.append(record.seq)
        return {}

    working = courier.Courier(spool, deliver, beat, said.append)
    for _ in range(3):
        spool.append("text")
        working.wake()
        deadline = time.monotonic() + 10
        while spool.waiting() or not beats:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        beats.clear()
    assert working.close(5)
    assert arrived == [1, 2, 3]
    assert [line.partition(";")[0] for line in said] == [
        "warning: away",
        "the tracking store takes records again: what waited is on its way",
    ]


def test_a_wait_for_a_store_that_fails_ends_with_the_try(tmp_path):
    spool = Spool(tmp_path / SPOOL)

    def deliver(record):
        raise OSError("away")

    working = courier.Courier(spool, deliver, lambda: None, lambda text: None)
    spool.append("text")
    started = time.monotonic()
    assert not working.flush()
    assert not working.close()
    assert time.monotonic() - started < 5
    assert len(spool.waiting()) == 1


# A server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("server") / "mlflow")
    yield made
    made.stop()
    mlflow.set_tracking_uri(None)


def plan_in(folder, dataset) -> Plan:
    setup = Setup(dataset=str(dataset), output_root=str(folder), device="cpu", precision="float32")
    return make_plan(resolve_run(None, "tiny", SMALL), setup)


class Watching(NoDisplay):
    """A display that remembers its lines, and does something after an epoch of a seed."""

    def __init__(self, **actions) -> None:
        self.lines = []
        self._actions = actions

    def say(self, text):
        self.lines.append(text)

    def show_epoch(self, member, row, best_epoch):
        action = self._actions.get(f"{member.folder}_epoch_{row['epoch']}")
        if action is not None:
            action()


def undisturbed_weights(plan, seed, folder):
    job = SeedJob(
        run="tiny",
        recipe=dataclasses.replace(Recipe(), **SMALL),
        seed=seed,
        dataset=Path(plan.setup.dataset),
        output=folder / f"seed_{seed}",
        device="cpu",
        precision="float32",
    )
    train_seed(job, load_job_data(job, NoDisplay()), NoTracking(), NoDisplay(), lambda: None)
    return torch.load(job.output / seed_folder.WEIGHTS, weights_only=True)


# MLflow says so of a class of its own, when the first model is logged.
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType")
def test_a_server_that_goes_away_and_comes_back_loses_nothing(tmp_path, stripes, server):
    server.start()
    mlflow.set_tracking_uri(server.uri)
    plan = plan_in(tmp_path / "outputs", stripes)
    # Away in an epoch, while the first seed is published and while the second begins.
    display = Watching(seed_1_epoch_3=server.stop, seed_2_epoch_3=server.start)
    train_run(plan, Tracker(folder=plan.folder, say=display.say), display, lambda: None)
    (warning,) = [line for line in display.lines if line.startswith("warning: the tracking store")]
    assert f"; work goes on, and its records wait in {plan.folder / SPOOL}" in warning
    assert "takes records again" in " ".join(display.lines)
    server.assert_whole(plan.folder, (1, 2), NUM_EPOCHS)
    for seed in (1, 2):
        ours = torch.load(plan.folder / f"seed_{seed}" / seed_folder.WEIGHTS, weights_only=True)
        theirs = undisturbed_weights(plan, seed, tmp_path / "undisturbed")
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType")
def test_a_run_whose_end_arrives_late_is_finished_by_the_same_command(tmp_path, stripes):
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    plan = plan_in(tmp_path / "outputs", stripes)
    first = train_run(plan, Tracker(folder=plan.folder), NoDisplay(), lambda: None)
    # As if the store had refused it: no line says that the end was delivered.
    path = plan.folder / SPOOL
    end = Spool(path).records("end")[-1]
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(x for x in lines if json.loads(x).get("delivered") != end.seq))

    said = Watching()
    again = train_run(plan, Tracker(folder=plan.folder, say=said.say), said, lambda: None)
    assert again.run_id == first.run_id
    assert f"sent to MLflow: 1 records that waited in {path}" in said.lines
    assert sum("finished before" in line for line in said.lines) == 2
    run = mlflow.get_run(first.run_id)
    assert (run.info.status, run.data.tags["is_complete"]) == ("FINISHED", "true")
    # What is recorded whole is trained anew.
    anew = train_run(plan, Tracker(folder=plan.folder), NoDisplay(), lambda: None)
    assert anew.run_id != first.run_id


def unsent(path, *kinds):
    """Take back the marks of the records of some kinds, as if the store had been away."""
    marked = {record.seq for record in Spool(path).records(*kinds)}
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(x for x in lines if json.loads(x).get("delivered") not in marked))


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType")
def test_what_was_damaged_is_said_once_and_the_rest_is_sent(tmp_path, stripes):
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    plan = plan_in(tmp_path / "outputs", stripes)
    train_run(plan, Tracker(folder=plan.folder), NoDisplay(), lambda: None)
    path = plan.folder / SPOOL
    unsent(path, "summary", "end")
    summary = Spool(path).records("summary")[0].seq
    lines = path.read_bytes().splitlines()
    (place,) = [n for n, x in enumerate(lines) if json.loads(x).get("seq") == summary]
    damaged(path, place, lambda line: line[:90] + b"#" + line[91:])
    # So is the one that opened a seed; it had arrived, and its child run is found.
    (place,) = [n for n, x in enumerate(lines) if b'"do": "seed"' in x and b'"seed_2"' in x][:1]
    damaged(path, place, lambda line: line[:90] + b"#" + line[91:])

    said = Watching()
    num_sent = send_waiting(tmp_path / "outputs", Tracker(say=said.say), said)
    assert num_sent > 0 and not Spool(path).waiting()
    assert said.lines == [
        f"warning: 1 records of the run tiny were damaged in {path} before they were sent, MLflow "
        f"does not have them: numbers {summary}",
        f"sent to MLflow: {num_sent} records that waited in {path}",
    ]
    assert send_waiting(tmp_path / "outputs", Tracker(say=said.say), said) == 0
    assert len(said.lines) == 2


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType")
def test_records_whose_opening_is_damaged_wait_for_the_next_one_and_hold_nothing_up(
    tmp_path, stripes
):
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    plan = plan_in(tmp_path / "outputs", stripes)
    train_run(plan, Tracker(folder=plan.folder), NoDisplay(), lambda: "signal")
    path = plan.folder / SPOOL
    parent = Spool(path).records("open")[0].values["run_id"]
    unsent(path, "text", "end")
    lines = path.read_bytes().splitlines()
    (place,) = [n for n, x in enumerate(lines) if b'"do": "open"' in x]
    assert damaged(path, place, lambda line: line[:90] + b"#" + line[91:]).waiting()
    said = Watching()
    with pytest.raises(InputError, match="found records of 1 runs that it did not take"):
        send_waiting(tmp_path / "outputs", Tracker(say=said.say), said)
    assert "the one that says of which run they are is damaged" in said.lines[-1]

    # The same command opens the run again, and what waited arrives with it.
    result = train_run(plan, Tracker(folder=plan.folder), NoDisplay(), lambda: "signal")
    assert result.run_id == parent
    assert not Spool(path).waiting()


# The machine's load


def test_system_metrics_without_their_package_are_a_warning(monkeypatch):
    said = []
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setitem(sys.modules, "psutil", None)
    for name in [name for name in sys.modules if name.startswith("mlflow.system_metrics.")]:
        monkeypatch.delitem(sys.modules, name)
    assert watch_system(lambda sample: None, said.append) is None
    (warning,) = said
    assert warning.startswith("warning: system metrics cannot be recorded, found: ")
    assert "pip install psutil" in warning


def test_system_metrics_nobody_asked_for_are_not_measured(monkeypatch):
    monkeypatch.delenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", raising=False)
    assert watch_system(lambda sample: None, print) is None


def test_system_metrics_have_a_sample_at_the_end(monkeypatch):
    pytest.importorskip("psutil")
    samples = []
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    watched = watch_system(samples.append, print)
    watched.finish()
    assert samples[-1]["system/cpu_utilization_percentage"] >= 0
