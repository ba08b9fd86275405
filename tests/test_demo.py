"""The demo data: the same bytes for everyone, in a folder that obeys the data contract."""

import csv
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pose.demo import draw
from pose.demo.draw import choose_skeletons, draw_figure, load_skeletons, mirror_names, write_demo


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_folder(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "data"
    return write_demo(folder, num_train=40, num_test=20, seed=3, num_workers=1)


def test_same_seed_gives_same_bytes_in_a_pool(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(draw, "_POOL_MIN_IMAGES", 0)
    again = write_demo(tmp_path / "data", num_train=40, num_test=20, seed=3, num_workers=2)
    assert read_folder(again) == read_folder(demo)


def test_other_seed_gives_other_images(demo, tmp_path):
    other = write_demo(tmp_path / "data", num_train=40, num_test=0, seed=4, num_workers=1)
    name = "train_images/0.jpg"
    assert (other / name).read_bytes() != (demo / name).read_bytes()


def test_folder_obeys_the_data_contract(demo):
    assert {path.name for path in demo.iterdir()} == {
        "README.txt",
        "classes.csv",
        "demo.json",
        "test_images",
        "test_solution.csv",
        "train_images",
        "train_solution.csv",
    }
    classes = {row["label"]: row for row in read_rows(demo / "classes.csv")}
    assert list(classes) == [str(label) for label in range(20)]
    for split, per_class in (("train", 2), ("test", 1)):
        rows = read_rows(demo / f"{split}_solution.csv")
        assert list(rows[0]) == ["id", "label"]
        stems = {path.stem for path in (demo / f"{split}_images").glob("*.jpg")}
        assert stems == {row["id"] for row in rows}
        assert all(stem.isdigit() for stem in stems)
        assert Counter(row["label"] for row in rows) == dict.fromkeys(classes, per_class)
    with Image.open(demo / "train_images" / "0.jpg") as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (256, 256))
    assert "DRAWN" in (demo / "README.txt").read_text(encoding="utf-8")


def test_mirrors_are_an_involution(demo):
    mirrors = {row["label"]: row["mirror"] for row in read_rows(demo / "classes.csv")}
    assert all(mirrors[mirror] == label for label, mirror in mirrors.items() if mirror)
    assert sum(not mirror for mirror in mirrors.values()) == 4
    assert set(mirror_names()) <= set(load_skeletons()[2])


def test_train_and_test_share_no_skeleton():
    train, test = choose_skeletons(3000, 600, seed=0)
    assert len(set(train) | set(test)) == 3600
    labels = load_skeletons()[1]
    assert set(np.bincount(labels[train])) == {150}
    assert set(np.bincount(labels[test])) == {30}


def test_test_set_does_not_depend_on_the_number_of_train_images():
    np.testing.assert_array_equal(
        choose_skeletons(20, 600, seed=0)[1], choose_skeletons(None, 600, seed=0)[1]
    )


def test_none_takes_every_skeleton_that_is_left():
    train, test = choose_skeletons(None, 0, seed=0)
    assert sorted(train) == list(range(10_681))
    assert len(test) == 0
    assert len(choose_skeletons(None, 681, seed=0)[0]) == 10_000


@pytest.mark.parametrize(("num_train", "num_test"), [(10_681, 1), (None, 10_682)])
def test_more_images_than_skeletons_is_an_error(num_train, num_test):
    with pytest.raises(ValueError, match="at most 10681"):
        choose_skeletons(num_train, num_test, seed=0)


def test_existing_demo_is_left_as_it_is(demo):
    def never(done, total):
        raise AssertionError("drew again")

    assert write_demo(demo, num_train=40, num_test=20, seed=3, progress=never) == demo


def test_other_demo_data_is_refused(demo):
    with pytest.raises(ValueError, match="found other demo data \\(seed 3 for 5\\)"):
        write_demo(demo, num_train=40, num_test=20, seed=5)


def test_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="found other files"):
        write_demo(tmp_path, num_train=20, num_test=0)
    assert read_folder(tmp_path) == {"mine.txt": b"precious"}


def test_broken_drawing_leaves_nothing(tmp_path):
    def stop(done, total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_demo(tmp_path / "data", num_train=20, num_test=0, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_empty_folder_is_filled_and_progress_is_told(tmp_path):
    told = []
    write_demo(tmp_path, num_train=20, num_test=2, progress=lambda *pair: told.append(pair))
    assert told == [(done, 22) for done in range(1, 23)]
    assert len(list((tmp_path / "train_images").iterdir())) == 20


@pytest.mark.parametrize("name", ["num_train", "num_test", "seed"])
def test_negative_numbers_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} must be 0 or above, got -1"):
        write_demo(tmp_path / "data", **{"num_train": 20, "num_test": 0, name: -1})


def test_skeletons_with_the_most_missing_keypoints_are_drawn():
    keypoints, _, _ = load_skeletons()
    num_missing = (keypoints == 0).all(axis=2).sum(axis=1)
    for index in np.argsort(num_missing)[-20:]:
        image = draw_figure(keypoints[index], np.random.default_rng(0), size=64)
        assert image.size == (64, 64)


def test_every_single_missing_keypoint_is_survived():
    keypoints = load_skeletons()[0][0]
    for missing in range(25):
        damaged = keypoints.copy()
        damaged[missing] = 0
        draw_figure(damaged, np.random.default_rng(0), size=64)


@pytest.mark.parametrize(
    ("keypoints", "message"),
    [
        (np.ones((18, 2)), "shape"),
        (np.zeros((25, 2)), "neck"),
        (np.full((25, 2), np.nan), "finite"),
    ],
)
def test_keypoints_that_are_no_figure_are_refused(keypoints, message):
    with pytest.raises(ValueError, match=message):
        draw_figure(keypoints, np.random.default_rng(0))


def test_drawing_needs_neither_torch_nor_mlflow():
    code = "import sys, pose.demo.draw; print({'torch', 'mlflow'} & set(sys.modules))"
    root = Path(draw.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
