"""The labelled images that a run is to do without: a table of ids, and their digest."""

import csv
import hashlib
import io
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from pose.data.labels import match_id
from pose.data.table import column_of, read_table, shown_cells
from pose.errors import InputError, first_few, printable


def read_excluded(path: Path) -> tuple[str, ...]:
    """The ids in the column `id` of a CSV file, as they stand there; other columns say nothing.

    Raises:
        InputError: it cannot be read, has no column `id` or no rows, or names an id twice.
    """
    table = read_table(path)
    if not table:
        raise InputError(f"exclude must be a CSV file with a column id, found no rows in {path}")
    header = table[0].cells
    column = column_of(path, header, "id")
    if column is None:
        raise InputError(
            f"exclude must be a CSV file that begins with the names of its columns, id among them, "
            f"found {shown_cells(header)} in {path}"
        )
    short = [row.number for row in table if len(row.cells) <= column or not row.cells[column]]
    if short:
        raise InputError(
            f"exclude must have an id in every row, found none in row {short[0]} of {path}"
        )
    ids = [row.cells[column] for row in table[1:]]
    if not ids:
        raise InputError(
            f"exclude must name at least one id, found the header alone in {path}: leave exclude "
            "out to train on all images"
        )
    _refuse_twice(ids, path)
    return tuple(ids)


def tables_of(exclude: str) -> tuple[Path, ...]:
    """The tables that the setting names: a file, or several with commas between them.

    Raises:
        InputError: there is nothing between two commas.
    """
    whole = Path(exclude).expanduser()
    if os.path.lexists(whole) or "," not in exclude:
        return (whole,)
    names = [text.strip() for text in exclude.split(",")]
    if not all(names):
        raise InputError(
            f"exclude must be CSV files joined by commas, got an empty name in {exclude!r}"
        )
    return tuple(Path(name).expanduser() for name in names)


def read_all_excluded(exclude: str) -> dict[Path, tuple[str, ...]]:
    """The ids that each of the tables names, as they stand there.

    Raises:
        InputError: one of the tables cannot be used.
    """
    return {path: read_excluded(path) for path in tables_of(exclude)}


def digest_of_tables(tables: Mapping[Path, Iterable[str]]) -> str:
    """`digest_of_ids` of what any of the tables names."""
    return digest_of_ids(set().union(*tables.values()))


def digest_of_ids(ids: Iterable[str]) -> str:
    """SHA-256 of the sorted ids."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def match_excluded(exclude: str, sha256: str | None, known: Collection[str]) -> tuple[str, ...]:
    """Those of the `known` ids that tables of ids mean, sorted; names of files are ids as well.

    Args:
        exclude: one table or several, as in the setting.
        sha256: what `digest_of_tables` must be; None: whatever it is.
        known: ids of the labelled images.

    Raises:
        InputError: a table cannot be used, is not the one that was meant, or names others.
    """
    tables = read_all_excluded(exclude)
    if sha256 not in (None, digest_of_tables(tables)):
        raise InputError(
            f"exclude must name the ids whose SHA-256 is {str(sha256)[:12]}, found others in "
            f"{exclude} ({digest_of_tables(tables)[:12]}): was it changed since the run began?"
        )
    found = [_match_table(path, texts, known) for path, texts in tables.items()]
    return tuple(sorted(set().union(*found)))


def _match_table(path: Path, texts: Sequence[str], known: Collection[str]) -> list[str]:
    ids = [text if text in known else match_id(text, None) for text in texts]
    strange = [text for text, own in zip(texts, ids, strict=True) if own not in known]
    if strange:
        raise InputError(
            f"exclude must name labelled images of the data, found {len(strange)} ids in {path} "
            f"that are none: {first_few(map(printable, strange))}"
        )
    _refuse_twice(ids, path)
    return ids


def ids_csv(ids: Iterable[str]) -> str:
    """A table that `read_excluded` reads."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([["id"], *([own] for own in ids)])
    return text.getvalue()


def _refuse_twice(ids: list[str], path: Path) -> None:
    if len(set(ids)) == len(ids):
        return
    counts: dict[str, int] = {}
    for own in ids:
        counts[own] = counts.get(own, 0) + 1
    twice = [printable(own) for own, count in counts.items() if count > 1]
    raise InputError(
        f"exclude must name every id once, found {len(twice)} more than once in {path}: "
        f"{first_few(twice)}"
    )
