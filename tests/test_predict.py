"""`predict`: image files into a table, by a model that is all there is."""

import dataclasses
import glob
import importlib
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from project import ROOT
from said import Said

from pose import predict_rows
from pose.cluster import joined
from pose.config import PredictSetup
from pose.data.image_files import find_images
from pose.display import NoDisplay
from pose.errors import InputError
from pose.predict import predict
from pose_models.errors import ModelError
from pose_models.pyfunc import _load_pyfunc
from pose_models.seal import read_sealed

# The function has the module's name.
predict_module = importlib.import_module("pose.predict")


@pytest.fixture
def folder(stripes, tmp_path) -> Path:
    """Images in a folder and one below it, one of them damaged, and a file that is no image."""
    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    for number, path in enumerate(sorted((stripes / "train_images").iterdir())):
        place = photos / "more" if number % 2 else photos
        (place / path.name).write_bytes(path.read_bytes())
    (photos / "zz, cut.jpg").write_bytes(path.read_bytes()[:500])
    (photos / "notes.txt").write_text("none")
    return photos


def setup_of(model: Path, images: object, out: Path, **others: object) -> PredictSetup:
    return PredictSetup(model=str(model), images=str(images), out_path=str(out), **others)


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype={"file": str, "label": str}, keep_default_na=False)


def test_two_stars_find_what_is_below_and_no_link_leads_round_in_circles(folder, monkeypatch):
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "1.jpg").touch()
    monkeypatch.chdir(folder.parent)
    patterns = ("photos/**/*.jpg", "**/*.jpg", f"{folder}/**", "**/more/**/1*.jpg", "ph*/**/zz*")
    for pattern in patterns:
        plain = {path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)}
        assert plain and set(find_images(pattern).files) == plain
    plain = set(find_images("photos/**/*.jpg").files)
    # Two links are enough for more paths than there are atoms.
    for name in ("a", "b"):
        (folder / "more" / name).symlink_to(folder)
    assert set(find_images("photos/**/*.jpg").files) == plain


def test_a_search_that_takes_a_while_is_said(saved_ensemble, folder, tmp_path, monkeypatch):
    def slow(images):
        time.sleep(0.3)
        return find_images(images)

    monkeypatch.setattr(predict_module, "find_images", slow)
    monkeypatch.setattr(predict_module, "SILENT_SECONDS", 0.1)
    display = Said()
    predict(setup_of(saved_ensemble, folder / "*0.jpg", tmp_path / "out.csv"), display)
    assert display.lines[0] == f"still looking for images in {folder}/*0.jpg"


def test_a_folder_becomes_a_table(saved_ensemble, folder, tmp_path):
    out, display = tmp_path / "out.csv", Said()
    predicted = predict(setup_of(saved_ensemble, folder, out, skip_bad_images=True), display)
    found = read(out)
    assert (predicted.num_images, predicted.num_bad) == (60, 1)
    assert "zz, cut.jpg (" in display.lines[-1]
    names = sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*.jpg") if path.name[0] != "z"
    )
    assert list(found["file"]) == names
    expected = _load_pyfunc(str(saved_ensemble / "data")).predict([folder / name for name in names])
    assert list(found["label"]) == list(expected["label"])
    columns = ["confidence", "p_3", "p_left", "disagreement"]
    assert abs(found[columns].to_numpy() - expected[columns].to_numpy()).max() < 1e-6
    assert list(found["ask"]) == list(expected["ask"])
    assert [path.name for path in tmp_path.iterdir() if path.name[0] == "."] == []


def test_tars_in_a_folder_are_read_as_if_they_were_unpacked(saved_ensemble, folder, tmp_path):
    packed = tmp_path / "packed"
    packed.mkdir()
    shutil.copy(folder / "0.jpg", packed)
    with (
        tarfile.open(packed / "shard-0.tar", "w") as one,
        tarfile.open(packed / "shard-1.tar", "w") as other,
    ):
        # In no order, and some in each.
        for number, path in enumerate(sorted(folder.rglob("*.*"), reverse=True)):
            if path != folder / "0.jpg":
                (one, other)[number % 2].add(path, str(path.relative_to(folder)))
    outs = tmp_path / "unpacked.csv", tmp_path / "packed.csv"
    for images, out in zip((folder, packed), outs, strict=True):
        display = Said()
        predict(setup_of(saved_ensemble, images, out, skip_bad_images=True), display)
        assert display.lines[-2].startswith("left out, since they are no images: notes.txt")
    assert outs[1].read_bytes() == outs[0].read_bytes()
    assert len(read(outs[1])) == 60
    shutil.copy(folder / "more" / "1.jpg", packed / "1.jpg")
    assert "1.jpg" in find_images(str(packed)).files
    (packed / "more").mkdir()
    shutil.copy(folder / "more" / "1.jpg", packed / "more")
    with pytest.raises(InputError, match=r"every image once.* found 1 more than once: more/1\.jpg"):
        find_images(str(packed))
    (packed / "shard-1.tar").write_bytes((packed / "shard-1.tar").read_bytes()[:5000])
    with pytest.raises(InputError, match=r"shard-1\.tar must be a whole tar file"):
        find_images(str(packed))


