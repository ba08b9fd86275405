"""The images below a folder, by id, and what else lies there."""

import dataclasses
import os
from pathlib import Path

from pose.errors import InputError, printable
from pose.files import reason_of
from pose_models.decode import HEIC_SUFFIXES, SUFFIXES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
    """What lies in a folder of images and in the folders in it; hidden things are left out.

    Attributes:
        images: the files of each id, which is the name below the folder without its suffix
            (`1`, `day1/1`); more than one file where these collide.
        id_of_name: the id of each file's name below the folder, with its suffix.
        odd: everything else, with what it is.
    """

    folder: Path
    images: dict[str, list[Path]]
    id_of_name: dict[str, str]
    odd: tuple[str, ...]

    def subfolders(self) -> list[str]:
        """The folders that images lie in, below this one."""
        return sorted({i.rpartition("/")[0] for i in self.images if "/" in i})


def list_images(folder: Path) -> Listing:
    """Everything in `folder`, sorted.

    Links to files are followed, links to folders are not, so that no cycle can be entered.

    Raises:
        InputError: a folder that cannot be read.
    """
    images: dict[str, list[Path]] = {}
    id_of_name: dict[str, str] = {}
    odd: list[str] = []
    unread_photos: list[str] = []
    # Names below `folder` that end in a slash; "" is the folder itself.
    waiting = [""]
    while waiting:
        inner = waiting.pop()
        for entry in _entries(folder, inner):
            name = inner + entry.name
            stem, suffix = os.path.splitext(name)
            if (what := _oddity(entry, suffix.lower())) is not None:
                odd.append(f"{name}{what}")
            elif entry.is_dir(follow_symlinks=False):
                waiting.append(f"{name}/")
            elif suffix.lower() in HEIC_SUFFIXES:
                unread_photos.append(name)
            else:
                images.setdefault(stem, []).append(folder / name)
                id_of_name[name] = stem
    for name in unread_photos:
        stem = os.path.splitext(name)[0]
        if stem in images:
            # It was converted, and kept beside the result.
            odd.append(name)
        else:
            # An image all the same: whoever reads it says that it cannot be read.
            images[stem] = [folder / name]
            id_of_name[name] = stem
    return Listing(
        folder=folder,
        images=images,
        id_of_name=id_of_name,
        odd=tuple(sorted(printable(name) for name in odd)),
    )


def _entries(folder: Path, inner: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder / inner) as entries:
            found = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(
            f"{printable(str(folder / inner))} must be a folder that can be read: "
            f"{reason_of(error)}"
        ) from None
    return sorted(found, key=lambda entry: entry.name)


def _oddity(entry: os.DirEntry[str], suffix: str) -> str | None:
    """Why an entry is neither an image nor a folder to look into, to be put behind its name."""
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        return " (a name that is not UTF-8)"
    if entry.is_dir(follow_symlinks=False):
        return " (a folder)" if suffix in SUFFIXES else None
    if suffix in SUFFIXES or suffix in HEIC_SUFFIXES:
        return None
    return " (a link to a folder: not followed)" if _leads_to_folder(entry) else ""


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_symlink() and entry.is_dir()
    except OSError:
        return False
