"""Images that look alike: the same picture stored again, smaller, lighter or a little cut.

An image's mark is a perceptual hash and a thumbnail. The hash is that of pHash: the signs, about
their median, of 8 x 8 low frequencies of a discrete cosine transform (Zauner, "Implementation and
benchmarking of perceptual image hash functions", 2010). Pairs whose hashes differ in few bits are
found by multi-index hashing (Norouzi, Punjani and Fleet, 2012, arXiv:1307.2982), without a look at
all pairs; the thumbnails then say whether they show the same. Pictures that were shifted, turned,
mirrored, or cut by more than 2 % are not found: `benchmarks/reports/twins.md`.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pose.arrays import read_arrays, write_arrays
from pose.data.streamed import Images

# Bits of 64. Half of each hash is set, so that two differ in an even number.
MAX_DISTANCE = 10
# Of thumbnails, colours centred: the hash proposes, this decides. Of 3.1 million pairs of different
# drawings the highest is 0.93.
MIN_CORRELATION = 0.95
# A side in pixels of what is hashed; images may come at any size, and are averaged to it.
SIDE = 32
_THUMB_SIDE = 16
_NUM_LOW = 8
_LUMA = (0.299, 0.587, 0.114)
# Two hashes with at most 7 different bits have one of four parts with at most one; of those with
# 8, 96 % have, of those with 10, 78 %.
_BAND_BITS = 16
_NUM_BANDS = 4
# Images of a crowd that share a part of their hash are compared with so many of it. A crowd of
# blank pages would be compared with all of itself otherwise.
_WINDOW = 64
# Images that are marked at a time.
MARKS_CHUNK = 512
# Beside decoded images.
MARKS = "marks.npz"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Marks:
    """By what N images are recognized.

    Attributes:
        hashes: `(N,)` uint64.
        thumbs: `(N, 768)` uint8, RGB of 16 x 16 pixels.
    """

    hashes: np.ndarray
    thumbs: np.ndarray

    def of(self, rows: np.ndarray | list[int]) -> "Marks":
        """Those of some images alone."""
        return Marks(hashes=self.hashes[rows], thumbs=self.thumbs[rows])

    def followed_by(self, other: "Marks") -> "Marks":
        """These images, then those."""
        return Marks.joined([self, other])

    @staticmethod
    def joined(parts: "Sequence[Marks]") -> "Marks":
        """The images of all parts, one part after the other."""
        none = Marks(
            hashes=np.empty(0, dtype=np.uint64),
            thumbs=np.empty((0, 3 * _THUMB_SIDE**2), dtype=np.uint8),
        )
        return Marks(
            hashes=np.concatenate([part.hashes for part in (none, *parts)]),
            thumbs=np.concatenate([part.thumbs for part in (none, *parts)]),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Twins:
    """Pairs of images that look alike.

    Attributes:
        pairs: `(K, 2)` rows of images, the lower first; sorted.
        distances: `(K,)` in how many of 64 bits their hashes differ.
    """

    pairs: np.ndarray
    distances: np.ndarray


def marks_of(images: Images, rows: np.ndarray) -> Marks:
    """The marks of `images[rows]`.

    Args:
        images: `(N, 3, S, S)` uint8, of any S; may be memory-mapped.
        rows: `(n,)`.
    """
    chunks = [rows[start : start + MARKS_CHUNK] for start in range(0, len(rows), MARKS_CHUNK)]
    return Marks.joined([mark(shrink(images[torch.from_numpy(own)])) for own in chunks])


def shrink(images: Tensor) -> Tensor:
    """What is marked of images `(n, 3, S, S)` uint8: `(n, 3, SIDE, SIDE)` float32."""
    return F.adaptive_avg_pool2d(images.float(), SIDE)


def mark(small: Tensor) -> Marks:
    """The marks of at most `MARKS_CHUNK` images, as `shrink` gives them."""
    thumbs = F.avg_pool2d(small, SIDE // _THUMB_SIDE).round().byte().flatten(1).numpy()
    return Marks(hashes=_hash(small.numpy()), thumbs=thumbs)


def write_marks(path: Path, marks: Marks) -> None:
    """Write marks atomically.

    Raises:
        InputError: they cannot be written.
    """
    write_arrays(path, hashes=marks.hashes, thumbs=marks.thumbs)


def read_marks(path: Path, num_images: int) -> Marks | None:
    """Marks that were kept; None where there are none, or what is there is damaged."""
    kept = read_arrays(path)
    if kept is None or not {"hashes", "thumbs"} <= set(kept):
        return None
    marks = Marks(hashes=kept["hashes"], thumbs=kept["thumbs"])
    return marks if len(marks.hashes) == len(marks.thumbs) == num_images else None


def _hash(small: np.ndarray) -> np.ndarray:
    """`(N,)` uint64 of images `(N, 3, SIDE, SIDE)` float32."""
    places = np.arange(SIDE)
    frequencies = np.arange(1, _NUM_LOW + 1)[:, None]
    cosines = np.cos(np.pi * (places + 0.5) * frequencies / SIDE).astype(np.float32)
    gray = np.einsum("c,nchw->nhw", np.array(_LUMA, dtype=np.float32), small)
    low = (cosines @ gray @ cosines.T).reshape(len(gray), -1)
    bits = low > np.median(low, axis=1, keepdims=True)
    packed: np.ndarray = np.packbits(bits, axis=1).view(np.uint64)[:, 0]
    return packed


def find_twins(marks: Marks) -> Twins:
    """All pairs that look alike; in crowds, of each image some of its crowd."""
    num_images = len(marks.hashes)
    found = [np.empty(0, dtype=np.int64)]
    for one, other in _candidates(marks.hashes):
        close = np.bitwise_count(marks.hashes[one] ^ marks.hashes[other]) <= MAX_DISTANCE
        low, high = np.minimum(one[close], other[close]), np.maximum(one[close], other[close])
        found.append(np.unique(low.astype(np.int64) * num_images + high))
    codes = np.unique(np.concatenate(found))
    pairs = np.stack(np.divmod(codes, max(1, num_images)), axis=1)
    pairs = pairs[_shows_the_same(marks.thumbs, pairs)]
    distances = np.bitwise_count(marks.hashes[pairs[:, 0]] ^ marks.hashes[pairs[:, 1]])
    return Twins(pairs=pairs, distances=distances.astype(np.int64))


def _candidates(hashes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of pairs with a part of their hashes equal, or all but one bit of it."""
    for band in range(_NUM_BANDS):
        keys = (hashes >> np.uint64(_BAND_BITS * band)).astype(np.uint16)
        # Within a crowd, hashes that are alike stand together.
        order = np.lexsort((hashes, keys))
        ordered = keys[order]
        for step in range(1, min(_WINDOW, len(hashes))):
            is_equal = ordered[step:] == ordered[:-step]
            if not is_equal.any():
                break
            yield order[:-step][is_equal], order[step:][is_equal]
        for bit in range(_BAND_BITS):
            yield from _neighbours(ordered, order, np.uint16(1 << bit))


