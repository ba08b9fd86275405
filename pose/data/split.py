"""Which labelled rows train and which validate."""

import warnings

import numpy as np
from sklearn.model_selection import StratifiedKFold, train_test_split

from pose.config import Recipe
from pose.errors import InputError
from pose.member_key import MemberKey


def split_indices(
    labels: np.ndarray, *, val_fraction: float, split_seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """A stratified split by scikit-learn's `train_test_split`, as in the frozen runs.

    Args:
        labels: `(N,)` class indices.
        val_fraction: part of the rows that validate.
        split_seed: the same seed on the same labels gives the same split.

    Returns:
        Row indices `(num_train,)` and `(num_val,)`, both ascending, together every row once.
        Rows of a class with a single example always train; a class too rare for `val_fraction` may
        have no row that validates.

    Raises:
        InputError: fewer rows on a side than there are classes.
    """
    counts = np.bincount(labels)
    rows = np.arange(len(labels))
    single = counts[labels] == 1
    # Stratification needs two of a kind.
    eligible = rows[~single]
    num_classes = int((counts > 1).sum())
    num_val = int(np.ceil(len(eligible) * val_fraction))
    if num_classes == 0:
        raise InputError(
            f"a class must have at least two images to be trained and validated on, found one "
            f"image of each of {len(counts)} classes: add labelled images"
        )
    if num_val < num_classes or len(eligible) - num_val < num_classes:
        raise InputError(
            f"val_fraction must leave rows for {num_classes} classes on both sides, "
            f"got {val_fraction} of {len(eligible)} rows: change it or add labelled images"
        )
    train, val = train_test_split(
        eligible,
        test_size=val_fraction,
        random_state=split_seed,
        stratify=labels[eligible],
    )
    return np.sort(np.concatenate([train, rows[single]])), np.sort(val)


def fold_of_rows(labels: np.ndarray, *, folds: int, split_seed: int) -> np.ndarray:
    """A stratified assignment of rows to folds by scikit-learn's `StratifiedKFold`.

    Args:
        labels: `(N,)` class indices.
        split_seed: the same seed on the same labels gives the same folds.

    Returns:
        `(N,)` int64, the fold that each row validates, from 1 to `folds`; 0 for rows of a class
        with a single example, which always train. A class with fewer rows than there are folds
        has none in some of them.

    Raises:
        InputError: no class has as many rows as there are folds.
    """
    counts = np.bincount(labels)
    if counts.max() < folds:
        raise InputError(
            f"folds must be at most the number of images of the largest class, {counts.max()}, "
            f"got {folds}"
        )
    eligible = np.flatnonzero(counts[labels] > 1)
    splitter = StratifiedKFold(folds, shuffle=True, random_state=split_seed)
    assigned = np.zeros(len(labels), dtype=np.int64)
    with warnings.catch_warnings():
        # Rare classes are ours to name: `unvalidated_classes`.
        warnings.filterwarnings("ignore", message="The least populated class")
        for fold, (_, val) in enumerate(splitter.split(eligible, labels[eligible]), start=1):
            assigned[eligible[val]] = fold
    return assigned


def split_rows(
    labels: np.ndarray, recipe: Recipe, member: MemberKey, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The split of a member by its recipe: the shared one, or its seed's if `split_seed` is None.

    Args:
        groups: `(N,)`, equal for rows of one group, such as images of equal bytes. Where the recipe
            keeps groups together, the first row of each is split by its class, and the others
            follow it; where every row is a group of its own, that is the split without groups.

    Returns:
        Row indices `(num_train,)` and `(num_val,)`, both ascending, together every row once.

    Raises:
        InputError: too few rows.
    """
    if groups is not None and recipe.keep_groups:
        _, first, group_of = np.unique(groups, return_index=True, return_inverse=True)
        # In the order of the rows, so that groups of one row are split as the rows would be.
        first, rank = np.sort(first), np.argsort(np.argsort(first))
        _, val = _split_rows(labels[first], recipe, member)
        validates = np.isin(rank[group_of], val)
        return np.flatnonzero(~validates), np.flatnonzero(validates)
    return _split_rows(labels, recipe, member)


def num_twins(groups: np.ndarray, train: np.ndarray, val: np.ndarray) -> int:
    """How many rows that validate have one of their group that trains."""
    return int(np.isin(groups[val], groups[train]).sum())


def _split_rows(
    labels: np.ndarray, recipe: Recipe, member: MemberKey
) -> tuple[np.ndarray, np.ndarray]:
    split_seed = member.seed if recipe.split_seed is None else recipe.split_seed
    if not recipe.folds:
        return split_indices(labels, val_fraction=recipe.val_fraction, split_seed=split_seed)
    validates = fold_of_rows(labels, folds=recipe.folds, split_seed=split_seed) == member.fold
    return np.flatnonzero(~validates), np.flatnonzero(validates)


def unvalidated_classes(
    labels: np.ndarray, recipe: Recipe, groups: np.ndarray | None = None
) -> list[int]:
    """The classes that a seed, or the shared split, has no row of that validates a member.

    Args:
        groups: as `split_rows` takes them.
    """
    seeds = recipe.seeds if recipe.split_seed is None else recipe.seeds[:1]
    classes = set(labels.tolist())
    missing: set[int] = set()
    for seed in seeds:
        members = recipe.members((seed,))
        vals = [split_rows(labels, recipe, member, groups)[1] for member in members]
        missing |= classes - set(labels[np.concatenate(vals)].tolist())
    return sorted(missing)
