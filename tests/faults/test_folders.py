"""Data folders, caches and outputs with things in them that nobody put there on purpose."""

import os
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pose.data.cache import open_cache
from pose.data.folder import check_images, read_dataset, read_test_images, refuse_input
from pose.data.loaded import load_data
from pose.files import file_to_write, locked

IDS = tuple(str(n) for n in range(8))


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clean") / "data"
    for part in ("train_images", "test_images"):
        (folder / part).mkdir(parents=True)
        for image_id in IDS:
            Image.new("RGB", (8, 8), (int(image_id) * 30, 9, 9)).save(
                folder / part / f"{image_id}.jpg"
            )
    rows = "".join(f"{i},{'ab'[int(i) % 2]}\n" for i in IDS)
    (folder / "train_solution.csv").write_text(f"id,label\n{rows}")
    return folder


@pytest.fixture
def folder(clean, tmp_path) -> Path:
    return Path(shutil.copytree(clean, tmp_path / "data"))


def look(folder: Path) -> tuple[str, list[str]]:
    """The report of a check, and the ids that a vote would predict."""
    dataset = check_images(read_dataset(folder), num_workers=1)
    report = dataset.report()
    report.encode()
    dataset.raise_if_fatal()
    told: list[str] = []
    tests = list(read_test_images(folder, told.append))
    return "\n".join([report, *told]), tests


def put_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def put_sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


# What may lie at a path instead of a file.
THINGS = {
    "pipe": os.mkfifo,
    "socket": put_socket,
    "folder": Path.mkdir,
    "zeros": lambda path: path.symlink_to("/dev/zero"),
    "null": lambda path: path.symlink_to("/dev/null"),
    "link to nowhere": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to a folder": lambda path: path.symlink_to("."),
    "sparse terabyte": put_sparse,
}


@pytest.mark.parametrize("part", ["train_images", "test_images"])
@pytest.mark.parametrize("thing", THINGS)
def test_things_named_like_images_are_named(judge, folder, thing, part):
    path = folder / part / "3.jpg"
    path.unlink()
    THINGS[thing](path)
    judge(lambda: look(folder), lambda found: "3.jpg" in found[0])


@pytest.mark.parametrize(
    "name", ["train_solution.csv", "classes.csv", "train_images", "test_images"]
)
@pytest.mark.parametrize("thing", THINGS)
def test_things_in_the_place_of_parts_are_named(judge, folder, thing, name):
    path = folder / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    THINGS[thing](path)
    if name.endswith("_images") and thing in ("folder", "link to a folder"):
        judge(lambda: look(folder), lambda found: True)
    else:
        judge(lambda: look(folder), None)


NAMES = (
    "a.txt", "a.heic", "a.HEIF", "a.svg", "a.mp4", "a", "a.jpg.part", "Thumbs.db", "a.jpg~",
    "a\nb.txt", "a\x1b[31m.txt", "\udcff.jpg", "\udcff.txt", "a b.gz", "a.jpg.txt", "$HOME.txt",
    "-rf.txt", "x" * 250 + ".txt", "é.pdf", "🙂.doc", "sub/a.txt", "sub/deeper/b.txt", "a.psd",
)  # fmt: skip


@pytest.mark.parametrize("part", ["train_images", "test_images"])
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_other_files_are_named(judge, folder, name, part):
    path = folder / part / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"no image")
    words = (f"files in {part}/", "images without a row", "cannot be read")
    judge(lambda: look(folder), lambda found: any(word in found[0] for word in words), folder)


SUFFIXES = {
    "jpg": "JPEG", "jpeg": "JPEG", "jfif": "JPEG", "png": "PNG", "webp": "WEBP", "bmp": "BMP",
    "gif": "GIF", "tif": "TIFF", "tiff": "TIFF", "avif": "AVIF",
}  # fmt: skip


