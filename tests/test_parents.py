"""Which run a command goes on with."""

import mlflow
import pytest

from pose.data.classes import ClassList
from pose.tracking.parents import RunRequest, find_parent, unlike_text
from pose.tracking.store import Store, connect

OWN = ClassList(("a", "b"), ("a", "b"), (0, 1))
SWAPPED = ClassList(("a", "b"), ("a", "b"), (1, 0))


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    mlflow.set_tracking_uri(None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    yield connect()
    mlflow.set_tracking_uri(None)


def request_of(folder, classes: ClassList) -> RunRequest:
    return RunRequest(
        name="night",
        recipe_digest="ab",
        dataset_digest="cd",
        seeds=(1, 2),
        settings={},
        tags={},
        folder=folder,
        mirrors=classes.mirrors_digest(),
    )


def test_a_run_goes_on_with_the_mirrors_that_it_began_with(store, tmp_path):
    request = request_of(tmp_path, OWN)
    tags = {**request.identity(), "kind": "train", "seeds": "1,2", "is_complete": "false"}
    began = store.client.create_run("0", tags={**tags, "mirrors_digest": request.mirrors})
    found = find_parent(store, "0", request)
    assert found is not None
    assert found.info.run_id == began.info.run_id
    changed = request_of(tmp_path, SWAPPED)
    assert find_parent(store, "0", changed) is None
    assert unlike_text(store, "0", changed).endswith("differs in the mirrors in classes.csv")
    # Runs from before 0.2 have not recorded theirs.
    store.client.delete_tag(began.info.run_id, "mirrors_digest")
    assert find_parent(store, "0", changed) is not None


def test_names_are_no_part_of_what_a_flip_does():
    named = ClassList(("a", "b"), ("Anna", "Bob"), (0, 1))
    assert named.mirrors_digest() == OWN.mirrors_digest() != SWAPPED.mirrors_digest()
