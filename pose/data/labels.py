"""The labels file: which label each id has. The images' listing says which image an id names."""

import dataclasses
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from pose.data.listing import Listing, misnamed
from pose.data.shards import read_file
from pose.data.table import TableRow, column_of, read_table, shown_cells
from pose.errors import InputError, one_line, printable
from pose_models.decode import HEIC_SUFFIXES, SUFFIXES

# Letters of other alphabets that look just like Latin ones: one typing slip makes a new class.
_TWINS = str.maketrans("АВСЕНКМОРТХУаеорсухіΑΒΕΖΗΙΚΜΝΟΡΤΥΧο", "ABCEHKMOPTXYaeopcyxiABEZHIKMNOPTYXo")
# A minus and dashes that word processors write instead of the one on the keyboard.
_DASHES = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-"))
# Strokes between numbers: what NFKC makes of a fraction such as ½ has the first.
_SLASHES = str.maketrans(dict.fromkeys("\u2044\u2215\u29f8", "/"))
# Characters of a label in a file of its own: a larger file is something else.
MAX_LABEL = 200
# What pandas reads as a missing value, and writes where somebody made it a text.
_MISSING = {
    *("#N/A", "#NA", "<NA>", "N/A", "NA", "n/a"),
    *("NaN", "nan", "-NaN", "-nan", "-1.#IND", "1.#IND", "-1.#QNAN", "1.#QNAN"),
    *("NULL", "null", "None"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelRows:
    """The labels file, read.

    Attributes:
        rows: id and label of each row; ids are those of the listing where they name an image.
        header: what was taken for names of columns although neither is called id or label.
        groups: id and group of each row, where there is a column `group`.
    """

    rows: list[tuple[str, str]]
    header: str | None = None
    groups: list[tuple[str, str]] | None = None


def read_label_rows(path: Path, images: Listing | None = None) -> LabelRows:
    """`(id, label)` of each row of a labels file, which may or may not have a header.

    The published file has no header: a first row whose id names an existing image is data. So is
    one of two cells whose label is found in other rows too. Columns are found by the names id and
    label, one of which is enough where there are two; without these names they are id, label.

    Args:
        images: what ids may name. Without it they are taken as they stand, less a suffix.

    Raises:
        InputError: the file cannot be read, or its columns cannot be told apart.
    """
    if not os.path.lexists(path):
        slips = misnamed(path.parent, (path.name,))
        raise InputError(
            f"{path.parent} must hold {path.name} (id,label), found {slips[0] if slips else 'none'}"
        )
    table = read_table(path)
    if not table:
        raise InputError(f"{path} must have a row id,label for each image, found no rows")
    first, id_column, label_column = _columns(path, table, images)
    width = len(table[0].cells)
    for row in table:
        if len(row.cells) != width:
            raise InputError(
                f"{path} must have {width} columns in every row, found {len(row.cells)} in row "
                f"{row.number}"
            )
    if first == len(table):
        raise InputError(f"{path} must have a row id,label for each image, found the header alone")
    names = {cell.lower() for cell in table[0].cells}
    is_unnamed = first == 1 and not names & {"id", "label"}
    ids = [match_id(row.cells[id_column], images) for row in table[first:]]
    groups = column_of(path, table[0].cells, "group") if first == 1 and width > 2 else None
    return LabelRows(
        rows=_pairs(ids, table[first:], label_column),
        header=shown_cells(table[0].cells) if is_unnamed else None,
        groups=None if groups is None else _pairs(ids, table[first:], groups),
    )


def read_tar_labels(images: Listing) -> LabelRows:
    """The labels that lie beside the images in tars: the text of each, without spaces around it.

    Raises:
        InputError: one is no text of a line.
    """
    rows = []
    for image_id, files in images.labels.items():
        for file in files:
            try:
                label = read_file(file).decode().strip()
            except (OSError, UnicodeDecodeError) as error:
                raise _bad_label(str(file), one_line(error)) from None
            if len(label) > MAX_LABEL or "\n" in label:
                raise _bad_label(str(file), f"{len(label)} characters")
            rows.append((image_id, label))
    return LabelRows(rows=rows)


def _bad_label(name: str, found: str) -> InputError:
    return InputError(
        f"{printable(name)} must be a label, one line of at most {MAX_LABEL} characters, found "
        f"{found}"
    )


def _pairs(ids: list[str], rows: list[TableRow], column: int) -> list[tuple[str, str]]:
    return [(image_id, row.cells[column]) for image_id, row in zip(ids, rows, strict=True)]


def match_id(text: str, images: Listing | None) -> str:
    """The id that `text` means: an id, a file's name, or a path to it from the data folder.

    A folder in it is part of what it names: `camera_b/20.jpg` is never `20.jpg`.
    """
    for form in _forms(text, images):
        if images is None:
            break
        if form in images.id_of_name:
            return images.id_of_name[form]
        if form in images.images:
            return form
        stem, suffix = os.path.splitext(form)
        if suffix.lower() in SUFFIXES and stem in images.images:
            return stem
    stem, suffix = os.path.splitext(text)
    return stem if stem and suffix.lower() in (*SUFFIXES, *HEIC_SUFFIXES) else text


def _forms(text: str, images: Listing | None) -> Iterator[str]:
    """`text` as it stands, then as other systems and programs write it."""
    yield text
    path = text.replace("\\", "/").removeprefix("./")
    yield path
    if images is not None:
        yield path.removeprefix(f"{images.folder.name}/")
    if not text.isascii():
        # macOS takes letters and accents apart in file names.
        for form in ("NFC", "NFD"):
            yield unicodedata.normalize(form, path)


def _columns(path: Path, table: list[TableRow], images: Listing | None) -> tuple[int, int, int]:
    """The first row that is data, the column of ids and that of labels."""
    first = table[0].cells
    if images is not None and match_id(first[0], images) in images.images:
        if len(first) == 1:
            raise InputError(f"{path} must have two columns, id,label, found one: {first[0]!r}")
        if len(first) != 2:
            raise InputError(
                f"{path} must name its columns id and label, found {len(first)} without names"
            )
        return 0, 0, 1
    ids, labels = column_of(path, first, "id"), column_of(path, first, "label")
    if len(first) == 1:
        raise InputError(f"{path} must have two columns, id,label, found one: {first[0]!r}")
    if ids is not None and labels is not None:
        return 1, ids, labels
    if len(first) != 2:
        raise InputError(f"{path} must have the columns id,label, found {shown_cells(first)}")
    if ids is not None:
        return 1, ids, 1 - ids
    if labels is not None:
        return 1, 1 - labels, labels
    is_row = first[1] in {row.cells[1] for row in table[1:] if len(row.cells) > 1}
    return (0 if is_row else 1), 0, 1


def look_alikes(labels: Iterable[str]) -> list[str]:
    """The groups of labels that a person would take for one, in words that tell them apart."""
    groups: dict[str, list[str]] = {}
    for label in sorted(labels):
        groups.setdefault(_look(label), []).append(label)
    return [" and ".join(map(_telling, group)) for group in groups.values() if len(group) > 1]


def missing_values(labels: Iterable[str]) -> list[str]:
    """Those labels that other programs write where there is none."""
    return sorted(_MISSING.intersection(labels))


def alike(texts: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """For those of `texts` that look like one of `known`, without being it: which one."""
    known_by_look = {_look(text): text for text in known}
    found = {text: known_by_look.get(_look(text), text) for text in texts}
    return {text: meant for text, meant in found.items() if meant != text}


def _look(label: str) -> str:
    """What labels that look alike share.

    It leaves out case, white space, invisible characters, accents' encoding, trailing zeros and
    the alphabet of letters that look the same.
    """
    text = unicodedata.normalize("NFKC", label)
    text = "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Cc"))
    text = (
        re.sub(r"(?<=\w)[\s_-]+(?=\w)", " ", text.replace("_", " "))
        .strip()
        .translate(_TWINS)
        .translate(_DASHES)
        .translate(_SLASHES)
        .casefold()
    )
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?", text):
        # Numbers by value; the text of a very long one is its value.
        return repr(float(text)) if len(text) < 16 else text.lstrip("+0")
    return text


def _telling(label: str) -> str:
    """`label` in quotes, with escapes for what cannot be seen or might be another alphabet's."""
    is_plain = label.isascii() or not label.isprintable()
    return repr(label) if is_plain else f"{label!r} ({ascii(label)[1:-1]})"
