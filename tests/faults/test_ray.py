"""Members on a Ray cluster: nodes that are killed, every way to stop, and what is left behind."""

import os
import signal
import time
from pathlib import Path

import pytest
from project import PATIENCE, Project
from undisturbed import SMALL, assert_same

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
