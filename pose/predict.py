"""Any number of image files, predicted by a registered model into a table."""

import csv
import hashlib
import io
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pose.config import PredictSetup
from pose.data.image_files import find_images
from pose.device import pick_device
from pose.display import Display
from pose.errors import InputError, first_few, printable
from pose.files import atomic_path, file_to_write, read_bytes, reason_of, write_text
from pose.results import Predicted
from pose.tracking.models import LoadedModel, load_model
from pose_models.predictor import BATCH_SIZE, Pixels, Predictor


def predict(setup: PredictSetup, display: Display) -> Predicted:
    """Predict the image files that `setup` names and write its table.

    What is done is kept beside the table as it grows, and the same command goes on after it.

    Raises:
        InputError: no such model or images, or an image that cannot be read, unless these are to
            be left out; then no table is written.
    """
    assert setup.model and setup.images
    out_path = file_to_write(Path(setup.out_path), "out_path")
    files = find_images(setup.images)
    model = load_model(setup.model, str(pick_device(setup.device)))
    display.say(f"model: {model.uri}, {len(model.predictor.config.decodings)} members")
    table = _GrowingTable(out_path, _identity(model, files))
    done = table.names()
    if done:
        display.say(f"continued: {len(done)} of {len(files)} images were predicted before")
    waiting = [name for name in files if name not in done]
    started = time.monotonic()
    bad: dict[str, str] = {}
    num_done = len(done)
    for names, pixels in _read_ahead(model.predictor, files, waiting):
        bad |= {names[row]: reason for row, reason in pixels.bad.items()}
        table.append(_rows(model.predictor, names, pixels))
        num_done += len(names)
        display.predict_progress(num_done, len(files))
    seconds = time.monotonic() - started
    _show_bad(bad, setup.skip_bad_images, display)
    if len(bad) == len(files):
        raise InputError("images must be readable, found not a single one that is")
    table.finish()
    return Predicted(
        out_path=out_path,
        num_images=len(files) - len(bad),
        num_bad=len(bad),
        images_per_second=len(waiting) / max(seconds, 1e-9),
    )


def _read_ahead(
    predictor: Predictor, files: dict[str, Path], names: Sequence[str]
) -> Iterator[tuple[list[str], Pixels]]:
    """Batches of names with their pixels; the next one is read while one is worked on."""
    batches = [list(names[i : i + BATCH_SIZE]) for i in range(0, len(names), BATCH_SIZE)]

    def read(batch: list[str]) -> Pixels:
        data, reasons = [], {}
        for row, name in enumerate(batch):
            try:
                data.append(read_bytes(files[name]))
            except OSError as error:
                data.append(b"")
                reasons[row] = reason_of(error)
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


def _show_bad(bad: dict[str, str], may_be_left_out: bool, display: Display) -> None:
    if not bad:
        return
    named = first_few([f"{printable(name)} ({reason})" for name, reason in bad.items()])
    if not may_be_left_out:
        raise InputError(
            f"images must all be readable, found {len(bad)} that are not: {named}; repair them, "
            "or leave them out with --skip-bad-images: what is predicted is kept"
        )
    display.say(f"warning: {len(bad)} unreadable images left out: {named}")


def _identity(model: LoadedModel, files: dict[str, Path]) -> str:
    """Of a model and of files as they are now."""
    digest = hashlib.sha256(model.identity.encode())
    for name, path in files.items():
        try:
            status = path.stat()
            state = f"{status.st_size}\0{status.st_mtime_ns}"
        except OSError:
            state = "unreadable"
        digest.update(os.fsencode(f"\n{name}\0{state}"))
    return digest.hexdigest()[:16]


class _GrowingTable:
    """A CSV file beside the table to be, with what is predicted so far.

    Its name holds the identity of what is predicted, so another command never goes on with it.
    """

    def __init__(self, out_path: Path, identity: str) -> None:
        self._out_path = out_path
        self._path = out_path.with_name(f".{out_path.name[:150]}.{identity}.partial")

    def names(self) -> set[str]:
        """The images that are in it; a row that a kill cut short is removed."""
        if not self._path.exists():
            return set()
        text = self._path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            write_text(self._path, whole)
        return {row[0] for row in list(csv.reader(io.StringIO(whole)))[1:]}

    def append(self, rows: Sequence[dict[str, str]]) -> None:
        """Add rows, under a header if it is new."""
        if not rows:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        if not self._path.exists():
            writer.writeheader()
        writer.writerows(rows)
        with open(self._path, "a", encoding="utf-8", newline="") as handle:
            handle.write(text.getvalue())

    def finish(self) -> None:
        """Put it in the table's place."""
        if self._out_path.suffix.lower() == ".parquet":
            import pandas as pd

            texts = {"file": str, "label": str, "name": str}
            frame = pd.read_csv(self._path, dtype=texts, keep_default_na=False)
            with atomic_path(self._out_path) as partial:
                frame.to_parquet(partial)
            self._path.unlink()
            return
        os.replace(self._path, self._out_path)
