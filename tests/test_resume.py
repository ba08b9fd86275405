"""Stopping and continuing a run, by every way to stop it."""

import os
import signal
import time

import pytest
import torch
from project import PATIENCE, Project

NUM_EPOCHS = 10
SMALL = {
    "run": "ensemble_1",
    "seeds": "1,2",
    "num_epochs": NUM_EPOCHS,
    "image_size": 32,
    "batch_size": 16,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory, make_dataset):
    folder = tmp_path_factory.mktemp("resume_data") / "data"
    return make_dataset(folder, num_per_class=(80, 60), size=40, num_test=4)


@pytest.fixture(scope="module")
def straight(tmp_path_factory, data) -> Project:
    """A run that nobody interrupted."""
    project = Project(tmp_path_factory.mktemp("straight") / "pose")
    project.run(*project.train_command(dataset=data, **SMALL))
    return project


@pytest.fixture
def project(tmp_path) -> Project:
    return Project(tmp_path / "pose")


def start_training(project, data, **changes):
    process = project.start(*project.train_command(dataset=data, **{**SMALL, **changes}))
    project.wait_for_epochs(process, "ensemble_1", 1, 2)
    return process


def weights(project, seed):
    path = project.folder / "outputs" / "ensemble_1" / f"seed_{seed}" / "pose_cnn.pth"
    return torch.load(path, weights_only=True)


def assert_whole(project, parent):
    """All seeds of `parent` are finished, with every epoch recorded once."""
    assert parent.info.status == "FINISHED"
    children = project.children(parent)
    assert [child.data.tags["seed"] for child in children] == ["1", "2"]
    for child in children:
        assert child.info.status == "FINISHED"
        assert child.data.tags["stop_reason"] == "epochs"
        for metric in ("train_loss", "val_f1", "time/epoch_seconds"):
            history = project.client().get_metric_history(child.info.run_id, metric)
            assert [point.step for point in history] == list(range(1, NUM_EPOCHS + 1))
        rows = project.history("ensemble_1", int(child.data.tags["seed"]))
        assert [row["epoch"] for row in rows] == [str(n) for n in range(1, NUM_EPOCHS + 1)]


def assert_same_models(project, straight):
    for seed in (1, 2):
        ours, theirs = weights(project, seed), weights(straight, seed)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        for row, other in zip(
            project.history("ensemble_1", seed), straight.history("ensemble_1", seed), strict=True
        ):
            assert row["train_loss"] == other["train_loss"]
            assert row["val_f1"] == other["val_f1"]


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT, "stop.txt"])
def test_a_soft_stop_is_clean_and_the_same_command_continues(project, straight, data, by):
    process = start_training(project, data)
    if by == "stop.txt":
        (project.folder / "stop.txt").write_text("")
        reason = "stop_file"
    else:
        process.send_signal(by)
        reason = "signal"
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert f"stopped ({reason})" in out
    assert "Traceback" not in err
    (parent,) = project.runs("train")
    assert parent.info.status == "KILLED"
    (child,) = project.children(parent)  # seed 2 was not started
    assert child.info.status == "KILLED"
    assert child.data.tags["stop_reason"] == reason
    names = {item.path for item in project.client().list_artifacts(child.info.run_id)}
    assert names == {"last_ckpt.pth", "training_history.csv"}

    # The old stop.txt still lies there, and must not stop the run that it stopped before.
    time.sleep(1.5)
    out = project.run(*project.train_command(dataset=data, **SMALL))
    assert f"continuing the unfinished training {parent.info.run_id}" in out
    (parent,) = project.runs("train")
    assert_whole(project, parent)
    assert_same_models(project, straight)


