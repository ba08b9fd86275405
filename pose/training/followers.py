"""One process that leads a member's training, and others that follow it step by step.

The first does all that is done once: it shuffles, sets the rates, validates and saves. Over a
connection to each of the others go

    to the leader:      ("ready", ""), or at any time what failed: ("input", text), ("bug", text)
    to the followers:   where to meet, with the state to begin from, then
                        ("epoch", (num_epochs_done, batches of rows)) and, for each of them as long
                        as there is time, ("step", learning_rate)

and both end when it is closed.
"""

import contextlib
import io
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from pose.config import Recipe
from pose.data.tensors import TrainingData
from pose.errors import InputError, one_line
from pose.training.data_parallel import DataParallelStep
from pose.training.group import PeerLostError, ProcessGroup, find_store, open_store
from pose.training.state import TrainState

# How long a follower's last words may take after its death.
LAST_WORDS_SECONDS = 2.0


class Followers:
    """The processes that follow this one, which leads `group`."""

    def __init__(self, links: Sequence[Connection], group: ProcessGroup) -> None:
        self._links = links
        self.group = group

    def tell(self, what: str, value: Any) -> None:
        """Have all do the same next.

        Raises:
            InputError, RuntimeError: what one of them failed with.
            PeerLostError: one of them is gone without a word.
        """
        try:
            for link in self._links:
                link.send((what, value))
        except OSError as error:
            raise failure_of(self._links, error) from error

    def failure(self, error: Exception) -> Exception:
        """What is behind `error`, which this process sees of it."""
        return failure_of(self._links, error)


def failure_of(links: Sequence[Connection], error: Exception) -> Exception:
    """What those at the other ends failed with, or that one is gone; else `error` itself."""
    is_lost = False
    for link in links:
        try:
            if link.poll(LAST_WORDS_SECONDS):
                return _failure(*link.recv())
        except (EOFError, OSError):
            is_lost = True
    if is_lost:
        return PeerLostError("a process that trains with this one is gone")
    return RuntimeError(one_line(error))


def _failure(kind: str, text: str) -> Exception:
    return InputError(text) if kind == "input" else RuntimeError(text)


class LeadingStep(DataParallelStep):
    """The step of the process that leads; its followers take it too."""

    def __init__(
        self,
        state: TrainState,
        data: TrainingData,
        recipe: Recipe,
        precision: torch.dtype,
        followers: Followers,
    ) -> None:
        self._followers = followers
        super().__init__(state, data, recipe, precision, followers.group)

    def epoch(self, num_epochs_done: int, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """As the step of one process."""
        numbers = [rows.cpu().numpy() for rows in batches]
        self._followers.tell("epoch", (num_epochs_done, numbers))
        yield from super().epoch(num_epochs_done, batches)

    def set_learning_rate(self, rate: float) -> None:
        """As the step of one process."""
        self._learning_rate = rate
        super().set_learning_rate(rate)

    def __call__(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As the step of one process, on the next batch of the epoch.

        Raises:
            InputError: memory is not enough, here or in another process.
            PeerLostError: another process is gone.
        """
        self._followers.tell("step", self._learning_rate)
        try:
            return super().__call__(rows)
        except PeerLostError as error:
            raise self._followers.failure(error) from error


@contextlib.contextmanager
def leading(
    links: Sequence[Connection],
    state: TrainState,
    data: TrainingData,
    recipe: Recipe,
    precision: torch.dtype,
) -> Iterator[LeadingStep]:
    """A step that those at the other ends of `links` take too, for the time of a block.

    They begin from `state`, and are let go at the end.

    Raises:
        InputError, RuntimeError: what one of them failed with.
        PeerLostError: one of them is gone without a word.
    """
    try:
        for link in links:
            _expect_ready(link)
        size = len(links) + 1
        store, port = open_store(size)
        saved = io.BytesIO()
        torch.save(state.state_dict(), saved)
        for rank, link in enumerate(links, start=1):
            link.send((port, rank, size, saved.getvalue()))
        group = _join(links, store, state.device)
        yield LeadingStep(state, data, recipe, precision, Followers(links, group))
    finally:
        for link in links:
            link.close()
    # After a failure a process would wait here for those that wait for it.
    group.leave()


def _join(
    links: Sequence[Connection], store: "torch.distributed.Store", device: torch.device
) -> ProcessGroup:
    try:
        return ProcessGroup(store, 0, len(links) + 1, device)
    except PeerLostError as error:
        raise failure_of(links, error) from error


def _expect_ready(link: Connection) -> None:
    try:
        kind, text = link.recv()
    except (EOFError, OSError) as error:
        raise PeerLostError("a process that was to train with this one is gone") from error
    if kind != "ready":
        raise _failure(kind, text)


def follow(
    link: Connection,
    state: TrainState,
    data: TrainingData,
    recipe: Recipe,
    precision: torch.dtype,
) -> None:
    """Take every step that the process at the other end of `link` takes, until it closes it.

    Args:
        state: that of the member before its first step; it begins from the leader's.

    Raises:
        PeerLostError: it, or another that follows it, is gone.
    """
    link.send(("ready", ""))
    with contextlib.suppress(EOFError):
        port, rank, size, saved = link.recv()
        state.load_state_dict(torch.load(io.BytesIO(saved), "cpu", weights_only=True))
        group = ProcessGroup(find_store(port, size), rank, size, state.device)
        step = DataParallelStep(state, data, recipe, precision, group)
        with contextlib.suppress(EOFError):
            _take_steps(step, link)
        group.leave()


def _take_steps(step: DataParallelStep, link: Connection) -> None:
    batches: Iterator[Tensor] = iter(())
    while True:
        what, value = link.recv()
        if what == "epoch":
            num_epochs_done, numbers = value
            rows = [torch.from_numpy(batch).to(step.data.images.device) for batch in numbers]
            batches = step.epoch(num_epochs_done, rows)
        else:
            step.set_learning_rate(value)
            step(next(batches))
