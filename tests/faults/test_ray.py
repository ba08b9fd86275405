"""Members and trials on a Ray cluster: killed nodes, every way to stop, and what is left behind."""

import os
import signal
import time
from pathlib import Path

import mlflow
import pytest
from project import PATIENCE, Project
from said import Said
from undisturbed import SMALL, assert_same

from pose.auto import Auto
from pose.config import Setup
from pose.named_runs import resolve_auto
from pose.search import progress as progress_file
from pose.search.progress import read_progress
from pose.tracking import Tracker

cluster_utils = pytest.importorskip("ray.cluster_utils", reason="Ray is an extra")
pytestmark = pytest.mark.usefixtures("all_memory")

THREE = {**SMALL, "seeds": "1,2,3", "engine": "ray"}


@pytest.fixture
def project(tmp_path) -> Project:
    return Project(tmp_path / "pose")


@pytest.fixture
def cluster(monkeypatch):
    """Two nodes, one core each."""
    settings = {"worker_niceness": 0}
    cluster = cluster_utils.Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "_system_config": settings},
    )
    cluster.add_node(num_cpus=1)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield cluster
    cluster.shutdown()


def start(project, data, *before):
    """Training on a cluster, once seeds 1 and 2 have two epochs behind them.

    `before` goes in front of the command: `setsid` makes its processes a session, named by its id.
    """
    process = project.start(*before, *project.train_command(dataset=data, **THREE))
    for seed in (1, 2):
        project.wait_for_epochs(process, "ensemble_1", seed, 2)
    return process


def go_on(project, data) -> str:
    return project.run(*project.train_command(dataset=data, **THREE))


def processes_of(session: int) -> list[str]:
    """What still runs of a session of processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append((path.parent / "cmdline").read_text().replace("\0", " ")[:100])
        except OSError:
            continue
    return found


def test_a_node_that_dies_costs_nothing(project, here, data, cluster):
    process = start(project, data)
    cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, out + err
    assert "is lost with its process; Ray starts it again" in out
    assert "continued after epoch" in out
    assert "Traceback" not in err
    assert_same(project, here, 1, 2, 3)


def test_a_node_that_dies_among_trials_costs_no_trial(tmp_path, monkeypatch, data, cluster):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(progress_file, "SEARCH_SHARE", 0.1)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    given = {"model": "simple_cnn", "budget": "10m"}
    setup = Setup(dataset=str(data), cache_root="cache", engine="ray", device="cpu", threads=1)

    class Breaking(Said):
        """A display that takes a node away when the first trial is over."""

        def say(self, text: str) -> None:
            super().say(text)
            if len(self.trials) == 1 and len(cluster.list_all_nodes()) == 2:
                cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)

    display = Breaking()
    plan = Auto(resolve_auto(None, given), tuple(given), setup, display, lambda: None)
    chosen = plan.choose(Tracker())
    progress = read_progress(tmp_path / "outputs" / "auto_plan" / "plan.json")
    (first, _), *_ = progress.rounds
    assert len(cluster.list_all_nodes()) == 1
    assert set(progress.scores(0)) == set(range(first))
    assert len(set(display.trials)) == len(display.trials) == len(progress.trials)
    assert (progress.at_once, chosen.stop_reason) == (1, None)


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM, "stop.txt"])
def test_a_stop_reaches_all_members_and_nothing_is_left(project, here, data, by):
    process = start(project, data, "setsid")
    if by == "stop.txt":
        (project.folder / "stop.txt").write_text("")
    else:
        # As a terminal, or a cluster's scheduler does: to every process of the group.
        os.killpg(process.pid, by)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, out + err
    assert err.strip() in ("", "stopping after this batch (Ctrl-C again: at once)")
    reason = "stop_file" if by == "stop.txt" else "signal"
    assert f"stopped ({reason})" in out
    assert processes_of(process.pid) == []
    (parent,) = project.runs("train")
    ends = {child.data.tags["stop_reason"] for child in project.children(parent)}
    assert ends == {reason}
    (project.folder / "stop.txt").unlink(missing_ok=True)
    assert "continued after epoch" in go_on(project, data)
    assert_same(project, here, 1, 2, 3)


def test_a_local_cluster_ends_with_the_process_that_started_it(project, here, data):
    process = start(project, data, "setsid")
    process.kill()
    process.communicate()
    # Members end at once; Ray's agents notice half a minute later.
    deadline = time.monotonic() + 180
    while processes_of(process.pid):
        assert time.monotonic() < deadline, "members or a cluster outlive what began them"
        time.sleep(0.2)
    assert "continued after epoch" in go_on(project, data)
    assert_same(project, here, 1, 2, 3)
