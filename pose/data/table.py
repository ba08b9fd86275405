"""A CSV file as rows of texts, with the line that each begins on.

Whatever a spreadsheet, an editor or a broken disk makes of such a file is read as it was meant, or
refused in one line. What the columns mean belongs to the callers.
"""

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

from pose.errors import InputError, printable
from pose.files import NotAFileError, read_bytes, reason_of

# Ten million rows of an id and a label; what is larger is another file.
MAX_BYTES = 200_000_000
# Longest first: UTF-32's little-endian mark begins with that of UTF-16.
_MARKS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclasses.dataclass(frozen=True)
class TableRow:
    """One row.

    Attributes:
        number: of the line that it begins on, counted from 1 as editors do.
        cells: without the white space around them.
    """

    number: int
    cells: tuple[str, ...]


def read_table(path: Path) -> list[TableRow]:
    """The rows of a CSV file that are not blank.

    Raises:
        InputError: it is not a file, cannot be read, is not UTF-8, or has other separators than
            commas, a quote that is not closed, or a line break within a cell (which is what becomes
            of rows behind a quote that was never meant).
    """
    rows = _parse(path, _decode(path, _read(path)))
    if rows and (name := _other_separator([row.cells for row in rows])):
        raise InputError(
            f"{path} must have commas between its columns, found {name}: save it as CSV with commas"
        )
    return rows


def column_of(path: Path, header: Sequence[str], name: str) -> int | None:
    """Where the column `name` stands in a header, in any case; None where it does not.

    Raises:
        InputError: two columns have that name.
    """
    places = [place for place, cell in enumerate(header) if cell.lower() == name]
    if len(places) > 1:
        raise InputError(
            f"{path} must have one column {name}, found {len(places)}: {shown_cells(header)}"
        )
    return places[0] if places else None


def shown_cells(cells: Sequence[str], limit: int = 100) -> str:
    """Cells as they would stand in the file, on one line, shortened."""
    text = printable(",".join(cells))
    return text if len(text) <= limit else f"{text[:limit]}..."


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path, MAX_BYTES)
    except NotAFileError as error:
        raise InputError(f"{path} must be a CSV file, found {error}") from None
    except OSError as error:
        raise InputError(
            f"{path} must be a CSV file that can be read: {reason_of(error)}"
        ) from None


def _decode(path: Path, data: bytes) -> str:
    for mark, name in _MARKS:
        if data.startswith(mark):
            raise InputError(f"{path} must be a CSV file in UTF-8, found {name}: save it as UTF-8")
    try:
        text = data.decode("utf-8").lstrip("\ufeff")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} must be a CSV file in UTF-8, found the byte 0x{data[error.start]:02x} in row "
            f"{_line_of(data, error.start)}, as other encodings have it: save it as UTF-8"
        ) from None
    if "\0" in text:
        number = _line_of(data, data.index(b"\0"))
        raise InputError(
            f"{path} must be a CSV file in UTF-8, found a NUL byte in row {number}, as UTF-16 and "
            "damaged files have it: save it as UTF-8"
        )
    return text


def _line_of(data: bytes, place: int) -> int:
    """The number of the line of `data` that has the byte at `place`."""
    start = data[:place]
    return 1 + start.count(b"\n") + start.count(b"\r") - start.count(b"\r\n")


def _parse(path: Path, text: str) -> list[TableRow]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    rows: list[TableRow] = []
    number = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return rows
        except csv.Error as error:
            raise InputError(
                f"{path} must be a CSV file, found in row {number}: {_words_of(error)}"
            ) from None
        if any("\n" in cell.strip() or "\r" in cell.strip() for cell in cells):
            raise InputError(
                f"{path} must have every row on a line of its own, found a quote in row {number} "
                f"that is closed in row {reader.line_num}: remove it"
            )
        cells = [cell.strip() for cell in cells]
        # Excel's first line, which says what the separator is, is not one of the rows.
        if any(cells) and not (number == 1 and cells[:1] == ["sep="] and not any(cells[1:])):
            rows.append(TableRow(number, tuple(cells)))
        number = reader.line_num + 1


def _words_of(error: csv.Error) -> str:
    text = str(error)
    if "unexpected end of data" in text:
        return "a quote that is never closed"
    if "expected after" in text:
        return "a quote within a cell (double it, or remove it)"
    if "field larger than" in text:
        return f"a cell of more than {csv.field_size_limit()} characters, or a quote not closed"
    return printable(text)


def _other_separator(rows: list[tuple[str, ...]]) -> str | None:
    """What stands between the columns instead of commas, in words."""
    for separator, name in _OTHER_SEPARATORS.items():
        # A decimal comma in a table with semicolons makes two cells of one row.
        if len(rows[0]) == 1 and separator in rows[0][0]:
            return name
        if all(separator in row[0] for row in rows):
            return name
    return None
