"""Groups: read from a data folder, joined, and never divided by a split."""

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from pose.config import Recipe, Setup
from pose.data.folder import check_images, dataset_digest, read_dataset
from pose.data.groups import Groups, join
from pose.data.loaded import load_data
from pose.data.split import num_twins, split_rows
from pose.errors import InputError
from pose.member_key import MemberKey
from pose.named_runs import resolve_run
from pose.plan import make_plan


def write(folder, table: str, groups: str | None = None, ids=(1, 2, 3, 4), copies=()):
    """A data folder; images differ, except those of `copies`."""
    (folder / "train_images").mkdir(parents=True)
    from PIL import Image

    for image_id in ids:
        shade = 0 if image_id in copies else image_id
        image = Image.new("RGB", (16, 16), (10 * shade, 90, 200))
        image.save(folder / "train_images" / f"{image_id}.png")
    (folder / "train_solution.csv").write_text(table)
    if groups is not None:
        (folder / "groups.csv").write_text(groups)
    return folder


TABLE = "id,label\n1,a\n2,b\n3,a\n4,b\n"


def named_of(folder) -> list[int]:
    dataset = read_dataset(folder)
    dataset.raise_if_fatal()
    return dataset.groups.named.tolist()


def error_of(folder) -> str:
    with pytest.raises(InputError) as caught:
        read_dataset(folder).raise_if_fatal()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Reading


def test_a_column_and_a_file_name_groups_and_are_joined(tmp_path):
    column = "id,label,group\n1,a,x\n2,b,x\n3,a,y\n4,b,z\n"
    assert named_of(write(tmp_path / "column", column)) == [0, 0, 2, 3]
    assert named_of(write(tmp_path / "file", TABLE, "group,id\np,4\nq,3.png\np,2\nr,1\n")) == [
        0, 1, 2, 1,
    ]  # fmt: skip
    both = write(tmp_path / "both", column, "ID,Group,note\n1,1,\n2,2,\n3,2,\n4,4,\n")
    assert named_of(both) == [0, 0, 0, 3]
    assert read_dataset(write(tmp_path / "none", TABLE)).groups.named is None


def test_rows_that_are_left_out_anyway_need_no_group(tmp_path):
    table = "id,label,group\n1,a,x\n2,b,x\n9,a,\n3,a,y\n3,a,y\n4,b,z\n"
    assert named_of(write(tmp_path, table)) == [0, 0, 2, 3]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ("1,x\n2,x\n3,y\n4,y\n", "must begin with the names of its columns, id,group, found 1,x"),
        ("id,person\n1,x\n", "must begin with the names of its columns, id,group, found id,person"),
        ("", "must have the columns id,group, found no rows"),
        ("id,group\n1,x\n2\n", "must have 2 columns in every row, found 1 in row 3"),
        ("id;group\n1;x\n", "must have commas between its columns, found semicolons"),
        (
            "id,group\n1,x\n2,x\n3,y\n4,y\n5,z\n",
            "1 ids in groups.csv that no labelled image has (correct or remove them): 5",
        ),
        (
            "id,group\n1,x\n2,x\n",
            "2 labelled images without a group in groups.csv (add a row for each): 3, 4",
        ),
        (
            "id,group\n1,x\n2,x\n3,y\n4,y\n1,y\n",
            "1 ids with more than one group in groups.csv (keep one row of each): 1 (x, y)",
        ),
        (
            "id,group\n1,x\n2,\n3,y\n4,y\n",
            "1 ids with an empty group in groups.csv (name one, if only its own): 2",
        ),
    ],
)
def test_a_file_of_groups_that_cannot_be_used_is_named_in_one_line(tmp_path, groups, message):
    assert message in error_of(write(tmp_path, TABLE, groups))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("id,label,group\n1,a,x\n2,b,\n3,a,y\n4,b,y\n", "1 ids with an empty group in the column"),
        ("id,label,group\n1,a,x\n2,b,x\n3,a,y\n4,b,y\n1,a,y\n", "group in the column group"),
        ("id,label,group,Group\n1,a,x,x\n2,b,x,x\n", "must have one column group, found 2"),
    ],
)
def test_a_column_of_groups_that_cannot_be_used_is_named_in_one_line(tmp_path, table, message):
    assert message in error_of(write(tmp_path, table))


def test_the_report_counts_groups_of_all_kinds(tmp_path):
    folder = write(tmp_path, TABLE, "id,group\n1,x\n2,x\n3,y\n4,z\n", copies=(2, 3))
    line = (
        "groups of images that belong together: 1, with 3 of the 4 labelled images, 3 in the "
        "largest; every other image is alone"
    )
    assert line in check_images(read_dataset(folder)).report().splitlines()
    assert load_data(folder, 16).dataset.groups.joined(4).tolist() == [0, 0, 0, 3]
    alone = check_images(read_dataset(write(tmp_path / "alone", TABLE)))
    assert "groups of images that belong together: none" in alone.report()


def test_the_digest_tells_groups_apart_and_is_as_it_was_without(tmp_path):
    def digest(groups: str) -> str:
        rows = "".join(f"{number},{group}\n" for number, group in enumerate(groups, start=1))
        folder = write(tmp_path / f"data{groups}", TABLE, f"id,group\n{rows}" if groups else None)
        return dataset_digest(read_dataset(folder), ("c",) * 4)

    # As it was before there were groups.
    assert digest("") == "6f5468871f9f6d07" == digest("xyzw")
    halves = digest("xxyy")
    assert len({halves, digest("xyxy"), "6f5468871f9f6d07"}) == 3
    assert digest("aabb") == halves


