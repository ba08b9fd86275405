"""A data folder: what is in it, and what is wrong with it.

Reads names and labels; pixels are the business of `pose.data.cache`.

    dataset/
      train_solution.csv      id,label (the header row may be missing); not needed where tar files
                              have the label of <id>.jpg in <id>.cls
      train_images/<id>.jpg   or in folders: the id of day1/1.jpg is day1/1; or in tar files,
                              which may also lie beside train_solution.csv, without train_images/
      test_images/<id>.jpg
      classes.csv             optional: label,name,mirror
      groups.csv              optional: id,group; see `pose.data.group_names`
      sample_submission.csv   optional: see `pose.data.submission`
"""

import concurrent.futures
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from pose.data.classes import ClassList, read_classes, sorted_texts
from pose.data.group_names import GROUPS_FILE, name_groups
from pose.data.groups import Groups, leaders
from pose.data.labels import (
    LabelRows,
    alike,
    look_alikes,
    missing_values,
    read_label_rows,
    read_tar_labels,
)
from pose.data.listing import Listing, list_images, list_tars, misnamed
from pose.data.problem import Problem
from pose.data.shards import TAR_SUFFIX, ImageFile, TarMember, read_file
from pose.data.submission import SAMPLE_FILE, submission_problem
from pose.errors import InputError, first_few, printable
from pose.files import reason_of
from pose_models.decode import SUFFIXES, BadImageError, orientation_of, read_image

LABELS_FILE = "train_solution.csv"
CLASSES_FILE = "classes.csv"
IMAGE_FOLDERS = ("train_images", "test_images")
# What an output must not replace.
INPUT_FILES = (
    LABELS_FILE, CLASSES_FILE, GROUPS_FILE, SAMPLE_FILE, "test_solution.csv",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """The usable rows of a data folder, and its problems.

    Attributes:
        ids: `(N,)` of the labelled images, sorted.
        files: `(N,)` image file of each id.
        labels: `(N,)` int64 class indices.
        test_ids: `(M,)` of the images to predict, sorted.
        test_files: `(M,)`.
        num_turned: images whose metadata asks for another orientation than they are stored in;
            None where nobody has looked.
        groups: which of the labelled images belong together.
        notes: what else the report says of them, in lines.
        excluded: ids of labelled images that are left out because somebody asked for it.
    """

    folder: Path
    ids: tuple[str, ...]
    files: tuple[ImageFile, ...]
    labels: np.ndarray
    classes: ClassList
    test_ids: tuple[str, ...]
    test_files: tuple[ImageFile, ...]
    problems: tuple[Problem, ...]
    num_turned: int | None = None
    groups: Groups = Groups()
    notes: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()

    def group_names(self) -> dict[str, str] | None:
        """The group of each labelled id, by its first id; None where every image stands alone."""
        first = self.groups.joined(len(self.ids))
        if (first == np.arange(len(self.ids))).all():
            return None
        return {own: self.ids[row] for own, row in zip(self.ids, first.tolist(), strict=True)}

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
            items=tuple(
                f"{_name(self.ids[row], self.files[row])} ({bad[row]})" for row in sorted(bad)
            ),
        )
        if len({int(self.labels[row]) for row in keep}) < len(self.classes):
            raise InputError(
                f"every class must keep an image that can be read, in {self.folder} "
                f"a class has none: {problem.line()}"
            )
        return dataclasses.replace(self.take(keep), problems=(*self.problems, problem))

    def excluding(self, ids: tuple[str, ...]) -> "Dataset":
        """The same without the images of `ids`.

        Raises:
            InputError: a class has no image left.
        """
        if not ids:
            return self
        gone = set(ids)
        keep = [row for row, image_id in enumerate(self.ids) if image_id not in gone]
        lost = set(self.labels.tolist()) - set(self.labels[keep].tolist())
        if lost:
            names = first_few(printable(self.classes.labels[index]) for index in sorted(lost))
            raise InputError(
                f"exclude must leave an image of every class, found that it leaves none of {names}"
            )
        return dataclasses.replace(self.take(keep), excluded=ids)

    def take(self, rows: list[int]) -> "Dataset":
        """The same with only those of the labelled images."""
        return dataclasses.replace(
            self,
            ids=tuple(self.ids[row] for row in rows),
            files=tuple(self.files[row] for row in rows),
            labels=self.labels[rows],
            groups=self.groups.take(rows),
        )

    def with_copies(self, contents: Sequence[str]) -> "Dataset":
        """The same, knowing which images have equal bytes.

        Args:
            contents: `(N,)` digest of each file.
        """
        _, copies = np.unique(contents, return_inverse=True)
        groups = dataclasses.replace(self.groups, copies=copies)
        problems = (*self.problems, *self._contradicting(copies))
        return dataclasses.replace(self, groups=groups, problems=problems)

    def _contradicting(self, copies: np.ndarray) -> list[Problem]:
        """The problem of images of equal bytes that have different labels, if there are any.

        Args:
            copies: `(N,)` equal for images of equal bytes.
        """
        rows_of: dict[int, list[int]] = {}
        for row, copy in enumerate(copies.tolist()):
            rows_of.setdefault(copy, []).append(row)
        items = tuple(
            first_few(f"{self.ids[r]} ({self.classes.labels[self.labels[r]]})" for r in rows)
            for rows in rows_of.values()
            if len({int(self.labels[row]) for row in rows}) > 1
        )
        what = "groups of images of equal bytes with different labels"
        consequence = "all are used: correct the labels, or leave some out"
        return [Problem(what=what, consequence=consequence, items=items)] if items else []

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
            f"labelled images: {len(self.ids)}{_in_folders(self.ids)}",
            *([f"left out by exclude: {len(self.excluded)}"] if self.excluded else []),
            f"test images: {len(self.test_ids)}{_in_folders(self.test_ids)}",
            *self.groups.lines(len(self.ids)),
            *self.notes,
            f"classes: {len(self.classes)}",
        ]
        if self.num_turned is not None:
            lines.append(
                f"images that are turned as their EXIF orientation asks: {self.num_turned}"
                + (" (exif=ignore reads them as stored)" if self.num_turned else "")
            )
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
        if self.excluded:
            lines += ["", "left out by exclude:", *(f"  {printable(i)}" for i in self.excluded)]
        return "\n".join(lines) + "\n"


