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
    list_images,
    read_dataset,
    read_test_images,
)
from pose.data.source import draw_demo, find_dataset
from pose.display import NoDisplay
from pose.errors import InputError


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


def test_four_suffixes_are_read_and_others_are_not(tmp_path):
    names = ("1.jpg", "2.jpeg", "3.png", "4.webp", "5.PNG", "6.gif", "7.txt", ".8.jpg")
    table = "id,label\n" + "".join(f"{i},{i % 2}\n" for i in range(1, 9))
    dataset = read_dataset(write_folder(tmp_path, table, names))
    assert dataset.ids == ("1", "2", "3", "4", "5")
    assert items_of(dataset, "rows without an image") == ("6", "7", "8")


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
    assert "at least two classes, found 2 labelled images of 1 classes" in error_of(folder)


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
    for part in ("owner/name", "--dataset PATH", "./dataset", "--dataset demo"):
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


def test_files_are_listed_by_stem_with_all_their_suffixes(tmp_path):
    for name in ("b.jpg", "a.PNG", "a.jpeg", ".a.jpg", "c.txt", "d.webp"):
        (tmp_path / name).touch()
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "e.jpg").touch()
    found = {stem: [path.name for path in paths] for stem, paths in list_images(tmp_path).items()}
    assert found == {"a": ["a.PNG", "a.jpeg"], "b": ["b.jpg"], "d": ["d.webp"]}
