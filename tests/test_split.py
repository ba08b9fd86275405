"""Which rows train and which validate."""

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from pose.config import Recipe
from pose.data.groups import Groups
from pose.data.split import num_twins, split_indices, split_rows, unvalidated_classes
from pose.errors import InputError
from pose.member_key import MemberKey
from pose.named_runs import NAMED_RUNS

# 60, 30 and 10 of three classes, mixed.
LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [60, 30, 10]))


def test_every_row_is_on_one_side():
    train, val = split_indices(LABELS, val_fraction=0.2, split_seed=0)
    assert (len(train), len(val)) == (80, 20)
    assert sorted([*train, *val]) == list(range(100))
    assert (np.diff(train) > 0).all() and (np.diff(val) > 0).all()


def test_classes_have_their_share_on_both_sides():
    train, val = split_indices(LABELS, val_fraction=0.2, split_seed=0)
    assert np.bincount(LABELS[train]).tolist() == [48, 24, 8]
    assert np.bincount(LABELS[val]).tolist() == [12, 6, 2]


@pytest.mark.parametrize(("val_fraction", "split_seed"), [(0.2, 0), (0.2, 76), (0.33, 100)])
def test_split_is_that_of_scikit_learn(val_fraction, split_seed):
    """The original's: `train_test_split(..., random_state=seed, stratify=labels)`."""
    expected = train_test_split(
        np.arange(100), test_size=val_fraction, random_state=split_seed, stratify=LABELS
    )
    found = split_indices(LABELS, val_fraction=val_fraction, split_seed=split_seed)
    assert [set(rows) for rows in found] == [set(rows) for rows in expected]


@pytest.mark.parametrize("number", range(50))
def test_split_of_any_labels_is_that_of_scikit_learn(number):
    """Classes of equal and of very different sizes, where what is left over is drawn by lot."""
    rng = np.random.default_rng(number)
    num_classes = rng.integers(1, 9)
    weights = rng.dirichlet(np.full(num_classes, rng.choice([0.5, 100])))
    # Two of each at least, or they would not be split by it at all.
    labels = np.append(
        np.repeat(range(num_classes), 2), rng.choice(num_classes, rng.integers(60, 300), p=weights)
    )
    val_fraction, split_seed = rng.uniform(0.2, 0.6), int(rng.integers(2**32))
    expected = train_test_split(
        range(len(labels)), test_size=val_fraction, random_state=split_seed, stratify=labels
    )
    found = split_indices(labels, val_fraction=val_fraction, split_seed=split_seed)
    assert [rows.tolist() for rows in found] == [sorted(rows) for rows in expected]


def test_same_seed_gives_the_same_split_and_another_another():
    (_, first), (_, again), (_, other) = (
        split_indices(LABELS, val_fraction=0.2, split_seed=seed) for seed in (5, 5, 6)
    )
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


def test_single_member_of_a_class_trains():
    labels = np.append(LABELS, 3)
    for split_seed in range(10):
        train, val = split_indices(labels, val_fraction=0.5, split_seed=split_seed)
        assert 100 in train
        assert 100 not in val
        assert len(train) + len(val) == 101


def test_class_index_without_rows_is_no_class():
    train, val = split_indices(np.array([0, 0, 2, 2]), val_fraction=0.5, split_seed=0)
    assert (len(train), len(val)) == (2, 2)


@pytest.mark.parametrize(
    ("labels", "val_fraction", "message"),
    [
        ([0, 0, 1, 1], 0.2, "rows for 2 classes on both sides, got 0.2 of 4 rows"),
        ([0, 0, 1, 1], 0.9, "rows for 2 classes on both sides, got 0.9 of 4 rows"),
        ([0, 1, 2], 0.5, "found one image of each of 3 classes: add labelled images"),
    ],
)
def test_too_few_rows_are_an_error(labels, val_fraction, message):
    with pytest.raises(InputError, match=message):
        split_indices(np.array(labels), val_fraction=val_fraction, split_seed=0)


def test_classes_without_a_validation_row_are_named():
    labels = np.repeat([0, 1, 2, 3], [40, 30, 1, 2])
    shared = Recipe(val_fraction=0.1, split_seed=0)
    assert unvalidated_classes(labels, shared) == [2, 3]
    assert unvalidated_classes(np.repeat([0, 1], 20), shared) == []
    own = Recipe(val_fraction=0.1, split_seed=None, seeds=tuple(range(8)))
    assert 2 in unvalidated_classes(labels, own)


# Groups


@pytest.mark.parametrize("folds", [0, 4])
def test_a_group_is_on_one_side_and_rows_alone_are_split_as_ever(folds):
    recipe = Recipe(folds=folds, val_fraction=0.25)
    groups = np.random.default_rng(1).integers(0, 60, size=100)
    for member in recipe.members((0,)):
        train, val = split_rows(LABELS, recipe, member, Groups(copies=groups))
        assert sorted([*train, *val]) == list(range(100))
        assert num_twins(groups, train, val) == 0
        alone = np.random.default_rng(2).permutation(100)
        for found, expected in zip(
            split_rows(LABELS, recipe, member, Groups(copies=alone)),
            split_rows(LABELS, recipe, member),
            strict=True,
        ):
            assert found.tolist() == expected.tolist()


def test_the_frozen_runs_split_as_they_did():
    groups = np.zeros(100, dtype=np.int64)
    for name in ("ensemble_1", "simple_cnn_v2"):
        recipe = NAMED_RUNS[name].recipe
        assert "keep_groups" not in recipe.identity()
        _, val = split_rows(LABELS, recipe, MemberKey(76), Groups(copies=groups, named=groups))
        expected = split_indices(LABELS, val_fraction=0.2, split_seed=76)[1]
        assert val.tolist() == expected.tolist()


def test_twins_flatter_a_score_unless_they_stay_together():
    """1-nearest-neighbour on noise, each image twice: right by memory, or by chance."""
    rng = np.random.default_rng(0)
    pixels = np.repeat(rng.normal(size=(1000, 8)), 2, axis=0)
    labels = np.repeat(rng.integers(0, 2, size=1000), 2)
    groups = np.repeat(np.arange(1000), 2)

    def score(recipe: Recipe) -> float:
        train, val = split_rows(labels, recipe, MemberKey(0), Groups(copies=groups))
        apart = ((pixels[val][:, None] - pixels[train][None]) ** 2).sum(axis=2)
        return float((labels[train][apart.argmin(axis=1)] == labels[val]).mean())

    assert score(Recipe(keep_groups=False)) > 0.85
    assert score(Recipe()) < 0.6
