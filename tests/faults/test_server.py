"""A tracking server that goes away at every point of a command's life, for a while or for good.

The commands run in processes of their own, as users start them; the server is a real one.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from project import PATIENCE, Project
from server import Server

from pose.tracking.spool import SPOOL, Spool

NUM_EPOCHS = 30
SMALL = {
    "run": "ensemble_1",
    "seeds": "1,2",
    "num_epochs": NUM_EPOCHS,
    "image_size": 32,
    "batch_size": 16,
    "patience": 0,
}
# No wait may be longer than 10 s; the rest is for a batch, and for a busy machine.
MAX_SECONDS = 12


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("server") / "mlflow")
    yield made
    made.stop()


@pytest.fixture
def running(server) -> Server:
    server.stop()
    server.start()
    return server


@pytest.fixture(scope="module")
def data(tmp_path_factory, make_dataset):
    folder = tmp_path_factory.mktemp("server_data") / "data"
    return make_dataset(folder, num_per_class=(40, 30), size=40, num_test=4)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data) -> Project:
    project = Project(tmp_path_factory.mktemp("undisturbed") / "pose")
    project.run(*project.train_command(dataset=data, **SMALL))
    return project


@pytest.fixture
def project(tmp_path, server) -> Iterator[Project]:
    """A project that records on the server."""
    made = Project(tmp_path / "pose")
    made.store = server.uri
    yield made
    made.end_all()


def start(project, data, **changes) -> subprocess.Popen:
    """Start training, and wait for two epochs."""
    command = project.train_command(dataset=data, **{**SMALL, **changes})
    process = project.start(*command, MLFLOW_TRACKING_URI=project.store)
    project.wait_for_epochs(process, "ensemble_1", 1, 2)
    return process


def end(process: subprocess.Popen, seconds: float = PATIENCE) -> str:
    """What a command says until it ends well; at most `seconds` from now."""
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, out + err
    assert "Traceback" not in err
    return out


def run_folder(project) -> Path:
    return project.folder / "outputs" / "ensemble_1"


def sync(project) -> str:
    return project.run(sys.executable, "-m", "entrypoints.sync", MLFLOW_TRACKING_URI=project.store)


def assert_whole(server, project, undisturbed):
    server.assert_whole(run_folder(project), (1, 2), NUM_EPOCHS)
    for seed in (1, 2):
        ours, theirs = (
            torch.load(run_folder(p) / f"seed_{seed}" / "pose_cnn.pth", weights_only=True)
            for p in (project, undisturbed)
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_new_run_without_a_server_is_refused_before_anything_is_decoded(project, data, server):
    server.stop()
    cache = project.folder / "cache"
    process = project.start(
        *project.train_command(dataset=data, **SMALL),
        MLFLOW_TRACKING_URI=server.uri,
        POSE_CACHE=str(cache),
    )
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert err.startswith("error: the tracking store http://127.0.0.1")
    assert "must be reachable" in err
    assert err.count("\n") == 1
    assert "decoding" not in out
    assert not cache.exists()


@pytest.mark.parametrize("moment", ["epoch", "publishing"])
def test_gone_for_good_and_sent_at_once_later(project, data, undisturbed, running, moment):
    process = start(project, data)
    if moment == "publishing":
        while not (run_folder(project) / "seed_1" / "pose_cnn.pth").exists():
            time.sleep(0.005)
    running.stop()
    out = end(process)
    (warning,) = [line for line in out.splitlines() if line.startswith("warning")]
    assert "work goes on, and its records wait in" in warning
    assert "not in MLflow yet: " in out
    running.start()
    assert "sent to MLflow: " in sync(project)
    assert "nothing waits" in sync(project)
    assert_whole(running, project, undisturbed)


def test_through_mlflow_run_away_for_a_while(project, data, undisturbed, running):
    command = project.mlflow_command("train", dataset=data, **SMALL)
    process = project.start(*command, MLFLOW_TRACKING_URI=running.uri)
    project.wait_for_epochs(process, "ensemble_1", 1, 2)
    running.stop()
    project.wait_for_epochs(process, "ensemble_1", 2, 2)
    running.start()
    out = end(process)
    # A busy machine may be slower with a server than with thirty epochs.
    assert "takes records again" in out or "sent to MLflow" in sync(project)
    assert_whole(running, project, undisturbed)


@pytest.mark.parametrize("how", ["stopped", "frozen"])
def test_sigterm_while_it_is_away_and_the_same_command_sends_and_continues(
    project, data, undisturbed, running, how
):
    process = start(project, data)
    running.stop() if how == "stopped" else running.freeze()
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    out = end(process, MAX_SECONDS)
    assert "stopped (signal)" in out
    assert "not in MLflow yet: " in out
    running.stop()
    running.start()
    out = end(project.start(
        *project.train_command(dataset=data, **SMALL), MLFLOW_TRACKING_URI=running.uri
    ))  # fmt: skip
    assert "sent to MLflow: " in out
    assert "continuing the unfinished training" in out
    assert_whole(running, project, undisturbed)


def test_an_unfinished_run_goes_on_without_the_server(project, data, undisturbed, running):
    process = start(project, data)
    process.terminate()
    end(process)
    running.stop()
    process = start(project, data)
    out = end(process)
    assert "continuing the unfinished training" in out
    assert "not in MLflow yet: " in out
    running.start()
    out = project.run(*project.mlflow_command("sync"), MLFLOW_TRACKING_URI=running.uri)
    assert "sent to MLflow: " in out
    assert_whole(running, project, undisturbed)


def test_killed_while_it_is_away(project, data, undisturbed, running):
    process = start(project, data)
    running.stop()
    project.wait_for_epochs(process, "ensemble_1", 1, len(project.history("ensemble_1", 1)) + 3)
    process.kill()
    process.communicate()
    assert Spool(run_folder(project) / SPOOL).waiting()
    running.start()
    out = end(project.start(
        *project.train_command(dataset=data, **SMALL), MLFLOW_TRACKING_URI=running.uri
    ))  # fmt: skip
    assert "sent to MLflow: " in out
    assert_whole(running, project, undisturbed)