def dataset_digest(dataset: Dataset, file_digests: tuple[str, ...]) -> str:
    """16 hexadecimal digits of ids, labels, file contents and named groups.

    They are the same on every machine. Rows that are a group of their own count like rows without.

    Args:
        file_digests: `(N,)` of `dataset.files`, in their order.
    """
    digest = hashlib.sha256()
    for image_id, label, content in zip(dataset.ids, dataset.labels, file_digests, strict=True):
        digest.update(f"{image_id}\0{dataset.classes.labels[label]}\0{content}\n".encode())
    if dataset.groups.named is not None:
        for row, leader in enumerate(leaders(dataset.groups.named).tolist()):
            if leader != row:
                digest.update(f"group\0{dataset.ids[row]}\0{dataset.ids[leader]}\n".encode())
    return digest.hexdigest()[:16]


def check_images(
    dataset: Dataset,
    num_workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
    see: Callable[[int, np.ndarray], None] = lambda row, image: None,
) -> Dataset:
    """The same data set, with the images that cannot be read among its problems.

    Args:
        num_workers: threads that decode; 0: one per core.
        progress: called with the number of images done and in all.
        see: called, in any thread, with the number of each image that can be read (the labelled
            ones are counted first) and its pixels `(3, 32, 32)` uint8.
    """
    files = [*dataset.files, *dataset.test_files]
    ids = [*dataset.ids, *dataset.test_ids]
    reasons: dict[int, str] = {}
    contents = [""] * len(files)
    turned: set[int] = set()

    def decode(row: int) -> None:
        try:
            data = read_file(files[row])
            contents[row] = hashlib.sha256(data).hexdigest()
            see(row, read_image(data, 32))
            if orientation_of(data) != 1:
                turned.add(row)
        except BadImageError as error:
            reasons[row] = str(error)
        except OSError as error:
            reasons[row] = reason_of(error)

    with concurrent.futures.ThreadPoolExecutor(num_workers or os.cpu_count()) as pool:
        for done, _ in enumerate(pool.map(decode, range(len(files))), start=1):
            if progress and (done % 64 == 0 or done == len(files)):
                progress(done, len(files))
    num_labelled = len(dataset.files)
    dataset = dataset.with_copies(contents[:num_labelled])
    bad = {row: reason for row, reason in reasons.items() if row < num_labelled}
    bad_tests = [
        f"{_name(ids[row], files[row])} ({reasons[row]})"
        for row in sorted(reasons)
        if row >= num_labelled
    ]
    checked = dataclasses.replace(dataset.without(bad), num_turned=len(turned))
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
    listing = _list_labelled(folder)
    has_table = os.path.lexists(folder / LABELS_FILE) or not listing.labels
    table = (
        read_label_rows(folder / LABELS_FILE, listing) if has_table else read_tar_labels(listing)
    )
    rows = _Rows(table, listing)
    usable = rows.usable()
    label_texts = {i: next(iter(rows.labels_of[i])) for i in usable}
    classes, slips = read_classes(set(label_texts.values()), folder / CLASSES_FILE)
    index_of = classes.indices()
    labels = np.array([index_of[label_texts[i]] for i in usable], dtype=np.int64)
    named, wrong_groups = name_groups(folder, table, listing, usable)
    tests, ambiguous_tests, test_listing = _list_tests(folder)
    problems = (
        *rows.problems(),
        *_file_problems(folder, listing, has_table),
        *slips,
        *_class_problems(classes, labels),
        *wrong_groups,
        *_noted(
            "test ids with more than one image file", "keep one of each", ambiguous_tests, True
        ),
        *_odd_files(test_listing, "not predicted"),
        *submission_problem(folder, tuple(tests), test_listing),
    )
    if not rows.is_contradictory and len(classes) < 2:
        raise InputError(
            f"{folder} must have labelled images of at least two classes, found "
            f"{_count(len(usable), 'labelled image')} of {_count(len(classes), 'class', 'es')}"
            + "".join(f"; {problem.line()}" for problem in problems)
        )
    return Dataset(
        folder=folder,
        ids=tuple(usable),
        files=tuple(listing.images[i][0] for i in usable),
        labels=labels,
        classes=classes,
        test_ids=tuple(tests),
        test_files=tuple(tests.values()),
        problems=problems,
        groups=Groups(named=named),
    )


