"""Models that an earlier version registered still load and vote."""

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from project import ROOT, Project

# The last commit before the models had a package of their own: theirs was `pose.models`.
OLD = "56d6e32"
LOAD = """
import mlflow, torch
mlflow.set_tracking_uri({store!r})
{before}
for name in ("pose/1", "pose-ensemble/1"):
    model = mlflow.pytorch.load_model(f"models:/{{name}}").eval()
    print(name, model.labels, tuple(model(torch.zeros(2, 3, 40, 40, dtype=torch.uint8)).shape))
"""


@pytest.fixture(scope="module")
def old(tmp_path_factory, stripes) -> Project:
    """The old project, with a trained run and a vote."""
    root = tmp_path_factory.mktemp("old")
    archive = root / "old.tar"
    made = subprocess.run(
        ["git", "archive", "-o", str(archive), OLD], cwd=ROOT, capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"commit {OLD} is not in this copy of the repository: {made.stderr.strip()}")
    folder = root / "pose"
    with tarfile.open(archive) as content:
        content.extractall(folder, filter="data")
    project = Project.at(folder)
    small = {"run": "ensemble_1", "seeds": "1,2", "num_epochs": 2, "image_size": 32}
    project.run(*project.train_command(dataset=stripes, **small))
    project.run(
        sys.executable, "-m", "entrypoints.ensemble", "--run", "ensemble_1",
        "--dataset", str(stripes),
    )  # fmt: skip
    return project


def load_in(folder: Path, store: str, before: str = "") -> None:
    script = LOAD.format(store=store, before=before)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{name} ('0', '1') (2, 2)" for name in ("pose/1", "pose-ensemble/1")
    ]


def test_old_models_load_in_an_empty_folder(old, tmp_path):
    load_in(tmp_path, old.store)


@pytest.mark.parametrize("before", ["", "import pose.vote"])
def test_old_models_load_in_the_new_projects_folder(old, before):
    load_in(ROOT, old.store, before)


def test_old_members_vote_in_the_new_project(old, tmp_path, stripes):
    project = Project(tmp_path / "pose")
    out = project.run(
        sys.executable, "-m", "entrypoints.ensemble", "--dataset", str(stripes),
        MLFLOW_TRACKING_URI=old.store,
    )  # fmt: skip
    assert "member: ensemble_1 seed 1" in out
    assert (project.folder / "predictions.csv").read_text() == (
        old.folder / "predictions.csv"
    ).read_text()
