"""The images below a folder, by id, and what else lies there."""

import dataclasses
import difflib
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from pose.data.shards import TAR_SUFFIX, ImageFile, list_tar
from pose.errors import InputError, printable
from pose.files import reason_of
from pose_models.decode import HEIC_SUFFIXES, SUFFIXES

# A member of a tar that has the label of the image of the same name, as WebDataset writes it.
LABEL_SUFFIX = ".cls"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
    """What lies in a folder of images and in the folders in it; hidden things are left out.

    Attributes:
        images: the files of each id, which is the name below the folder without its suffix
            (`1`, `day1/1`); more than one file where these collide. The members of a tar file
            have the names that they would have if they were unpacked where it lies.
        id_of_name: the id of each file's name below the folder, with its suffix.
        odd: everything else, with what it is.
        labels: the files of labels in tars, of each id.
    """

    folder: Path
    images: dict[str, list[ImageFile]]
    id_of_name: dict[str, str]
    odd: tuple[str, ...]
    labels: dict[str, list[ImageFile]] = dataclasses.field(default_factory=dict)

    def subfolders(self) -> list[str]:
        """The folders that images lie in, below this one."""
        return sorted({i.rpartition("/")[0] for i in self.images if "/" in i})


def list_images(folder: Path, *, opens_tars: bool = False) -> Listing:
    """Everything in `folder`, sorted.

    Links to files are followed, links to folders are not, so that no cycle can be entered.

    Args:
        opens_tars: list what is in tar files, instead of them.

    Raises:
        InputError: a folder that cannot be read, or a tar file that is not whole.
    """
    return _listing(folder, _found(folder, opens_tars))


def list_tars(folder: Path) -> Listing:
    """What is in the tar files that lie in `folder` itself, of which there may be none.

    Raises:
        InputError: a folder that cannot be read, or a tar file that is not whole.
    """
    tars = [entry.name for entry in _entries(folder, "") if _is_tar(entry)]
    found = [item for name in tars for item in _found_in_tar(folder / name, "")]
    return _listing(folder, found)


def _is_tar(entry: os.DirEntry[str]) -> bool:
    suffix = os.path.splitext(entry.name)[1].lower()
    return suffix == TAR_SUFFIX and _oddity(entry, suffix) == ""


# A file's name below the folder that is listed, itself, and why it is no image, if it is none.
_Found = tuple[str, ImageFile, str | None]


def _listing(folder: Path, found: Iterable[_Found]) -> Listing:
    images: dict[str, list[ImageFile]] = {}
    id_of_name: dict[str, str] = {}
    labels: dict[str, list[ImageFile]] = {}
    odd: list[str] = []
    unread_photos: dict[str, ImageFile] = {}
    for name, file, what in found:
        stem, suffix = os.path.splitext(name)
        if what is not None:
            odd.append(f"{name}{what}")
        elif suffix.lower() in HEIC_SUFFIXES:
            unread_photos[name] = file
        elif suffix == LABEL_SUFFIX:
            labels.setdefault(stem, []).append(file)
        else:
            images.setdefault(stem, []).append(file)
            id_of_name[name] = stem
    for name, file in unread_photos.items():
        stem = os.path.splitext(name)[0]
        if stem in images:
            # It was converted, and kept beside the result.
            odd.append(name)
        else:
            # An image all the same: whoever reads it says that it cannot be read.
            images[stem] = [file]
            id_of_name[name] = stem
    return Listing(
        folder=folder,
        images=images,
        id_of_name=id_of_name,
        odd=tuple(sorted(printable(name) for name in odd)),
        labels=labels,
    )


def _found(folder: Path, opens_tars: bool) -> Iterator[_Found]:
    """Each file below `folder`, and in its tar files if they are opened."""
    # Names below `folder` that end in a slash; "" is the folder itself.
    waiting = [""]
    while waiting:
        inner = waiting.pop()
        for entry in _entries(folder, inner):
            name = inner + entry.name
            suffix = os.path.splitext(name)[1].lower()
            what = _oddity(entry, suffix)
            if opens_tars and _is_tar(entry):
                yield from _found_in_tar(folder / name, inner)
            elif what is None and entry.is_dir(follow_symlinks=False):
                waiting.append(f"{name}/")
            else:
                yield name, folder / name, what


def _found_in_tar(tar: Path, inner: str) -> Iterator[_Found]:
    members, odd = list_tar(tar)
    for member in members:
        suffix = member.suffix
        is_known = suffix.lower() in (*SUFFIXES, *HEIC_SUFFIXES) or suffix == LABEL_SUFFIX
        yield inner + member.inner, member, None if is_known else f" (in {tar.name})"
    for name, what in odd.items():
        yield inner + name, tar, f" (in {tar.name}: {what})"


def misnamed(folder: Path, known: Collection[str]) -> list[str]:
    """What has nearly the name of one of `known` that is not there: `Groups.csv for groups.csv`.

    It is not read, which would go unnoticed.
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    missing = sorted(set(known) - set(names))
    found = []
    for name in (name for name in names if name not in known):
        # Another case, an ending that was forgotten: one letter or two of ten.
        close = difflib.get_close_matches(name.lower(), missing, 1, 0.85)
        found += [f"{printable(name)} for {close[0]}"] if close else []
    return found


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
