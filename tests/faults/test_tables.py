"""Tables as spreadsheets, editors, programs and broken disks write them."""

import csv
import io
import itertools
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pose.data.classes import read_classes
from pose.data.folder import read_dataset
from pose.scoring import score_predictions

LABELS = {"1": "a", "2": "b", "3": "a", "007": "b", "v1.5": "a", "day1/1": "b"}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A folder of images with the ids of `LABELS`."""
    folder = tmp_path_factory.mktemp("images") / "train_images"
    for image_id in LABELS:
        path = folder / f"{image_id}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    return folder


@pytest.fixture
def write(images, tmp_path):
    """Writes a data folder with these bytes as its labels file; other files by name."""

    def write_bytes(table: bytes, **others: bytes) -> Path:
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        if not (folder / "train_images").exists():
            (folder / "train_images").symlink_to(images)
        (folder / "train_solution.csv").write_bytes(table)
        for name, data in others.items():
            (folder / f"{name}.csv").write_bytes(data)
        return folder

    return write_bytes


def labels_of(folder: Path) -> dict[str, str]:
    dataset = read_dataset(folder)
    dataset.raise_if_fatal()
    dataset.report().encode()
    labels = [dataset.classes.labels[index] for index in dataset.labels]
    return dict(zip(dataset.ids, labels, strict=True))


def is_all(labels: dict[str, str]) -> bool:
    return labels == LABELS


ENDS = {"unix": "\n", "windows": "\r\n", "old mac": "\r", "blank lines": "\n\n"}
MARKS = {"plain": b"", "bom": b"\xef\xbb\xbf"}
QUOTES = {"bare": "{}", "quoted": '"{}"', "spaces": " {} "}
HEADERS = {"none": None, "named": "id,label", "shouted": "ID,LABEL", "others": "file,class"}
FORMS = {
    "id": "{}",
    "name": "{}.jpg",
    "NAME": "{}.JPG",
    "path": "train_images/{}.jpg",
    "dot": "./{}.jpg",
    "windows": "train_images\\{}.jpg",
}


@pytest.mark.parametrize(
    "dialect",
    list(itertools.product(ENDS, MARKS, QUOTES, HEADERS, FORMS)),
    ids=lambda dialect: "-".join(dialect).replace(" ", "_"),
)
def test_dialects_are_read(write, judge, dialect):
    end, mark, quote, header, form = dialect
    lines = [HEADERS[header]] if HEADERS[header] else []
    for image_id, label in LABELS.items():
        cells = FORMS[form].format(image_id), label
        lines.append(",".join(QUOTES[quote].format(cell) for cell in cells))
    text = "".join(line + ENDS[end] for line in lines)
    folder = write(MARKS[mark] + text.encode())
    assert judge(lambda: labels_of(folder), is_all, folder) == ""


ENCODINGS = (
    "cp1251", "koi8-r", "cp866", "mac-cyrillic", "utf-16", "utf-16-le", "utf-16-be", "utf-32",
    "utf-32-le",
)  # fmt: skip
TEXTS = {
    "labels": "id,label\n1,Планка\n2,Стойка\n3,Планка\n007,Стойка\nv1.5,Планка\nday1/1,Стойка\n",
    "classes": "label,name,mirror\na,Планка,a\nb,Стойка,b\n",
    "scores": "id,label\n1,Планка\n2,Стойка\n",
}
GOOD = "".join(f"{image_id},{label}\n" for image_id, label in LABELS.items()).encode()


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("table", TEXTS)
def test_other_encodings_are_named(write, judge, tmp_path, table, encoding):
    data = TEXTS[table].encode(encoding)
    if table == "labels":
        folder = write(data)
        act = lambda: labels_of(folder)  # noqa: E731
    elif table == "classes":
        folder = write(GOOD, classes=data)
        act = lambda: labels_of(folder)  # noqa: E731
    else:
        folder = write(GOOD, test_solution=TEXTS["scores"].encode(), predictions=data)
        act = lambda: score_predictions(folder / "predictions.csv", folder)  # noqa: E731
    assert "UTF-8" in judge(act, None, folder)


ROWS = "1,a\n2,b\n3,a\n007,b\nv1.5,a\nday1/1,b\n"
BROKEN = {
    "empty": "",
    "blank": "\n \n,\n",
    "header alone": "id,label\n",
    "one column": "id\n1\n2\n",
    "semicolons": f"id,label\n{ROWS}".replace(",", ";"),
    "semicolons headerless": ROWS.replace(",", ";"),
    "tabs": f"id,label\n{ROWS}".replace(",", "\t"),
    "bars": f"id,label\n{ROWS}".replace(",", "|"),
    "spaces": f"id,label\n{ROWS}".replace(",", " "),
    "decimal commas": "1;0,5\n2;1,5\n3;0,5\n",
    "sep line": f"sep=;\nid,label\n{ROWS}".replace(",", ";"),
    "open quote": f'id,label\n1,"a\n{ROWS}',
    "open quote at the end": f'id,label\n{ROWS}9,"a',
    "quote closed later": f'id,label\n1,"a\n2,b"\n{ROWS}',
    "quote in a cell": 'id,label\n1,"a"b\n2,b\n',
    "id over two lines": f'id,label\n"1\n2",b\n{ROWS}',
    "short row": f"id,label\n{ROWS}9\n",
    "long row": f"id,label\n{ROWS}9,a,b\n",
    "label twice in the header": "id,label,label\n1,a,b\n2,b,a\n",
    "id twice in the header": "id,ID\n1,a\n2,b\n",
    "three unnamed columns": "1,a,x\n2,b,y\n",
    "three odd names": "file,class,note\n1,a,x\n2,b,y\n",
    "other labels of one id": f"id,label\n{ROWS}1,b\n",
    "other labels of one file": f"id,label\n{ROWS}1.jpg,b\n",
    "one class": ROWS.replace(",b", ",a"),
    "no labels": ROWS.replace(",b", ",").replace(",a", ","),
    "no ids": "id,label\n,a\n,b\n",
    "other ids": "id,label\n100,a\n101,b\n",
    "float ids": "id,label\n1.0,a\n2.0,b\n",
    "other folder": "id,label\nother/1.jpg,a\nother/2.jpg,b\n",
    "parent folder": "id,label\n../1.jpg,a\n../../2.jpg,b\n",
    "absolute": "id,label\n/1.jpg,a\n/2.jpg,b\n",
    "NUL": "id,label\n1,a\0\n2,b\n",
    "zeros": "\0" * 500,
    "huge cell": "id,label\n1," + "a" * 300_000 + "\n2,b\n",
    "huge line": "x" * 2_000_000,
    "html": "<html><body>403</body></html>",
    "json": '[{"id": 1, "label": "a"}]',
    "lfs": "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "zip": "PK\3\4" + "\0" * 50,
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_right_is_named(write, judge, name):
    folder = write(BROKEN[name].encode())
    judge(lambda: labels_of(folder), None, folder)


SWAPPED = "".join(",".join(row.split(",")[::-1]) + "\n" for row in ROWS.split())
READ = {
    "index column": ",id,label\n" + "".join(f"{n},{row}\n" for n, row in enumerate(ROWS.split())),
    "swapped": f"label,id\n{SWAPPED}",
    "one name": f"target,id\n{SWAPPED}",
    "notes": "id,label,note\n" + "".join(f'{row},"a, ""b"""\n' for row in ROWS.split()),
    "repeated rows": ROWS * 3,
    "excel line": f"sep=,\nid,label\n{ROWS}",
    "no last line end": ROWS.rstrip(),
    "rows without images": f"{ROWS}x,a\ny,b\n",
    "rows without labels": f"id,label\n{ROWS}1000,\n",
    "two marks": f"\ufeff\ufeff{ROWS}",
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_odd_tables_are_read(write, judge, name):
    folder = write(READ[name].encode())
    assert judge(lambda: labels_of(folder), is_all, folder) == ""


