"""The image files that a user names: a folder, a pattern, or a table of paths."""

import collections
import dataclasses
import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from pose.data.listing import Listing, list_images
from pose.data.shards import ImageFile
from pose.data.table import column_of, read_table, shown_cells
from pose.errors import InputError, first_few, printable
from pose_models.decode import SUFFIXES

# Names of the column of a table that holds paths.
COLUMNS = ("file", "path", "image")


@dataclasses.dataclass(frozen=True)
class FoundImages:
    """What a user named.

    Attributes:
        files: by name, sorted as their source lists them: the path below a folder, a path as a
            pattern finds it, or a cell of a table. Whether a file can be read is not asked. The
            members of tar files in a folder have the names that they would have unpacked there.
        odd: what else lies in a folder, with what it is.
    """

    files: dict[str, ImageFile]
    odd: tuple[str, ...] = ()


def find_images(images: str) -> FoundImages:
    """Every image file that is named.

    Args:
        images: a folder, an image file, a glob pattern, or a CSV or Parquet file with a column
            `file`, `path` or `image` (any name if it has no other), whose paths start at its
            folder.

    Raises:
        InputError: it is none of these, or names no image, or one twice; or a tar file in the
            folder is not whole.
    """
    place = Path(images)
    odd: tuple[str, ...] = ()
    found: dict[str, ImageFile]
    if os.path.isdir(place):
        listing = list_images(place, opens_tars=True)
        found, odd = _by_name(listing), listing.odd
    elif os.path.isfile(place) and place.suffix.lower() in (".csv", ".parquet"):
        found = {name: place.parent / name for name in _paths_in(place)}
    elif os.path.isfile(place):
        found = {images: place}
    else:
        paths = sorted(_matches(images))
        found = {name: Path(name) for name in paths if not os.path.isdir(name)}
    if not found:
        raise InputError(
            "images must be a folder with images, a pattern that finds some, or a CSV or Parquet "
            f"table of paths, got {printable(images)[:200]!r}, which has none"
        )
    return FoundImages(found, odd)


def _matches(pattern: str) -> set[str]:
    """What a pattern finds; `**` stands for a folder and all below it, each of them once.

    The standard library's goes round in circles where a link leads back up, without an end where
    two do.
    """
    parts = pattern.split(os.sep)
    if "**" not in parts:
        return set(glob.glob(pattern))
    place = parts.index("**")
    above, below = os.sep.join(parts[:place]), parts[place + 1 :] or ["*"]
    tops = glob.glob(above or os.sep) if place else [""]
    folders = (folder for top in tops for folder in _folders(top))
    return {
        path for folder in folders for path in _matches(os.path.join(glob.escape(folder), *below))
    }


def _folders(top: str) -> Iterator[str]:
    """A folder and those below it that are not hidden, behind links too, but each only once."""
    waiting, seen = [top], set()
    while waiting:
        folder = waiting.pop()
        try:
            info = os.stat(folder or os.curdir)
            if (info.st_dev, info.st_ino) in seen:
                continue
            seen.add((info.st_dev, info.st_ino))
            names = sorted(os.listdir(folder or os.curdir), reverse=True)
        except OSError:
            # No folder, or one that may not be looked into: a pattern finds nothing there.
            continue
        yield folder
        waiting += [os.path.join(folder, name) for name in names if not name.startswith(".")]


def _by_name(listing: Listing) -> dict[str, ImageFile]:
    """The files of a folder by their names below it, sorted."""
    files = [(stem, file) for stem, own in listing.images.items() for file in own]
    named = [(stem + os.path.splitext(file.name)[1], file) for stem, file in files]
    twice = _more_than_once([name for name, _ in named])
    if twice:
        raise InputError(
            f"{listing.folder} must have every image once, in a tar file or unpacked, found "
            f"{len(twice)} more than once: {first_few(twice)}"
        )
    return dict(sorted(named, key=lambda item: item[0]))


def _more_than_once(names: Iterable[str]) -> list[str]:
    return [printable(name) for name, times in collections.Counter(names).items() if times > 1]


def _paths_in(path: Path) -> list[str]:
    header, *rows = _read_rows(path)
    places = {column_of(path, header, name) for name in COLUMNS} - {None}
    if len(header) == 1 and not places:
        places = {0}
        # It has no header: that names a file, or what could be one.
        if os.path.isfile(path.parent / header[0]) or Path(header[0]).suffix.lower() in SUFFIXES:
            rows = [header, *rows]
    if len(places) != 1:
        raise InputError(
            f"{path} must have one column of paths ({', '.join(COLUMNS)}), found "
            f"{', '.join(header)[:100]}"
        )
    (place,) = places
    assert place is not None
    return _checked_names(path, rows, place)


def _checked_names(path: Path, rows: list[list[str]], place: int) -> list[str]:
    """The cells of a column of paths, each of which has a row of its own in the result."""
    short = next((row for row in rows if len(row) <= place or not row[place]), None)
    if short is not None:
        raise InputError(
            f"{path} must have a path in every row, found a row without: "
            f"{shown_cells(short) or 'an empty one'}"
        )
    names = [row[place] for row in rows]
    twice = _more_than_once(names)
    if twice:
        raise InputError(
            f"{path} must name every image once, found {len(twice)} more than once: "
            f"{first_few(twice)}"
        )
    return names


def _read_rows(path: Path) -> list[list[str]]:
    if path.suffix.lower() == ".csv":
        return [list(row.cells) for row in read_table(path)] or [[""]]
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    # Whatever is wrong with it, pyarrow says it in its own types.
    except Exception as error:
        raise InputError(f"{path} must be a Parquet table, found: {str(error)[:100]}") from error
    return [list(map(str, frame.columns)), *frame.astype(str).values.tolist()]
