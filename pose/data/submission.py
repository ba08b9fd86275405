"""What predictions.csv must look like: the names of its columns, and the order of its rows.

`sample_submission.csv` in the data folder decides, as competitions hand it out. Without one it is
`id,label`, sorted by id.
"""

import collections
import csv
import dataclasses
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pose.data.labels import match_id
from pose.data.listing import Listing, list_images
from pose.data.problem import Problem
from pose.data.table import TableRow, column_of, read_table, shown_cells
from pose.errors import InputError, first_few, printable

SAMPLE_FILE = "sample_submission.csv"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Submission:
    """The form of predictions.csv.

    Attributes:
        header: names of the two columns; None where the sample has none.
        id_column: where the ids stand, 0 or 1.
        written: what each row calls its image, by the image's id, in the order of the rows.
    """

    header: tuple[str, str] | None = ("id", "label")
    id_column: int = 0
    written: Mapping[str, str]

    def csv(
        self,
        label_of: Mapping[str, str],
        more_names: Sequence[str] = (),
        more_of: Mapping[str, Sequence[str]] | None = None,
    ) -> str:
        """The predictions as CSV; ids without a label (unreadable images) have no row.

        Args:
            more_names, more_of: columns after the two, and each id's cells in them.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if self.header:
            writer.writerow((*self.header, *more_names))
        for image_id, shown in self.written.items():
            if image_id in label_of:
                cells = (shown, label_of[image_id])
                more = more_of[image_id] if more_of is not None else ()
                writer.writerow((*(cells if self.id_column == 0 else cells[::-1]), *more))
        return text.getvalue()


def submission_problem(
    folder: Path, test_ids: Sequence[str], images: Listing | None
) -> Iterator[Problem]:
    """What a vote will refuse in `sample_submission.csv`, if there is anything.

    Args:
        images: the listing of the test images; None: there are none, and no vote.
    """
    if images is None or not test_ids:
        return
    try:
        read_submission(folder, test_ids, images)
    except InputError as error:
        reason = str(error).replace(f"{folder}/", "")
        yield Problem(
            what="forms of predictions.csv that cannot be used",
            consequence="votes refuse it",
            items=(reason,),
        )


def read_submission(
    folder: Path, test_ids: Sequence[str], images: Listing | None = None
) -> Submission:
    """The form that `sample_submission.csv` of a data folder asks for, or `id,label`.

    Args:
        test_ids: of the images to predict, sorted.
        images: their listing, where there is one already.

    Raises:
        InputError: the file cannot be read, or its ids are not those of the test images.
    """
    path = folder / SAMPLE_FILE
    if not os.path.lexists(path):
        return Submission(written={image_id: image_id for image_id in test_ids})
    rows = read_table(path)
    wrong = next((row for row in rows if len(row.cells) != 2), None)
    if wrong is not None or not rows:
        found = "no rows" if wrong is None else f"row {wrong.number}: {shown_cells(wrong.cells)}"
        raise InputError(f"{path} must have two columns, an id and a label, found {found}")
    images = images or list_images(folder / "test_images", opens_tars=True)
    is_headless = match_id(rows[0].cells[0], images) in images.images
    header = None if is_headless else (rows[0].cells[0], rows[0].cells[1])
    id_column = (column_of(path, header, "id") or 0) if header else 0
    body = rows if is_headless else rows[1:]
    named = [(match_id(row.cells[id_column], images), row) for row in body]
    _check_ids(path, named, test_ids)
    return Submission(
        header=header,
        id_column=id_column,
        written={image_id: row.cells[id_column] for image_id, row in named},
    )


def _check_ids(path: Path, named: Sequence[tuple[str, TableRow]], test_ids: Sequence[str]) -> None:
    """Refuse a sample that does not name every test image, each once.

    Raises:
        InputError: ids are missing, unknown or repeated; the message names them.
    """
    times = collections.Counter(image_id for image_id, _ in named)
    known = set(test_ids)
    differences = {
        "missing": [i for i in test_ids if i not in times],
        "without an image": [i for i in times if i not in known],
        "twice": [i for i, number in times.items() if number > 1],
    }
    found = [
        f"{len(ids)} {what} ({first_few(map(printable, ids))})"
        for what, ids in differences.items()
        if ids
    ]
    if found:
        raise InputError(
            f"{path} must name each of the {len(test_ids)} test images once, found "
            f"{', '.join(found)}: correct it or test_images/, or remove it"
        )
