"""`mlflow run` of this project from another folder, and how good what it predicts is."""

import csv
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pose.metrics import f1_of

ROOT = Path(__file__).parents[1]


def start(work: Path, entry: str, *parameters: str, **environment: str) -> subprocess.Popen[str]:
    """Start an entry point of the project from `work`, as a user with this Python active would.

    Args:
        parameters: `name=value` each.
        environment: variables besides those of this process.
    """
    command = [sys.executable, "-m", "mlflow", "run", str(ROOT), "-e", entry]
    command += ["--env-manager", "local"]
    for parameter in parameters:
        command += ["-P", parameter]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        command,
        cwd=work,
        env={**os.environ, "PATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """What a command printed, once it has ended.

    Raises:
        RuntimeError: it failed.
    """
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(output)
    return output


def read_labels(path: Path) -> dict[str, str]:
    """The label of each id in a table with the columns id,label."""
    with open(path, encoding="utf-8", newline="") as handle:
        return {row["id"]: row["label"] for row in csv.DictReader(handle)}


def score(predictions: Path, truth: Mapping[str, str]) -> float:
    """Macro F1 of a vote's table against the labels by id."""
    preds = read_labels(predictions)
    labels = sorted(set(truth.values()))
    one_hot = np.array([[preds[key] == label for label in labels] for key in truth], dtype=float)
    return f1_of(one_hot, np.array([labels.index(label) for label in truth.values()]))
