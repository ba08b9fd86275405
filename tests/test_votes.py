"""Votes in this process, on three tiny members in a store of MLflow's own."""

import shutil
from pathlib import Path

import pytest

from pose.config import Setup, VoteSetup
from pose.display import NoDisplay
from pose.errors import InputError
from pose.named_runs import resolve_run
from pose.plan import make_plan
from pose.results import Vote
from pose.run import train_run
from pose.tracking import Tracker
from pose.vote import vote

# Of MLflow about its own classes, while it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType")

TEST_IDS = [str(number) for number in range(1000, 1012)]


class Said(NoDisplay):
    """A display that remembers what it was told."""

    def __init__(self) -> None:
        self.text = ""

    def say(self, text: str) -> None:
        self.text += f"{text}\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, make_dataset):
    """Data, and a store with a run `tiny` of three seeds on it."""
    folder = tmp_path_factory.mktemp("votes")
    data = make_dataset(folder / "data", num_per_class=(200, 100), size=32)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        small = {"model": "simple_cnn", "image_size": 16, "num_epochs": 2, "batch_size": 64}
        plan = make_plan(resolve_run(None, "tiny", small), Setup(dataset=str(data)))
        train_run(plan, Tracker(), NoDisplay(), lambda: None)
    return folder


class Place:
    """A copy of the store and of the data, to be changed by one test."""

    def __init__(self, trained: Path, folder: Path) -> None:
        self.data = folder / "data"
        shutil.copytree(trained / "data", self.data)
        shutil.copy(trained / "mlflow.db", folder)
        self.out = folder / "predictions.csv"
        self.said = ""

    def vote(self, **settings: object) -> Vote:
        display = Said()
        setup = VoteSetup(**{"dataset": str(self.data), "out_path": str(self.out), **settings})
        try:
            return vote(setup, Tracker(), display)
        finally:
            self.said = display.text


@pytest.fixture
def place(trained, tmp_path, monkeypatch) -> Place:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return Place(trained, tmp_path)


# The form of predictions.csv


def test_the_sample_decides_names_and_order(place):
    rows = [f"{i}.jpg" for i in reversed(TEST_IDS)]
    sample = "\n".join(["Label,ID", *(f"0,{row}" for row in rows)])
    (place.data / "sample_submission.csv").write_text(sample)
    place.vote()
    header, *written = place.out.read_text().splitlines()
    assert header == "Label,ID"
    assert [line.partition(",")[2] for line in written] == rows
    by_id = {line.partition(",")[2].removesuffix(".jpg"): line[0] for line in written}
    (place.data / "sample_submission.csv").unlink()
    place.vote()
    assert place.out.read_text().splitlines() == [
        "id,label",
        *(f"{i},{by_id[i]}" for i in TEST_IDS),
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (TEST_IDS[2:], r"found 2 missing \(1000, 1001\)"),
        ([*TEST_IDS, "7", "x"], r"found 2 without an image \(7, x\)"),
        ([*TEST_IDS, "1003.jpg"], r"found 1 twice \(1003\)"),
    ],
)
def test_a_sample_of_other_ids_is_refused_before_anything_is_predicted(place, rows, message):
    sample = "\n".join(["id,label", *(f"{row},0" for row in rows)])
    (place.data / "sample_submission.csv").write_text(sample)
    with pytest.raises(InputError, match=message):
        place.vote()
    assert "member:" not in place.said
    assert not place.out.exists()