def test_tables_patterns_and_parquet(saved_ensemble, folder, tmp_path):
    names = ["more/1.jpg", "0.jpg"]
    pd.DataFrame({"label": ["?", "?"], "path": names}).to_csv(folder / "list.csv", index=False)
    (folder / "bare.csv").write_text("\n".join(names) + "\n")
    pd.DataFrame({"any": names}).to_parquet(folder / "list.parquet")
    tables = []
    for number, images in enumerate(("list.csv", "bare.csv", "list.parquet")):
        out = tmp_path / f"{number}.parquet"
        predict(setup_of(saved_ensemble, folder / images, out), NoDisplay())
        tables.append(pd.read_parquet(out))
        assert list(tables[-1]["file"]) == names
        pd.testing.assert_frame_equal(tables[-1], tables[0])
    one = tmp_path / "one.csv"
    predict(setup_of(saved_ensemble, folder / "**/1.jpg", one), NoDisplay())
    assert list(read(one)["label"]) == list(tables[0]["label"][:1])


def test_a_bad_image_is_named_and_what_is_done_is_kept(saved_ensemble, folder, tmp_path):
    out = tmp_path / "out.csv"
    with pytest.raises(InputError, match=r"found 1 that are not: zz, cut.jpg .*--skip-bad-images"):
        predict(setup_of(saved_ensemble, folder, out), NoDisplay())
    assert not out.exists()
    (kept,) = tmp_path.glob(".out.csv.*.partial")
    # As a kill would leave it, in the middle of a row.
    kept.write_text(kept.read_text()[:-9])
    display = Said()
    predict(setup_of(saved_ensemble, folder, out, skip_bad_images=True), display)
    assert display.lines[1] == "continued: 59 of 61 images were predicted before"
    whole = tmp_path / "whole.csv"
    predict(setup_of(saved_ensemble, folder, whole, skip_bad_images=True), NoDisplay())
    pd.testing.assert_frame_equal(read(out), read(whole))


def test_a_command_that_was_killed_before_its_first_row_leaves_no_table_without_a_header(
    saved_ensemble, folder, tmp_path
):
    out = tmp_path / "out.csv"
    with pytest.raises(InputError, match="--skip-bad-images"):
        predict(setup_of(saved_ensemble, folder, out), NoDisplay())
    (kept,) = tmp_path.glob(".out.csv.*.partial")
    whole = kept.read_text()
    for size in (0, 7):  # opened; in the middle of the header
        kept.write_text(whole[:size])
        with pytest.raises(InputError, match="--skip-bad-images"):
            predict(setup_of(saved_ensemble, folder, out), NoDisplay())
        assert kept.read_text() == whole


def test_a_flipped_bit_in_what_was_predicted_before_is_noticed(saved_ensemble, folder, tmp_path):
    out, whole = tmp_path / "out.csv", tmp_path / "whole.csv"
    predict(setup_of(saved_ensemble, folder, whole, skip_bad_images=True), NoDisplay())
    with pytest.raises(InputError, match="--skip-bad-images"):
        predict(setup_of(saved_ensemble, folder, out), NoDisplay())
    (kept,), (sums,) = tmp_path.glob(".out.csv.*.partial"), tmp_path.glob(".out.csv.*.sums")
    before = {path: path.read_bytes() for path in (kept, sums)}
    generator = random.Random(0)
    for path in (kept, kept, sums):
        for own, data in before.items():
            own.write_bytes(data)
        damaged = bytearray(before[path])
        place = generator.randrange(len(damaged))
        damaged[place] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        display = Said()
        predict(setup_of(saved_ensemble, folder, out, skip_bad_images=True), display)
        (line,) = (line for line in display.lines if line.startswith("warning: of what was pred"))
        rows = before[path][:place].count(b"\n") - 1
        assert f"only the first {max(rows, 0)} images are as they were written" in line
        assert out.read_bytes() == whole.read_bytes()
        assert not [found for found in tmp_path.iterdir() if found.name[0] == "."]


