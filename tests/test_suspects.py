"""Label suspects: found by the paper's rule, recorded with the run, and left out when asked."""

import csv
import dataclasses
import re
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pytest
from said import Said
from stripes import draw_stripes

from entrypoints import caller
from pose.config import Recipe, Setup
from pose.data.exclusion import digest_of_ids, ids_csv, match_excluded, read_excluded
from pose.data.folder import read_dataset
from pose.data.loaded import load_data
from pose.data.tensors import load_recipe_data
from pose.ensembling.analysis import hold_out, mean_probs
from pose.ensembling.suspects import contradicted, find_suspects, suspects_csv
from pose.errors import InputError
from pose.named_runs import resolve_run
from pose.plan import check_located_data, make_plan
from pose.predictions import Predictions
from pose.run import train_run
from pose.tracking import Tracker

# Of MLflow about its own classes, while it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType")

# Finding


def test_a_label_is_doubted_where_another_class_is_likelier_than_it_usually_is():
    labels = np.array([0, 0, 0, 1, 1, 1])
    # On rows that are called 0 its mean is 0.6, on rows that are called 1 that one's is 0.5.
    first = np.array([0.9, 0.55, 0.35, 0.45, 0.4, 0.65])
    probs = np.stack([first, 1 - first], axis=1)
    assert contradicted(probs, labels).tolist() == [-1, -1, 1, -1, -1, 0]


