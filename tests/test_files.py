"""Writing files: whole or not at all, and one line where it cannot be done."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pose.arrays import read_arrays, write_arrays
from pose.config import DemoSetup, Recipe, Setup
from pose.data.folder import read_dataset
from pose.data.source import draw_demo
from pose.display import NoDisplay
from pose.errors import InputError
from pose.files import make_folder, refuse_foreign, remove_partials, write_text, writing
from pose.model_card import read_card
from pose.named_runs import ResolvedRun
from pose.plan import make_plan
from pose.predictions import read_predictions
from pose.run import OWNER_FILE, claim_folder
from pose.seeds import folder as seed_folder
from pose.sync import check_root
from pose.weights import read_state_dict, read_weights
from pose_models.decode import BadImageError
from pose_models.inputs import to_source


def write_with_torch(folder: Path, numbers: torch.Tensor) -> None:
    seed_folder.write_weights(folder / seed_folder.WEIGHTS, {"weight": numbers})


def write_checkpoint(folder: Path, numbers: torch.Tensor) -> None:
    seed_folder.write_checkpoint(folder, {"weight": numbers})


@pytest.mark.parametrize("write", [write_with_torch, write_checkpoint])
def test_a_full_disk_is_one_line_and_the_old_file_stays(tmp_path, small_files, write):
    write(tmp_path, torch.zeros(10))
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()
    with pytest.raises(InputError, match=rf"^{path} must be written, found: disk full, .* free; "):
        write(tmp_path, torch.zeros(10_000))
    assert [path.name for path in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "history.csv"
    with pytest.raises(InputError, match=f"^{path} must be written, found: file exists; "):
        write_text(path, "")


def test_other_errors_pass(tmp_path):
    with pytest.raises(RuntimeError, match="mat1 and mat2"), writing(tmp_path):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_a_disk_without_room_for_the_checkpoints_is_found_before_training(
    tmp_path, stripes, monkeypatch
):
    recipe = Recipe(model="simple_cnn", image_size=32, batch_size=8, seeds=tuple(range(9)))
    run = ResolvedRun(name="tiny", recipe=recipe, base=None, changes={})
    plan = make_plan(run, Setup(output_root=str(tmp_path / "outputs"), device="cpu"))
    usage = shutil.disk_usage(tmp_path)
    # Nine seeds of weights of 1.9 MB, each kept five times, and the checkpoint before the last.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=90_000_000))
    plan.check_data(read_dataset(stripes))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=80_000_000))
    with pytest.raises(
        InputError, match=r"^output_root must have room for 8\d\.\d MB of checkpoints and weights, "
        r"found 80\.0 MB free in .*/outputs \(disk full\): give another --output-root$"
    ):  # fmt: skip
        plan.check_data(read_dataset(stripes))
    # A seed that is there needs no room any more.
    (plan.folder / "seed_0").mkdir(parents=True)
    (plan.folder / "seed_0" / "last_ckpt.pth").write_bytes(bytes(10_000_000))
    plan.check_data(read_dataset(stripes))


def test_what_killed_writers_left_is_removed(tmp_path):
    seed = tmp_path / "seed_1"
    (seed / ".fetched-ab.partial").mkdir(parents=True)
    (seed / ".fetched-ab.partial" / "last_ckpt.pth").write_text("half")
    (seed / ".last_ckpt.pth.4711.partial").write_text("half")
    (tmp_path / ".seeds.png.4711.partial").write_text("half")
    (seed / "last_ckpt.pth").write_text("whole")
    remove_partials(tmp_path)
    assert [path.name for path in seed.iterdir()] == ["last_ckpt.pth"]
    assert [path.name for path in tmp_path.iterdir()] == ["seed_1"]


@pytest.mark.parametrize("target", ["pipe", "/dev/zero"])
@pytest.mark.parametrize(
    "read",
    [
        lambda path: read_card(path),
        lambda path: read_predictions(path),
        lambda path: seed_folder.read_checkpoint(path),
        lambda path: read_state_dict(path),
        lambda path: read_weights(Recipe(weights=str(path)), Path()),
    ],
    ids=["card", "predictions", "checkpoint", "state dict", "weights"],
)
def test_a_pipe_or_a_device_in_a_files_place_is_named_and_not_read(tmp_path, read, target):
    path = tmp_path / "x.pth"
    if target == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(target)
    with pytest.raises(InputError, match="not a file"):
        read(path)
    with pytest.raises(BadImageError, match="not a file"):
        to_source(path)


def test_a_pipe_in_the_place_of_a_folders_owner_makes_it_somebody_elses(tmp_path):
    folder = tmp_path / "night"
    folder.mkdir()
    os.mkfifo(folder / OWNER_FILE)
    moved = claim_folder(folder, "ab12", is_continued=True)
    assert moved is not None
    assert (folder / OWNER_FILE).is_file()


def test_a_folder_that_a_kill_left_without_its_first_file_is_taken_as_it_is(tmp_path):
    folder = tmp_path / "night"
    folder.mkdir()
    (folder / f".{OWNER_FILE}.1234.partial").write_text('{"par')
    assert claim_folder(folder, "ab12", is_continued=False) is None
    assert [path.name for path in folder.iterdir()] == [OWNER_FILE]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    (tmp_path / "seed_1").write_text("hello")
    (tmp_path / "seed_2").symlink_to("nowhere")
    for name in ("seed_1", "seed_2"):
        with pytest.raises(InputError, match=f"{name} must be written, found: file exists"):
            make_folder(tmp_path / name)


def test_a_folder_with_anothers_file_of_that_name_is_no_place_for_ours(tmp_path):
    (tmp_path / "report.html").write_text("a run's page")
    with pytest.raises(InputError, match=r"out_dir must not hold another report\.html"):
        refuse_foreign(tmp_path, ("report.html", "mark.json"), "mark.json", "out_dir")
    (tmp_path / "mark.json").write_text("{}")
    refuse_foreign(tmp_path, ("report.html", "mark.json"), "mark.json", "out_dir")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "output_root must be the folder that holds those of the runs, found none"),
        ("file", "output_root must be the folder that holds those of the runs, found none"),
        ("run", "which is a run's: give"),
    ],
)
def test_nothing_waits_is_not_said_of_a_folder_without_runs(tmp_path, name, message):
    (tmp_path / "file").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "spool.jsonl").touch()
    with pytest.raises(InputError, match=message):
        check_root(tmp_path / name)


def test_the_demo_is_drawn_nowhere_in_a_line(tmp_path):
    (tmp_path / "file").touch()
    for name in ("file/demo", "x" * 300):
        with pytest.raises(InputError, match="must be written, found: "):
            draw_demo(DemoSetup(out=str(tmp_path / name), num_train=20, num_test=0), NoDisplay())


def test_arrays_are_whole_or_not_there_and_leave_nothing_of_the_dead(tmp_path):
    path = tmp_path / "marks.npz"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead, living = (tmp_path / f".marks.npz.{pid}.partial" for pid in (ended.pid, os.getppid()))
    for left in (dead, living):
        left.write_text("half")
    write_arrays(path, numbers=np.arange(1000))
    assert (dead.exists(), living.exists()) == (False, True)
    assert read_arrays(path)["numbers"].tolist() == list(range(1000))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert read_arrays(path) is None
    assert read_arrays(tmp_path / "none.npz") is None
