"""A SQLite store is made whole or not at all, and what is none of ours is left alone."""

import contextlib
import errno
import sqlite3
import time
from pathlib import Path

import mlflow
import pytest
from sqlalchemy import URL

from pose.tracking import database
from pose.tracking.store import Store, StoreError, connect
from pose.tracking.tracker import Tracker


@pytest.fixture
def store(tmp_path, monkeypatch):
    mlflow.set_tracking_uri(None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr(database, "SILENCE_SECONDS", 0)
    yield tmp_path / "mlflow.db"
    mlflow.set_tracking_uri(None)


def change(store: Path, statement: str) -> None:
    with sqlite3.connect(store) as handle:
        handle.execute(statement)
    handle.close()


def test_a_store_that_was_only_begun_is_made_and_one_with_runs_is_kept(store):
    store.touch()
    (store.parent / ".mlflow.db.1.new-journal").touch()
    (store.parent / "mlflow.db-journal").touch()
    assert database.is_begun(store)
    connect().client.create_run("0")
    assert {path.name for path in store.parent.iterdir()} == {"mlflow.db", ".mlflow.db.lock"}
    # Whatever else is missing, runs are worth more.
    for statement in ("delete from experiments", "drop table alembic_version"):
        change(store, statement)
        assert not database.is_begun(store)
    change(store, "delete from runs")
    assert database.is_begun(store)


def test_a_store_is_in_the_making_until_mlflow_has_added_its_experiment(store):
    """`mlflow run` makes it without our lock: what takes it for whole would migrate it as well."""
    connect()
    change(store, "delete from experiments")
    assert database.is_begun(store), "all tables of this version are known"
    change(store, "drop table workspaces")
    assert database.is_begun(store)


def test_a_store_that_another_program_keeps_making_is_never_replaced(store, monkeypatch):
    monkeypatch.setattr(database, "SILENCE_SECONDS", 60)
    monkeypatch.setattr(database, "MAKING_SECONDS", 0.3)
    store.touch()
    with pytest.raises(StoreError, match="is being set up by another program: repeat the command"):
        connect()
    assert [path.name for path in store.parent.glob("*.db")] == ["mlflow.db"]


@pytest.mark.parametrize("content", ["of something else", "no database"])
def test_what_is_not_mlflows_is_never_replaced(store, content):
    if content == "no database":
        store.write_text("hello\n" * 1000)
    else:
        change(store, "create table letters (text)")
    before = store.read_bytes()
    database.ensure_whole(store, lambda uri: pytest.fail("made again"))
    assert store.read_bytes() == before


def test_a_store_is_made_where_a_link_leads(store):
    disk = store.parent / "disk"
    disk.mkdir()
    store.symlink_to(disk / "runs.db")
    assert connect().current_experiment_id() == "0"
    assert store.is_symlink()
    assert {path.name for path in disk.iterdir()} == {"runs.db", ".runs.db.lock"}


def test_a_store_in_a_folder_of_any_name_is_made_where_its_address_says(tmp_path, monkeypatch):
    folder = tmp_path / "Мои проекты 100% (1)"
    folder.mkdir()
    address = URL.create("sqlite", database=str(folder / "mlflow.db")).render_as_string()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert connect().current_experiment_id() == "0"
    assert {path.name for path in folder.iterdir()} == {"mlflow.db", ".mlflow.db.lock"}


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("mlruns", "maintenance mode"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:///{}", "a folder in its place"),
        ("sqlite:////dev/null", "a device in its place"),
        ("sqlite://mlflow.db", "names no file"),
        ("postgresql+psycopg2://me:secret@127.0.0.1:1/runs", "refused|psycopg2"),
        ("mysql://me:secret@127.0.0.1:1/runs", "MySQLdb"),
        ("nothing://else", "nothing"),
    ],
)
def test_an_address_where_no_store_can_be_is_one_line_at_once(
    address, found, tmp_path, monkeypatch
):
    address = address.format(tmp_path)
    mlflow.set_tracking_uri(None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    started = time.monotonic()
    with pytest.raises(StoreError, match=f"must be reachable, found: .*({found})") as caught:
        Tracker(folder=tmp_path)
    assert time.monotonic() - started < 5
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_store_that_may_not_be_written_is_one_line_of_the_databases_own_words(store, capfd):
    address = connect().uri
    # A root user may write what is read-only; a locked database refuses everybody.
    with contextlib.closing(sqlite3.connect(store)) as other:
        other.execute("begin exclusive")
        locked = f"{address}?timeout=0.1"
        with pytest.raises(StoreError, match=r"found: database is locked") as caught:
            Store(locked).client.create_run("0")
        other.rollback()
    assert "\n" not in str(caught.value)
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk full, of the store or its artif"),
        (OSError(errno.EDQUOT, "Quota", "/runs/0/a.png"), "disk full, /runs/0/a.png"),
    ],
)
def test_a_full_disk_below_mlflow_is_called_that(error, said):
    wrapped = RuntimeError("failed to log artifacts")
    wrapped.__cause__ = error
    assert f"found: {said}" in str(StoreError("sqlite:///mlflow.db", wrapped))


def test_a_store_that_stays_locked_is_one_line_within_ten_seconds(tmp_path, monkeypatch):
    store = tmp_path / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    mlflow.set_tracking_uri(None)
    connect()
    monkeypatch.setattr("pose.tracking.database.LOCKED_SECONDS", 0.5)
    started = time.monotonic()
    with contextlib.closing(sqlite3.connect(store, isolation_level=None)) as holder:
        holder.execute("begin exclusive")
        with pytest.raises(StoreError, match="must be reachable, found: database is locked"):
            connect()
    assert time.monotonic() - started < 4
