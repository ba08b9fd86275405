"""Combining members' probabilities, as pure functions on NumPy arrays.

Members are the first axis: `probs` is `(M, N, C)`, M members, N images, C classes, rows sum to 1.
"""

import numpy as np

from pose.errors import InputError, known

VOTINGS = ("soft", "hard")
# Below this many rows that no member trained on, a score says too little to be shown.
MIN_HONEST_ROWS = 50


def combine_probs(probs: np.ndarray, voting: str) -> np.ndarray:
    """The ensemble's probabilities `(N, C)` float64; its prediction is their argmax.

    `soft`: the mean of the members' probabilities. `hard`: each class's share of the members'
    votes; among classes with equally many votes the one with the higher mean probability wins,
    and the first if those are equal too.

    Raises:
        InputError: an unknown voting.
    """
    if voting not in VOTINGS:
        raise InputError(f"voting must be one of {known(VOTINGS)}, got {voting!r}")
    mean = probs.mean(axis=0, dtype=np.float64)
    if voting == "soft":
        return mean
    num_members, _, num_classes = probs.shape
    shares = np.eye(num_classes)[probs.argmax(axis=2)].mean(axis=0)
    # Too small to overturn a vote, of which each is worth 1 / num_members, and enough for a tie.
    shares = shares + mean / (2 * num_members)
    return shares / shares.sum(axis=1, keepdims=True)


def agreement(probs: np.ndarray, combined: np.ndarray) -> np.ndarray:
    """Part of the images `(M,)` on which each member predicts what the ensemble does."""
    return (probs.argmax(axis=2) == combined.argmax(axis=1)).mean(axis=1)


def unanimity(probs: np.ndarray) -> float:
    """Part of the images on which all members predict the same class."""
    preds = probs.argmax(axis=2)
    return float((preds == preds[0]).all(axis=0).mean())


def disagreement(probs: np.ndarray) -> float:
    """Mean over pairs of members of the part of images that they predict differently.

    0 for a single member; the disagreement measure of Kuncheva and Whitaker (2003).
    """
    preds = probs.argmax(axis=2)
    pairs = [
        (preds[first] != preds[second]).mean()
        for first in range(len(preds))
        for second in range(first)
    ]
    return float(np.mean(pairs)) if pairs else 0.0


def shared_rows(ids_of_members: list[tuple[str, ...]]) -> list[str]:
    """The ids that every member has, in the first member's order.

    Given each member's validation ids, these are the rows that no member trained on.
    """
    others = [set(ids) for ids in ids_of_members[1:]]
    return [image_id for image_id in ids_of_members[0] if all(image_id in ids for ids in others)]