# Joining


def test_groups_are_joined_through_common_rows():
    ties = [np.array([[4, 1]]), np.array([[1, 3], [0, 2]]), np.empty((0, 2), dtype=int)]
    assert join(6, ties).tolist() == [0, 1, 0, 1, 1, 5]


# Splits


def draw_people(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """60 people of 2 to 30 images each, who show the five classes unevenly; and the labels."""
    rng = np.random.default_rng(seed)
    people = np.repeat(np.arange(60), rng.integers(2, 31, size=60))
    favourites = rng.integers(0, 5, size=60)[people]
    anything = rng.integers(0, 5, size=len(people))
    return people, np.where(rng.random(len(people)) < 0.4, favourites, anything)


PEOPLE, LABELS = draw_people(0)


def distance(labels: np.ndarray, parts: list[np.ndarray]) -> float:
    """Largest difference of a part's share of a class from a fifth."""
    shares = [np.bincount(labels[part], minlength=5) / np.bincount(labels) for part in parts]
    return float(np.abs(np.array(shares) - 0.2).max())


def test_folds_of_groups_are_whole_and_as_stratified_as_scikit_learns():
    ours, theirs = [], []
    for seed in range(10):
        people, labels = draw_people(seed)
        recipe = Recipe(folds=5, split_seed=seed)
        groups = Groups(named=people, copies=np.arange(len(people)))
        splits = [split_rows(labels, recipe, m, groups) for m in recipe.members((0,))]
        assert sorted(np.concatenate([val for _, val in splits])) == list(range(len(labels)))
        for train, val in splits:
            assert num_twins(people, train, val) == 0
            assert sorted([*train, *val]) == list(range(len(labels)))
        ours.append(distance(labels, [val for _, val in splits]))
        kfold = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
        theirs.append(distance(labels, [val for _, val in kfold.split(labels, labels, people)]))
    assert np.mean(ours) <= np.mean(theirs)
    assert max(ours) < 0.06


@pytest.mark.parametrize("val_fraction", [0.1, 0.2, 0.35, 0.6])
def test_the_fraction_that_validates_is_kept_in_rows_of_every_class(val_fraction):
    recipe = Recipe(val_fraction=val_fraction)
    train, val = split_rows(LABELS, recipe, MemberKey(0), Groups(named=PEOPLE))
    assert num_twins(PEOPLE, train, val) == 0
    shares = np.bincount(LABELS[val], minlength=5) / np.bincount(LABELS)
    assert shares == pytest.approx(val_fraction, abs=0.03)
    again = split_rows(LABELS, recipe, MemberKey(7), Groups(named=PEOPLE))[1]
    assert again.tolist() == val.tolist()
    other = Recipe(val_fraction=val_fraction, split_seed=1)
    assert split_rows(LABELS, other, MemberKey(0), Groups(named=PEOPLE))[1].tolist() != val.tolist()


def test_groups_of_one_row_split_as_rows_do_and_a_few_groups_change_little():
    alone = Groups(named=np.arange(len(LABELS)))
    expected = split_rows(LABELS, Recipe(), MemberKey(0))[1]
    assert split_rows(LABELS, Recipe(), MemberKey(0), alone)[1].tolist() == expected.tolist()
    few = np.arange(len(LABELS))
    few[:40] = 0
    train, val = split_rows(LABELS, Recipe(), MemberKey(0), Groups(named=few))
    assert num_twins(few, train, val) == 0
    assert np.bincount(LABELS[val]) / np.bincount(LABELS) == pytest.approx(0.2, abs=0.01)


def test_a_class_of_a_single_group_trains():
    labels = np.repeat([0, 1, 0, 1, 2], 10)
    groups = Groups(named=np.repeat(np.arange(5), 10))
    for seed in range(5):
        train, val = split_rows(labels, Recipe(split_seed=seed), MemberKey(0), groups)
        assert 2 in labels[train] and 2 not in labels[val]
        assert set(labels[train]) == {0, 1, 2}
        assert len(val) > 0


def test_groups_that_cannot_be_split_are_refused():
    labels = np.repeat([0, 1], 10)
    for named, recipe, message in (
        (np.zeros(20, dtype=int), Recipe(), "a split must have at least 2 groups of images, fou"),
        (np.arange(20) // 5, Recipe(folds=5), "folds must have at least 5 groups of images, found"),
        (labels, Recipe(), "each has a class that no other has"),
    ):
        with pytest.raises(InputError, match=message):
            split_rows(labels, recipe, MemberKey(0, 1 if recipe.folds else 0), Groups(named=named))


def test_a_plan_refuses_what_cannot_be_split_and_says_what_frozen_runs_divide(tmp_path):
    ids = tuple(range(1, 41))
    table = "id,label,group\n" + "".join(f"{i},{i % 2},{i // 10}\n" for i in ids)
    dataset = read_dataset(write(tmp_path, table, ids=ids))

    def plan(run: str | None, **overrides):
        return make_plan(resolve_run(run, None, overrides), Setup(output_root=str(tmp_path / "o")))

    with pytest.raises(InputError, match="folds must have at least 9 groups"):
        plan(None, folds=9, image_size=16).check_data(dataset)
    assert plan(None).warnings(dataset) == []
    (line,) = plan("ensemble_1").warnings(dataset)
    assert line.startswith("8 of the 8 images that validate seed 76 have the group of one that")
