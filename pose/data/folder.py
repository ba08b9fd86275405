"""A data folder: what is in it, and what is wrong with it.

Reads names and labels; pixels are the business of `pose.data.cache`.

    dataset/
      train_solution.csv      id,label (the header row may be missing)
      train_images/<id>.jpg
      test_images/<id>.jpg
      classes.csv             optional: label,name,mirror
"""

import concurrent.futures
import csv
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from pose.data.classes import ClassList, read_classes, sorted_texts
from pose.errors import InputError, first_few
from pose_models.decode import SUFFIXES, BadImageError, read_image

LABELS_FILE = "train_solution.csv"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """One kind of defect and everything that has it.

    Attributes:
        what: in words, plural.
        consequence: what training does about it.
        items: ids or file names.
        is_fatal: whether training refuses to start.
    """

    what: str
    consequence: str
    items: tuple[str, ...]
    is_fatal: bool = False

    def line(self) -> str:
        """One line with the number and the first few items."""
        return f"{len(self.items)} {self.what} ({self.consequence}): {first_few(self.items)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """The usable rows of a data folder, and its problems.

    Attributes:
        ids: `(N,)` of the labelled images, sorted.
        files: `(N,)` image file of each id.
        labels: `(N,)` int64 class indices.
        test_ids: `(M,)` of the images to predict, sorted.
        test_files: `(M,)`.
    """

    folder: Path
    ids: tuple[str, ...]
    files: tuple[Path, ...]
    labels: np.ndarray
    classes: ClassList
    test_ids: tuple[str, ...]
    test_files: tuple[Path, ...]
    problems: tuple[Problem, ...]

    def without(self, bad: dict[int, str]) -> "Dataset":
        """The same without the rows in `bad` (row to reason), which become a problem.

        Raises:
            InputError: fewer than two classes are left.
        """
        if not bad:
            return self
        keep = [row for row in range(len(self.ids)) if row not in bad]
        problem = Problem(
            what="labelled images that cannot be read",
            consequence="left out",
            items=tuple(f"{self.files[row].name} ({bad[row]})" for row in sorted(bad)),
        )
        if len({int(self.labels[row]) for row in keep}) < len(self.classes):
            raise InputError(
                f"every class must keep an image that can be read, in {self.folder} "
                f"a class has none: {problem.line()}"
            )
        return dataclasses.replace(
            self,
            ids=tuple(self.ids[row] for row in keep),
            files=tuple(self.files[row] for row in keep),
            labels=self.labels[keep],
            problems=(*self.problems, problem),
        )

    def raise_if_fatal(self) -> None:
        """Refuse a folder with a fatal problem.

        Raises:
            InputError: a problem that training must not start with.
        """
        for problem in self.problems:
            if problem.is_fatal:
                raise InputError(f"{self.folder}: {problem.line()}")

    def report(self) -> str:
        """Everything about the folder as text: counts, classes, all problems in full."""
        counts = np.bincount(self.labels, minlength=len(self.classes))
        lines = [
            f"folder: {self.folder}",
            f"labelled images: {len(self.ids)}",
            f"test images: {len(self.test_ids)}",
            f"classes: {len(self.classes)}",
        ]
        for index, label in enumerate(self.classes.labels):
            name = self.classes.names[index]
            mirror = self.classes.mirrors[index]
            flip = "never flipped" if mirror < 0 else f"mirror {self.classes.labels[mirror]}"
            title = label if name == label else f"{label} {name}"
            share = counts[index] / max(1, len(self.ids))
            lines.append(f"  {title}: {counts[index]} images, {share:.1%}, {flip}")
        lines.append(f"problems: {len(self.problems) or 'none'}")
        for problem in self.problems:
            severity = "error" if problem.is_fatal else "warning"
            lines.append(f"  {severity}: {problem.line()}")
        for problem in self.problems:
            if len(problem.items) > 5:
                lines += ["", f"all {problem.what}:", *(f"  {item}" for item in problem.items)]
        return "\n".join(lines) + "\n"


def dataset_digest(dataset: Dataset, file_digests: tuple[str, ...]) -> str:
    """16 hexadecimal digits of ids, labels and file contents, the same on every machine.

    Args:
        file_digests: `(N,)` of `dataset.files`, in their order.
    """
    digest = hashlib.sha256()
    for image_id, label, content in zip(dataset.ids, dataset.labels, file_digests, strict=True):
        digest.update(f"{image_id}\0{dataset.classes.labels[label]}\0{content}\n".encode())
    return digest.hexdigest()[:16]


def check_images(
    dataset: Dataset, num_workers: int = 0, progress: Callable[[int, int], None] | None = None
) -> Dataset:
    """The same data set, with the images that cannot be read among its problems.

    Args:
        num_workers: threads that decode; 0: one per core.
        progress: called with images done and in all.
    """
    files = [*dataset.files, *dataset.test_files]
    reasons: dict[int, str] = {}

    def decode(row: int) -> None:
        try:
            read_image(files[row].read_bytes(), 32)
        except (BadImageError, OSError) as error:
            reasons[row] = str(error)

    with concurrent.futures.ThreadPoolExecutor(num_workers or os.cpu_count()) as pool:
        for done, _ in enumerate(pool.map(decode, range(len(files))), start=1):
            if progress and (done % 64 == 0 or done == len(files)):
                progress(done, len(files))
    num_labelled = len(dataset.files)
    bad = {row: reason for row, reason in reasons.items() if row < num_labelled}
    bad_tests = [
        f"{files[row].name} ({reasons[row]})" for row in sorted(reasons) if row >= num_labelled
    ]
    checked = dataset.without(bad)
    if not bad_tests:
        return checked
    problem = Problem(
        what="test images that cannot be read",
        consequence="an ensemble refuses them without --skip-bad-images",
        items=tuple(bad_tests),
    )
    return dataclasses.replace(checked, problems=(*checked.problems, problem))


def read_dataset(folder: Path) -> Dataset:
    """Names, labels and problems of a data folder. Opens no image.

    Raises:
        InputError: files or columns are missing, or no labelled image is left. Contradictions
            between rows are problems marked fatal; `Dataset.raise_if_fatal` refuses them.
    """
    images = _list_folder(folder / "train_images")
    rows = _read_label_rows(folder / LABELS_FILE, images)
    problems: list[Problem] = []

    def note(what: str, consequence: str, items: Iterable[str], is_fatal: bool = False) -> None:
        if items := tuple(items):
            problems.append(
                Problem(what=what, consequence=consequence, items=items, is_fatal=is_fatal)
            )

    labels_of: dict[str, set[str]] = {}
    times: dict[str, int] = {}
    for image_id, label in rows:
        times[image_id] = times.get(image_id, 0) + 1
        labels_of.setdefault(image_id, set()).add(label)
    contradictions = {i for i, labels in labels_of.items() if len(labels) > 1}
    note("ids with different labels", "correct them", sorted_texts(contradictions), True)
    ambiguous = {i for i, paths in images.items() if len(paths) > 1 and i in labels_of}
    note(
        "ids with more than one image file",
        "keep one of each",
        [", ".join(p.name for p in images[i]) for i in sorted_texts(ambiguous)],
        True,
    )
    repeated = {i for i, n in times.items() if n > 1} - contradictions
    note("ids that stand there twice with the same label", "used once", sorted_texts(repeated))
    unlabelled = {i for i, labels in labels_of.items() if labels == {""}}
    note("rows without a label", "left out", sorted_texts(unlabelled))
    missing = {i for i in labels_of if i not in images} - unlabelled
    note("rows without an image", "left out", sorted_texts(missing))
    note("images without a row", "not used", sorted_texts(set(images) - set(labels_of)))

    usable = sorted_texts(
        set(labels_of) - contradictions - ambiguous - unlabelled - missing,
    )
    label_texts = {i: next(iter(labels_of[i])) for i in usable}
    classes = read_classes(set(label_texts.values()), folder / "classes.csv")
    index_of = classes.indices()
    labels = np.array([index_of[label_texts[i]] for i in usable], dtype=np.int64)
    single = [classes.labels[c] for c in np.flatnonzero(np.bincount(labels) == 1)]
    note("classes with a single image", "it trains and none validates", single)

    tests, ambiguous_tests = _list_tests(folder)
    note("test ids with more than one image file", "keep one of each", ambiguous_tests, True)
    dataset = Dataset(
        folder=folder,
        ids=tuple(usable),
        files=tuple(images[i][0] for i in usable),
        labels=labels,
        classes=classes,
        test_ids=tuple(tests),
        test_files=tuple(tests.values()),
        problems=tuple(problems),
    )
    if not contradictions and not ambiguous and len(classes) < 2:
        raise InputError(
            f"{folder} must have labelled images of at least two classes, found {len(usable)} "
            f"labelled images of {len(classes)} classes"
            + "".join(f"; {problem.line()}" for problem in problems)
        )
    return dataset


def read_test_images(folder: Path) -> dict[str, Path]:
    """The image files to predict by id, sorted by id.

    Raises:
        InputError: there are none, or an id has more than one.
    """
    tests, ambiguous = _list_tests(folder)
    if ambiguous:
        raise InputError(
            f"{folder / 'test_images'} must hold one image file an id, found "
            f"{first_few(ambiguous)}: keep one of each"
        )
    if not tests:
        raise InputError(
            f"{folder / 'test_images'} must hold the images to predict "
            f"({', '.join(SUFFIXES)}), found none"
        )
    return tests


def _list_tests(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """The test images by id, sorted, and the ids that have more than one file."""
    images = _list_folder(folder / "test_images", may_be_absent=True)
    ids = sorted_texts(images)
    ambiguous = [", ".join(p.name for p in images[i]) for i in ids if len(images[i]) > 1]
    return {image_id: images[image_id][0] for image_id in ids}, ambiguous


def _list_folder(folder: Path, *, may_be_absent: bool = False) -> dict[str, list[Path]]:
    if not folder.is_dir():
        if may_be_absent:
            return {}
        raise InputError(
            f"{folder.parent} must hold {LABELS_FILE} and the folder {folder.name}/, "
            f"found no {folder.name}/"
        )
    return list_images(folder)


def list_images(folder: Path) -> dict[str, list[Path]]:
    """The image files directly in `folder`, by stem; more than one where stems collide."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            found.setdefault(path.stem, []).append(path)
    return found


