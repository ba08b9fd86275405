"""The labelled images that a run is to do without: a table of ids, and their digest."""

import csv
import hashlib
import io
from collections.abc import Collection, Iterable
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


def digest_of_ids(ids: Iterable[str]) -> str:
    """SHA-256 of the sorted ids."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def match_excluded(path: Path, sha256: str | None, known: Collection[str]) -> tuple[str, ...]:
    """Those of the `known` ids that a table of ids means, sorted; names of files are ids as well.

    Args:
        sha256: what `digest_of_ids` must be; None: whatever it is.
        known: ids of the labelled images.

    Raises:
        InputError: the table cannot be used, is not the one that was meant, or names others.
    """
    texts = read_excluded(path)
    if sha256 not in (None, digest_of_ids(texts)):
        raise InputError(
            f"exclude must name the ids whose SHA-256 is {str(sha256)[:12]}, found others in {path}"
            f" ({digest_of_ids(texts)[:12]}): was it changed since the run began?"
        )
    ids = [text if text in known else match_id(text, None) for text in texts]
    strange = [text for text, own in zip(texts, ids, strict=True) if own not in known]
    if strange:
        raise InputError(
            f"exclude must name labelled images of the data, found {len(strange)} ids in {path} "
            f"that are none: {first_few(map(printable, strange))}"
        )
    _refuse_twice(ids, path)
    return tuple(sorted(ids))


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
