"""A stratified split that keeps groups of rows whole."""

import numpy as np


def share_groups(
    labels: np.ndarray, groups: np.ndarray, shares: np.ndarray, split_seed: int
) -> np.ndarray:
    """Deal groups out to parts, so that each part has its share of every class.

    The groups of several rows are dealt one by one, the largest first, each to the part where it
    brings the counts of classes closest to what they should be (least chi-square distance); rows
    alone fill up what is missing. scikit-learn's `StratifiedGroupKFold` deals much like that, but
    only to folds of equal size, and its loop takes rows alone one by one.

    Args:
        labels: `(N,)` class indices.
        groups: `(N,)`, equal for rows of one group; they may be of several classes.
        shares: `(P,)` part of all rows that each part should have, sum 1.
        split_seed: decides between groups of equal size, and among rows alone.

    Returns:
        `(N,)` int64, the part of each row, from 0.
    """
    rng = np.random.default_rng(split_seed)
    _, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    num_classes = int(labels.max()) + 1
    is_alone = sizes[group_of] == 1
    part_of_group = np.full(len(sizes), -1)
    # The last column is of all classes: parts should have their share of rows as well.
    wanted = shares[:, None] * _counts(labels, num_classes)  # (P, C + 1)
    counts = np.zeros_like(wanted)
    order = np.argsort(group_of, kind="stable")
    rows_of = np.split(order, np.cumsum(sizes)[:-1])
    several = rng.permutation(np.flatnonzero(sizes > 1))
    for group in several[np.argsort(-sizes[several], kind="stable")]:
        own = _counts(labels[rows_of[group]], num_classes)
        growth = own * (2 * (counts - wanted) + own) / np.maximum(wanted, 1e-9)
        part = int(growth.sum(axis=1).argmin())
        part_of_group[group] = part
        counts[part] += own
    parts: np.ndarray = part_of_group[group_of]
    for label in np.unique(labels[is_alone]):
        rows = rng.permutation(np.flatnonzero(is_alone & (labels == label)))
        lacking = np.maximum(wanted[:, label] - counts[:, label], 0)
        parts[rows] = _fill(lacking, len(rows))
    return parts


def _counts(labels: np.ndarray, num_classes: int) -> np.ndarray:
    return np.append(np.bincount(labels, minlength=num_classes), len(labels))


def _fill(lacking: np.ndarray, num_rows: int) -> np.ndarray:
    """The parts `(num_rows,)` of rows that are dealt out as `lacking` `(P,)` says."""
    ends = np.cumsum(lacking) / lacking.sum() * num_rows
    return np.searchsorted(np.round(ends), np.arange(num_rows), side="right")


def free_classes(labels: np.ndarray, groups: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Which rows `(N,)` must train whatever their part: a class must not lie in one part alone.

    Of a class that does, the smallest group in the part trains, with all its rows.

    Args:
        parts: `(N,)` of those that validate, from 1; 0: rows that train anyway.
    """
    _, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    trains = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        homes = np.unique(np.where(trains[rows], 0, parts[rows]))
        if len(homes) == 1 and homes[0] > 0:
            smallest = group_of[rows][sizes[group_of[rows]].argmin()]
            trains |= group_of == smallest
    return trains
