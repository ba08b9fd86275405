"""Time that several seeds share."""

from pose.config import MIN_SEED_SECONDS

# What saving and registering a seed takes, before the first one is measured.
SAVING_SECONDS = 5.0


def num_turns(num: int, at_once: int) -> int:
    """How many turns so many take, of whom so many go side by side."""
    return -(-num // at_once)


class Budget:
    """Time for several seeds, each of which gets an equal share of what the others left.

    Args:
        seconds: for all of them by the clock, saving and recording included.
        num_seeds: how many share it.
        parallel: how many train at the same time; each then has as many times its share.
    """

    def __init__(self, seconds: float, num_seeds: int, parallel: int = 1) -> None:
        # Three seeds, two at a time, are two turns: each has half the time.
        self._seconds = seconds * num_seeds / num_turns(num_seeds, parallel)
        self._num_seeds = num_seeds
        self._overheads: list[float] = []

    def share(self) -> float:
        """Seconds for the epochs of the next seed."""
        overheads = self._overheads or [SAVING_SECONDS]
        expected = sum(overheads) / len(overheads)
        return max(self._seconds / self._num_seeds - expected, MIN_SEED_SECONDS / 2)

    def spend(self, seconds: float, overhead: float = SAVING_SECONDS) -> None:
        """One seed is finished: `seconds` of epochs, and `overhead` for all else."""
        self._seconds -= seconds + overhead
        self._num_seeds -= 1
        self._overheads.append(overhead)
