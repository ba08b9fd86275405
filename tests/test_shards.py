"""Tar files of images: the same data as the files in them, read in order, and never believed."""

import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest
import torch

import pose.data.shards
from pose.data.folder import check_images, read_dataset, refuse_input
from pose.data.loaded import LoadedData, decode_dataset, load_data
from pose.data.shards import TarMember, announce, list_tar, read_file, shards_of
from pose.data.survey import OPENERS
from pose.data.tensors import TrainingData
from pose.errors import InputError
from pose.training.order import epoch_order


def pack(tar: Path, files: list[Path], kind: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(tar, "w", format=kind) as archive:
        for file in files:
            archive.add(file, file.name)
    return tar


def as_tars(source: Path, folder: Path, *, beside: bool = False) -> Path:
    """The data of `source` with its images in tars, neither of which is in the order of ids."""
    images = folder if beside else folder / "train_images"
    for name in (images, folder / "test_images"):
        name.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "train_solution.csv", folder)
    files = sorted((source / "train_images").iterdir())
    pack(images / "b.tar", files[::-2], tarfile.GNU_FORMAT)
    pack(images / "a.tar", files[-2::-2])
    pack(folder / "test_images" / "tests.tar", sorted((source / "test_images").iterdir()))
    return folder


@pytest.fixture(scope="module")
def tars(tmp_path_factory, stripes) -> Path:
    return as_tars(stripes, tmp_path_factory.mktemp("tars"))


def load(folder: Path, root: Path, cache: str) -> LoadedData:
    return decode_dataset(read_dataset(folder), 24, cache_root=root, cache=cache)


@pytest.mark.parametrize("cache", ["decoded", "stream"])
def test_data_in_tars_are_those_of_the_files_in_them(tmp_path, stripes, tars, cache):
    plain, packed = load_data(stripes, 24, tmp_path), load(tars, tmp_path, cache)
    assert packed.dataset.ids == plain.dataset.ids
    assert packed.dataset.test_ids == plain.dataset.test_ids
    assert packed.digest == plain.digest
    rows = torch.arange(60)
    assert torch.equal(packed.images[rows], plain.images[rows])
    assert packed.dataset.problems == ()
    again = OPENERS[cache](
        packed.dataset.files, 24, cache_root=tmp_path, progress=lambda *counts: 1 / 0
    )
    assert torch.equal(again.images[rows], plain.images[rows])


def test_tars_may_lie_beside_the_labels(tmp_path, stripes, tars):
    beside = as_tars(stripes, tmp_path / "data", beside=True)
    assert read_dataset(beside).ids == read_dataset(tars).ids
    with pytest.raises(InputError, match="out_path must not replace what lies in the data"):
        refuse_input(beside / "a.tar", beside, "out_path")
    refuse_input(beside / "predictions.csv", beside, "out_path")


@pytest.mark.parametrize("cache", ["decoded", "stream"])
def test_each_tar_is_read_from_its_start_to_its_end(tmp_path, monkeypatch, tars, cache):
    seen = []
    pread, files = os.pread, read_dataset(tars).files

    def read(descriptor: int, size: int, offset: int) -> bytes:
        seen.append((os.fstat(descriptor).st_ino, offset))
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", read)
    OPENERS[cache](files, 24, cache_root=tmp_path, num_workers=1)
    expected = [(file.tar.stat().st_ino, file.offset) for file in files]
    assert seen != expected
    assert sorted(seen) == sorted(expected)
    ends = [number for number in range(1, 60) if seen[number - 1][0] != seen[number][0]]
    assert ends == [30]
    assert seen == sorted(seen[:30]) + sorted(seen[30:])


def test_a_changed_tar_is_decoded_anew(tmp_path, stripes):
    folder = as_tars(stripes, tmp_path / "data")
    first = load(folder, tmp_path, "stream")
    files = sorted((stripes / "train_images").iterdir())
    pack(folder / "train_images" / "b.tar", [files[-1], *files[-5::-2]])
    with pytest.raises(InputError, match=r"b.tar/\d+.jpg must stay as it is"):
        first.images[torch.arange(60)]
    second = load(folder, tmp_path, "stream")
    assert len(second.dataset.ids) == 59
    assert second.digest != first.digest


