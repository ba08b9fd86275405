"""Members in processes of their own: the same weights, the same record, and every way to end."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from project import PATIENCE, Project
from undisturbed import SMALL, assert_same

pytestmark = pytest.mark.usefixtures("all_memory")

ONE_BY_ONE = {**SMALL, "seeds": "1,2"}
TWO = {**ONE_BY_ONE, "engine": "processes", "parallel": 2}


@pytest.fixture
def project(tmp_path) -> Project:
    return Project(tmp_path / "pose")


def start(project, data):
    """Training in two processes, once the first has an epoch behind it."""
    process = project.start(*project.train_command(dataset=data, **TWO))
    project.wait_for_epochs(process, "ensemble_1", 1, 1)
    return process


def go_on(project, data) -> str:
    return project.run(*project.train_command(dataset=data, **TWO))


def pids_of(process) -> list[int]:
    """The processes that train, oldest first; not the one that tidies up after them."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [
        int(pid) for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()
    ]


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM, "stop.txt"])
def test_a_stop_reaches_all_members_and_the_same_command_continues(project, here, data, by):
    process = start(project, data)
    if by == "stop.txt":
        (project.folder / "stop.txt").write_text("")
    else:
        # As a terminal does: to every process.
        for pid in [*pids_of(process), process.pid]:
            os.kill(pid, by)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert "seed 1 epoch   1" in out
    assert "seed 2: simple_cnn at 32 px" in out
    reason = "stop_file" if by == "stop.txt" else "signal"
    assert f"stopped ({reason})" in out
    (parent,) = project.runs("train")
    ends = {child.data.tags["stop_reason"] for child in project.children(parent)}
    assert ends == {reason}
    (project.folder / "stop.txt").unlink(missing_ok=True)
    assert "continued after epoch" in go_on(project, data)
    assert_same(project, here, 1, 2)


def test_a_dead_process_is_one_line_and_its_member_goes_on(project, here, data):
    process = start(project, data)
    os.kill(pids_of(process)[0], signal.SIGKILL)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert err.strip().startswith("error: every member's process must live to its end, found dead:")
    assert "seed 1 (killed by SIGKILL)" in err
    assert "seed 2: val_f1" in out
    if "not in MLflow yet" in out:
        # On a slow machine the record of a dead member may come later, as it says.
        project.run(sys.executable, "-m", "entrypoints.sync")
    (parent,) = project.runs("train")
    ends = {c.data.tags["seed"]: c.data.tags["stop_reason"] for c in project.children(parent)}
    assert ends == {"1": "killed", "2": "epochs"}
    out = go_on(project, data)
    assert "seed 2: finished before" in out
    assert "continued after epoch" in out
    assert_same(project, here, 1, 2)


def test_members_end_with_the_process_that_began_them(project, here, data):
    process = start(project, data)
    pids = pids_of(process)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < deadline, "members outlive what began them"
        time.sleep(0.1)
    assert "continued after epoch" in go_on(project, data)
    assert_same(project, here, 1, 2)


def test_a_member_that_diverges_stops_the_others(project, data):
    wild = {**TWO, "optimizer": "adam", "learning_rate": 1e10, "augmentation": "none"}
    said = project.run(*project.train_command(dataset=data, **wild), code=2)
    assert "error: seed " in said
    assert "Traceback" not in said
    (parent,) = project.runs("train")
    assert parent.data.tags["stop_reason"] == "diverged"


def test_other_threads_are_recorded_and_said(project, data):
    process = project.start(*project.train_command(dataset=data, **ONE_BY_ONE))
    project.wait_for_epochs(process, "ensemble_1", 1, 1)
    process.terminate()
    process.communicate(timeout=PATIENCE)
    out = project.run(*project.train_command(dataset=data, **{**ONE_BY_ONE, "threads": 2}))
    assert "seed 1: begun with 1 threads, goes on with 2: its weights depend on them" in out


TOGETHER = {**SMALL, "seeds": "1", "processes_per_seed": 2}


@pytest.fixture(scope="module")
def together(tmp_path_factory, data) -> Project:
    """A run whose member was trained by two processes that nobody disturbed."""
    project = Project(tmp_path_factory.mktemp("together") / "pose")
    project.run(*project.train_command(dataset=data, **TOGETHER))
    return project


@pytest.mark.parametrize("victim", ["first", "second", "command", "frozen"])
def test_two_processes_of_a_member_end_together_and_go_on(project, together, data, victim):
    process = project.start(*project.train_command(dataset=data, **TOGETHER))
    project.wait_for_epochs(process, "ensemble_1", 1, 1)
    pids = pids_of(process)
    if victim == "frozen":
        # The first waits for the second then, and nobody is left to end them.
        os.kill(pids[1], signal.SIGSTOP)
        time.sleep(2)
    killed = {"first": pids[0], "second": pids[1]}.get(victim, process.pid)
    os.kill(killed, signal.SIGKILL)
    _, err = process.communicate(timeout=PATIENCE)
    if killed in pids:
        number = pids.index(killed) + 1
        assert process.returncode == 2
        assert f"found dead: seed 1 (process {number} of 2 killed by SIGKILL); the same" in err
    deadline = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < deadline, "processes outlive what began them"
        time.sleep(0.1)
    out = project.run(*project.train_command(dataset=data, **TOGETHER))
    assert "continued after epoch" in out
    ours, theirs = (
        torch.load(p.folder / "outputs/ensemble_1/seed_1/pose_cnn.pth", weights_only=True)
        for p in (project, together)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    (child,) = project.children(*project.runs("train"))
    assert child.data.params["processes_per_seed"] == "2"
