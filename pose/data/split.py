"""Which labelled rows train and which validate.

The splits are those of scikit-learn, which the frozen runs were split by: draw by draw, so that
they stay what they are whatever its next version does, and training need not import it.
"""

import numpy as np

from pose.config import Recipe
from pose.data.group_split import free_classes, share_groups
from pose.data.groups import Groups
from pose.errors import InputError
from pose.member_key import MemberKey


def split_indices(
    labels: np.ndarray, *, val_fraction: float, split_seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """A stratified split, that of scikit-learn's `train_test_split`, as in the frozen runs.

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
    validates = _draw_stratified(labels[eligible], num_val, np.random.RandomState(split_seed))
    return np.sort(np.concatenate([eligible[~validates], rows[single]])), eligible[validates]


def _draw_stratified(labels: np.ndarray, num_val: int, rng: np.random.RandomState) -> np.ndarray:
    """Whether each row validates, `(N,)` bool: `num_val` of them, of each class its share."""
    classes, counts = np.unique(labels, return_counts=True)
    num_train_of = _shares(counts, len(labels) - num_val, rng)
    num_val_of = _shares(counts - num_train_of, num_val, rng)
    validates = np.zeros(len(labels), dtype=bool)
    for place, label in enumerate(classes):
        shuffled = np.flatnonzero(labels == label)[rng.permutation(counts[place])]
        num_train = num_train_of[place]
        validates[shuffled[num_train : num_train + num_val_of[place]]] = True
    return validates


def _shares(counts: np.ndarray, num_draws: int, rng: np.random.RandomState) -> np.ndarray:
    """How many of `num_draws` are of each class of `counts` `(C,)`, as equal to its part as can be.

    What is left after rounding down goes to the largest remainders; equal ones draw lots.
    """
    exact: np.ndarray = counts / counts.sum() * num_draws
    shares: np.ndarray = np.floor(exact)
    remainders = exact - shares
    num_left = int(num_draws - shares.sum())
    for remainder in np.unique(remainders)[::-1]:
        if num_left <= 0:
            break
        (equal,) = np.nonzero(remainders == remainder)
        num_drawn = min(len(equal), num_left)
        shares[rng.choice(equal, size=num_drawn, replace=False)] += 1
        num_left -= num_drawn
    return shares.astype(np.int64)


def fold_of_rows(labels: np.ndarray, *, folds: int, split_seed: int) -> np.ndarray:
    """A stratified assignment of rows to folds, that of scikit-learn's `StratifiedKFold`.

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
    assigned = np.zeros(len(labels), dtype=np.int64)
    rng = np.random.RandomState(split_seed)
    # Dealt out class by class, the first to appear first; each goes on where the one before ended.
    _, first = np.unique(labels[eligible], return_index=True)
    num_dealt = 0
    for label in labels[eligible][np.sort(first)]:
        rows = np.flatnonzero(labels == label)
        fold = np.sort((num_dealt + np.arange(len(rows))) % folds)
        rng.shuffle(fold)
        assigned[rows] = fold + 1
        num_dealt += len(rows)
    return assigned


def split_rows(
    labels: np.ndarray, recipe: Recipe, member: MemberKey, groups: Groups | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The split of a member by its recipe: the shared one, or its seed's if `split_seed` is None.

    Args:
        groups: kept together where the recipe says so. Of groups that have nothing but equal bytes
            in common, the first row is split by its class and the others follow it, so that the
            split is scikit-learn's, and that of earlier runs. Where the data folder names groups,
            which may be large and of several classes, `share_groups` deals them out. Where every
            row is a group of its own, both are the split without groups.

    Returns:
        Row indices `(num_train,)` and `(num_val,)`, both ascending, together every row once.

    Raises:
        InputError: too few rows or groups.
    """
    if groups is None or not recipe.keep_groups:
        return _split_rows(labels, recipe, member)
    group_of = groups.joined(len(labels))
    if groups.is_copies_only or len(np.unique(group_of)) == len(labels):
        first = np.unique(group_of)
        _, val = _split_rows(labels[first], recipe, member)
        validates = np.isin(group_of, first[val])
    else:
        validates = _parts_of_groups(labels, group_of, recipe, member) == (member.fold or 1)
    return np.flatnonzero(~validates), np.flatnonzero(validates)


def _parts_of_groups(
    labels: np.ndarray, group_of: np.ndarray, recipe: Recipe, member: MemberKey
) -> np.ndarray:
    """The fold `(N,)` that each row validates; 0: none. Without folds, 1 is what validates."""
    num_groups = len(np.unique(group_of))
    needed = recipe.folds or 2
    if num_groups < needed:
        raise InputError(
            f"{'folds' if recipe.folds else 'a split'} must have at least {needed} groups of "
            f"images, found {num_groups}: "
            + ("take fewer folds" if recipe.folds else "correct the groups, or keep_groups=false")
        )
    if recipe.folds:
        shares = np.full(recipe.folds, 1 / recipe.folds)
        parts = share_groups(labels, group_of, shares, _split_seed(recipe, member)) + 1
    else:
        shares = np.array([1 - recipe.val_fraction, recipe.val_fraction])
        parts = share_groups(labels, group_of, shares, _split_seed(recipe, member))
        if not parts.any():
            # Groups larger than what should validate: the smallest does.
            sizes = np.bincount(group_of)
            parts[group_of == np.flatnonzero(sizes)[sizes[sizes > 0].argmin()]] = 1
    parts[free_classes(labels, group_of, parts)] = 0
    if not (parts == (member.fold or 1)).any():
        raise InputError(
            f"{num_groups} groups of images must leave one to validate {member}, found that each "
            "has a class that no other has: divide them, or keep_groups=false"
        )
    return parts


def num_twins(groups: np.ndarray, train: np.ndarray, val: np.ndarray) -> int:
    """How many rows that validate have one of their group that trains."""
    return int(np.isin(groups[val], groups[train]).sum())


def _split_rows(
    labels: np.ndarray, recipe: Recipe, member: MemberKey
) -> tuple[np.ndarray, np.ndarray]:
    split_seed = _split_seed(recipe, member)
    if not recipe.folds:
        return split_indices(labels, val_fraction=recipe.val_fraction, split_seed=split_seed)
    validates = fold_of_rows(labels, folds=recipe.folds, split_seed=split_seed) == member.fold
    return np.flatnonzero(~validates), np.flatnonzero(validates)


def _split_seed(recipe: Recipe, member: MemberKey) -> int:
    return member.seed if recipe.split_seed is None else recipe.split_seed


def unvalidated_classes(
    labels: np.ndarray, recipe: Recipe, groups: Groups | None = None
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