@pytest.mark.parametrize("by", ["stop.txt", "SIGTERM to the command", "SIGINT to mlflow run"])
def test_a_stop_through_mlflow_run_continues_through_mlflow_run(project, straight, data, by):
    process = project.start(*project.mlflow_command("train", dataset=data, **SMALL))
    project.wait_for_epochs(process, "ensemble_1", 1, 2)
    if by == "stop.txt":
        (project.folder / "stop.txt").write_text("")
    elif by == "SIGTERM to the command":
        (parent,) = project.runs("train")
        os.kill(int(parent.data.tags["pid"]), signal.SIGTERM)
    else:
        process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    (parent,) = project.runs("train")
    # Whatever MLflow says of its own run, ours says that it is not complete.
    assert parent.info.status != "RUNNING"
    assert parent.data.tags["is_complete"] == "false"
    (project.folder / "stop.txt").unlink(missing_ok=True)
    out = project.mlflow_run("train", dataset=data, **SMALL)
    assert f"continuing the unfinished training {parent.info.run_id}" in out
    (parent,) = project.runs("train")
    assert_whole(project, parent)
    assert_same_models(project, straight)


def test_the_same_run_into_another_folder_is_refused_while_it_is_at_work(project, data):
    process = start_training(project, data, num_epochs=500)
    try:
        elsewhere = {**SMALL, "num_epochs": 500, "output_root": "elsewhere"}
        said = project.run(*project.train_command(dataset=data, **elsewhere), code=2)
        assert "run must not be at work already, but ensemble_1 is" in said
        assert "Traceback" not in said
    finally:
        process.kill()
        process.communicate()


def test_a_new_run_says_how_the_unfinished_one_differs(project, data):
    process = start_training(project, data)
    process.terminate()
    process.communicate(timeout=PATIENCE)
    (first,) = project.runs("train")
    changed = {**SMALL, "num_epochs": 2, "batch_size": 32}
    out = project.run(*project.train_command(dataset=data, **changed))
    assert f"beginning anew: the unfinished run {first.info.run_id} differs in " in out
    assert "batch_size (16, now 32)" in out
    assert "num_epochs (10, now 2)" in out


def test_a_killed_training_continues_below_its_parent_through_mlflow_run(project, straight, data):
    process = start_training(project, data)
    process.kill()
    process.communicate()
    (parent,) = project.runs("train")
    assert parent.info.status == "RUNNING"  # nobody was left to say otherwise

    out = project.mlflow_run("train", dataset=data, **SMALL)
    assert f"continuing the unfinished training {parent.info.run_id}" in out
    (parent,) = project.runs("train")
    assert_whole(project, parent)
    assert_same_models(project, straight)
    (continuation,) = project.runs("continuation")
    assert continuation.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert continuation.info.status == "FINISHED"


def test_a_lost_folder_is_continued_from_the_checkpoint_in_mlflow(project, straight, data):
    process = start_training(project, data)
    process.terminate()
    process.communicate(timeout=PATIENCE)
    (project.folder / "outputs").rename(project.folder / "lost")
    out = project.run(*project.train_command(dataset=data, **SMALL))
    assert "continued after epoch" in out
    (parent,) = project.runs("train")
    assert_whole(project, parent)
    assert_same_models(project, straight)


def test_fresh_begins_anew_and_keeps_what_was_there(project, data):
    process = start_training(project, data)
    process.terminate()
    process.communicate(timeout=PATIENCE)
    (first,) = project.runs("train")
    project.run(*project.train_command(dataset=data, fresh="true", **SMALL))
    _, second = project.runs("train")
    assert_whole(project, second)
    kept = project.folder / "outputs" / f"ensemble_1.{first.info.run_id[:15]}" / "seed_1"
    assert (kept / "last_ckpt.pth").exists()


def test_another_recipe_does_not_continue(project, data):
    process = start_training(project, data)
    process.terminate()
    process.communicate(timeout=PATIENCE)
    project.run(*project.train_command(dataset=data, **{**SMALL, "num_epochs": 2}))
    first, second = project.runs("train")
    assert first.info.status == "KILLED"
    assert second.info.status == "FINISHED"
    # The first can still be continued, in its own folder, which had to make room.
    project.run(*project.train_command(dataset=data, **SMALL))
    first, second = project.runs("train")
    assert_whole(project, first)


def test_a_second_process_may_not_train_into_the_same_folder(project, data):
    process = start_training(project, data, num_epochs=500)
    try:
        said = project.run(*project.train_command(dataset=data, **SMALL), code=2)
        assert "is at work in another process" in said
        assert "Traceback" not in said
    finally:
        process.kill()
        process.communicate()