ODD_LABELS = (
    "0.0", "A", "a b", "$x$ $y$", "=1+1", "null", "NaN", "True", "狗", "é", "'", "\\", "%s", "{}",
    "<b>", "a/b", "..", "-", "#", "🙂", "1e400", "9" * 400, "x" * 1000,
)  # fmt: skip


@pytest.mark.parametrize("label", ODD_LABELS, ids=ascii)
def test_labels_are_texts(write, judge, label):
    text = io.StringIO()
    expected = {i: label if own == "b" else own for i, own in LABELS.items()}
    csv.writer(text).writerows([("id", "label"), *expected.items()])
    folder = write(text.getvalue().encode())
    assert judge(lambda: labels_of(folder), expected.__eq__, folder) == ""


CLASSES = {
    "empty": "",
    "header alone": "label,name,mirror\n",
    "no label column": "name,mirror\nA,a\nB,b\n",
    "no header": "a,A,a\nb,B,b\n",
    "a label is missing": "label,name,mirror\na,A,a\n",
    "a label twice": "label,name,mirror\na,A,a\nb,B,b\na,A,a\n",
    "an empty label": "label,name,mirror\na,A,a\nb,B,b\n,C,\n",
    "mirrors do not pair": "label,name,mirror\na,A,b\nb,B,b\n",
    "mirror unknown": "label,name,mirror\na,A,z\nb,B,b\n",
    "columns twice": "label,name,name\na,A,A\nb,B,B\n",
    "too many cells": "label,name\na,A,x\nb,B\n",
    "semicolons": "label;name;mirror\na;A;a\nb;B;b\n",
    "tabs": "label\tname\tmirror\na\tA\ta\nb\tB\tb\n",
    "open quote": 'label,name,mirror\na,"A,a\nb,B,b\n',
    "NUL": "label,name,mirror\na,A\0,a\nb,B,b\n",
    "json": '{"a": "A"}',
    "huge": "label,name\na," + "x" * 200_000 + "\nb,B\n",
    "line break in a name": 'label,name\na,"A\nA"\nb,B\n',
}


