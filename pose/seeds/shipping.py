"""A member's folder on a machine that does not see the one where it belongs: its files travel."""

import contextlib
import dataclasses
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pose.history import Row
from pose.seeds import folder as seed_folder
from pose.seeds.job import SeedJob, SeedTracker
from pose.seeds.relay import FarEnd, FarTracker

_CHECKPOINTS = (seed_folder.CHECKPOINT, seed_folder.PREVIOUS_CHECKPOINT)


@contextlib.contextmanager
def at_hand(end: FarEnd, job: SeedJob) -> Iterator[tuple[SeedJob, SeedTracker]]:
    """The job with a folder to work in, and what records it at the other end.

    Where both ends see the job's own folder, that is it. Else it is a temporary one: checkpoints
    are brought at the start, and go back, with all else, before anything is recorded of them.
    """
    if _is_seen_there(end, job.output):
        yield job, FarTracker(end)
        return
    with tempfile.TemporaryDirectory(prefix="pose-") as folder:
        job = dataclasses.replace(job, output=Path(folder))
        tracker = ShippingTracker(end, job.output)
        tracker.bring_checkpoints()
        yield job, tracker


def _is_seen_there(end: FarEnd, folder: Path) -> bool:
    """Whether a file that is put beside `folder` here appears at the other end."""
    mark = folder.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        mark.touch()
    except OSError:
        return False
    try:
        return bool(end.ask("folder", "sees", mark.name))
    finally:
        mark.unlink(missing_ok=True)


class ShippingTracker(FarTracker):
    """A tracker that records at the other end, and takes the files there first."""

    def __init__(self, end: FarEnd, folder: Path) -> None:
        super().__init__(end)
        self._folder = folder
        # The time of modification of what both ends have.
        self._shipped: dict[str, int] = {}

    def bring_checkpoints(self) -> None:
        """Take over where the member was."""
        for name in _CHECKPOINTS:
            self._bring(name)

    def _bring(self, name: str) -> Path | None:
        data = self._end.ask("folder", "read", name)
        if data is None:
            return None
        path = self._folder / name
        path.write_bytes(data)
        self._shipped[name] = path.stat().st_mtime_ns
        return path

    def _ship(self, *names: str) -> None:
        for path in (self._folder / name for name in names):
            if not path.exists():
                continue
            written = path.stat().st_mtime_ns
            if self._shipped.get(path.name) != written:
                self._end.ask("folder", "write", path.name, path.read_bytes())
                self._shipped[path.name] = written

    def fetch_checkpoint(self, folder: Path) -> Path | None:
        """As the one at the other end."""
        fetched = super().fetch_checkpoint(folder)
        return self._bring(fetched.name) if fetched else None

    def log_epochs(self, history: list[Row]) -> None:
        """As the one at the other end, which has the checkpoint by then."""
        self._ship(seed_folder.CHECKPOINT, seed_folder.HISTORY)
        super().log_epochs(history)

    def log_checkpoint(self, folder: Path) -> None:
        """As the one at the other end."""
        self._ship(seed_folder.CHECKPOINT, seed_folder.HISTORY)
        super().log_checkpoint(folder)

    def log_results(self, folder: Path) -> None:
        """As the one at the other end."""
        self._ship(*seed_folder.RESULTS)
        super().log_results(folder)
