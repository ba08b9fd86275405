"""What a person may watch: the calls that working code makes, and a display that shows nothing."""

from collections.abc import Callable
from typing import Protocol

from pose.config import Recipe
from pose.history import Row
from pose.member_key import MemberKey

# Called after each batch with the number of batches done and in all.
BatchProgress = Callable[[int, int], None]


class Display(Protocol):
    """What a person watches; `pose.console.Console` is one."""

    def say(self, text: str) -> None:
        """One line."""

    def draw_progress(self, done: int, total: int) -> None:
        """Images of the demo data drawn."""

    def cache_progress(self, done: int, total: int) -> None:
        """Images decoded."""

    def check_progress(self, done: int, total: int) -> None:
        """Images checked."""

    def predict_progress(self, done: int, total: int) -> None:
        """Batches predicted."""

    def start_seed(
        self, member: MemberKey, recipe: Recipe, num_epochs_done: int, time_limit: float | None
    ) -> BatchProgress:
        """A member begins or goes on; returns what to call after each batch."""

    def show_epoch(self, member: MemberKey, row: Row, best_epoch: int) -> None:
        """An epoch is complete."""


class NoDisplay:
    """A display that shows nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def draw_progress(self, done: int, total: int) -> None:
        """Nothing."""

    def cache_progress(self, done: int, total: int) -> None:
        """Nothing."""

    def check_progress(self, done: int, total: int) -> None:
        """Nothing."""

    def predict_progress(self, done: int, total: int) -> None:
        """Nothing."""

    def start_seed(
        self, member: MemberKey, recipe: Recipe, num_epochs_done: int, time_limit: float | None
    ) -> BatchProgress:
        """Returns a callback that shows nothing."""
        return lambda done, total: None

    def show_epoch(self, member: MemberKey, row: Row, best_epoch: int) -> None:
        """Nothing."""


class ForwardingDisplay:
    """Shows everything on another display; what is to be shown otherwise is overridden."""

    def __init__(self, display: Display) -> None:
        self._display = display

    def say(self, text: str) -> None:
        """One line."""
        self._display.say(text)

    def draw_progress(self, done: int, total: int) -> None:
        """Images of the demo data drawn."""
        self._display.draw_progress(done, total)

    def cache_progress(self, done: int, total: int) -> None:
        """Images decoded."""
        self._display.cache_progress(done, total)

    def check_progress(self, done: int, total: int) -> None:
        """Images checked."""
        self._display.check_progress(done, total)

    def predict_progress(self, done: int, total: int) -> None:
        """Batches predicted."""
        self._display.predict_progress(done, total)

    def start_seed(
        self, member: MemberKey, recipe: Recipe, num_epochs_done: int, time_limit: float | None
    ) -> BatchProgress:
        """A member begins or goes on."""
        return self._display.start_seed(member, recipe, num_epochs_done, time_limit)

    def show_epoch(self, member: MemberKey, row: Row, best_epoch: int) -> None:
        """An epoch is complete."""
        self._display.show_epoch(member, row, best_epoch)
