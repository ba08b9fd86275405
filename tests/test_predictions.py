"""Predictions come back as they were written, or are named."""

import numpy as np
import pytest

from pose.errors import InputError
from pose.predictions import Predictions, read_predictions, write_predictions


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "val_predictions.csv"
    probs = np.array([[0.25, 0.75], [0.5, 0.5]], dtype=np.float32)
    labels = np.array([1, 0])
    predictions = Predictions(
        ids=("7", "a,b"), probs=probs, class_labels=("cat", "dog"), labels=labels
    )
    write_predictions(path, predictions)
    return path


def test_predictions_come_back(written):
    found = read_predictions(written)
    assert (found.ids, found.class_labels) == (("7", "a,b"), ("cat", "dog"))
    assert found.labels.tolist() == [1, 0]
    assert found.probs.tolist() == [[0.25, 0.75], [0.5, 0.5]]


def test_groups_come_back(tmp_path):
    path = tmp_path / "val_predictions.csv"
    probs = np.array([[0.25, 0.75], [0.5, 0.5]], dtype=np.float32)
    predictions = Predictions(
        ids=("7", "8"), probs=probs, class_labels=("label", "group"), groups=("7", "7")
    )
    write_predictions(path, predictions)
    assert path.read_text().splitlines()[:2] == [
        "id,group,pred,p_label,p_group",
        "7,7,group,0.25,0.75",
    ]
    found = read_predictions(path)
    assert (found.groups, found.labels) == (("7", "7"), None)


DAMAGE = {
    "empty": lambda data: b"",
    "text": lambda data: b"hello\n",
    "cut": lambda data: data[:-4],
    "bits": lambda data: data[:20] + bytes(byte ^ 0x85 for byte in data[20:]),
    "another label": lambda data: data.replace(b",dog,", b",cow,"),
    "not a number": lambda data: data.replace(b"0.75", b"nan."),
    "another column": lambda data: data.replace(b"pred", b"guess"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_predictions_are_named(written, how):
    data = written.read_bytes()
    written.write_bytes(DAMAGE[how](data))
    assert written.read_bytes() != data
    with pytest.raises(InputError, match="^those of seed 7 must be whole predictions, found: "):
        read_predictions(written, "those of seed 7")


def test_predictions_that_are_gone_are_named(tmp_path):
    with pytest.raises(InputError, match="gone.csv must be whole predictions, found: no such file"):
        read_predictions(tmp_path / "gone.csv")