def test_a_class_that_is_rarely_sure_is_measured_by_itself():
    """By the paper's confident joint, written out row by row."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, size=300)
    logits = rng.normal(size=(300, 4)) + np.array([1.5, 0, 0, -0.5])
    logits[np.arange(300), labels] += 1
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    usual = [probs[labels == c, c].mean() for c in range(4)]
    found = contradicted(probs, labels)
    for own, label, suggested in zip(probs, labels, found, strict=True):
        above = [c for c in range(4) if own[c] >= usual[c]]
        likeliest = max(above, key=lambda c: own[c]) if above else label
        is_suspect = likeliest != label and own[likeliest] > own[label]
        assert suggested == (likeliest if is_suspect else -1)
    assert 10 < (found >= 0).sum() < 100


def test_a_class_that_no_row_bears_is_never_suggested():
    probs = np.array([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1], [0.3, 0.4, 0.3]])
    assert contradicted(probs, np.array([0, 0, 1])).tolist() == [-1, -1, -1]


def predictions(ids: str, probs, labels) -> Predictions:
    return Predictions(
        ids=tuple(ids),
        probs=np.array([[p, 1 - p] for p in probs]),
        class_labels=("cat", "dog"),
        labels=np.array(labels),
    )


def test_suspects_count_the_members_that_did_not_train_on_them():
    # Folds of two seeds, and of a third one that has only the first fold.
    members = [
        predictions("abc", [0.9, 0.2, 0.8], [0, 0, 1]),
        predictions("def", [0.3, 0.9, 0.2], [1, 0, 0]),
        predictions("cba", [0.4, 0.1, 0.9], [1, 0, 0]),
        predictions("def", [0.2, 0.7, 0.1], [1, 0, 0]),
        predictions("abc", [0.9, 0.3, 0.9], [0, 0, 1]),
    ]
    held_out = hold_out(members, mean_probs, has_all=True)
    found = find_suspects(held_out)
    # c is called 1, and is 0 with 0.7 in the mean; f and b are called 0 and are 1.
    assert [held_out.ids[own.row] for own in found] == ["f", "b", "c"]
    assert [(own.num_agreeing, own.num_members) for own in found] == [(2, 2), (3, 3), (2, 3)]
    table = list(csv.DictReader(suspects_csv(found, held_out.ids, ("cat", "dog")).splitlines()))
    assert table[1] == {
        "id": "b", "label": "cat", "suggested": "dog", "p_label": "0.200000",
        "p_suggested": "0.800000", "agreeing": "3", "members": "3",
    }  # fmt: skip
    margins = [float(row["p_label"]) - float(row["p_suggested"]) for row in table]
    assert margins == sorted(margins)


# Leaving out


def write_table(folder: Path, text: str) -> Path:
    path = folder / "exclude.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_other_columns_order_and_names_of_files_make_no_difference(tmp_path):
    known = {"1", "2", "x/3"}
    path = write_table(tmp_path, "Label,ID\ndog,x/3\ncat,1.jpg\n")
    assert match_excluded(str(path), None, known) == ("1", "x/3")
    assert read_excluded(write_table(tmp_path, ids_csv(["2", "a,b"]))) == ("2", "a,b")
    assert digest_of_ids(["1", "2"]) == digest_of_ids(["2", "1"]) != digest_of_ids(["12"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "exclude must be a CSV file with a column id, found no rows in "),
        ("id\n", "exclude must name at least one id, found the header alone in "),
        ("1\n2\n", "begins with the names of its columns, id among them, found 1 in "),
        ("name,label\n1,a\n", "id among them, found name,label in "),
        ("id,label\n1,a\n,b\n", "must have an id in every row, found none in row 3 of "),
        ("label,id\na,1\nb\n", "must have an id in every row, found none in row 3 of "),
        ("id\n1\n2\n1\n", "must name every id once, found 1 more than once in "),
        ("id\n1\n1.jpg\n", "must name every id once, found 1 more than once in "),
        ("id\n1\n77\n78.jpg\n", "found 2 ids in {} that are none: 77, 78.jpg"),
        ("id;label\n1;a\n", "must have commas between its columns, found semicolons"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_in_one_line(tmp_path, text, message):
    path = write_table(tmp_path, text)
    with pytest.raises(InputError, match=re.escape(message.format(path))) as caught:
        match_excluded(str(path), None, {"1", "2"})
    assert "\n" not in str(caught.value)


def test_several_tables_exclude_what_any_of_them_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = {"1", "2", "3", "4"}
    for name, text in {"a.csv": "id\n1\n2\n", "b.csv": "label,id\na,2.jpg\nb,3\n"}.items():
        (tmp_path / name).write_text(text)
    assert match_excluded("a.csv, b.csv", None, known) == ("1", "2", "3")
    (tmp_path / "c.csv").write_text("id\n3\n1\n")
    digest = digest_of_ids(["1", "2", "3"])
    assert match_excluded("a.csv,c.csv", digest, known) == ("1", "2", "3")
    given = {"model": "simple_cnn", "exclude": "a.csv,c.csv"}
    plan = make_plan(resolve_run(None, None, given), Setup(device="cpu"))
    assert plan.recipe.exclude_sha256 == digest
    with pytest.raises(InputError, match="none.csv must be a CSV file that can be read"):
        match_excluded("a.csv,none.csv", None, known)
    with pytest.raises(InputError, match="joined by commas, got an empty name in 'a.csv,'"):
        match_excluded("a.csv,", None, known)
    # A comma may be in the name of one.
    (tmp_path / "a.csv,c.csv").write_text("id\n4\n")
    assert match_excluded("a.csv,c.csv", None, known) == ("4",)


def test_paths_joined_by_commas_are_meant_from_where_the_user_is(tmp_path, monkeypatch):
    monkeypatch.setattr(caller, "callers_folder", lambda: tmp_path)
    (tmp_path / "a.csv").touch()
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "b.csv").touch()
    found = caller.as_typed_there("a.csv,d/b.csv,/c.csv,none.csv", is_many=True)
    assert found == f"{tmp_path}/a.csv,{tmp_path}/d/b.csv,/c.csv,none.csv"
    assert caller.as_typed_there("a.csv,none.csv") == "a.csv,none.csv"


def test_a_table_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="none.csv must be a CSV file that can be read"):
        read_excluded(tmp_path / "none.csv")


def test_what_is_left_out_is_part_of_the_identity_and_where_it_stands_is_not(tmp_path, stripes):
    def digest_of(text: str, **changes: str) -> str:
        (tmp_path / "sub").mkdir(exist_ok=True)
        path = write_table(tmp_path / "sub", text).rename(tmp_path / f"{len(text)}.csv")
        overrides = {"model": "simple_cnn", "exclude": str(path), **changes}
        run = resolve_run(None, None, overrides)
        return make_plan(run, Setup(device="cpu")).recipe.digest()

    assert digest_of("id,label\n1,a\n2,b\n") == digest_of("id\n2\n1\n")
    assert digest_of("id\n2\n1\n") != digest_of("id\n2\n3\n")
    assert Recipe(model="simple_cnn").digest() != digest_of("id\n2\n")
    assert not {"exclude", "exclude_sha256"} & set(Recipe().identity())
    with pytest.raises(InputError, match="exclude_sha256 must be that of the ids in exclude"):
        digest_of("id\n2\n", exclude_sha256="00")
    with pytest.raises(InputError, match="exclude_sha256 must go with exclude"):
        Recipe(exclude_sha256="00")


def test_a_table_in_the_folder_that_the_run_will_take_is_refused(tmp_path):
    (tmp_path / "tiny").mkdir()
    path = write_table(tmp_path / "tiny", "id\n1\n")
    run = resolve_run(None, "tiny", {"model": "simple_cnn", "exclude": str(path)})
    with pytest.raises(InputError, match=r"copy exclude.csv out of it, or give another --run-name"):
        make_plan(run, Setup(output_root=str(tmp_path), device="cpu"))


def test_excluded_images_neither_train_nor_validate(tmp_path, stripes):
    path = write_table(tmp_path, "id\n7\n3\n")
    recipe = Recipe(model="simple_cnn", image_size=16, exclude=str(path))
    whole, loaded = load_data(stripes, 16), load_recipe_data(stripes, recipe)
    assert set(whole.dataset.ids) - set(loaded.dataset.ids) == {"3", "7"}
    assert loaded.digest != whole.digest
    for image_id, row, label in zip(
        loaded.dataset.ids, loaded.rows, loaded.dataset.labels, strict=True
    ):
        number = whole.dataset.ids.index(image_id)
        assert row == whole.rows[number] and label == whole.dataset.labels[number]
    report = loaded.dataset.report().splitlines()
    assert "left out by exclude: 2" in report and report[-2:] == ["  3", "  7"]
    assert "exclude: 2 labelled images left out: 3, 7" in loaded.lines()
    # A process that trains a member reads it again; meanwhile it may have been edited.
    recipe = dataclasses.replace(recipe, exclude_sha256=digest_of_ids(["3", "7"]))
    write_table(tmp_path, "id\n7\n4\n")
    with pytest.raises(InputError, match="was it changed since the run began"):
        load_recipe_data(stripes, recipe)


def test_no_class_may_be_left_out_whole(tmp_path, stripes):
    dataset = read_dataset(stripes)
    gone = [own for own, label in zip(dataset.ids, dataset.labels, strict=True) if label == 1]
    path = write_table(tmp_path, ids_csv(gone))
    plan = make_plan(
        resolve_run(None, None, {"model": "simple_cnn", "exclude": str(path)}),
        Setup(dataset=str(stripes), device="cpu"),
    )
    with pytest.raises(InputError, match="leave an image of every class, found that it leaves non"):
        check_located_data(plan)


# A run


@pytest.fixture(scope="module")
def noisy(tmp_path_factory) -> tuple[Path, set[str]]:
    """160 striped images of two classes, and the ids of those whose label is wrong."""
    folder = tmp_path_factory.mktemp("noisy") / "data"
    (folder / "train_images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    wrong = {str(own) for own in range(0, 160, 9)}
    lines = ["id,label"]
    for number in range(160):
        draw_stripes(number % 2, 2, 16, rng).save(folder / "train_images" / f"{number}.png")
        label = number % 2 if str(number) not in wrong else 1 - number % 2
        lines.append(f"{number},{label}")
    (folder / "train_solution.csv").write_text("\n".join(lines) + "\n")
    return folder, wrong


def test_a_run_names_wrong_labels_and_the_next_one_does_without_them(noisy, tmp_path, monkeypatch):
    data, wrong = noisy
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    mlflow.set_tracking_uri(None)
    small = {
        "model": "simple_cnn", "image_size": 16, "num_epochs": 5, "batch_size": 16,
        "val_fraction": 0.5, "seeds": (1,), "augmentation": "none", "ema_decay": 0.0,
        "label_smoothing": 0.0,
    }  # fmt: skip

    def train(name: str, **changes: str):
        display = Said()
        run = resolve_run(None, name, {**small, **changes})
        plan = make_plan(run, Setup(dataset=str(data), device="cpu"))
        return train_run(plan, Tracker(), display, lambda: None), display.text

    result, said = train("tiny")
    client = mlflow.MlflowClient()
    path = Path(client.download_artifacts(result.run_id, "label_suspects.csv", str(tmp_path)))
    found = {row["id"] for row in csv.DictReader(path.read_text().splitlines())}
    # Half of the 18 that are wrong validate.
    assert len(found & wrong) >= 5 and len(found - wrong) <= 3
    count = f"{len(found)} of 80 validation rows that no member trained on"
    assert f"label suspects: {count}, outputs/tiny/label_suspects.csv" in said
    assert client.get_run(result.run_id).data.metrics["num_label_suspects"] == len(found)
    page = (result.folder / "report.html").read_text()
    assert f"{len(found)} labels that confident learning doubts" in page
    assert "all are in label_suspects.csv" in page

    shutil.copy(path, tmp_path / "given.csv")
    cleaned, said = train("tiny", exclude="given.csv")
    assert f"exclude: {len(found)} labelled images left out" in said
    assert cleaned.run_id != result.run_id
    assert "are used again" not in said
    tags = client.get_run(cleaned.run_id).data.tags
    assert tags["excluded"] == str(len(found)) and tags["exclude_sha256"] == digest_of_ids(found)
    assert "excluded" not in client.get_run(result.run_id).data.tags
    for name in ("excluded.csv", "data_report.txt"):
        client.download_artifacts(cleaned.run_id, name, str(tmp_path))
    assert set(read_excluded(tmp_path / "excluded.csv")) == found
    assert f"left out by exclude: {len(found)}" in (tmp_path / "data_report.txt").read_text()
    text = (cleaned.folder / "seed_1" / "val_predictions.csv").read_text()
    assert not {row["id"] for row in csv.DictReader(text.splitlines())} & found
    other = sorted(found)[0]
    (tmp_path / "second.csv").write_text(f"id\n{other}\n")
    _, said = train("tiny", exclude="second.csv")
    count = f"{len(found) - 1} images that run {cleaned.run_id} left out are used again"
    assert f"warning: {count}, since exclude no longer names them: " in said
