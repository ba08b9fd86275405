"""Which run a command goes on with."""

import dataclasses
import re
import time

import mlflow
import pytest

from pose.data.classes import ClassList
from pose.tracking.parents import RunRequest, find_parent, unlike_text
from pose.tracking.runs import begin_run
from pose.tracking.store import Store, connect
from pose.tracking.tags import begun_of

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


def begin(store, request, monkeypatch, at: float, *, is_complete: bool) -> str:
    """A run that begins when the clock says `at`; its id."""
    monkeypatch.setattr(time, "time", lambda: at)
    run_id = begin_run(store, "0", request, None, lambda text: None).run_id
    store.set_tags(run_id, {"is_complete": str(is_complete).lower()})
    return run_id


def test_the_newest_run_is_the_one_that_began_last_whatever_the_clock_says(
    store, tmp_path, monkeypatch
):
    request = request_of(tmp_path, OWN)
    now = time.time()
    old = store.client.create_run(
        "0", start_time=int(now * 1000) + 5000, tags={**request.identity(), "kind": "train"}
    )
    store.set_tags(old.info.run_id, {"is_complete": "true", "seeds": "1,2"})
    # As it was in a version without the tag; the clock has gone back by days since.
    first = begin(store, request, monkeypatch, now - 100_000, is_complete=True)
    assert find_parent(store, "0", request) is None
    second = begin(store, request, monkeypatch, now - 200_000, is_complete=False)
    assert find_parent(store, "0", request).info.run_id == second
    other = dataclasses.replace(request, recipe_digest="ef")
    assert unlike_text(store, "0", other).startswith(second)
    store.set_tags(second, {"is_complete": "true"})
    assert find_parent(store, "0", request) is None
    begun = [begun_of(store.client.get_run(own)) for own in (old.info.run_id, first, second)]
    assert begun == sorted(set(begun))


def test_an_unfinished_run_that_is_gone_or_edited_in_mlflow_is_named(store, tmp_path, monkeypatch):
    request = request_of(tmp_path, OWN)
    said: list[str] = []
    record = begin_run(store, "0", request, None, said.append)
    record.begin(tmp_path)
    record.finish("KILLED", "signal")
    assert begin_run(store, "0", request, None, said.append).unlike.startswith(record.run_id)
    for run in store.search_runs("tags.run = 'night'"):
        store.set_tags(run.info.run_id, {"run": "day"})
    edited = begin_run(store, "0", request, None, said.append)
    assert edited.unlike == f"{record.run_id} has edited tags in MLflow: run (day, was night)"
    for run in store.search_runs("tags.kind = 'train'"):
        store.client.delete_run(run.info.run_id)
    deleted = begin_run(store, "0", request, None, said.append)
    store.client.delete_run(deleted.run_id)
    assert deleted.unlike == f"{record.run_id} is gone from MLflow"
    # Begun from another folder, where MLflow has another store.
    # Lines as earlier versions wrote them, without checksums.
    text = re.sub(r'"crc32": "\w{8}", ', "", (tmp_path / "spool.jsonl").read_text())
    (tmp_path / "spool.jsonl").write_text(text.replace("/mlflow.db", "/other.db"))
    moved = begin_run(store, "0", request, None, said.append).unlike
    assert moved == f"{record.run_id} is recorded in another store, sqlite:///{tmp_path}/other.db"
    assert begin_run(store, "0", dataclasses.replace(request, fresh=True), None, print).unlike == ""


def test_names_are_no_part_of_what_a_flip_does():
    named = ClassList(("a", "b"), ("Anna", "Bob"), (0, 1))
    assert named.mirrors_digest() == OWN.mirrors_digest() != SWAPPED.mirrors_digest()