def _neighbours(
    ordered: np.ndarray, order: np.ndarray, bit: np.uint16
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of rows whose sorted keys differ in `bit` alone."""
    without = np.flatnonzero((ordered & bit) == 0)
    wanted = ordered[without] | bit
    first = np.searchsorted(ordered, wanted, side="left")
    last = np.searchsorted(ordered, wanted, side="right")
    for _ in range(_WINDOW):
        is_there = first < last
        if not is_there.any():
            return
        without, first, last = without[is_there], first[is_there], last[is_there]
        yield order[without], order[first]
        first = first + 1


def _shows_the_same(thumbs: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Whether the thumbnails of each pair `(K, 2)` are alike, `(K,)` bool."""
    alike = np.empty(len(pairs), dtype=bool)
    for start in range(0, len(pairs), 16 * MARKS_CHUNK):
        own = slice(start, start + 16 * MARKS_CHUNK)
        one, other = (_centred(thumbs[pairs[own, side]]) for side in (0, 1))
        products = np.einsum("nd,nd->n", one, other)
        norms = np.einsum("nd,nd->n", one, one) * np.einsum("nd,nd->n", other, other)
        # Blank images have no correlation, but are the same if they are.
        is_same = (thumbs[pairs[own, 0]] == thumbs[pairs[own, 1]]).all(axis=1)
        alike[own] = is_same | (products > MIN_CORRELATION * np.sqrt(norms))
    return alike


def _centred(thumbs: np.ndarray) -> np.ndarray:
    """Thumbnails `(n, 768)` as float32, the mean of each colour taken away."""
    colours = thumbs.reshape(len(thumbs), 3, -1).astype(np.float32)
    centred: np.ndarray = colours - colours.mean(axis=2, keepdims=True)
    return centred.reshape(len(thumbs), -1)
