"""Images that are decoded each time they are asked for, ahead of the one who asks.

They stand where decoded images, a tensor `(N, 3, S, S)`, stand, and have the same pixels in the
same rows: which rows are asked for, and in which order, is not decided here. So what is learned
from them is what is learned from a cache, bit for bit. Neither disk nor memory holds more than a
few batches of them.
"""

import collections
import concurrent.futures
import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from pose.data.decoding import Decoding
from pose.data.shards import announce, read_file
from pose.errors import InputError, printable
from pose.files import reason_of
from pose_models.decode import read_image

# Images that one task decodes: a batch of 32 keeps four threads busy.
CHUNK = 8
# Tasks that wait for each thread, and batches that are begun at least.
TASKS_AHEAD = 2
MIN_BATCHES_AHEAD = 2
# Images of which the system hears before they are read.
NUM_ANNOUNCED = 2048


class StreamedImages:
    """Images in files, used as a tensor `(N, 3, S, S)` uint8 on the CPU is used.

    Every file that is read must have the bytes that it had when the data set was looked through.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        decoding: Decoding,
        digests: Sequence[str],
        bad: Mapping[int, str],
        num_workers: int = 0,
    ) -> None:
        """Nothing is read.

        Args:
            digests: `(N,)` SHA-256 of each file's bytes, hexadecimal.
            bad: rows of files that could not be decoded: black.
            num_workers: threads that decode; 0: one per core.
        """
        self._decoding, self._digests, self._bad = decoding, digests, bad
        self._num_workers = num_workers or os.cpu_count() or 1
        self._ahead: _Ahead | None = None

    def __len__(self) -> int:
        return len(self._digests)

    @property
    def size(self) -> int:
        """The height and width S of an image."""
        return self._decoding.size

    def index_select(self, dim: int, rows: Tensor) -> Tensor:
        """The images at `rows` `(n,)`: `(n, 3, S, S)`, a tensor of their own.

        Raises:
            InputError: a file is gone, or has other bytes.
        """
        assert dim == 0
        found = None if self._ahead is None else self._ahead.take(rows)
        if found is None:
            with concurrent.futures.ThreadPoolExecutor(self._num_workers) as pool:
                found = _Batch(self, rows, pool).wait()
        return found

    def __getitem__(self, rows: Tensor | int) -> Tensor:
        if isinstance(rows, Tensor):
            return self.index_select(0, rows)
        return self.index_select(0, torch.tensor([rows]))[0]

    @contextlib.contextmanager
    def ahead(self, batches: Sequence[Tensor]) -> Iterator[None]:
        """In the block, decode `batches` of rows before they are asked for in this order.

        What is asked for otherwise is decoded then: nothing but time depends on it.
        """
        pool = concurrent.futures.ThreadPoolExecutor(self._num_workers)
        before = self._ahead
        least = self._num_workers * TASKS_AHEAD * CHUNK
        self._ahead = _Ahead(self, batches, pool, least)
        try:
            yield
        finally:
            self._ahead = before
            pool.shutdown(cancel_futures=True)

    def announce(self, rows: Sequence[int]) -> None:
        """Have the system read ahead the files at `rows` as far as it can."""
        announce(self._decoding.files[row] for row in rows)

    def decode_into(self, pixels: np.ndarray, rows: Sequence[int]) -> None:
        """Decode the images at `rows` `(n,)` into `pixels` `(n, 3, S, S)`.

        Raises:
            InputError: as `index_select`.
        """
        for place, row in enumerate(rows):
            if row in self._bad:
                pixels[place] = 0
            else:
                data = self._read(row)
                pixels[place] = read_image(data, self._decoding.framing, self._decoding.obey_exif)

    def _read(self, row: int) -> bytes:
        path = self._decoding.files[row]
        try:
            data = read_file(path)
            found = "other bytes"
        except OSError as error:
            data, found = b"", reason_of(error)
        if hashlib.sha256(data).hexdigest() != self._digests[row]:
            raise InputError(
                f"{printable(str(path))} must stay as it is while it is read again and again "
                f"(cache=stream), found {found}: start anew with the data as it is now"
            )
        return data


class _Batch:
    """A batch that is being decoded."""

    def __init__(
        self, images: StreamedImages, rows: Tensor, pool: concurrent.futures.Executor
    ) -> None:
        self.rows = rows
        self._pixels = torch.empty((len(rows), 3, images.size, images.size), dtype=torch.uint8)
        pixels, numbers = self._pixels.numpy(), rows.tolist()
        parts = [slice(start, start + CHUNK) for start in range(0, len(numbers), CHUNK)]
        self._tasks = [
            pool.submit(images.decode_into, pixels[part], numbers[part]) for part in parts
        ]

    def wait(self) -> Tensor:
        """The images `(n, 3, S, S)`."""
        for task in self._tasks:
            task.result()
        return self._pixels


class _Ahead:
    """Batches in their order; those that come next are being decoded."""

    def __init__(
        self,
        images: StreamedImages,
        batches: Sequence[Tensor],
        pool: concurrent.futures.Executor,
        least: int,
    ) -> None:
        """Begin with the first ones.

        Args:
            least: how many images are being decoded at any time, if there are so many.
        """
        self._images, self._pool, self._least = images, pool, least
        self._waiting = self._announced(batches)
        self._begun: collections.deque[_Batch] = collections.deque()
        self._begin()

    def _announced(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """`batches`, those of a stretch announced when its first is asked for."""
        size = max(1, len(batches[0])) if len(batches) else 1
        stretch = -(-NUM_ANNOUNCED // size)
        for start in range(0, len(batches), stretch):
            own = batches[start : start + stretch]
            self._pool.submit(self._images.announce, torch.cat(list(own)).tolist())
            yield from own

    def _begin(self) -> None:
        while (
            len(self._begun) < MIN_BATCHES_AHEAD
            or sum(len(batch.rows) for batch in self._begun) < self._least
        ):
            rows = next(self._waiting, None)
            if rows is None:
                return
            self._begun.append(_Batch(self._images, rows, self._pool))

    def take(self, rows: Tensor) -> Tensor | None:
        """The batch of `rows` if it is the next one."""
        if not self._begun or not torch.equal(self._begun[0].rows, rows):
            return None
        batch = self._begun.popleft()
        # Before it is waited for: no thread must be without work.
        self._begin()
        return batch.wait()


# What a member is trained on: decoded, or decoded when it is asked for.
Images = Tensor | StreamedImages


def decoding_ahead(images: Images, batches: Sequence[Tensor]) -> Iterator[Tensor]:
    """`batches` of rows, one after the other, for whoever gathers the `images` of each at once.

    Where images are not decoded yet, those of the batches to come are decoded meanwhile.
    """
    if isinstance(images, Tensor):
        yield from batches
        return
    with images.ahead(batches):
        yield from batches