def _noted(
    what: str, consequence: str, items: Iterable[str], is_fatal: bool = False
) -> Iterator[Problem]:
    """The problem of `items`, if there are any."""
    if items := tuple(items):
        yield Problem(what=what, consequence=consequence, items=items, is_fatal=is_fatal)


class _Rows:
    """The rows of a table of labels beside the images, sorted by what can be done with them.

    Attributes:
        labels_of: the labels of each id; ids that are empty are left out.
    """

    def __init__(self, table: LabelRows, listing: Listing) -> None:
        self._header = table.header
        self._listing = listing
        self.labels_of, times = _labels_by_id(table)
        self._nameless = sorted(self.labels_of.pop("", ()))
        images = listing.images
        self._contradictions = {i for i, labels in self.labels_of.items() if len(labels) > 1}
        self._ambiguous = {i for i in self.labels_of if len(images.get(i, ())) > 1}
        self._repeated = {i for i, n in times.items() if n > 1 and i} - self._contradictions
        self._unlabelled = {i for i, labels in self.labels_of.items() if labels == {""}}
        self._missing = {i for i in self.labels_of if i not in images} - self._unlabelled

    @property
    def is_contradictory(self) -> bool:
        """Whether an id has more than one label, or more than one image."""
        return bool(self._contradictions or self._ambiguous)

    def usable(self) -> list[str]:
        """The ids that have one label and one image, sorted."""
        unusable = self._contradictions | self._ambiguous | self._unlabelled | self._missing
        return sorted_texts(set(self.labels_of) - unusable)

    def problems(self) -> Iterator[Problem]:
        """What is wrong with rows, in the order in which people would mend it."""
        if self._header is not None:
            yield from _noted(
                "row taken for names of columns", "name them id,label", [self._header]
            )
        nameless = (f"label {printable(label)}" for label in self._nameless)
        yield from _noted("ids that are empty", "left out", nameless)
        contradictions = sorted_texts(self._contradictions)
        yield from _noted("ids with different labels", "correct them", contradictions, True)
        images, missing = self._listing.images, self._missing
        ambiguous = [_names(i, images[i]) for i in sorted_texts(self._ambiguous)]
        yield from _noted("ids with more than one image file", "keep one of each", ambiguous, True)
        what = "ids that stand there twice with the same label"
        yield from _noted(what, "used once", sorted_texts(self._repeated))
        yield from _noted("rows without a label", "left out", sorted_texts(self._unlabelled))
        advice = _advice(missing, self._listing)
        yield from _noted("rows without an image", advice, sorted_texts(missing))
        without = sorted_texts(set(images) - set(self.labels_of))
        yield from _noted("images without a row", "not used", without)


