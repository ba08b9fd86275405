"""Moves a store of one machine (mlflow.db and its artifacts) into a server's database and folder.

Ids stay what they are: a run goes on there, and whatever names a run or a model still finds it.
The old store is only read.
"""

import shutil
from pathlib import Path
from typing import Any

import click
from sqlalchemy import Column, Connection, MetaData, Table, create_engine, func, select, text

from entrypoints.options import run_command
from pose.errors import InputError, one_line
from pose.files import locked

# Rows in any of them mean that somebody works there already.
MUST_BE_EMPTY = ("runs", "registered_models")
VERSION_TABLE = "alembic_version"
ARTIFACT_COLUMNS = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}
ROWS_AT_ONCE = 5000


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.argument("database")
@click.argument("artifacts", type=click.Path(path_type=Path))
def main(store: Path, database: str, artifacts: Path) -> None:
    """Copy STORE (mlflow.db) into the new DATABASE of a server, and its files to ARTIFACTS.

    Repeat it after a failure: the database is filled at once or not at all.
    """
    if not store.is_file():
        raise InputError(f"store must be an mlflow.db, found none at {store}")
    # The lock under which trainings set the store up; one that is at work does not hold it.
    with locked(store.with_name(f".{store.name}.lock")):
        try:
            # Read only: SQLAlchemy would make a database where there is none.
            source = create_engine(f"sqlite:///file:{store.absolute()}?mode=ro&uri=true")
            target = create_engine(database)
            with source.connect() as old, target.begin() as new:
                num_rows = move(old, new, artifacts)
        except InputError:
            raise
        # What drivers and SQLAlchemy raise has no common type, a missing driver included.
        except Exception as error:
            raise InputError(f"the store must be copied, found: {one_line(error)}") from error
    click.echo(f"moved {num_rows} rows into the database, and the artifacts to {artifacts}")


def move(old: Connection, new: Connection, artifacts: Path) -> int:
    """Copy every table and every artifact; returns the number of rows.

    Raises:
        InputError: the two are of different versions of MLflow, the new one is in use, or an
            experiment's artifacts are not where the store says.
    """
    tables = MetaData()
    tables.reflect(new)
    _check(old, new, tables)
    places = _artifact_places(old, tables.tables["experiments"])
    for experiment_id, place in places.items():
        if place.exists():
            shutil.copytree(place, artifacts / str(experiment_id), dirs_exist_ok=True)
    ordered = [table for table in tables.sorted_tables if table.name != VERSION_TABLE]
    for table in reversed(ordered):
        new.execute(table.delete())
    served = {str(place): f"mlflow-artifacts:/{number}" for number, place in places.items()}
    return sum(_copy(old, new, table, served) for table in ordered)


def _check(old: Connection, new: Connection, tables: MetaData) -> None:
    if VERSION_TABLE not in tables.tables:
        raise InputError("database must be set up, found no tables: mlflow db upgrade DATABASE")
    versions = [
        connection.execute(select(tables.tables[VERSION_TABLE])).scalar_one()
        for connection in (old, new)
    ]
    if versions[0] != versions[1]:
        raise InputError(
            f"store and database must be of one version, found {versions[0]} and {versions[1]}: "
            "run `mlflow db upgrade` on each with the server's MLflow (keep a copy of mlflow.db)"
        )
    for name in MUST_BE_EMPTY:
        count = new.execute(select(func.count()).select_from(tables.tables[name])).scalar_one()
        if count:
            raise InputError(f"database must be new, found {count} rows in its table {name}")


def _artifact_places(old: Connection, experiments: Table) -> dict[int, Path]:
    """The folder of each experiment's artifacts; not of one that is elsewhere already (s3://).

    Raises:
        InputError: the folder that holds them has been moved.
    """
    columns = experiments.c.experiment_id, experiments.c.artifact_location
    places = {}
    for experiment_id, location in old.execute(select(*columns)):
        place = Path(location.removeprefix("file://"))
        if not place.is_absolute():
            continue
        # An experiment that never had a run has no folder of its own.
        if not place.parent.exists() and not place.exists():
            raise InputError(f"artifacts must lie in {place.parent}, found no such folder")
        places[experiment_id] = place
    return places


def _copy(old: Connection, new: Connection, table: Table, served: dict[str, str]) -> int:
    """Copy the rows of `table`, artifacts addressed through the server; returns their number."""
    num_rows = 0
    rows = old.execution_options(yield_per=ROWS_AT_ONCE).execute(select(table)).mappings()
    for part in rows.partitions():
        found = [dict(row) for row in part]
        for row in found:
            for column in ARTIFACT_COLUMNS.get(table.name, ()):
                row[column] = _served(row[column], served)
        new.execute(table.insert(), found)
        num_rows += len(found)
    if table.autoincrement_column is not None:
        _go_on_counting(new, table.name, table.autoincrement_column)
    return num_rows


def _go_on_counting(new: Connection, table: str, column: Column[Any]) -> None:
    """Let the next row of `table` have a number that no copied one has."""
    last = new.execute(select(func.max(column))).scalar_one()
    # A sequence of PostgreSQL begins at 1; MLflow's first experiment is 0.
    if last and new.dialect.name == "postgresql":
        new.execute(
            text("SELECT setval(pg_get_serial_sequence(:table, :column), :last)"),
            {"table": table, "column": column.name, "last": last},
        )


def _served(uri: str | None, served: dict[str, str]) -> str | None:
    for place, address in served.items():
        path = (uri or "").removeprefix("file://")
        if path == place or path.startswith(f"{place}/"):
            return address + path.removeprefix(place)
    return uri


if __name__ == "__main__":
    run_command(main)
