"""From image files to rows of a table, in this process or over a cluster."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from pose.cluster import in_turn
from pose.data.shards import ImageFile, absolute_file, read_file
from pose.files import reason_of
from pose_models.predictor import BATCH_SIZE, Pixels, Predictor

# Batches that a machine of a cluster works on before it reports.
SHARD_BATCHES = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """What is said of a few images.

    Attributes:
        rows: of those that could be read, in their order: a text per column.
        bad: why others could not, by name.
    """

    rows: list[dict[str, str]]
    bad: dict[str, str]


def predict_here(
    predictor: Predictor, files: Mapping[str, ImageFile], names: Sequence[str]
) -> Iterator[Batch]:
    """Predict the files of `names`, a batch at a time."""
    for batch, pixels in _read_ahead(predictor, files, names):
        yield Batch(
            rows=_rows(predictor, batch, pixels),
            bad={batch[row]: reason for row, reason in pixels.bad.items()},
        )


def predict_on_cluster(
    predictor: Predictor, files: Mapping[str, ImageFile], names: Sequence[str], threads: int
) -> Iterator[Batch]:
    """Predict the files of `names` on the cluster that this process is part of.

    The batches are those of `predict_here` and come in its order.

    Args:
        predictor: on the CPU.
        threads: CPUs for each shard.

    Raises:
        InputError: the model cannot travel, or Ray gave a shard up.
    """
    size = SHARD_BATCHES * BATCH_SIZE
    shards = (names[start : start + size] for start in range(0, len(names), size))
    arguments = (({name: absolute_file(files[name]) for name in own}, threads) for own in shards)
    for batches in in_turn(_predict_shard, predictor, arguments, threads):
        yield from batches


def _predict_shard(predictor: Predictor, files: dict[str, ImageFile], threads: int) -> list[Batch]:
    """What a machine of the cluster does."""
    torch.set_num_threads(threads)
    return list(predict_here(predictor, files, list(files)))


def _read_ahead(
    predictor: Predictor, files: Mapping[str, ImageFile], names: Sequence[str]
) -> Iterator[tuple[list[str], Pixels]]:
    """Batches of names with their pixels; the next one is read while one is worked on."""
    batches = [list(names[i : i + BATCH_SIZE]) for i in range(0, len(names), BATCH_SIZE)]

    def read(batch: list[str]) -> Pixels:
        data, reasons = [], {}
        for row, name in enumerate(batch):
            data.append(b"")
            try:
                name.encode()  # as the table is going to name it
                data[row] = read_file(files[name])
            except UnicodeEncodeError:
                reasons[row] = "a name that is not UTF-8"
            except (OSError, ValueError) as error:
                reasons[row] = reason_of(error) if isinstance(error, OSError) else str(error)
        pixels = predictor.read(data)
        return Pixels(images=pixels.images, bad=pixels.bad | reasons)

    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(read, batches[0]) if batches else None
        for number, batch in enumerate(batches):
            assert ahead is not None
            pixels = ahead.result()
            if number + 1 < len(batches):
                ahead = reader.submit(read, batches[number + 1])
            yield batch, pixels


def _rows(predictor: Predictor, names: Sequence[str], pixels: Pixels) -> list[dict[str, str]]:
    """The rows of the images that could be read."""
    columns = predictor.columns(predictor.predict(pixels))
    return [
        {"file": name, **{key: _cell(values[row]) for key, values in columns.items()}}
        for row, name in enumerate(names)
        if row not in pixels.bad
    ]


def _cell(value: object) -> str:
    if isinstance(value, np.bool_):
        return str(value).lower()
    return value if isinstance(value, str) else f"{value:.9g}"
