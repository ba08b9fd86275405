"""Which labelled rows belong together, so that no split may come between them."""

import dataclasses
from collections.abc import Iterable

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Groups:
    """What ties N rows together; each array `(N,)` int64 has equal numbers for rows of one group.

    Attributes:
        copies: images of equal bytes; None where nobody has looked.
        named: what the data folder calls a group; None where it names none.
        alike: near twins; None where they are not to be kept together.
    """

    copies: np.ndarray | None = None
    named: np.ndarray | None = None
    alike: np.ndarray | None = None

    def kinds(self) -> dict[str, np.ndarray]:
        """What is known, by what the images of a group share."""
        kinds = {"the very bytes": self.copies, "the group": self.named, "the look": self.alike}
        return {kind: numbers for kind, numbers in kinds.items() if numbers is not None}

    @property
    def is_copies_only(self) -> bool:
        """Whether nothing but equal bytes ties rows together."""
        return self.named is None and self.alike is None

    def take(self, rows: np.ndarray | list[int]) -> "Groups":
        """The groups of those rows."""
        kinds = dataclasses.asdict(self).items()
        return Groups(**{kind: None if own is None else own[rows] for kind, own in kinds})

    def joined(self, num_rows: int) -> np.ndarray:
        """The groups `(num_rows,)` that all ties make together, each by its first row."""
        return join(num_rows, (pairs_of(numbers) for numbers in self.kinds().values()))

    def lines(self, num_rows: int) -> list[str]:
        """How many groups there are, for the report on the data; nothing where nobody looked."""
        if not self.kinds():
            return []
        sizes = np.bincount(self.joined(num_rows), minlength=1)
        several = sizes[sizes > 1]
        if len(several) == 0:
            return ["groups of images that belong together: none"]
        return [
            f"groups of images that belong together: {len(several)}, with {several.sum()} of the "
            f"{num_rows} labelled images, {several.max()} in the largest; every other image is "
            "alone"
        ]


def pairs_of(numbers: np.ndarray) -> np.ndarray:
    """`(K, 2)` rows that tie every row to the first one of its group."""
    first = leaders(numbers)
    rows = np.flatnonzero(first != np.arange(len(numbers)))
    return np.stack([first[rows], rows], axis=1)


def leaders(numbers: np.ndarray) -> np.ndarray:
    """The first row `(N,)` of each row's group."""
    _, first, group_of = np.unique(numbers, return_index=True, return_inverse=True)
    found: np.ndarray = first[group_of]
    return found


def join(num_rows: int, ties: Iterable[np.ndarray]) -> np.ndarray:
    """The connected components of rows under all `ties`, pairs of rows `(K, 2)`.

    Returns:
        `(num_rows,)` int64, the first row of each row's component.
    """
    parents = list(range(num_rows))

    def root(row: int) -> int:
        while parents[row] != row:
            parents[row] = parents[parents[row]]
            row = parents[row]
        return row

    for pairs in ties:
        for one, other in pairs.tolist():
            low, high = sorted((root(one), root(other)))
            parents[high] = low
    return np.array([root(row) for row in range(num_rows)], dtype=np.int64)