def _labels_by_id(table: LabelRows) -> tuple[dict[str, set[str]], dict[str, int]]:
    """The labels of each id, and in how many rows it stands."""
    labels_of: dict[str, set[str]] = {}
    times: dict[str, int] = {}
    for image_id, label in table.rows:
        times[image_id] = times.get(image_id, 0) + 1
        labels_of.setdefault(image_id, set()).add(label)
    return labels_of, times


def _file_problems(folder: Path, listing: Listing, has_table: bool) -> Iterator[Problem]:
    """What is wrong with files other than the images that rows name."""
    what = "files whose names are nearly those of files that are read"
    yield from _noted(what, "rename them", misnamed(folder, (*INPUT_FILES, *IMAGE_FOLDERS)))
    yield from _odd_files(listing, "left out")
    if has_table:
        advice = f"not read: {LABELS_FILE} has them"
        yield from _noted("labels in tar files", advice, sorted_texts(listing.labels))


def _class_problems(classes: ClassList, labels: np.ndarray) -> Iterator[Problem]:
    """What is odd about the classes."""
    yield from _noted(
        "groups of labels that look alike",
        "each is a class of its own: make them one if they are meant to be",
        look_alikes(classes.labels),
    )
    yield from _noted(
        "labels that mean a missing value in other programs",
        "each is a class: leave the label empty if there is none",
        missing_values(classes.labels),
    )
    single = [classes.labels[c] for c in np.flatnonzero(np.bincount(labels) == 1)]
    yield from _noted("classes with a single image", "it trains and none validates", single)


def _advice(missing: set[str], listing: Listing) -> str:
    """What becomes of rows without an image, and where images of these names lie instead."""
    names = {i.rpartition("/")[2] for i in missing}
    folders = sorted(
        {i.rpartition("/")[0] for i in listing.images if "/" in i and i.rpartition("/")[2] in names}
    )
    if not folders:
        # Spreadsheets take zeros away and add decimals.
        meant = alike(sorted_texts(missing), sorted_texts(listing.images))
        pairs = first_few((f"{printable(own)} for {printable(meant[own])}" for own in meant), 3)
        return f"left out; ids must be written as files are named: {pairs}" if meant else "left out"
    where = ", ".join(f"{listing.folder.name}/{printable(inner)}/" for inner in folders[:3])
    return f"left out; {where} has such names: move its images up, or write the folder into the ids"


