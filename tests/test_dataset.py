"""The data contract: what is read from a folder, and every defect by its name."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pose.config import DataSetup, DemoSetup
from pose.data.cache import open_cache
from pose.data.folder import (
    check_images,
    dataset_digest,
    read_dataset,
    read_test_images,
    refuse_input,
)
from pose.data.labels import look_alikes
from pose.data.listing import list_images
from pose.data.source import draw_demo, find_dataset
from pose.display import NoDisplay
from pose.errors import InputError, printable


def image_bytes(format: str = "JPEG", color=(200, 30, 30), size: int = 16) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 40, (size, size, 3), dtype=np.uint8)
    Image.fromarray(noise + np.array(color, dtype=np.uint8)).save(buffer, format)
    return buffer.getvalue()


IMAGE = image_bytes()


def write_folder(folder: Path, table: str | bytes, names=(), tests=()) -> Path:
    """A data folder with the text of its labels file and good images of these names."""
    for part, files in (("train_images", names), ("test_images", tests)):
        (folder / part).mkdir(parents=True)
        for name in files:
            (folder / part / name).write_bytes(IMAGE)
    table = table.encode() if isinstance(table, str) else table
    (folder / "train_solution.csv").write_bytes(table)
    return folder


def jpgs(*ids) -> tuple[str, ...]:
    return tuple(f"{image_id}.jpg" for image_id in ids)


def labels_by_id(dataset) -> dict[str, str]:
    texts = [dataset.classes.labels[index] for index in dataset.labels]
    return dict(zip(dataset.ids, texts, strict=True))


def items_of(dataset, what: str) -> tuple[str, ...]:
    """The items of the one problem that is called `what`."""
    (problem,) = (problem for problem in dataset.problems if problem.what == what)
    return problem.items


def error_of(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_dataset(folder).raise_if_fatal()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The labels file


def test_headerless_file_keeps_its_first_row(tmp_path):
    dataset = read_dataset(write_folder(tmp_path, "0,1\n1,0\n2,1\n3,0\n", jpgs(0, 1, 2, 3)))
    assert labels_by_id(dataset) == {"0": "1", "1": "0", "2": "1", "3": "0"}
    assert dataset.labels.tolist() == [1, 0, 1, 0]
    assert dataset.problems == ()


def test_headerless_first_row_without_its_image_is_a_row_not_a_header(tmp_path):
    dataset = read_dataset(write_folder(tmp_path, "0,1\n1,0\n2,1\n3,0\n", jpgs(1, 2, 3)))
    assert items_of(dataset, "rows without an image") == ("0",)
    assert dataset.ids == ("1", "2", "3")


@pytest.mark.parametrize("header", ["id,label", "image,class", "Image Name,Pose", "ID , Label"])
def test_header_of_two_columns_may_have_any_names(tmp_path, header):
    dataset = read_dataset(write_folder(tmp_path, f"{header}\n5,a\n6,b\n7,a\n", jpgs(5, 6, 7)))
    assert labels_by_id(dataset) == {"5": "a", "6": "b", "7": "a"}
    assert "rows without an image" not in [problem.what for problem in dataset.problems]


def test_named_columns_may_stand_in_any_order(tmp_path):
    dataset = read_dataset(write_folder(tmp_path, "label,id\n0,8\n1,9\n1,10\n", jpgs(8, 9, 10)))
    assert labels_by_id(dataset) == {"8": "0", "9": "1", "10": "1"}


def test_more_columns_are_read_where_they_are_named(tmp_path):
    table = "source,label,id,note\ncam,0,8,\ncam,1,9,dark\n"
    dataset = read_dataset(write_folder(tmp_path, table, jpgs(8, 9)))
    assert labels_by_id(dataset) == {"8": "0", "9": "1"}


def test_more_columns_without_these_names_are_an_error(tmp_path):
    folder = write_folder(tmp_path, "file,class,note\n8,0,x\n9,1,y\n", jpgs(8, 9))
    assert "must have the columns id,label, found file,class,note" in error_of(folder)


def test_more_columns_without_a_header_are_an_error(tmp_path):
    folder = write_folder(tmp_path, "8,0,x\n9,1,y\n", jpgs(8, 9))
    assert "must name its columns id and label, found 3 without names" in error_of(folder)


def test_rows_of_another_width_are_an_error_with_their_number(tmp_path):
    folder = write_folder(tmp_path, "id,label\n8,0\n9\n", jpgs(8, 9))
    assert "must have 2 columns in every row, found 1 in row 3" in error_of(folder)


def test_byte_order_mark_quotes_spaces_and_blank_lines_are_no_part_of_ids(tmp_path):
    table = '\ufeffid,label\r\n"1", a\r\n\r\n 2 ,"b"\r\n'
    dataset = read_dataset(write_folder(tmp_path, table, jpgs(1, 2)))
    assert labels_by_id(dataset) == {"1": "a", "2": "b"}


def test_byte_order_mark_does_not_hide_a_headerless_first_row(tmp_path):
    dataset = read_dataset(write_folder(tmp_path, "\ufeff1,a\n2,b\n", jpgs(1, 2)))
    assert labels_by_id(dataset) == {"1": "a", "2": "b"}


@pytest.mark.parametrize("table", ["", "\n\n"])
def test_empty_labels_file_is_an_error(tmp_path, table):
    assert "found no rows" in error_of(write_folder(tmp_path, table, jpgs(1)))


def test_one_column_is_an_error(tmp_path):
    folder = write_folder(tmp_path, "1\n2\n", jpgs(1, 2))
    assert "must have two columns, id,label, found one: '1'" in error_of(folder)


def test_other_encoding_is_an_error(tmp_path):
    folder = write_folder(tmp_path, "id,label\n1,ä\n2,ö\n".encode("latin-1"), jpgs(1, 2))
    assert "must be a CSV file in UTF-8" in error_of(folder)


def test_missing_labels_file_is_an_error(tmp_path):
    (tmp_path / "train_images").mkdir()
    assert error_of(tmp_path).endswith("must hold train_solution.csv (id,label), found none")


def test_missing_image_folder_is_an_error(tmp_path):
    (tmp_path / "train_solution.csv").write_text("1,0\n2,1\n")
    assert "found no train_images/" in error_of(tmp_path)


# Ids and labels


def test_leading_zeros_survive(tmp_path):
    dataset = read_dataset(write_folder(tmp_path, "007,01\n010,1\n", jpgs("007", "010")))
    assert labels_by_id(dataset) == {"007": "01", "010": "1"}
    assert dataset.files[0].name == "007.jpg"


def test_numeric_ids_are_sorted_by_value(tmp_path):
    table = "id,label\n10,a\n9,b\n2,a\n100,b\n"
    dataset = read_dataset(write_folder(tmp_path, table, jpgs(2, 9, 10, 100)))
    assert dataset.ids == ("2", "9", "10", "100")
    assert [file.stem for file in dataset.files] == list(dataset.ids)
    assert dataset.labels.tolist() == [0, 1, 0, 1]


def test_ids_are_sorted_as_text_where_one_is_no_number(tmp_path):
    table = "id,label\n10,a\n9,b\nx2,a\n100,b\n"
    dataset = read_dataset(write_folder(tmp_path, table, jpgs("x2", 9, 10, 100)))
    assert dataset.ids == ("10", "100", "9", "x2")


def test_numeric_labels_are_sorted_by_value(tmp_path):
    dataset = read_dataset(write_folder(tmp_path, "1,10\n2,9\n3,-1\n", jpgs(1, 2, 3)))
    assert dataset.classes.labels == ("-1", "9", "10")
    assert dataset.labels.tolist() == [2, 1, 0]


def test_ids_may_be_file_names(tmp_path):
    dataset = read_dataset(write_folder(tmp_path, "id,label\n1.jpg,a\n2.JPG,b\n", jpgs(1, 2)))
    assert dataset.ids == ("1", "2")


def test_an_id_may_hold_a_dot(tmp_path):
    dataset = read_dataset(write_folder(tmp_path, "id,label\nv1.5,a\nv1.6,b\n",
                                        jpgs("v1.5", "v1.6")))  # fmt: skip
    assert dataset.ids == ("v1.5", "v1.6")


def test_known_suffixes_are_read_and_other_files_are_named(tmp_path):
    names = ("1.jpg", "2.jpeg", "3.png", "4.webp", "5.PNG", "6.gif", "7.jfif", "8.tiff", "9.bmp",
             "10.txt", ".11.jpg")  # fmt: skip
    table = "id,label\n" + "".join(f"{i},{i % 2}\n" for i in range(1, 12))
    dataset = read_dataset(write_folder(tmp_path, table, names, ("1.jpg", "2.svg")))
    assert dataset.ids == tuple("123456789")
    assert items_of(dataset, "rows without an image") == ("10", "11")
    assert items_of(dataset, "files in train_images/ that are no images") == ("10.txt",)
    assert items_of(dataset, "files in test_images/ that are no images") == ("2.svg",)
    told = []
    assert list(read_test_images(tmp_path, told.append)) == ["1"]
    assert len(told) == 1 and "2.svg" in told[0]


def test_a_photo_in_heic_is_an_image_that_cannot_be_read(tmp_path):
    folder = write_folder(tmp_path, "1,a\n2,b\n3,a\n", ("1.jpg", "2.jpg", "3.heic"), ("7.heic",))
    for part, name in (("train_images", "3.heic"), ("test_images", "7.heic")):
        (folder / part / name).write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    dataset = check_images(read_dataset(folder))
    words = "HEIC is not read: convert it to JPG"
    assert items_of(dataset, "labelled images that cannot be read") == (f"3.heic ({words})",)
    assert items_of(dataset, "test images that cannot be read") == (f"7.heic ({words})",)


def test_a_photo_that_was_converted_may_stay_beside(tmp_path):
    folder = write_folder(tmp_path, "1,a\n2,b\n", ("1.jpg", "1.heic", "2.jpg"))
    dataset = read_dataset(folder)
    dataset.raise_if_fatal()
    assert [path.name for path in dataset.files] == ["1.jpg", "2.jpg"]
    assert items_of(dataset, "files in train_images/ that are no images") == ("1.heic",)


# Folders in the folder of images


def write_nested(folder: Path, table: str, names) -> Path:
    write_folder(folder, table, tests=["5.jpg"])
    for name in names:
        path = folder / "train_images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(IMAGE)
    return folder


def test_folders_are_part_of_ids(tmp_path):
    names = ("day1/1.jpg", "day2/1.jpg", "day2/late/3.jpg", "1.jpg")
    table = "id,label\nday1/1.jpg,a\nday2/1,b\nday2\\late\\3.jpg,a\n1,b\n"
    dataset = read_dataset(write_nested(tmp_path, table, names))
    assert labels_by_id(dataset) == {"day1/1": "a", "day2/1": "b", "day2/late/3": "a", "1": "b"}
    assert dataset.problems == ()
    assert "labelled images: 4, 3 of them in folders: day1/, day2/, day2/late/" in dataset.report()


def test_an_id_with_a_folder_is_never_a_file_elsewhere(tmp_path):
    table = "id,label\n1.jpg,a\n2.jpg,b\ncamera_b/3.jpg,b\n"
    dataset = read_dataset(write_folder(tmp_path, table, jpgs(1, 2, 3)))
    assert labels_by_id(dataset) == {"1": "a", "2": "b"}
    assert items_of(dataset, "rows without an image") == ("camera_b/3",)
    assert items_of(dataset, "images without a row") == ("3",)


@pytest.mark.parametrize("prefix", ["train_images/", "./train_images/", "train_images\\", "./"])
def test_the_name_of_the_folder_itself_is_no_part_of_ids(tmp_path, prefix):
    table = f"id,label\n{prefix}1.jpg,a\n{prefix}2.jpg,b\n"
    assert read_dataset(write_folder(tmp_path, table, jpgs(1, 2))).ids == ("1", "2")


def test_images_a_folder_too_deep_are_found_and_said(tmp_path):
    folder = write_nested(
        tmp_path, "id,label\n1,a\n2,b\n", ("train_images/1.jpg", "train_images/2.jpg")
    )
    assert "train_images/train_images/ has such names: move its images up" in error_of(folder)


def test_hidden_things_and_links_to_folders_are_left_alone(tmp_path):
    folder = write_nested(
        tmp_path, "1,a\n2,b\n", ("1.jpg", "2.jpg", ".hidden/1.jpg", "._1.jpg", "9.jpg/1.jpg")
    )
    (folder / "train_images" / "loop").symlink_to(folder / "train_images")
    dataset = read_dataset(folder)
    assert dataset.ids == ("1", "2")
    assert items_of(dataset, "files in train_images/ that are no images") == (
        "9.jpg (a folder)",
        "loop (a link to a folder: not followed)",
    )


def test_a_file_is_found_by_its_whole_name_first(tmp_path):
    table = "id,label\n1.jpg,a\n1.jpg.jpg,b\n2,a\n"
    folder = write_folder(tmp_path, table, ("1.jpg", "1.jpg.jpg", "2.jpg"))
    assert labels_by_id(read_dataset(folder)) == {"1": "a", "1.jpg": "b", "2": "a"}


def test_a_name_that_is_not_utf8_is_named(tmp_path):
    folder = write_folder(tmp_path, "1,a\n2,b\n", jpgs(1, 2))
    (folder / "train_images" / "\udcff3.jpg").write_bytes(IMAGE)
    (folder / "train_images" / "4\n.txt").write_bytes(IMAGE)
    dataset = read_dataset(folder)
    assert items_of(dataset, "files in train_images/ that are no images") == (
        "4\\n.txt",
        "\\udcff3.jpg (a name that is not UTF-8)",
    )
    dataset.report().encode()


# Columns


@pytest.mark.parametrize("header", ["target,id", "label,file", "LABEL,x"])
def test_one_named_column_of_two_is_enough(tmp_path, header):
    table = f"{header}\na,1\nb,2\nc,3\n"
    dataset = read_dataset(write_folder(tmp_path, table, jpgs(1, 2, 3)))
    assert labels_by_id(dataset) == {"1": "a", "2": "b", "3": "c"}


def test_two_columns_of_one_name_are_an_error(tmp_path):
    folder = write_folder(tmp_path, "id,label,label\n1,a,b\n2,b,a\n", jpgs(1, 2))
    assert "must have one column label, found 2: id,label,label" in error_of(folder)


def test_what_is_taken_for_a_header_is_said(tmp_path):
    dataset = read_dataset(write_folder(tmp_path, "1,only\n2,a\n3,b\n", jpgs(2, 3)))
    assert items_of(dataset, "row taken for names of columns") == ("1,only",)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('id,label\n1,"a\n2,b\n3,a\n', "found in row 2: a quote that is never closed"),
        ('id,label\n1,"a\n2,b"\n3,a\n', "found a quote in row 2 that is closed in row 3"),
        ('id,label\n\n1,"a\n2,"b"\n', "found in row 3: a quote within a cell"),
        ("id;label\n1;a\n2;b\n", "must have commas between its columns, found semicolons"),
        ("1;0,5\n2;1,5\n", "must have commas between its columns, found semicolons"),
        ("id\tlabel\n1\ta\n2\tb\n", "must have commas between its columns, found tabs"),
        ("sep=;\nid;label\n1;a\n", "must have commas between its columns, found semicolons"),
        ("id,label\n\n\n1,a,x\n2,b\n", "must have 2 columns in every row, found 3 in row 4"),
        ("id,label\n1,a\n2,\0b\n", "found a NUL byte in row 3"),
        ("id,label\n1," + "a" * 200_000, "found in row 2: a cell of more than"),
        ("id,label\n", "found the header alone"),
    ],
)
def test_a_table_that_cannot_be_right_is_an_error_with_its_row(tmp_path, table, message):
    assert message in error_of(write_folder(tmp_path, table, jpgs(1, 2, 3)))


@pytest.mark.parametrize(
    ("encoding", "found"),
    [
        ("utf-16", "found UTF-16"),
        ("utf-32", "found UTF-32"),
        ("utf-16-le", "found a NUL byte in row 1"),
        ("cp1251", "found the byte 0xcf in row 2"),
    ],
)
def test_other_encodings_are_named(tmp_path, encoding, found):
    table = "id,label\n1,Планка\n2,b\n".encode(encoding)
    if encoding == "utf-16-le":
        table = "id,label\n1,a\n2,b\n".encode(encoding)
    assert found in error_of(write_folder(tmp_path, table, jpgs(1, 2)))


def test_excels_line_about_the_separator_is_no_row(tmp_path):
    dataset = read_dataset(write_folder(tmp_path, "sep=,\nid,label\n1,a\n2,b\n", jpgs(1, 2)))
    assert labels_by_id(dataset) == {"1": "a", "2": "b"}


@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        (("0", "0.0"), "'0' and '0.0'"),
        (("A", "a"), "'A' and 'a'"),
        (("a b", "a  b"), "'a  b' and 'a b'"),
        (("a b", "a\xa0b"), "'a b' and 'a\\xa0b'"),
        (("cat", "cat\u200b"), "'cat' and 'cat\\u200b'"),
        (("cat", "c\u0430t"), "'cat' and 'c\u0430t' (c\\u0430t)"),
        (("a_b", "a b"), "'a b' and 'a_b'"),
        (("01", "1"), "'01' and '1'"),
        (("-1", "\u22121"), "'-1' and '\u22121' (\\u22121)"),
        (("1/2", "\u00bd"), "'1/2' and '\u00bd' (\\xbd)"),
        (("a/b", "a\uff0fb"), "'a/b' and 'a\uff0fb' (a\\uff0fb)"),
        (("1/2", "1\u22152"), "'1/2' and '1\u22152' (1\\u22152)"),
    ],
)
def test_labels_that_look_alike_are_shown(tmp_path, labels, shown):
    assert look_alikes([*labels, "other"]) == [shown]
    table = f"id,label\n1,{labels[0]}\n2,{labels[1]}\n3,other\n"
    dataset = read_dataset(write_folder(tmp_path, table, jpgs(1, 2, 3)))
    assert items_of(dataset, "groups of labels that look alike")
    assert len(dataset.classes) == 3


@pytest.mark.parametrize(
    ("sample", "shown"),
    [
        ("id,label\nzzz,a\n", "found 1 missing (9), 1 without an image (zzz)"),
        ("id,label\n9,a\n9,b\n", "found 1 twice (9)"),
        ("id;label\n9;a\n", "must have commas between its columns"),
        (b"\xff\xfe\0", "found UTF-16"),
    ],
)
def test_a_sample_that_votes_will_refuse_is_named_before_anything_is_trained(
    tmp_path, sample, shown
):
    folder = write_folder(tmp_path, "id,label\n1,a\n2,b\n", jpgs(1, 2), jpgs(9))
    path = folder / "sample_submission.csv"
    path.write_bytes(sample.encode() if isinstance(sample, str) else sample)
    (item,) = items_of(read_dataset(folder), "forms of predictions.csv that cannot be used")
    assert shown in item and item.startswith("sample_submission.csv ")
    path.write_text("id,label\n9,a\n")
    assert not [own for own in read_dataset(folder).problems if own.what.startswith("forms")]


def test_labels_that_differ_do_not_look_alike():
    assert look_alikes(["0", "1", "10", "-1", "a", "b", "left", "right", "1.5", "15"]) == []


@pytest.mark.parametrize("label", ["nan", "#N/A", "None", "NULL"])
def test_labels_that_mean_a_missing_value_are_named(tmp_path, label):
    table = f"id,label\n1,a\n2,b\n3,{label}\n"
    dataset = read_dataset(write_folder(tmp_path, table, jpgs(1, 2, 3)))
    assert items_of(dataset, "labels that mean a missing value in other programs") == (label,)


@pytest.mark.parametrize("written", ["7.0", "0007", "7E+0", "7\u200b", "\uff17"])
def test_ids_that_a_program_changed_are_shown_with_what_they_mean(tmp_path, written):
    table = f"id,label\n1,a\n2,b\n{written},a\n"
    dataset = read_dataset(write_folder(tmp_path, table, jpgs(1, 2, 7)))
    (problem,) = [found for found in dataset.problems if found.what == "rows without an image"]
    assert f"ids must be written as files are named: {printable(written)} for 7" in problem.line()
    assert "7" not in dataset.ids


# Outputs


def test_an_output_never_replaces_an_input(tmp_path):
    folder = write_folder(tmp_path / "data", "1,a\n2,b\n", jpgs(1, 2), jpgs(7))
    (tmp_path / "link").symlink_to(folder / "train_solution.csv")
    hard = tmp_path / "hard"
    hard.hardlink_to(folder / "train_solution.csv")
    names = ("train_solution.csv", "classes.csv", "train_images/3.jpg", "test_images/7.jpg")
    for path in (*(folder / name for name in names), tmp_path / "link", hard):
        with pytest.raises(InputError, match="out_path must not replace what lies in the data"):
            refuse_input(path, folder, "out_path")
    refuse_input(folder / "predictions.csv", folder, "out_path")


# Defects


def test_rows_without_an_image_and_images_without_a_row_are_named(tmp_path):
    folder = write_folder(tmp_path, "id,label\n1,a\n2,b\n3,a\n4,b\n", jpgs(1, 2, 30, 4))
    dataset = read_dataset(folder)
    assert labels_by_id(dataset) == {"1": "a", "2": "b", "4": "b"}
    assert items_of(dataset, "rows without an image") == ("3",)
    assert items_of(dataset, "images without a row") == ("30",)
    dataset.raise_if_fatal()


def test_rows_without_a_label_are_left_out(tmp_path):
    dataset = read_dataset(write_folder(tmp_path, "id,label\n1,a\n2,b\n3,\n", jpgs(1, 2, 3)))
    assert dataset.classes.labels == ("a", "b")
    assert items_of(dataset, "rows without a label") == ("3",)


def test_id_twice_with_the_same_label_is_used_once(tmp_path):
    dataset = read_dataset(write_folder(tmp_path, "1,a\n2,b\n1,a\n3,b\n", jpgs(1, 2, 3)))
    assert dataset.ids == ("1", "2", "3")
    assert items_of(dataset, "ids that stand there twice with the same label") == ("1",)
    dataset.raise_if_fatal()


def test_id_with_different_labels_is_fatal(tmp_path):
    folder = write_folder(tmp_path, "1,a\n2,b\n1,b\n3,b\n4,a\n", jpgs(1, 2, 3, 4))
    assert items_of(read_dataset(folder), "ids with different labels") == ("1",)
    assert "1 ids with different labels (correct them): 1" in error_of(folder)


def test_id_and_its_file_name_with_different_labels_are_fatal(tmp_path):
    folder = write_folder(tmp_path, "id,label\n1,a\n1.jpg,b\n2,b\n", jpgs(1, 2))
    assert "ids with different labels" in error_of(folder)


def test_two_files_of_one_id_are_fatal(tmp_path):
    folder = write_folder(tmp_path, "1,a\n2,b\n3,a\n", ("1.jpg", "1.png", "2.jpg", "3.jpg"))
    assert "1 ids with more than one image file (keep one of each): 1.jpg, 1.png" in error_of(
        folder
    )


def test_two_files_of_one_test_id_are_fatal(tmp_path):
    folder = write_folder(tmp_path, "1,a\n2,b\n", jpgs(1, 2), ("7.jpg", "7.webp"))
    assert "test ids with more than one image file" in error_of(folder)
    with pytest.raises(InputError, match="7.jpg, 7.webp: keep one of each"):
        read_test_images(folder)


def test_class_with_a_single_image_is_named(tmp_path):
    dataset = read_dataset(write_folder(tmp_path, "1,a\n2,a\n3,rare\n", jpgs(1, 2, 3)))
    assert items_of(dataset, "classes with a single image") == ("rare",)
    dataset.raise_if_fatal()


def test_one_class_is_an_error(tmp_path):
    folder = write_folder(tmp_path, "1,a\n2,a\n", jpgs(1, 2))
    assert "at least two classes, found 2 labelled images of 1 class" in error_of(folder)


def test_no_row_with_an_image_is_an_error_that_says_why(tmp_path):
    message = error_of(write_folder(tmp_path, "id,label\n1,a\n2,b\n", jpgs(3)))
    assert "found 0 labelled images of 0 classes" in message
    assert "2 rows without an image (left out): 1, 2" in message


def test_bad_images_are_found_named_and_left_out(tmp_path):
    table = "id,label\n" + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(8))
    folder = write_folder(tmp_path, table, jpgs(*range(8)))
    images = folder / "train_images"
    (images / "1.jpg").write_bytes(b"")
    (images / "2.jpg").write_bytes(b"<html>not found</html>")
    (images / "3.jpg").write_bytes(IMAGE[: len(IMAGE) // 2])
    (images / "4.jpg").unlink()
    (images / "4.jpg").symlink_to("nowhere.jpg")
    dataset = check_images(read_dataset(folder), num_workers=2)
    assert dataset.ids == ("0", "5", "6", "7")
    assert dataset.labels.tolist() == [0, 1, 0, 1]
    assert [file.stem for file in dataset.files] == ["0", "5", "6", "7"]
    found = items_of(dataset, "labelled images that cannot be read")
    assert found[:2] == ("1.jpg (an empty file)", "2.jpg (not an image)")
    assert found[2].startswith("3.jpg (") and "truncated" in found[2].lower()
    assert found[3].startswith("4.jpg (")


def test_class_that_loses_its_only_image_is_an_error(tmp_path):
    folder = write_folder(tmp_path, "1,a\n2,a\n3,rare\n", jpgs(1, 2, 3))
    (folder / "train_images" / "3.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"a class has none: 1 labelled .* 3.jpg \(an empty file"):
        check_images(read_dataset(folder))


def test_unreadable_test_images_are_named_and_kept_apart(tmp_path):
    folder = write_folder(tmp_path, "1,a\n2,b\n", jpgs(1, 2), jpgs(7, 8))
    (folder / "test_images" / "8.jpg").write_bytes(b"nothing")
    dataset = check_images(read_dataset(folder))
    assert items_of(dataset, "test images that cannot be read") == ("8.jpg (not an image)",)
    assert dataset.ids == ("1", "2")
    assert dataset.test_ids == ("7", "8")


def test_progress_ends_with_all_images(tmp_path):
    told = []
    folder = write_folder(tmp_path, "1,a\n2,b\n", jpgs(1, 2), jpgs(7))
    check_images(read_dataset(folder), progress=lambda *pair: told.append(pair))
    assert told == [(3, 3)]


def test_report_counts_classes_and_names_every_item(tmp_path):
    table = "".join(f"{i},{'ab'[i % 4 == 0]}\n" for i in range(20))
    folder = write_folder(tmp_path, table, jpgs(*range(13)), jpgs(100))
    (folder / "classes.csv").write_text("label,name,mirror\na,Stand,a\nb,Plank,\n")
    report = read_dataset(folder).report()
    # Of ids 0 to 12, 0, 4, 8 and 12 are class b.
    assert "labelled images: 13\ntest images: 1\nclasses: 2\n" in report
    assert "  a Stand: 9 images, 69.2%, mirror a\n" in report
    assert "  b Plank: 4 images, 30.8%, never flipped\n" in report
    assert (
        "problems: 1\n  warning: 7 rows without an image (left out): 13, 14, 15, 16, 17 and 2 more"
        in report
    )
    assert report.endswith(
        "all rows without an image:\n" + "".join(f"  {i}\n" for i in range(13, 20))
    )


def test_report_of_a_clean_folder_says_so(stripes):
    report = read_dataset(stripes).report()
    assert "  0: 40 images, 66.7%, mirror 0\n  1: 20 images, 33.3%, mirror 1\n" in report
    assert report.endswith("problems: none\n")


# Test images


def test_test_images_are_sorted_by_id(tmp_path):
    folder = write_folder(tmp_path, "1,a\n2,b\n", jpgs(1, 2), jpgs(10, 9, "010"))
    assert list(read_test_images(folder)) == ["9", "010", "10"]
    assert read_dataset(folder).test_ids == ("9", "010", "10")


@pytest.mark.parametrize("is_absent", [True, False])
def test_a_vote_without_test_images_is_an_error_but_training_is_not(tmp_path, is_absent):
    folder = write_folder(tmp_path, "1,a\n2,b\n", jpgs(1, 2))
    if is_absent:
        (folder / "test_images").rmdir()
    assert read_dataset(folder).test_ids == ()
    with pytest.raises(InputError, match="must hold the images to predict"):
        read_test_images(folder)


# Where the data comes from


def test_named_folder_comes_before_the_usual_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "dataset", "1,a\n2,b\n")
    write_folder(tmp_path / "other", "1,a\n2,b\n")
    assert find_dataset(
        DataSetup(dataset="other", kaggle_handle="owner/name"), NoDisplay()
    ) == Path("other")
    assert find_dataset(DataSetup(dataset=None, kaggle_handle="owner/name"), NoDisplay()) == Path(
        "dataset"
    )


def test_data_may_lie_in_a_dataset_folder_inside(tmp_path):
    write_folder(tmp_path / "dataset", "1,a\n2,b\n")
    assert (
        find_dataset(DataSetup(dataset=str(tmp_path), kaggle_handle="owner/name"), NoDisplay())
        == tmp_path / "dataset"
    )
    assert (
        find_dataset(
            DataSetup(dataset=str(tmp_path / "dataset"), kaggle_handle="owner/name"), NoDisplay()
        )
        == tmp_path / "dataset"
    )


def test_named_folder_that_is_none_is_an_error(tmp_path):
    with pytest.raises(InputError, match="which is no folder; dataset demo draws one"):
        find_dataset(
            DataSetup(dataset=str(tmp_path / "nowhere"), kaggle_handle="owner/name"), NoDisplay()
        )


def test_without_data_and_network_one_line_has_three_ways_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # A proxy that nobody listens at: the same on machines with and without a network.
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kaggle"))
    with pytest.raises(InputError) as caught:
        find_dataset(DataSetup(dataset=None, kaggle_handle="owner/name"), NoDisplay())
    message = str(caught.value)
    assert "\n" not in message
    for part in ("owner/name", "--dataset PATH", str(tmp_path / "dataset"), "--dataset demo"):
        assert part in message
    assert not (tmp_path / "demo").exists()


def test_demo_is_drawn_and_obeys_the_contract(tmp_path):
    folder = draw_demo(
        DemoSetup(out=str(tmp_path / "demo"), num_train=40, num_test=20), NoDisplay()
    )
    dataset = check_images(read_dataset(folder))
    assert (len(dataset.ids), len(dataset.test_ids), len(dataset.classes)) == (40, 20, 20)
    assert dataset.problems == ()


def test_demo_is_not_drawn_into_a_foreign_folder(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match="found other files"):
        draw_demo(DemoSetup(out=str(tmp_path), num_train=20, num_test=0), NoDisplay())


# The digest


def digest_of(folder: Path, cache_root: Path) -> str:
    dataset = read_dataset(folder)
    return dataset_digest(dataset, open_cache(dataset.files, 16, cache_root=cache_root).digests)


def test_digest_is_that_of_the_content_wherever_it_lies(stripes, tmp_path):
    copy = Path(shutil.copytree(stripes, tmp_path / "elsewhere"))
    digest = digest_of(stripes, tmp_path / "cache")
    assert len(digest) == 16
    assert digest_of(copy, tmp_path / "cache") == digest

    table = copy / "train_solution.csv"
    text = table.read_text()
    header, *rows = text.splitlines()
    table.write_text("\n".join([header, *reversed(rows)]))
    assert digest_of(copy, tmp_path / "cache") == digest, "the order of rows is no content"

    flipped = {"0": "1", "1": "0"}[rows[0][-1]]
    table.write_text("\n".join([header, rows[0][:-1] + flipped, *rows[1:]]))
    assert digest_of(copy, tmp_path / "cache") != digest, "a label is"

    table.write_text(text)
    first = copy / "train_images" / "0.jpg"
    first.write_bytes(first.read_bytes() + b"\0")
    assert digest_of(copy, tmp_path / "cache") != digest, "a byte is"


def test_files_are_listed_by_id_with_all_their_suffixes(tmp_path):
    for name in ("b.jpg", "a.PNG", "a.jpeg", ".a.jpg", "c.txt", "d.webp"):
        (tmp_path / name).touch()
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "e.jpg").touch()
    listing = list_images(tmp_path)
    found = {image_id: [path.name for path in paths] for image_id, paths in listing.images.items()}
    assert found == {"a": ["a.PNG", "a.jpeg"], "b": ["b.jpg"], "d": ["d.webp"],
                     "deeper/e": ["e.jpg"]}  # fmt: skip
    assert listing.odd == ("c.txt",)


@pytest.mark.parametrize(
    "name", ["Groups.csv", "group.csv", "Classes.csv", "class.csv", "sample_submissions.csv"]
)
def test_a_file_whose_name_is_a_slip_is_named(tmp_path, name):
    folder = write_folder(tmp_path / "data", "1,a\n2,b\n", jpgs(1, 2), tests=jpgs(3))
    (folder / name).write_text("label,name\n")
    (item,) = items_of(
        read_dataset(folder), "files whose names are nearly those of files that are read"
    )
    assert item.startswith(f"{name} for ")


def test_a_folder_or_a_table_whose_name_is_a_slip_is_named_where_it_is_missed(tmp_path):
    folder = write_folder(tmp_path / "data", "1,a\n2,b\n", jpgs(1, 2), tests=jpgs(3))
    (folder / "train_solution.csv").rename(folder / "Train_Solution.csv")
    with pytest.raises(InputError, match=r"found Train_Solution\.csv for train_solution\.csv"):
        read_dataset(folder)
    (folder / "train_images").rename(folder / "train_image")
    with pytest.raises(InputError, match="found train_image for train_images"):
        read_dataset(folder)


def test_equal_images_with_different_labels_are_named(tmp_path):
    folder = write_folder(tmp_path / "data", "1,a\n2,b\n3,a\n4,b\n", jpgs(1, 2, 3, 4))
    other = image_bytes(color=(30, 200, 30))
    for image_id in (3, 4):
        (folder / "train_images" / f"{image_id}.jpg").write_bytes(other[:-1] + bytes([image_id]))
    checked = check_images(read_dataset(folder))
    what = "groups of images of equal bytes with different labels"
    assert items_of(checked, what) == ("1 (a), 2 (b)",)
