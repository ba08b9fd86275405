"""The classes of a data set: labels, their names, and what a horizontal flip does to each."""

import csv
import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path

from pose.errors import InputError, first_few, known

NEVER_FLIPPED = -1


@dataclasses.dataclass(frozen=True)
class ClassList:
    """Classes in the order of their indices, which is the order of the columns of every `probs`.

    Attributes:
        labels: label texts as in the CSV file, sorted as numbers where all are, else as text.
        names: one a class, for people; the label itself where no `classes.csv` names it.
        mirrors: class index of each class's mirror image, or `NEVER_FLIPPED`.
    """

    labels: tuple[str, ...]
    names: tuple[str, ...]
    mirrors: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.labels)

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


def read_classes(labels: set[str], path: Path) -> ClassList:
    """The class list of `labels`, with names and mirrors from `classes.csv` where it exists.

    Raises:
        InputError: the file lacks a label, has one twice, or its mirrors do not pair up.
    """
    ordered = tuple(sorted_texts(labels))
    if not path.exists():
        return ClassList(ordered, ordered, tuple(range(len(ordered))))
    rows = _read_rows(path)
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
    return ClassList(ordered, names, tuple(mirrors))


def _read_rows(path: Path) -> dict[str, dict[str, str]]:
    with open(path, newline="", encoding="utf-8-sig") as handle:
        reader = csv.DictReader(handle, skipinitialspace=True)
        columns = [name.strip().lower() for name in reader.fieldnames or []]
        if "label" not in columns:
            raise InputError(
                f"{path} must have the columns label,name,mirror, found {','.join(columns)}"
            )
        reader.fieldnames = columns
        rows: dict[str, dict[str, str]] = {}
        for row in reader:
            label = (row["label"] or "").strip()
            if label in rows:
                raise InputError(f"{path} must have one row a label, found {label} twice")
            # Without a mirror column a flip keeps the label, as without the file.
            mirror = row.get("mirror", label) if "mirror" in columns else label
            rows[label] = {
                "name": (row.get("name") or "").strip(),
                "mirror": (mirror or "").strip(),
            }
    return rows
