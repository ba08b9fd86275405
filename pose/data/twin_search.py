"""Near twins of a whole data folder: among the labelled images, and between these and the tests."""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from pose.config import Recipe
from pose.data.cache import ImageCache
from pose.data.folder import Dataset, check_images
from pose.data.groups import join
from pose.data.loaded import LoadedData
from pose.data.near_twins import (
    MARKS,
    SIDE,
    Marks,
    find_twins,
    marks_of,
    read_marks,
    write_marks,
)
from pose.data.streamed import Images
from pose.data.twin_table import TwinTable, tabulate
from pose.errors import InputError


def group_twins(loaded: LoadedData) -> LoadedData:
    """The same data, its near twins kept together."""
    marks = kept_marks(loaded.images, loaded.folder).of(loaded.rows)
    alike = join(len(loaded.dataset.ids), [find_twins(marks).pairs])
    groups = dataclasses.replace(loaded.dataset.groups, alike=alike)
    return dataclasses.replace(loaded, dataset=dataclasses.replace(loaded.dataset, groups=groups))


def with_twins(loaded: LoadedData, recipe: Recipe, tests: ImageCache | None) -> LoadedData:
    """The same data with a table of the near twins that the split comes between.

    Args:
        tests: the decoded test images in the order of the data set, in the framing of `loaded`.
    """
    dataset = loaded.dataset
    marks = kept_marks(loaded.images, loaded.folder).of(loaded.rows)
    rows = [] if tests is None else [r for r in range(len(tests.images)) if r not in tests.bad]
    if tests is not None:
        marks = marks.followed_by(kept_marks(tests.images, tests.folder).of(rows))
    table = _table(dataset, recipe, marks, rows)
    dataset = dataclasses.replace(dataset, notes=(*dataset.notes, *table.lines()))
    return dataclasses.replace(loaded, dataset=dataset, twins=table)


def kept_marks(images: Images, folder: Path | None) -> Marks:
    """The marks of decoded images, made once and kept beside them.

    Args:
        images: `(N, 3, S, S)` uint8.
        folder: where the decoded images are; None: nothing is kept.
    """
    path = None if folder is None else folder / MARKS
    if path is not None and (marks := read_marks(path, len(images))) is not None:
        return marks
    marks = marks_of(images, np.arange(len(images)))
    if path is not None:
        # They are made anew next time where they cannot be kept.
        with contextlib.suppress(InputError):
            write_marks(path, marks)
    return marks


def check_all(
    dataset: Dataset, num_workers: int = 0, progress: Callable[[int, int], None] | None = None
) -> Dataset:
    """The same data set with all that is found by decoding every image, near twins among it.

    Args:
        num_workers: threads that decode; 0: one per core.
        progress: called with the number of images done and in all.
    """
    num_labelled, num_images = len(dataset.ids), len(dataset.ids) + len(dataset.test_ids)
    pixels = torch.zeros((num_images, 3, SIDE, SIDE), dtype=torch.uint8)
    seen = np.zeros(num_images, dtype=bool)

    def see(row: int, image: np.ndarray) -> None:
        pixels[row] = torch.from_numpy(image)
        seen[row] = True

    checked = check_images(dataset, num_workers, progress, see)
    if any(problem.is_fatal for problem in checked.problems):
        return checked
    tests = np.flatnonzero(seen[num_labelled:]).tolist()
    try:
        table = _table(checked, Recipe(), marks_of(pixels, np.flatnonzero(seen)), tests)
    except InputError as error:
        # What cannot be split can be looked at all the same.
        return dataclasses.replace(checked, notes=(*checked.notes, f"no split: {error}"))
    return dataclasses.replace(checked, notes=(*checked.notes, *table.lines()))


def _table(dataset: Dataset, recipe: Recipe, marks: Marks, tests: list[int]) -> TwinTable:
    """The table of `marks`: of the labelled images, then of the test images at `tests`."""
    readable = dataclasses.replace(dataset, test_ids=tuple(dataset.test_ids[row] for row in tests))
    return tabulate(readable, recipe, find_twins(marks))