def test_rows_that_no_checksum_is_kept_of_are_predicted_again(saved_ensemble, folder, tmp_path):
    out = tmp_path / "out.csv"
    with pytest.raises(InputError, match="--skip-bad-images"):
        predict(setup_of(saved_ensemble, folder, out), NoDisplay())
    (sums,) = tmp_path.glob(".out.csv.*.sums")
    sums.unlink()
    os.mkfifo(sums)
    with pytest.raises(InputError, match="must be written, found: "):
        predict(setup_of(saved_ensemble, folder, out), NoDisplay())
    sums.unlink()
    display = Said()
    predict(setup_of(saved_ensemble, folder, out, skip_bad_images=True), display)
    assert len(read(out)) == 60


def test_an_image_alone_that_is_damaged_leaves_nothing_behind(saved_ensemble, folder, tmp_path):
    cut = folder / "zz, cut.jpg"
    with pytest.raises(InputError, match="not a single one"):
        predict(
            setup_of(saved_ensemble, cut, tmp_path / "out.csv", skip_bad_images=True), NoDisplay()
        )
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_two_commands_do_not_write_one_table(saved_ensemble, folder, tmp_path):
    out = tmp_path / "out.csv"

    class Second(NoDisplay):
        def predict_progress(self, done, total):
            with pytest.raises(InputError, match="out_path must not be in the making already"):
                predict(setup_of(saved_ensemble, folder, out, skip_bad_images=True), NoDisplay())

    predict(setup_of(saved_ensemble, folder, out, skip_bad_images=True), Second())
    assert len(read(out)) == 60


def test_what_is_no_image_or_has_no_name_in_utf_8_is_named(saved_ensemble, folder, tmp_path):
    odd = os.fsencode(folder) + b"/caf\xe9.jpg"
    Path(os.fsdecode(odd)).write_bytes((folder / "0.jpg").read_bytes())
    display, out = Said(), tmp_path / "out.csv"
    predict(setup_of(saved_ensemble, folder, out, skip_bad_images=True), display)
    (line,) = (line for line in display.lines if line.startswith("left out, since"))
    assert "notes.txt" in line and "(a name that is not UTF-8)" in line
    with pytest.raises(InputError, match=r"found 1 that are not: .*a name that is not UTF-8"):
        predict(setup_of(saved_ensemble, f"{folder}/c*.jpg", out), NoDisplay())


def test_the_table_takes_the_place_of_nothing_that_is_read(saved_ensemble, folder, tmp_path):
    table = tmp_path / "paths.csv"
    labels = tmp_path / "train_solution.csv"
    for path in (table, labels):
        path.write_text("file\nphotos/0.jpg\n")
    with pytest.raises(InputError, match="out_path must not replace the table of images"):
        predict(setup_of(saved_ensemble, table, table), NoDisplay())
    with pytest.raises(InputError, match="out_path must not replace what lies in the data folder"):
        predict(setup_of(saved_ensemble, folder, labels), NoDisplay())
    assert table.read_text() == labels.read_text() == "file\nphotos/0.jpg\n"


