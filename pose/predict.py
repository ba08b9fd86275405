"""Any number of image files, predicted by a registered model into a table."""

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from pose.cluster import check_ray, joined
from pose.config import PredictSetup
from pose.data.folder import refuse_input
from pose.data.image_files import find_images
from pose.data.shards import ImageFile, version_of
from pose.device import pick_device
from pose.display import Display
from pose.errors import InputError, first_few, printable
from pose.files import file_to_write, is_a_table, is_parquet, refuse_other_kind
from pose.growing_table import GrowingTable
from pose.predict_rows import Batch, predict_here, predict_on_cluster
from pose.results import Predicted
from pose.tracking.models import LoadedModel, load_model
from pose_models.predictor import Predictor

# After which it is said that images are still being looked for.
SILENT_SECONDS = 3.0


def predict(setup: PredictSetup, display: Display) -> Predicted:
    """Predict the image files that `setup` names and write its table.

    What is done is kept beside the table as it grows, and the same command goes on after it.

    Raises:
        InputError: no such model or images, or an image that cannot be read, unless these are to
            be left out; then no table is written.
    """
    assert setup.model and setup.images
    out_path = _table_to_write(Path(setup.out_path), Path(setup.images))
    with _said_if_slow(f"still looking for images in {printable(setup.images)[:200]}", display):
        found = find_images(setup.images)
    files = found.files
    if setup.engine == "ray":
        check_ray()
    device = "cpu" if setup.engine == "ray" else str(pick_device(setup.device))
    model = load_model(setup.model, device)
    display.say(f"model: {model.uri}, {len(model.predictor.config.decodings)} members")
    table = GrowingTable(out_path, _identity(model, files), display.say)
    with _engine_ready(setup), table.held():
        done = table.names()
        if done:
            display.say(f"continued: {len(done)} of {len(files)} images were predicted before")
        waiting = [name for name in files if name not in done]
        started = time.monotonic()
        batches = _batches(setup, model.predictor, files, waiting)
        bad = _fill(table, batches, len(done), len(files), display)
        seconds = time.monotonic() - started
        if found.odd:
            display.say(f"left out, since they are no images: {first_few(found.odd)}")
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


@contextlib.contextmanager
def _said_if_slow(text: str, display: Display) -> Iterator[None]:
    """Say what is being done where it takes a while: a person may have meant another folder."""
    timer = threading.Timer(SILENT_SECONDS, display.say, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _engine_ready(setup: PredictSetup) -> contextlib.AbstractContextManager[None]:
    """A cluster, where images are predicted on one."""
    return joined(setup.threads or 1) if setup.engine == "ray" else contextlib.nullcontext()


def _fill(
    table: GrowingTable, batches: Iterable[Batch], num_done: int, total: int, display: Display
) -> dict[str, str]:
    """Add what comes to the table; returns why some images cannot be read, by name."""
    bad: dict[str, str] = {}
    for batch in batches:
        bad |= batch.bad
        table.append(batch.rows)
        num_done += len(batch.rows) + len(batch.bad)
        display.predict_progress(num_done, total)
    return bad


def _batches(
    setup: PredictSetup, predictor: Predictor, files: dict[str, ImageFile], waiting: Sequence[str]
) -> Iterator[Batch]:
    """What the predictor says of the images that wait, on the engine that `setup` names."""
    threads = setup.threads or torch.get_num_threads()
    if setup.engine == "ray":
        return predict_on_cluster(predictor, files, waiting, threads)
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)
    return predict_here(predictor, files, waiting)


def _table_to_write(out_path: Path, images: Path) -> Path:
    """Where the table goes, links followed: never in the place of what is read.

    Raises:
        InputError: it would, or nothing can be written there.
    """
    target = file_to_write(out_path, "out_path")
    refuse_input(target, target.parent, "out_path")
    if os.path.exists(target) and os.path.exists(images) and target.samefile(images):
        raise InputError(
            f"out_path must not replace the table of images {images}: give another name"
        )
    is_columns = target.suffix.lower() == ".parquet"
    refuse_other_kind(target, "out_path", is_parquet if is_columns else is_a_table)
    return target


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


def _identity(model: LoadedModel, files: dict[str, ImageFile]) -> str:
    """Of a model and of files as they are now."""
    digest = hashlib.sha256(model.identity.encode())
    for name, path in files.items():
        digest.update(os.fsencode(f"\n{name}\0{version_of(path)}"))
    return digest.hexdigest()[:16]