@pytest.mark.parametrize("name", CLASSES)
def test_classes_that_cannot_be_right_are_named(write, judge, name):
    folder = write(ROWS.encode(), classes=CLASSES[name].encode())
    assert "classes.csv" in judge(lambda: labels_of(folder), None, folder)


SCORES = {
    "twice": "id,label\n1,a\n2,b\n2,b\n",
    "contradiction": "id,label\n1,a\n2,b\n2,a\n",
    "missing": "id,label\n1,a\n",
    "too many": "id,label\n1,a\n2,b\n3,b\n",
    "other ids": "id,label\n7,a\n8,b\n",
    "empty": "",
    "header alone": "id,label\n",
    "semicolons": "id;label\n1;a\n2;b\n",
    "three columns": "1,a,0.5\n2,b,0.5\n",
    "quote": 'id,label\n1,"a\n2,b\n',
}


@pytest.mark.parametrize("name", SCORES)
def test_predictions_that_cannot_be_scored_are_named(write, judge, name):
    folder = write(ROWS.encode(), test_solution=b"id,label\n1,a\n2,b\n",
                   predictions=SCORES[name].encode())  # fmt: skip
    judge(lambda: score_predictions(folder / "predictions.csv", folder), None, folder)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_predictions_of_a_spreadsheet_are_scored(write, judge, start, end):
    table = f"{start}id,label\n1,a\n2,b\n".replace("\n", end).encode()
    folder = write(ROWS.encode(), test_solution=b"id,label\n1,a\n2,b\n", predictions=table)
    score = lambda: score_predictions(folder / "predictions.csv", folder)  # noqa: E731
    assert judge(score, lambda line: "F1 1.0000" in line, folder) == ""


# Whatever is in the file

CELLS = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from('",;\t\r\n\0\ufeff '), max_size=8
)
TABLES = st.lists(
    st.lists(st.sampled_from(["1", "2.jpg", "day1/1", "a", "b", "id", "label"]) | CELLS,
             min_size=1, max_size=4).map(",".join), max_size=8
).map(lambda lines: "\n".join(lines).encode())  # fmt: skip
MANY = settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@MANY
@given(st.binary(max_size=80) | TABLES)
def test_any_labels_file_is_read_or_named(write, judge, data):
    folder = write(data)
    judge(lambda: labels_of(folder), lambda labels: set(labels) <= set(LABELS))


@MANY
@given(st.binary(max_size=80) | TABLES.map(lambda table: b"label,name,mirror\n" + table))
def test_any_classes_file_is_read_or_named(judge, tmp_path, data):
    path = tmp_path / "classes.csv"
    path.write_bytes(data)

    def is_right(answer) -> bool:
        classes, _ = answer
        mirrors = classes.mirrors
        return classes.labels == ("a", "b") and all(
            mirror < 0 or mirrors[mirror] == index for index, mirror in enumerate(mirrors)
        )

    judge(lambda: read_classes({"a", "b"}, path), is_right)


@MANY
@given(st.dictionaries(st.sampled_from(sorted(LABELS)), CELLS, min_size=2), st.booleans())
def test_what_csv_writes_is_read_as_it_was(write, judge, labels, has_header):
    text = io.StringIO()
    rows = [("id", "label")] if has_header else []
    csv.writer(text).writerows([*rows, *labels.items()])
    folder = write(text.getvalue().encode())
    expected = {i: label.strip() for i, label in labels.items() if label.strip()}
    judge(lambda: labels_of(folder), expected.__eq__)