def _odd_files(listing: Listing | None, consequence: str) -> list[Problem]:
    if listing is None or not listing.odd:
        return []
    return [
        Problem(
            what=f"files in {listing.folder.name}/ that are no images",
            consequence=f"{consequence}; images are {' '.join(SUFFIXES)}",
            items=listing.odd,
        )
    ]


def _name(image_id: str, file: ImageFile) -> str:
    """The name of an image's file below the folder of images."""
    where = f" in {file.tar.name}" if isinstance(file, TarMember) else ""
    return f"{image_id}{file.suffix}{where}"


def _names(image_id: str, files: list[ImageFile]) -> str:
    return ", ".join(_name(image_id, file) for file in files)


def _in_folders(ids: tuple[str, ...]) -> str:
    """How many of the images lie in which folders; nothing where none does."""
    folders = [i.rpartition("/")[0] for i in ids if "/" in i]
    if not folders:
        return ""
    names = first_few(f"{printable(name)}/" for name in sorted(set(folders)))
    return f", {len(folders)} of them in folders: {names}"


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number} {noun}{'' if number == 1 else plural}"


def read_test_images(
    folder: Path, say: Callable[[str], None] = lambda line: None
) -> dict[str, ImageFile]:
    """The image files to predict by id, sorted by id.

    Args:
        say: is told, in one line, of files that will have no prediction.

    Raises:
        InputError: there are none, or an id has more than one.
    """
    tests, ambiguous, listing = _list_tests(folder)
    odd = _odd_files(listing, "not predicted")
    for problem in odd:
        say(f"warning: {problem.line()}")
    if ambiguous:
        raise InputError(
            f"{folder / 'test_images'} must hold one image file per id, found "
            f"{first_few(ambiguous)}: keep one of each"
        )
    if not tests:
        raise InputError(
            f"{folder / 'test_images'} must hold the images to predict "
            f"({', '.join(SUFFIXES)}), found none" + "".join(f"; {p.line()}" for p in odd)
        )
    return tests


def refuse_input(path: Path, folder: Path, option: str) -> None:
    """Keep an output from replacing what a data folder holds.

    Raises:
        InputError: `path`, links followed, is a file that is read from `folder`.
    """
    target = Path(os.path.realpath(path))
    inputs = [folder / name for name in INPUT_FILES]
    is_tar = target.suffix.lower() == TAR_SUFFIX and _is_same(target.parent, folder)
    is_file = is_tar or any(_is_same(target, known) for known in inputs)
    roots = [Path(os.path.realpath(folder / name)) for name in IMAGE_FOLDERS]
    if is_file or any(root == target or root in target.parents for root in roots):
        raise InputError(
            f"{option} must not replace what lies in the data folder {folder}, got {str(path)!r}: "
            "give another name"
        )


def _is_same(target: Path, known: Path) -> bool:
    try:
        return target.samefile(known)
    except OSError:
        return target == Path(os.path.realpath(known))


def _list_tests(folder: Path) -> tuple[dict[str, ImageFile], list[str], Listing | None]:
    """The test images by id, sorted, ids that have more than one file, and all that lies there."""
    images = folder / "test_images"
    if not os.path.lexists(images):
        return {}, [], None
    listing = _list_folder(images)
    ids = sorted_texts(listing.images)
    ambiguous = [_names(i, listing.images[i]) for i in ids if len(listing.images[i]) > 1]
    return {i: listing.images[i][0] for i in ids}, ambiguous, listing


def _list_labelled(folder: Path) -> Listing:
    """The labelled images, or what is in tar files beside the labels where they lie there."""
    images = folder / IMAGE_FOLDERS[0]
    if not os.path.lexists(images) and (tars := list_tars(folder)).images:
        return tars
    return _list_folder(images)


def _list_folder(folder: Path) -> Listing:
    if not os.path.lexists(folder):
        raise InputError(
            f"{folder.parent} must hold {LABELS_FILE} and the folder {folder.name}/, "
            f"found {(*misnamed(folder.parent, (folder.name,)), f'no {folder.name}/')[0]}"
        )
    return list_images(folder, opens_tars=True)
