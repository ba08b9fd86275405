"""Files that are looked through once, so that they need not be kept decoded.

What a run must know before it trains, digests, bad files and marks, is kept on disk as that of a
cache is; the pixels are not.
"""

import concurrent.futures
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pose.data.cache import (
    INDEX,
    DamagedError,
    ImageCache,
    Progress,
    changed_at,
    check_files,
    check_index,
    default_cache_root,
    key_of,
    open_cache,
)
from pose.data.decoding import Decoding, decode_file
from pose.data.near_twins import MARKS, MARKS_CHUNK, Marks, mark, read_marks, shrink, write_marks
from pose.data.shards import ImageFile, reading_order
from pose.data.streamed import StreamedImages
from pose.errors import InputError, one_line
from pose.files import locked, read_bytes, reason_of, remove_partials, write_text
from pose_models.framing import Framing, as_framing


def open_stream(
    files: Sequence[ImageFile],
    size: int | Framing,
    *,
    cache_root: Path | None = None,
    num_workers: int = 0,
    progress: Progress | None = None,
    obey_exif: bool = True,
) -> ImageCache:
    """The images of `files`, decoded when they are asked for; files are looked through if need be.

    Takes and raises what `open_cache` does. What was found is kept under the same conditions, in
    less than a kilobyte and a half for each image.
    """
    root = cache_root or default_cache_root()
    decoding = Decoding(files, as_framing(size), obey_exif)
    folder = root / f"{key_of(decoding)}-stream"
    notes: tuple[str, ...] = ()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(root / f"{folder.name}.lock"):
            try:
                index = _read_index(folder, decoding)
            except DamagedError as error:
                notes = (f"{folder} is made anew: {error}",)
                index = None
            if index is None:
                index, marks = _survey(decoding, num_workers or os.cpu_count() or 1, progress)
                notes += _keep(folder, index, marks)
    except OSError as error:
        raise InputError(
            f"cache_root must be a folder that can be written to, got {str(root)[:200]!r} "
            f"({reason_of(error)}): give another --cache-root"
        ) from error
    bad = {int(row): reason for row, reason in index["bad"].items()}
    return ImageCache(
        images=StreamedImages(decoding, index["digests"], bad, num_workers),
        digests=tuple(index["digests"]),
        bad=bad,
        folder=folder,
        notes=notes,
    )


def _read_index(folder: Path, decoding: Decoding) -> dict[str, Any] | None:
    """What is known of the files; None if nobody has looked.

    Raises:
        DamagedError: it cannot be read, or files have other bytes now.
    """
    try:
        index: dict[str, Any] = json.loads(read_bytes(folder / INDEX))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DamagedError(f"{INDEX} cannot be read ({type(error).__name__})") from None
    check_index(index, len(decoding.files), ("changed",))
    check_files(decoding.files, index)
    if read_marks(folder / MARKS, len(decoding.files)) is None:
        raise DamagedError(f"{MARKS} is missing or damaged")
    return index


def _keep(folder: Path, index: dict[str, Any], marks: Marks) -> tuple[str, ...]:
    """Write what was found, the index last; a note if it cannot be written."""
    try:
        # Nobody else writes there: the lock is held.
        remove_partials(folder)
        write_marks(folder / MARKS, marks)
        write_text(folder / INDEX, json.dumps(index))
    except InputError as error:
        return (
            f"what was found in the images could not be kept in {folder} ({one_line(error)}): the "
            "next run looks through them again",
        )
    return ()


def _survey(
    decoding: Decoding, num_workers: int, progress: Progress | None
) -> tuple[dict[str, Any], Marks]:
    """Read and decode every file once."""
    num_files = len(decoding.files)
    digests = [""] * num_files
    # Before they are read: a file that changes meanwhile is a suspect at once.
    changed = [changed_at(path) for path in decoding.files]
    bad: dict[int, str] = {}
    black = shrink(torch.zeros((1, 3, decoding.size, decoding.size), dtype=torch.uint8))

    ways = [(decoding.framing, decoding.obey_exif)]

    def look(row: int) -> Tensor:
        digests[row], pixels, reason = decode_file(decoding.files[row], ways)
        if reason:
            bad[row] = reason
            return black
        return shrink(torch.from_numpy(np.ascontiguousarray(pixels[0]))[None])

    parts = []
    order = reading_order(decoding.files)
    with concurrent.futures.ThreadPoolExecutor(num_workers) as pool:
        for start in range(0, num_files, MARKS_CHUNK):
            small = []
            looks = pool.map(look, order[start : start + MARKS_CHUNK])
            for done, own in enumerate(looks, start=start + 1):
                small.append(own)
                if progress and (done % 64 == 0 or done == num_files):
                    progress(done, num_files)
            parts.append(mark(torch.cat(small)))
    index = {
        "digests": digests,
        "changed": changed,
        "bad": {str(row): bad[row] for row in sorted(bad)},
    }
    return index, Marks.joined(parts).of(np.argsort(order))


# By the setting `cache`: how images are had, the same ones in the same rows.
OPENERS = {"decoded": open_cache, "stream": open_stream}