@pytest.mark.parametrize("is_upper", [False, True])
@pytest.mark.parametrize("inner", ["", "day1/", "a b/ü/", "5.5/"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_all_suffixes_are_read_in_all_folders(judge, folder, suffix, inner, is_upper):
    name = f"{inner}9.{suffix.upper() if is_upper else suffix}"
    for part in ("train_images", "test_images"):
        path = folder / part / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(path, SUFFIXES[suffix])
    with open(folder / "train_solution.csv", "a", encoding="utf-8") as table:
        table.write(f"{name},a\n")

    def is_right(found) -> bool:
        report, tests = found
        return "labelled images: 9" in report and f"{inner}9" in tests and "none\n" in report

    assert judge(lambda: look(folder), is_right, folder) == ""


HIDDEN = (".DS_Store", "._1.jpg", ".ipynb_checkpoints/1.jpg", "__MACOSX/._1.jpg", ".git/x.jpg")


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_things_are_no_part(judge, folder, name):
    for part in ("train_images", "test_images"):
        path = folder / part / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"hidden")
    is_right = lambda found: "problems: none" in found[0] and found[1] == list(IDS)  # noqa: E731
    assert judge(lambda: look(folder), is_right, folder) == ""


# Caches

HARMS = {
    "gone": Path.unlink,
    "empty": lambda path: os.truncate(path, 0),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "longer": lambda path: os.truncate(path, path.stat().st_size + 1),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "noise": lambda path: path.write_bytes(os.urandom(path.stat().st_size)),
    "a bit": lambda path: path.write_bytes(
        (data := path.read_bytes())[:100] + bytes([data[100] ^ 1]) + data[101:]
    ),
    "text": lambda path: path.write_text("[1, 2"),
    "list": lambda path: path.write_text("[1, 2]"),
    "null": lambda path: path.write_text("null"),
    "empty object": lambda path: path.write_text("{}"),
    "odd object": lambda path: path.write_text(
        '{"digests": 1, "checksums": [], "changed": [], "bad": {}}'
    ),
}


@pytest.mark.parametrize("size", [8, 16])
@pytest.mark.parametrize("name", ["index.json", "images.u8"])
@pytest.mark.parametrize("harm", HARMS)
def test_harmed_caches_are_built_again(judge, clean, tmp_path, harm, name, size):
    root = tmp_path / "cache"
    expected = [load_data(clean, size, root).images.numpy().copy() for _ in range(2)][-1]
    (cache,) = (path for path in root.iterdir() if path.is_dir())
    HARMS[harm](cache / name)

    def is_right(loaded) -> bool:
        return np.array_equal(loaded.images.numpy(), expected) and (
            "made anew" in loaded.lines()[-1] or (name, harm) == ("index.json", "gone")
        )

    assert judge(lambda: load_data(clean, size, root), is_right, clean) == ""
    assert open_cache(read_dataset(clean).files, size, cache_root=root).notes == ()


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("place", ["root", "lock", "folder", "index.json", "images.u8"])
def test_things_in_the_place_of_a_cache_are_named_or_replaced(judge, clean, tmp_path, place, thing):
    root = tmp_path / "cache"
    for _ in range(2):
        load_data(clean, 8, root)
    (cache,) = (path for path in root.iterdir() if path.is_dir())
    path = {"root": root, "lock": root / f"{cache.name}.lock", "folder": cache}.get(
        place, cache / place
    )
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    THINGS[thing](path)
    judge(lambda: load_data(clean, 8, root), lambda loaded: len(loaded.dataset.ids) == 8, clean)


# Outputs


@pytest.mark.parametrize("thing", [*THINGS, "new", "old", "link to a file"])
def test_outputs_replace_files_alone(judge, tmp_path, thing):
    path = tmp_path / "predictions.csv"
    if thing in THINGS:
        THINGS[thing](path)
    elif thing == "old":
        path.write_text("old")
    elif thing == "link to a file":
        (tmp_path / "target").write_text("old")
        path.symlink_to(tmp_path / "target")
    writable = ("new", "old", "link to a file", "link to nowhere", "sparse terabyte")
    is_right = (lambda target: not target.is_symlink()) if thing in writable else None
    judge(lambda: file_to_write(path, "out_path"), is_right)


@pytest.mark.parametrize(
    "path",
    ["/dev/null", "/dev/stdout", "/proc/x", "/", ".", "..", "no/such/folder.csv", "x" * 300,
     "x/" * 3000, "/proc/self/mem/x"],
    ids=lambda path: path[:20],
)  # fmt: skip
def test_outputs_that_cannot_be_are_named(judge, path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    judge(lambda: file_to_write(Path(path), "out_path"), None)


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize(
    "name",
    ["train_solution.csv", "classes.csv", "test_solution.csv", "sample_submission.csv",
     "train_images/1.jpg", "test_images/new.csv", "test_images"],
)  # fmt: skip
def test_outputs_replace_no_input(judge, folder, tmp_path, name, link):
    path = folder / name
    if link:
        path = tmp_path / "link"
        path.symlink_to(folder / name)
    judge(lambda: refuse_input(path, folder, "out_path"), None, folder)


@pytest.mark.parametrize("thing", THINGS)
def test_things_in_the_place_of_a_lock_are_named(judge, tmp_path, thing):
    path = tmp_path / ".run.lock"
    THINGS[thing](path)

    def lock() -> str:
        with locked(path, wait=False):
            return "locked"

    judge(lock, (lambda word: word == "locked") if thing == "sparse terabyte" else None)
