"""The file of a SQLite store: made whole or not at all, and made again where that was cut short.

MLflow makes its tables step by step in the file itself, without a lock: a kill meanwhile, or a
second command, leaves a store that it refuses for good.
"""

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from mlflow.store.db.db_types import DATABASE_ENGINES
from sqlalchemy import URL, create_engine, inspect, make_url
from sqlalchemy.pool import NullPool

from pose.errors import InputError

# A store that is being made by MLflow itself changes every second; one that does not is dead.
SILENCE_SECONDS = 5
MAX_WAIT_SECONDS = 10
# On a busy machine MLflow's migrations take that long; what still changes is never replaced.
MAKING_SECONDS = 60
# A SQLite store that somebody keeps locked is asked twice, and may be busy for so long each time.
LOCKED_SECONDS = 4


def ensure_whole(path: Path, make: Callable[[str], object]) -> None:
    """Make the store at `path` if there is none, or one whose making was cut short.

    The caller holds the lock that keeps others from doing the same.

    Args:
        make: sets up the store at the address that it is given.

    Raises:
        InputError: another program has been making it for a minute, and still is.
    """
    started = time.monotonic()
    while is_begun(path):
        # By `mlflow run`, perhaps, which knows nothing of our lock.
        is_silent = time.time() - _last_change(path) > SILENCE_SECONDS
        if is_silent:
            break
        if time.monotonic() - started > MAKING_SECONDS:
            raise InputError(
                f"{path} is being set up by another program: repeat the command when that is done"
            )
        time.sleep(0.2)
    if path.exists() and not is_begun(path):
        return
    for left_over in path.parent.glob(f".{path.name}.*.new*"):
        left_over.unlink()
    # Under another name, so that a partial one never has this one.
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    # An address escapes what SQLAlchemy would read otherwise, such as a percent sign.
    make(URL.create("sqlite", database=str(new)).render_as_string())
    # The journal of the one that was cut short must never be played back into this one.
    for dead in (path, *(Path(f"{path}{end}") for end in ("-journal", "-wal", "-shm"))):
        dead.unlink(missing_ok=True)
    os.replace(new, path)


def knock(uri: str) -> None:
    """Connect to a database once; other stores are left alone.

    MLflow would ask one that does not answer ten times, for a hundred seconds.

    Raises:
        sqlalchemy.exc.SQLAlchemyError, ImportError: it cannot be connected to, or its driver is
            not installed.
    """
    if uri.partition(":")[0].partition("+")[0] not in DATABASE_ENGINES:
        return
    url = make_url(uri)
    # Others call it by other names.
    arguments = {
        "postgresql": {"connect_timeout": MAX_WAIT_SECONDS},
        "mysql": {"connect_timeout": MAX_WAIT_SECONDS},
        "sqlite": {"timeout": LOCKED_SECONDS},
    }.get(url.get_backend_name(), {})
    engine = create_engine(url, connect_args=arguments, poolclass=NullPool)
    with engine.connect() as connection:
        inspect(connection).get_table_names()


def has_experiment(path: Path, experiment_id: str, place: str, created: int) -> bool:
    """Whether the store at `path` has this very experiment: one of them is a copy then.

    Args:
        place: of its artifacts.
        created: when, in milliseconds since 1970.
    """
    try:
        address = f"file:{quote(str(path.absolute()))}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True)) as database:
            found = database.execute(
                "select artifact_location, creation_time from experiments where experiment_id = ?",
                (int(experiment_id),),
            )
            return bool(found.fetchall() == [(place, created)])
    except (sqlite3.Error, ValueError):
        return False


def is_begun(path: Path) -> bool:
    """Whether the making of a store at `path` has begun and not ended.

    At the end MLflow adds its default experiment: without one, nobody has recorded anything. A
    database that holds anything else is none of ours.
    """
    if not path.is_file():
        return False
    try:
        # Not read-only: what a kill has left in the journal is rolled back first.
        address = f"file:{quote(str(path.absolute()))}?mode=rw"
        with contextlib.closing(
            sqlite3.connect(address, uri=True, timeout=LOCKED_SECONDS)
        ) as database:
            tables = {
                name
                for (name,) in database.execute("select name from sqlite_master where type='table'")
            }
            if not all(name in _known_tables() or name.startswith("_alembic") for name in tables):
                return False
            counted = [
                database.execute(f"select count(*) from {name}").fetchone()[0]
                for name in {"experiments", "runs"} & tables
            ]
            return not any(counted)
    except sqlite3.DatabaseError:
        # No database, locked, unreadable: for MLflow to say.
        return False


def _known_tables() -> set[str]:
    """Those of MLflow's: a name that is missing here makes one that is in the making look whole."""
    import mlflow.store.model_registry.dbmodels.models
    import mlflow.store.tracking.dbmodels.models  # noqa: F401
    from mlflow.store.db.base_sql_model import Base

    # It has a package of its own, which some versions lack.
    return {*Base.metadata.tables, "alembic_version", "workspaces"}


def _last_change(path: Path) -> float:
    found = [path, Path(f"{path}-journal")]
    return max((own.stat().st_mtime for own in found if own.exists()), default=0.0)