# What is in a tar


def add(archive: tarfile.TarFile, name: str, data: bytes = b"", **changes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in changes.items():
        setattr(info, key, value)
    archive.addfile(info, io.BytesIO(data))


def test_nothing_but_plain_files_is_read_and_the_rest_is_named(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        add(archive, "./1.jpg", b"one")
        add(archive, "day1/2.jpg", b"two")
        add(archive, "day1", type=tarfile.DIRTYPE)
        add(archive, ".hidden/3.jpg", b"three")
        add(archive, "__MACOSX/._1.jpg", b"fork")
        add(archive, "link.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(archive, "hard.jpg", type=tarfile.LNKTYPE, linkname="1.jpg")
        add(archive, "device.jpg", type=tarfile.CHRTYPE, devmajor=1, devminor=5)
        add(archive, "pipe.jpg", type=tarfile.FIFOTYPE)
        add(archive, "../out.jpg", b"out")
        add(archive, "/etc/absolute.jpg", b"absolute")
        add(archive, f"{'long' * 60}.jpg", b"long")
    members, odd = list_tar(path)
    assert [(member.inner, read_file(member)) for member in members] == [
        ("1.jpg", b"one"), ("day1/2.jpg", b"two"), (f"{'long' * 60}.jpg", b"long"),
    ]  # fmt: skip
    assert odd == {
        "link.jpg": "a link: not followed",
        "hard.jpg": "a link: not followed",
        "device.jpg": "not a plain file",
        "pipe.jpg": "not a plain file",
        "../out.jpg": "a name that leads out of the tar",
        "/etc/absolute.jpg": "a name that leads out of the tar",
    }


def test_members_that_are_no_images_are_left_out_and_named(tmp_path, stripes):
    folder = as_tars(stripes, tmp_path / "data")
    with tarfile.open(folder / "train_images" / "b.tar", "a") as archive:
        add(archive, "notes.txt", b"words")
        add(archive, "bad.jpg", b"no image")
        add(archive, "bad.json", b"1")
    with open(folder / "train_solution.csv", "a", encoding="utf-8") as table:
        table.write("bad,1\n")
    dataset = check_images(read_dataset(folder))
    lines = [problem.line() for problem in dataset.problems]
    assert "notes.txt (in b.tar)" in lines[0]
    assert "bad.json (in b.tar)" in lines[0]
    assert "bad.jpg in b.tar (not an image)" in lines[1]
    assert len(dataset.ids) == 60


@pytest.mark.parametrize("where", ["b.tar", "a.tar", "c.tar", "3.jpg"])
def test_an_id_that_is_there_twice_is_refused(tmp_path, stripes, where):
    folder = as_tars(stripes, tmp_path / "data")
    again = stripes / "train_images" / "3.jpg"
    path = folder / "train_images" / where
    if path.suffix == ".jpg":
        shutil.copy(again, path)
    else:
        with tarfile.open(path, "a") as archive:
            archive.add(again, "3.jpg")
    with pytest.raises(InputError, match=r"more than one image file.*: 3.jpg.*, 3.jpg"):
        read_dataset(folder).raise_if_fatal()


def with_labels(stripes: Path, folder: Path, **labels: bytes) -> Path:
    """Shards without a table: an image, then its label, those of `labels` instead of its own."""
    rows = (stripes / "train_solution.csv").read_text().splitlines()[1:]
    folder.mkdir()
    with tarfile.open(folder / "train-0000.tar", "w") as archive:
        for image_id, label in (row.split(",") for row in rows):
            archive.add(stripes / "train_images" / f"{image_id}.jpg", f"{image_id}.jpg")
            add(archive, f"{image_id}.cls", labels.get(f"_{image_id}", f"{label}\n".encode()))
    return folder


def test_labels_may_lie_in_tars_too(tmp_path, stripes):
    found, expected = read_dataset(with_labels(stripes, tmp_path / "data")), read_dataset(stripes)
    assert found.problems == ()
    assert found.ids == expected.ids
    assert (found.labels == expected.labels).all()
    assert found.classes.labels == expected.classes.labels


def test_a_table_has_the_word_where_labels_lie_in_tars_too(tmp_path, stripes):
    folder = with_labels(stripes, tmp_path / "data", _3=b"other")
    shutil.copy(stripes / "train_solution.csv", folder)
    dataset = read_dataset(folder)
    assert len(dataset.classes) == 2
    assert "60 labels in tar files (not read: train_solution.csv has them)" in str(
        [problem.line() for problem in dataset.problems]
    )


@pytest.mark.parametrize(
    ("label", "found"),
    [(b"\xff\xfe", "'utf-8' codec"), (b"a\nb", "3 characters"), (b"a" * 201, "201 characters")],
)
def test_what_is_no_label_is_refused(tmp_path, stripes, label, found):
    folder = with_labels(stripes, tmp_path / "data", _3=label)
    with pytest.raises(InputError, match=f"train-0000.tar/3.cls must be a label.*found {found}"):
        read_dataset(folder)


def test_an_empty_label_is_a_row_without_one(tmp_path, stripes):
    dataset = read_dataset(with_labels(stripes, tmp_path / "data", _3=b""))
    assert "rows without a label" in dataset.problems[0].line()
    assert len(dataset.ids) == 59


# Damage


def small_tar(folder: Path, stripes: Path) -> Path:
    return pack(folder / "small.tar", sorted((stripes / "train_images").iterdir())[:3])


def test_a_tar_that_is_cut_anywhere_is_refused(tmp_path, stripes):
    path = small_tar(tmp_path, stripes)
    data, num_members = path.read_bytes(), len(list_tar(path)[0])
    end = len(data.rstrip(b"\0")) // 512 * 512 + 512
    for size in (*range(0, end + 1, 256), *range(1, end, 499)):
        path.write_bytes(data[:size])
        with pytest.raises(InputError, match="must be a whole tar file .*, found: "):
            list_tar(path)
    # A block of zeros is an end, as short as it may be.
    path.write_bytes(data[: end + 512])
    assert len(list_tar(path)[0]) == num_members


def test_a_tar_with_a_damaged_header_is_refused(tmp_path, stripes):
    path = small_tar(tmp_path, stripes)
    data, places = path.read_bytes(), [member.offset - 512 for member in list_tar(path)[0]]
    for place in places:
        for at in (0, 100, 124, 130, 148, 156, 257, 345):
            harmed = bytearray(data)
            harmed[place + at] ^= 0x41
            path.write_bytes(harmed)
            with pytest.raises(InputError, match="must be a whole tar file"):
                list_tar(path)


def test_a_size_below_zero_ends_it(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        add(archive, "1.jpg", b"one")
        info = tarfile.TarInfo("2.jpg")
        info.size = -2048
        archive.fileobj.write(info.tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(InputError, match="must be a whole tar file"):
        list_tar(path)


@pytest.mark.parametrize("what", ["two", "text", "empty", "gzip", "pipe", "nowhere"])
def test_what_is_called_a_tar_and_is_none_is_refused_at_once(tmp_path, stripes, what):
    path = small_tar(tmp_path, stripes)
    data = path.read_bytes()
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "nowhere":
        path.symlink_to("nowhere.tar")
    elif what == "gzip":
        with tarfile.open(path, "w:gz") as archive:
            add(archive, "1.jpg", b"one")
    else:
        path.write_bytes({"two": data + data, "text": b"words" * 300, "empty": b""}[what])
    with pytest.raises(InputError, match=r"small.tar must be a whole tar file .*make it again"):
        list_tar(path)


def test_a_folder_called_tar_is_a_folder(tmp_path, stripes):
    folder = tmp_path / "data"
    shutil.copytree(stripes / "train_images", folder / "train_images" / "images.tar")
    lines = (stripes / "train_solution.csv").read_text().splitlines()
    table = [lines[0], *(f"images.tar/{line}" for line in lines[1:])]
    (folder / "train_solution.csv").write_text("\n".join(table))
    assert len(read_dataset(folder).ids) == 60


def test_a_tar_that_becomes_shorter_is_said(tmp_path, stripes):
    path = small_tar(tmp_path, stripes)
    member = list_tar(path)[0][-1]
    assert isinstance(member, TarMember)
    assert read_file(member) == (stripes / "train_images" / member.inner).read_bytes()
    os.truncate(path, member.offset + 10)
    with pytest.raises(OSError, match="has become shorter"):
        read_file(member)


# The order by shards


def rows_of(sizes: list[int]) -> tuple[torch.Tensor, ...]:
    """Shards of so many rows, the first of the last shard being row 0."""
    ends = [sum(sizes[number:]) for number in range(len(sizes))]
    return tuple(torch.arange(end - size, end) for end, size in zip(ends, sizes, strict=True))


def order_of(shards: tuple[torch.Tensor, ...], seed: int, num_waiting: int) -> list[int]:
    """Of all rows that are not divisible by 5, which validate."""
    rows = torch.arange(sum(map(len, shards)))
    data = TrainingData(
        images=torch.zeros(len(rows), 3, 1, 1, dtype=torch.uint8), labels=rows, mirrors=rows,
        train_rows=rows[rows % 5 > 0], val_rows=rows[rows % 5 == 0], shards=shards,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    return epoch_order(data, generator, num_waiting=num_waiting).tolist()


def test_shards_come_one_after_the_other_where_nothing_waits():
    shards = rows_of([20, 10, 30, 5])
    order = order_of(shards, 0, 1)
    places = [next(n for n, shard in enumerate(shards) if row in shard) for row in order]
    changes = [
        place for before, place in zip([-1, *places], places, strict=False) if place != before
    ]
    assert sorted(changes) == [0, 1, 2, 3]
    for shard in shards:
        own = [row for row in order if row in shard]
        assert own == [row for row in shard.tolist() if row % 5]
    assert {tuple(order_of(shards, seed, 1)) != tuple(order) for seed in range(1, 9)} == {
        True,
        False,
    }


@pytest.mark.parametrize("num_waiting", [1, 7, 51, 52, 53, 1000])
def test_each_training_row_comes_once_and_no_sooner_than_it_is_read(num_waiting):
    shards = rows_of([20, 10, 30, 5])
    order = order_of(shards, 3, num_waiting)
    assert sorted(order) == [row for row in range(65) if row % 5]
    assert order == order_of(shards, 3, num_waiting)
    read = order_of(shards, 3, 1)
    assert all(read.index(row) < place + num_waiting for place, row in enumerate(order))


def test_rows_are_mixed_among_those_that_wait():
    order = torch.tensor(order_of(rows_of([2000]), 0, 400))
    steps = order.diff().abs().float()
    assert steps.mean() > 200
    assert (order[:800] > 900).any()


def test_shards_are_tars_in_their_order_and_other_files_by_the_thousand(tars, monkeypatch):
    monkeypatch.setattr(pose.data.shards, "FILES_PER_SHARD", 4)
    files = [*read_dataset(tars).files, *(Path(f"{number}.jpg") for number in range(6))]
    found = shards_of(files)
    assert sorted(map(len, found)) == [2, 4, 30, 30]
    assert sorted(row for own in found for row in own) == list(range(66))
    for own in found:
        members = [files[row] for row in own if isinstance(files[row], TarMember)]
        assert len({member.tar for member in members}) <= 1
        assert [member.offset for member in members] == sorted(m.offset for m in members)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system takes no such hint")
def test_members_are_announced_in_few_parts_in_the_order_in_which_they_lie(monkeypatch):
    said = []
    monkeypatch.setattr(os, "posix_fadvise", lambda handle, *part: said.append(part[:2]))
    tar, far = Path(__file__), 10 << 20
    members = [TarMember(tar, "1", start, 100) for start in (far + 900, 700, 512, far)]
    announce([*members, TarMember(Path("nowhere.tar"), "1", 0, 5), Path("1.jpg")])
    assert said == [(512, 288), (far, 1000)]
