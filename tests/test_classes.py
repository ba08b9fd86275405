"""classes.csv: names, and what a horizontal flip makes of each class."""

import pytest

from pose.data.classes import NEVER_FLIPPED, sorted_texts
from pose.data.classes import read_classes as read_classes_and_slips
from pose.errors import InputError


def read_classes(labels, path):
    return read_classes_and_slips(labels, path)[0]


def write(folder, text: str):
    path = folder / "classes.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_without_the_file_a_flip_keeps_every_label(tmp_path):
    classes = read_classes({"10", "9"}, tmp_path / "classes.csv")
    assert classes.labels == classes.names == ("9", "10")
    assert classes.mirrors == (0, 1)


def test_mirrors_swap_keep_or_forbid(tmp_path):
    path = write(
        tmp_path,
        "label,name,mirror\n3,Tree_right,2\n2,Tree_left,3\n1,Squat,1\n0,Warrior,\n",
    )
    classes = read_classes({"0", "1", "2", "3"}, path)
    assert classes.labels == ("0", "1", "2", "3")
    assert classes.names == ("Warrior", "Squat", "Tree_left", "Tree_right")
    assert classes.mirrors == (NEVER_FLIPPED, 1, 3, 2)
    assert classes.indices() == {"0": 0, "1": 1, "2": 2, "3": 3}


def test_flipping_twice_gives_the_same_class(tmp_path):
    path = write(tmp_path, "label,name,mirror\na,,c\nb,,b\nc,,a\nd,,e\ne,,d\n")
    mirrors = read_classes(set("abcde"), path).mirrors
    assert [mirrors[mirror] for mirror in mirrors] == list(range(5))
    assert mirrors != tuple(range(5))


def test_mirror_without_a_labelled_image_is_never_flipped(tmp_path):
    path = write(tmp_path, "label,name,mirror\nleft,,right\nright,,left\nup,,up\n")
    classes = read_classes({"left", "up"}, path)
    assert classes.labels == ("left", "up")
    assert classes.mirrors == (NEVER_FLIPPED, 1)


def test_without_a_mirror_column_a_flip_keeps_the_label(tmp_path):
    classes = read_classes({"a", "b"}, write(tmp_path, "label,name\nb,Plank\na,\n"))
    assert classes.mirrors == (0, 1)
    assert classes.names == ("a", "Plank"), "a label without a name is its own"


def test_columns_are_found_by_name_behind_a_byte_order_mark(tmp_path):
    path = write(tmp_path, "\ufeffMirror, Label , Name\nb, a, Left\na, b, Right\n")
    classes = read_classes({"a", "b"}, path)
    assert classes.names == ("Left", "Right")
    assert classes.mirrors == (1, 0)


def test_short_row_has_no_mirror(tmp_path):
    classes = read_classes({"a", "b"}, write(tmp_path, "label,name,mirror\na,Left\nb,Up,b\n"))
    assert classes.mirrors == (NEVER_FLIPPED, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label,name,mirror\na,,a\n", "must have a row for every label, found none for b"),
        ("label,name,mirror\na,,a\nb,,b\na,,a\n", "one row per label, found a twice (row 4)"),
        ("label,name,mirror\na,,b\nb,,b\n", "a has the mirror b, whose mirror is b"),
        ("label,name,mirror\na,,b\nb,,\n", "a has the mirror b, whose mirror is empty"),
        ("label,name,mirror\na,,z\nb,,b\n", "mirror of a must be one of a, b, got 'z'"),
        ("name,mirror\na,a\nb,b\n", "must have the columns label,name,mirror, found name,mirror"),
        ("", "must have the columns label,name,mirror, found "),
        ("label,label\na,b\nb,a\n", "must have one column label, found 2: label,label"),
        ("label,name\na,x,a\nb,y\n", "must have 2 columns in every row, found 3 in row 2"),
        ("label,name\na,x\n,y\nb,z\n", "must have a label in every row, found none in row 3"),
        ("label;name\na;x\nb;y\n", "must have commas between its columns, found semicolons"),
        ('label,name\na,"x\nb,y\n', "found in row 2: a quote that is never closed"),
    ],
)
def test_file_that_cannot_be_right_is_an_error(tmp_path, text, message):
    with pytest.raises(InputError) as caught:
        read_classes({"a", "b"}, write(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("texts", "ordered"),
    [
        (["10", "9", "-1", "09"], ["-1", "09", "9", "10"]),
        (["10", "9", "a"], ["10", "9", "a"]),
        (["1.5", "10", "9"], ["1.5", "10", "9"]),
        ([], []),
    ],
)
def test_texts_are_sorted_by_value_only_where_all_are_whole_numbers(texts, ordered):
    assert sorted_texts(texts) == ordered


@pytest.mark.parametrize("encoding", ["cp1251", "utf-16", "utf-32"])
def test_other_encodings_are_named(tmp_path, encoding):
    path = tmp_path / "classes.csv"
    path.write_bytes("label,name\na,Планка\nb,Стойка\n".encode(encoding))
    with pytest.raises(InputError, match="must be a CSV file in UTF-8, found"):
        read_classes({"a", "b"}, path)


def test_link_to_nowhere_is_no_missing_file(tmp_path):
    (tmp_path / "classes.csv").symlink_to("nowhere.csv")
    with pytest.raises(InputError, match="no such file"):
        read_classes({"a", "b"}, tmp_path / "classes.csv")


def test_likely_slips_are_named(tmp_path):
    path = write(tmp_path, "label,name,flip\na,Plank,a\nb,Plank,\nc,Tree,c\n")
    _, slips = read_classes_and_slips({"a", "b", "c"}, path)
    assert [slip.line() for slip in slips] == [
        "1 columns of classes.csv that mean nothing (ignored; known are label, name, mirror): flip",
        "1 names in classes.csv that several labels have (they stay classes of their own): "
        "Plank: a, b",
    ]
