"""The groups that a data folder names: a column `group` of its labels file, or `groups.csv`."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from pose.data.groups import join, pairs_of
from pose.data.labels import LabelRows, match_id
from pose.data.listing import Listing
from pose.data.problem import Problem
from pose.data.table import column_of, read_table, shown_cells
from pose.errors import InputError, printable

GROUPS_FILE = "groups.csv"
COLUMN = "the column group"


def name_groups(
    folder: Path, table: LabelRows, listing: Listing, ids: Sequence[str]
) -> tuple[np.ndarray | None, list[Problem]]:
    """The groups that the folder names, and what is wrong with them.

    Where it has both a column and a file, rows belong together that either of them ties.

    Args:
        table: the labels file.
        listing: of the labelled images.
        ids: `(N,)` of the rows that can be used.

    Returns:
        `(N,)` int64, equal for rows of one group; None where there are none, or fatal problems.

    Raises:
        InputError: `groups.csv` cannot be read, or has other columns than id and group.
    """
    sources: dict[str, list[tuple[str, str]]] = {}
    if table.groups is not None:
        # The same row twice says nothing new.
        sources[COLUMN] = list(dict.fromkeys(table.groups))
    path = folder / GROUPS_FILE
    if os.path.lexists(path):
        sources[GROUPS_FILE] = _read(path, listing)
    labelled = {image_id for image_id, _ in table.rows} | set(listing.images)
    problems = [
        problem
        for source, rows in sources.items()
        for problem in _problems(source, rows, ids, labelled)
    ]
    if problems or not sources:
        return None, problems
    ties = (pairs_of(_numbers(dict(rows), ids)) for rows in sources.values())
    return join(len(ids), ties), []


def _read(path: Path, listing: Listing) -> list[tuple[str, str]]:
    """`(id, group)` of each row of groups.csv."""
    table = read_table(path)
    if not table:
        raise InputError(f"{path} must have the columns id,group, found no rows")
    header = table[0].cells
    places = column_of(path, header, "id"), column_of(path, header, "group")
    if places[0] is None or places[1] is None:
        raise InputError(
            f"{path} must begin with the names of its columns, id,group, found "
            f"{shown_cells(header)}: add them as the first row"
        )
    for row in table:
        if len(row.cells) != len(header):
            raise InputError(
                f"{path} must have {len(header)} columns in every row, found {len(row.cells)} in "
                f"row {row.number}"
            )
    return [(match_id(row.cells[places[0]], listing), row.cells[places[1]]) for row in table[1:]]


def _problems(
    source: str, rows: list[tuple[str, str]], ids: Sequence[str], labelled: Collection[str]
) -> Iterator[Problem]:
    usable = set(ids)
    groups_of: dict[str, list[str]] = {}
    for image_id, group in rows:
        groups_of.setdefault(image_id, []).append(group)
    found: Mapping[tuple[str, str], list[str]] = {
        (f"ids in {source} that no labelled image has", "correct or remove them"): [
            image_id or "an empty one" for image_id in groups_of if image_id not in labelled
        ],
        (f"ids with more than one group in {source}", "keep one row of each"): [
            f"{printable(image_id)} ({', '.join(map(printable, groups))})"
            for image_id, groups in groups_of.items()
            if len(groups) > 1 and (image_id in usable or source == GROUPS_FILE)
        ],
        (f"ids with an empty group in {source}", "name one, if only its own"): [
            i for i in ids if "" in groups_of.get(i, ())
        ],
        (f"labelled images without a group in {source}", "add a row for each"): [
            i for i in ids if i not in groups_of
        ],
    }
    for (what, consequence), items in found.items():
        if items:
            yield Problem(what=what, consequence=consequence, items=tuple(items), is_fatal=True)


def _numbers(group_of: Mapping[str, str], ids: Sequence[str]) -> np.ndarray:
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(group_of[i], len(numbers)) for i in ids], dtype=np.int64)