@pytest.mark.parametrize("name", ["store.csv", "store.parquet"])
def test_the_table_takes_the_place_of_no_file_of_another_kind(
    saved_ensemble, folder, tmp_path, name
):
    path = tmp_path / name
    path.write_bytes(b"SQLite format 3\0 and, commas")
    with pytest.raises(InputError, match="out_path must not replace a file of another kind"):
        predict(setup_of(saved_ensemble, folder, path), NoDisplay())
    assert path.read_bytes().startswith(b"SQLite")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file\n0.jpg\n0.jpg\n", "must name every image once, found 1 more than once: 0.jpg"),
        ("label,file\na,0.jpg\nb\n", "must have a path in every row, found a row without: b"),
        ("label,file\na,0.jpg\nb,\n", "must have a path in every row, found a row without: b,"),
    ],
)
def test_every_row_of_a_table_of_paths_is_predicted_or_refused(
    saved_ensemble, folder, tmp_path, text, message
):
    (folder / "rows.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        predict(setup_of(saved_ensemble, folder / "rows.csv", tmp_path / "out.csv"), NoDisplay())
    (folder / "rows.csv").unlink()


def test_a_server_that_is_away_is_said_at_once(folder, tmp_path, monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{probe.getsockname()[1]}"
    mlflow.set_tracking_uri(None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    started = time.monotonic()
    with pytest.raises(InputError, match=f"the tracking store {uri} must be reachable, found: "):
        predict(setup_of("models:/pose/1", folder, tmp_path / "out.csv"), NoDisplay())
    assert time.monotonic() - started < 5


def test_a_table_without_a_header_keeps_its_first_row_though_that_image_is_gone(tmp_path):
    (tmp_path / "rows.csv").write_text("gone.jpg\nother.jpg\n")
    assert list(find_images(str(tmp_path / "rows.csv")).files) == ["gone.jpg", "other.jpg"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": "nowhere"}, "images must be a folder with images, .* got 'nowhere'"),
        ({"model": "models:/nobody/1"}, "model must be one that can be loaded, .*nobody"),
        ({"model": None}, "model must be a model such as"),
        ({"images": None}, "images must be a folder"),
        ({"out_path": "table.xlsx"}, "out_path must be a .csv or .parquet file"),
        ({"out_path": "nowhere/table.csv"}, "out_path must be a file in a folder that exists"),
    ],
)
def test_a_mistake_is_one_line(saved_ensemble, folder, tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    options = {"model": str(saved_ensemble), "images": str(folder), "out_path": "out.csv"}
    with pytest.raises(InputError, match=message) as error:
        predict(PredictSetup(**(options | changes)), NoDisplay())
    assert "\n" not in str(error.value)


@pytest.mark.faults
def test_a_killed_command_is_continued(saved_ensemble, stripes, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    data = (stripes / "train_images" / "0.jpg").read_bytes()
    for number in range(3000):
        (photos / f"{number}.jpg").write_bytes(data)
    command = [
        sys.executable, "-m", "entrypoints.predict", "--model", str(saved_ensemble),
        "--images", str(photos), "--out_path", str(tmp_path / "out.csv"),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment)
    while not list(tmp_path.glob(".out.csv.*.partial")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out.csv").exists()
    said = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert "images were predicted before" in said
    found = read(tmp_path / "out.csv")
    assert sorted(found["file"]) == sorted(path.name for path in photos.iterdir())


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is an extra")
def test_a_cluster_writes_the_same_bytes_and_goes_on(saved_ensemble, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(predict_rows, "BATCH_SIZE", 16)
    monkeypatch.setattr(predict_rows, "SHARD_BATCHES", 1)
    here, there = (
        setup_of(saved_ensemble, folder, tmp_path / name, skip_bad_images=True, threads=1)
        for name in ("here.csv", "there.csv")
    )
    there = dataclasses.replace(there, engine="ray")
    predict(here, NoDisplay())
    expected = Path(here.out_path).read_bytes()

    class Interrupted(NoDisplay):
        def predict_progress(self, done: int, total: int) -> None:
            raise KeyboardInterrupt

    display = Said()
    with joined(1):
        with pytest.raises(KeyboardInterrupt):
            predict(there, Interrupted())
        (partial,) = tmp_path.glob(".there.csv.*.partial")
        assert expected.startswith(partial.read_bytes())
        predicted = predict(there, display)
    assert "continued: 16 of 61 images were predicted before" in display.lines
    assert (predicted.num_images, predicted.num_bad) == (60, 1)
    assert Path(there.out_path).read_bytes() == expected


def test_a_cluster_is_of_cpus(saved_ensemble):
    with pytest.raises(InputError, match="device must be cpu with engine=ray, got 'cuda'"):
        setup_of(saved_ensemble, "photos", "out.csv", engine="ray", device="cuda")


@pytest.mark.parametrize("name", ["model.pth", "predictor.json"])
def test_a_flipped_bit_in_a_saved_model_is_noticed(saved_ensemble, folder, tmp_path, name):
    model = tmp_path / "model"
    shutil.copytree(saved_ensemble, model)
    path = model / "data" / name
    data = bytearray(path.read_bytes())
    generator = random.Random(0)
    for _ in range(10):
        place, bit = generator.randrange(len(data)), 1 << generator.randrange(8)
        data[place] ^= bit
        path.write_bytes(data)
        with pytest.raises(ModelError, match=name.replace(".", r"\.")):
            read_sealed(model / "data" / "predictor.json")
        data[place] ^= bit
    path.write_bytes(data[:-1])
    with pytest.raises(InputError, match=f"model must be one that can be loaded, .*: {name} must"):
        predict(setup_of(model, folder, tmp_path / "out.csv"), NoDisplay())
    path.unlink()
    with pytest.raises(InputError, match="model must be one that can be loaded"):
        predict(setup_of(model, folder, tmp_path / "out.csv"), NoDisplay())


def test_a_model_from_before_there_were_seals_is_taken_as_it_is(tmp_path):
    (tmp_path / "predictor.json").write_text('{"labels": ["a"]}')
    assert read_sealed(tmp_path / "predictor.json") == {"labels": ["a"]}
