"""The classes of a data set: labels, their names, and what a horizontal flip does to each."""

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from pose.data.problem import Problem
from pose.data.table import TableRow, column_of, read_table, shown_cells
from pose.errors import InputError, first_few, known, printable

NEVER_FLIPPED = -1
COLUMNS = ("label", "name", "mirror")


@dataclasses.dataclass(frozen=True)
class ClassList:
    """Classes in the order of their indices, which is the order of the columns of every `probs`.

    Attributes:
        labels: label texts as in the CSV file, sorted by value where all are numbers, else as text.
        names: one per class, for people; the label itself where no `classes.csv` names it.
        mirrors: class index of each class's mirror image, or `NEVER_FLIPPED`.
    """

    labels: tuple[str, ...]
    names: tuple[str, ...]
    mirrors: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def mirrors_digest(self) -> str:
        """16 hexadecimal digits of what a flip does to each class."""
        return hashlib.sha256(repr((self.labels, self.mirrors)).encode()).hexdigest()[:16]

    def indices(self) -> dict[str, int]:
        """Class index of each label."""
        return {label: index for index, label in enumerate(self.labels)}


def sort_key(text: str) -> tuple[int, int, str]:
    """Numbers by value, before and apart from all other text."""
    return (0, int(text), text) if re.fullmatch(r"-?\d+", text) else (1, 0, text)


def sorted_texts(texts: Iterable[str]) -> list[str]:
    """`texts` by value where all are whole numbers, else by text."""
    texts = list(texts)
    all_numbers = all(re.fullmatch(r"-?\d+", text) for text in texts)
    return sorted(texts, key=sort_key if all_numbers else str)


def read_classes(labels: set[str], path: Path) -> tuple[ClassList, list[Problem]]:
    """The class list of `labels`, and what in `classes.csv` is likely to be a slip.

    Names and mirrors come from that file where it exists.

    Raises:
        InputError: the file cannot be read, lacks a label, has one twice, or its mirrors do not
            pair up.
    """
    ordered = tuple(sorted_texts(labels))
    if not os.path.lexists(path):
        return ClassList(ordered, ordered, tuple(range(len(ordered)))), []
    header, rows = _read_rows(path)
    if missing := [label for label in ordered if label not in rows]:
        raise InputError(
            f"{path} must have a row for every label, found none for {first_few(missing)}: add them"
        )
    indices = {label: index for index, label in enumerate(ordered)}
    mirrors = []
    for label in ordered:
        mirror = rows[label]["mirror"]
        if mirror and mirror not in rows:
            raise InputError(
                f"{path}: the mirror of {label} must be one of {known(rows)}, got {mirror!r}"
            )
        if mirror and rows[mirror]["mirror"] != label:
            raise InputError(
                f"{path}: mirrors must pair up, but {label} has the mirror {mirror}, "
                f"whose mirror is {rows[mirror]['mirror'] or 'empty'}"
            )
        # A mirror class without a single labelled image has no index to swap to.
        mirrors.append(indices.get(mirror, NEVER_FLIPPED) if mirror else NEVER_FLIPPED)
    names = tuple(rows[label]["name"] or label for label in ordered)
    return ClassList(ordered, names, tuple(mirrors)), _slips(header, ordered, names)


def _slips(
    header: tuple[str, ...], labels: tuple[str, ...], names: tuple[str, ...]
) -> list[Problem]:
    problems = []
    if unknown := tuple(name or "(no name)" for name in header if name not in COLUMNS):
        problems.append(
            Problem(
                what="columns of classes.csv that mean nothing",
                consequence=f"ignored; known are {', '.join(COLUMNS)}",
                items=unknown,
            )
        )
    labels_of: dict[str, list[str]] = {}
    for label, name in zip(labels, names, strict=True):
        labels_of.setdefault(name, []).append(label)
    if shared := tuple(
        f"{name}: {', '.join(own)}" for name, own in labels_of.items() if len(own) > 1
    ):
        problems.append(
            Problem(
                what="names in classes.csv that several labels have",
                consequence="they stay classes of their own",
                items=shared,
            )
        )
    return problems


def _read_rows(path: Path) -> tuple[tuple[str, ...], dict[str, dict[str, str]]]:
    """The names of the columns, and name and mirror of each label."""
    table = read_table(path)
    header = tuple(cell.lower() for cell in table[0].cells) if table else ()
    places = {name: column_of(path, header, name) for name in COLUMNS}
    if places["label"] is None:
        raise InputError(
            f"{path} must have the columns label,name,mirror, found "
            f"{shown_cells(header) if table else 'no rows'}"
        )
    rows: dict[str, dict[str, str]] = {}
    for row in table[1:]:
        if any(row.cells[len(header) :]):
            raise InputError(
                f"{path} must have {len(header)} columns in every row, found {len(row.cells)} in "
                f"row {row.number}"
            )
        label = _cell(row, places["label"])
        if not label:
            raise InputError(
                f"{path} must have a label in every row, found none in row {row.number}"
            )
        if label in rows:
            raise InputError(
                f"{path} must have one row per label, found {printable(label)} twice "
                f"(row {row.number})"
            )
        # Without a mirror column a flip keeps the label, as without the file.
        mirror = label if places["mirror"] is None else _cell(row, places["mirror"])
        rows[label] = {"name": _cell(row, places["name"]), "mirror": mirror}
    return header, rows


def _cell(row: TableRow, place: int | None) -> str:
    return row.cells[place] if place is not None and place < len(row.cells) else ""
