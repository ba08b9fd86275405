"""Stores that are made by several commands at once, or whose making is killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from project import PATIENCE

from pose.tracking import database

ROOT = Path(__file__).parents[2]
# MLflow's own way, as `mlflow run` does it, cut short after a number of statements.
CUT_SHORT = """
import os, sys
import mlflow
from sqlalchemy import event
from sqlalchemy.engine import Engine
left = int(sys.argv[1])
@event.listens_for(Engine, "before_cursor_execute")
def count(*_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), 9)
mlflow.MlflowClient("sqlite:///mlflow.db").search_experiments()
"""
CONNECT = "from pose.tracking.store import connect; print(connect().current_experiment_id())"


def python(folder: Path, code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("num_statements", [1, 10, 40, 80, 150, 250])
def test_a_store_in_whose_making_mlflow_was_killed_is_made_again(tmp_path, num_statements):
    process = python(tmp_path, CUT_SHORT, str(num_statements))
    process.communicate(timeout=PATIENCE)
    assert process.returncode == -9
    assert database.is_begun(tmp_path / "mlflow.db")
    # Its journal, if there is one, is older than that by then.
    os.utime(tmp_path / "mlflow.db", (0, 0))
    out, err = python(tmp_path, CONNECT).communicate(timeout=PATIENCE)
    assert out == "0\n", err
    assert not database.is_begun(tmp_path / "mlflow.db")
    assert names_in(tmp_path) == {"mlflow.db", ".mlflow.db.lock"}


@pytest.mark.parametrize("count", [2, 4])
def test_commands_that_begin_at_once_on_a_new_store_share_it(tmp_path, count):
    processes = [python(tmp_path, CONNECT) for _ in range(count)]
    for process in processes:
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, out) == (0, "0\n"), err
    assert names_in(tmp_path) == {"mlflow.db", ".mlflow.db.lock"}
