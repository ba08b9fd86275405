"""Which labelled rows train and which validate."""

import numpy as np
from sklearn.model_selection import train_test_split

from pose.config import Recipe
from pose.errors import InputError


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


def split_rows(labels: np.ndarray, recipe: Recipe, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The split of a seed by its recipe: the shared one, or its own if `split_seed` is None.

    Returns and raises as `split_indices` does.
    """
    split_seed = seed if recipe.split_seed is None else recipe.split_seed
    return split_indices(labels, val_fraction=recipe.val_fraction, split_seed=split_seed)


def unvalidated_classes(labels: np.ndarray, recipe: Recipe) -> list[int]:
    """The classes that have no row that validates, in the split of a seed or the shared one."""
    seeds = recipe.seeds if recipe.split_seed is None else recipe.seeds[:1]
    classes = set(labels.tolist())
    missing: set[int] = set()
    for seed in seeds:
        _, val = split_rows(labels, recipe, seed)
        missing |= classes - set(labels[val].tolist())
    return sorted(missing)
