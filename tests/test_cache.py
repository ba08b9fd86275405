"""Decoded images on disk: built once, shared, never half."""

import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pose.data.cache import default_cache_root, open_cache
from pose.errors import InputError
from pose_models.decode import read_image

PROJECT = Path(__file__).parents[1]


@pytest.fixture
def files(make_dataset, tmp_path) -> list[Path]:
    folder = make_dataset(tmp_path / "data", num_per_class=35, size=16, num_test=0)
    return sorted((folder / "train_images").iterdir())


def state_of(root: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of modification of each file of the caches, lock files apart."""
    return {
        str(path.relative_to(root)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in root.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


def test_cache_holds_the_decoded_images_in_the_order_of_the_files(files, tmp_path):
    asked = files[::-1]
    cache = open_cache(asked, 12, cache_root=tmp_path / "cache")
    assert cache.images.shape == (70, 3, 12, 12)
    assert cache.images.dtype == torch.uint8
    expected = np.stack([read_image(path.read_bytes(), 12) for path in asked])
    assert np.array_equal(cache.images, expected)
    assert cache.digests[0] == hashlib.sha256(asked[0].read_bytes()).hexdigest()
    assert cache.bad == {}


def test_second_opening_builds_nothing(files, tmp_path):
    root = tmp_path / "cache"
    first = open_cache(files, 12, cache_root=root)

    def never(done, total):
        raise AssertionError("built again")

    # This one waits until the first is on disk.
    second = open_cache(files, 12, cache_root=root, progress=never)
    before = state_of(root)
    third = open_cache(files, 12, cache_root=root, progress=never)
    for later in (second, third):
        assert torch.equal(first.images, later.images)
        assert first.digests == later.digests
    assert state_of(root) == before


def test_other_size_or_other_files_are_another_cache(files, tmp_path):
    root = tmp_path / "cache"
    for asked, size in ((files, 12), (files, 10), (files[1:], 12)):
        assert open_cache(asked, size, cache_root=root).images.shape == (len(asked), 3, size, size)
    assert sum(path.is_dir() for path in root.iterdir()) == 3


def test_changed_file_gives_a_new_cache(files, tmp_path):
    before = open_cache(files, 12, cache_root=tmp_path / "cache")
    files[0].write_bytes(files[1].read_bytes())
    after = open_cache(files, 12, cache_root=tmp_path / "cache")
    assert torch.equal(after.images[0], before.images[1])
    assert not torch.equal(before.images[0], before.images[1])
    assert after.digests[0] == before.digests[1]


def test_writing_to_the_images_leaves_the_file_alone(files, tmp_path):
    images = open_cache(files, 12, cache_root=tmp_path / "cache").images
    original = images[0].clone()
    images[0] = 255 - original
    assert torch.equal(open_cache(files, 12, cache_root=tmp_path / "cache").images[0], original)


def test_number_of_threads_changes_nothing(files, tmp_path):
    one = open_cache(files, 12, cache_root=tmp_path / "one", num_workers=1)
    four = open_cache(files, 12, cache_root=tmp_path / "four", num_workers=4)
    assert torch.equal(one.images, four.images)
    assert one.digests == four.digests


def test_bad_files_are_reported_by_row_and_reading_them_again_says_the_same(files, tmp_path):
    files[2].write_bytes(b"")
    files[5].write_bytes(files[5].read_bytes()[:200])
    files[7].unlink()
    files[7].symlink_to("nowhere.jpg")
    for _ in range(2):
        cache = open_cache(files, 12, cache_root=tmp_path / "cache")
        assert list(cache.bad) == [2, 5, 7]
        assert cache.bad[2] == "an empty file"
        assert "runcated" in cache.bad[5]
        assert np.array_equal(cache.images[6], read_image(files[6].read_bytes(), 12))


def test_mended_link_gives_a_new_cache(files, tmp_path):
    target = files[0].with_name("target")
    files[0].rename(target)
    files[0].symlink_to("nowhere")
    assert list(open_cache(files, 12, cache_root=tmp_path / "cache").bad) == [0]
    files[0].unlink()
    files[0].symlink_to(target)
    assert open_cache(files, 12, cache_root=tmp_path / "cache").bad == {}


def test_progress_counts_images_up_to_all(files, tmp_path):
    told = []
    open_cache(files, 12, cache_root=tmp_path / "cache", progress=lambda *pair: told.append(pair))
    assert told == [(done, 70) for done in (16, 32, 48, 64, 70)]


def test_interrupted_build_is_no_cache_and_the_next_one_is_whole(files, tmp_path):
    root = tmp_path / "cache"

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_cache(files, 12, cache_root=root, num_workers=1, progress=interrupt)
    assert not list(root.rglob("index.json"))
    told = []
    cache = open_cache(files, 12, cache_root=root, progress=lambda *pair: told.append(pair))
    assert told, "it was not built anew"
    assert np.array_equal(cache.images[-1], read_image(files[-1].read_bytes(), 12))


KILLED_BEFORE_IT_IS_ON_DISK = """
import os, pathlib, signal, sys, time
from pose.data.cache import open_cache
os.fsync = lambda descriptor: time.sleep(60)
files = sorted(pathlib.Path(sys.argv[1]).iterdir())
print(int(open_cache(files, 12).images.sum()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_cache_is_used_before_it_is_on_disk_and_trusted_only_after(files, tmp_path):
    root = tmp_path / "cache"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_BEFORE_IT_IS_ON_DISK, str(files[0].parent)],
        cwd=PROJECT,
        env={**os.environ, "POSE_CACHE": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    expected = sum(int(read_image(path.read_bytes(), 12).sum()) for path in files)
    assert killed.stdout == f"{expected}\n", killed.stderr
    assert not list(root.rglob("index.json"))
    told = []
    cache = open_cache(files, 12, cache_root=root, progress=lambda *pair: told.append(pair))
    assert told, "it was not built anew"
    assert int(cache.images.sum()) == expected


@pytest.mark.filterwarnings("always:the decoded images could not be kept")
def test_cache_that_cannot_be_kept_is_used_and_said(files, tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.warns(UserWarning, match=r"Input/output error.*the next one decodes again"):
        cache = open_cache(files, 12, cache_root=tmp_path / "cache")
        for thread in threading.enumerate():
            if thread.name == "save cache":
                thread.join()
    assert np.array_equal(cache.images[-1], read_image(files[-1].read_bytes(), 12))
    assert not list((tmp_path / "cache").rglob("index.json"))


BUILD_TWICE = """
import multiprocessing, pathlib, sys
from pose.data.cache import open_cache
files = sorted(pathlib.Path(sys.argv[1]).iterdir())
forks = multiprocessing.get_context("fork")
start, answers = forks.Barrier(2), forks.Queue()
def build():
    told = []
    start.wait()
    cache = open_cache(files, 12, progress=lambda done, total: told.append(done))
    answers.put((bool(told), int(cache.images.sum())))
builders = [forks.Process(target=build) for _ in range(2)]
for builder in builders:
    builder.start()
print(sorted(answers.get(timeout=30) for _ in builders))
"""


def test_two_processes_at_once_build_one_cache(files, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", BUILD_TWICE, str(files[0].parent)],
        cwd=PROJECT,
        env={**os.environ, "POSE_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    expected = sum(int(read_image(path.read_bytes(), 12).sum()) for path in files)
    assert done.stdout == f"[(False, {expected}), (True, {expected})]\n", done.stderr
    assert len(list((tmp_path / "cache").glob("*/index.json"))) == 1


def built(files, root: Path) -> Path:
    """The folder of the cache of `files`, on disk."""
    open_cache(files, 12, cache_root=root)
    open_cache(files, 12, cache_root=root)
    (folder,) = (path for path in root.iterdir() if path.is_dir())
    return folder


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def make_another(text: str):
    return lambda path: path.write_text(text)


@pytest.mark.parametrize(
    ("name", "harm", "why"),
    [
        ("images.u8", cut, "images.u8 has 15120 bytes instead of 30240"),
        ("images.u8", lambda path: os.truncate(path, 0), "images.u8 has 0 bytes"),
        ("images.u8", Path.unlink, "images.u8: no such file"),
        ("images.u8", flip_a_bit, "the pixels of .*jpg are damaged"),
        ("index.json", cut, "index.json cannot be read"),
        ("index.json", make_another(""), "index.json cannot be read"),
        ("index.json", make_another("[]"), "index.json is damaged"),
        ("index.json", make_another('{"digests": [], "bad": {}}'), "index.json is damaged"),
        ("index.json", make_another("\x00" * 99), "index.json cannot be read"),
    ],
)
def test_damaged_cache_is_built_again_and_said(files, tmp_path, name, harm, why):
    root = tmp_path / "cache"
    folder = built(files, root)
    harm(folder / name)
    told = []
    cache = open_cache(files, 12, cache_root=root, progress=lambda *pair: told.append(pair))
    assert told, "it was not built anew"
    (note,) = cache.notes
    assert re.search(f"are made anew: {why}", note)
    assert np.array_equal(cache.images[-1], read_image(files[-1].read_bytes(), 12))
    assert open_cache(files, 12, cache_root=root).notes == ()


def test_image_that_was_exchanged_behind_size_and_time_is_seen(files, tmp_path):
    # More files than are sampled; the one that changes is not among the sample.
    many = files + [path.with_name(f"{n}_{path.name}") for n in range(2) for path in files]
    for path in many[len(files) :]:
        path.write_bytes(files[0].read_bytes())
    root = tmp_path / "cache"
    built(many, root)
    status = many[1].stat()
    data = bytearray(many[1].read_bytes())
    data[-2:] = b"\0\0"
    many[1].write_bytes(data)
    os.utime(many[1], ns=(status.st_atime_ns, status.st_mtime_ns))
    (note,) = open_cache(many, 12, cache_root=root).notes
    assert f"{many[1].name} has other bytes than when it was decoded" in note


def test_other_rights_on_the_same_bytes_build_nothing(files, tmp_path):
    built(files, tmp_path / "cache")
    for path in files:
        path.chmod(0o600)
    assert open_cache(files, 12, cache_root=tmp_path / "cache").notes == ()


def test_orientation_is_part_of_the_key(files, tmp_path):
    image = Image.open(files[0])
    exif = Image.Exif()
    exif[0x0112] = 3
    image.save(files[0], exif=exif, quality=95)
    seen = open_cache(files, 16, cache_root=tmp_path / "cache").images
    stored = open_cache(files, 16, cache_root=tmp_path / "cache", obey_exif=False).images
    assert torch.equal(seen[0], stored[0].flip(1, 2))
    assert torch.equal(seen[1:], stored[1:])


def test_disk_without_room_is_said_before_anything_is_written(files, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    expected = r"must have room for 0.0 MB .*\(disk full\).*: --cache stream$"
    with pytest.raises(InputError, match=expected):
        open_cache(files, 12, cache_root=tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


@pytest.mark.parametrize("failing", ["posix_fallocate", "pwrite"])
def test_disk_that_fills_up_leaves_nothing(files, tmp_path, monkeypatch, failing):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(InputError, match="disk full"):
        open_cache(files, 12, cache_root=tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_system_without_fallocate_builds_the_same(files, tmp_path, monkeypatch):
    expected = open_cache(files, 12, cache_root=tmp_path / "one").images
    monkeypatch.delattr(os, "posix_fallocate")
    assert torch.equal(open_cache(files, 12, cache_root=tmp_path / "two").images, expected)


def test_pipe_device_and_folder_are_bad_files_and_nothing_waits(files, tmp_path):
    kinds = {3: "a pipe (FIFO), not a file", 4: "a device, not a file", 5: "a folder, not a file"}
    for row in kinds:
        files[row].unlink()
    os.mkfifo(files[3])
    files[4].symlink_to("/dev/zero")
    files[5].mkdir()
    assert open_cache(files, 12, cache_root=tmp_path / "cache").bad == kinds


def test_link_in_the_place_of_a_lock_is_refused_and_its_target_kept(files, tmp_path):
    root = tmp_path / "cache"
    folder = built(files, root)
    precious = tmp_path / "precious"
    precious.write_text("precious")
    shutil.rmtree(folder)
    lock = root / f"{folder.name}.lock"
    lock.unlink()
    lock.symlink_to(precious)
    with pytest.raises(InputError, match="must be a plain file: remove what is there"):
        open_cache(files, 12, cache_root=root)
    assert precious.read_text() == "precious"


def test_root_that_is_no_folder_is_an_error(files, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"got '.*file' \(.*\): give another --cache-root"):
        open_cache(files, 12, cache_root=tmp_path / "file")


def test_environment_says_where_caches_lie(monkeypatch, tmp_path):
    monkeypatch.setenv("POSE_CACHE", str(tmp_path))
    assert default_cache_root() == tmp_path
    monkeypatch.setenv("POSE_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_root() == tmp_path / ".cache" / "pose"