def _read_label_rows(path: Path, images: dict[str, list[Path]]) -> list[tuple[str, str]]:
    """`(id, label)` of each row of the labels file, which may or may not have a header."""
    if not path.is_file():
        raise InputError(f"{path.parent} must hold {path.name} (id,label), found none")
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            rows = [[cell.strip() for cell in row] for row in csv.reader(handle) if any(row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} must be a CSV file in UTF-8: {error}") from None
    if not rows:
        raise InputError(f"{path} must have a row id,label for each image, found no rows")
    id_column, label_column = 0, 1
    if _is_header(rows, images):
        header = [cell.lower() for cell in rows[0]]
        if "id" in header and "label" in header:
            id_column, label_column = header.index("id"), header.index("label")
        elif len(header) != 2:
            raise InputError(f"{path} must have the columns id,label, found {','.join(header)}")
        first = 2
    else:
        first = 1
    width = len(rows[0])
    if width < 2:
        raise InputError(f"{path} must have two columns, id,label, found one: {rows[0][0]!r}")
    for number, row in enumerate(rows, start=1):
        if len(row) != width:
            raise InputError(
                f"{path} must have {width} columns in every row, found {len(row)} in row {number}"
            )
    if first == 1 and width != 2:
        raise InputError(f"{path} must name its columns id and label, found {width} without names")
    return [(_stem(row[id_column], images), row[label_column]) for row in rows[first - 1 :]]


def _stem(image_id: str, images: dict[str, list[Path]]) -> str:
    """The id without an image suffix; files are often named in full in such tables."""
    path = Path(image_id)
    if image_id not in images and path.suffix.lower() in SUFFIXES:
        return path.stem
    return image_id


def _is_header(rows: list[list[str]], images: dict[str, list[Path]]) -> bool:
    """Whether the first row holds names of columns.

    The published file has no header: its first row names an existing image and is data. A first
    row whose id has no image is a header too, unless its label stands in other rows.
    """
    first = rows[0]
    if _stem(first[0], images) in images:
        return False
    if {"id", "label"} <= {cell.lower() for cell in first}:
        return True
    return len(first) != 2 or first[1] not in {row[1] for row in rows[1:] if len(row) > 1}
