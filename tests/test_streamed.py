"""Images that are decoded when they are needed: pixels, rows and weights of decoded ones."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from said import Said

from pose.config import CACHES, Recipe, Setup
from pose.data import shards
from pose.data.cache import open_cache
from pose.data.near_twins import MARKS
from pose.data.streamed import CHUNK, MIN_BATCHES_AHEAD, StreamedImages, decoding_ahead
from pose.data.survey import OPENERS, open_stream
from pose.data.twin_search import kept_marks
from pose.display import NoDisplay
from pose.errors import InputError
from pose.seeds import folder as seed_folder
from pose.seeds.job import NoTracking, SeedJob
from pose.seeds.train import load_job_data, train_seed

RECIPE = Recipe(
    model="simple_cnn", image_size=24, batch_size=16, num_epochs=2, seeds=(4,), high_pass=True
)


@pytest.fixture
def files(make_dataset, tmp_path) -> list[Path]:
    """Of 70 images one is empty, and one is cut short."""
    folder = make_dataset(tmp_path / "data", num_per_class=35, size=16, num_test=0)
    files = sorted((folder / "train_images").iterdir())
    files[2].write_bytes(b"")
    files[5].write_bytes(files[5].read_bytes()[:200])
    return files


def job_in(folder: Path, dataset: Path, cache: str, **changes) -> SeedJob:
    return SeedJob(
        run="tiny",
        recipe=dataclasses.replace(RECIPE, **changes),
        seed=4,
        dataset=dataset,
        output=folder,
        cache=cache,
        device="cpu",
        precision="float32",
        num_workers=2,
    )


def train(job: SeedJob, stop=lambda: None, display=None) -> None:
    display = display or NoDisplay()
    train_seed(job, load_job_data(job, display), NoTracking(), display, stop)


def same_weights(one: SeedJob, other: SeedJob) -> bool:
    ours, theirs = (
        torch.load(job.output / seed_folder.WEIGHTS, weights_only=True) for job in (one, other)
    )
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_every_value_of_the_setting_has_images():
    assert set(OPENERS) == set(CACHES)
    assert Setup().cache == "decoded"
    with pytest.raises(InputError, match="cache must be one of decoded, stream, got 'no'"):
        Setup(cache="no")


def test_images_digests_reasons_and_marks_are_those_of_the_cache(files, tmp_path):
    cache = open_cache(files, 12, cache_root=tmp_path / "cache")
    stream = open_stream(files, 12, cache_root=tmp_path / "cache")
    assert isinstance(stream.images, StreamedImages)
    assert (stream.digests, stream.bad) == (cache.digests, cache.bad)
    assert list(stream.bad) == [2, 5]
    rows = torch.tensor([7, 2, 69, 7])
    assert len(stream.images) == 70
    assert torch.equal(stream.images[rows], cache.images[rows])
    assert torch.equal(stream.images[3], cache.images[3])
    ours, theirs = (kept_marks(found.images, found.folder) for found in (stream, cache))
    assert np.array_equal(ours.hashes, theirs.hashes)
    assert np.array_equal(ours.thumbs, theirs.thumbs)


def test_files_are_looked_through_once_and_take_little_room(files, tmp_path):
    said = []
    open_stream(files, 24, cache_root=tmp_path, progress=lambda *counts: said.append(counts))
    assert said == [(64, 70), (70, 70)]
    kept = [path for path in tmp_path.glob("*-stream/*")]
    assert sum(path.stat().st_size for path in kept) < 1500 * len(files)
    again = open_stream(files, 24, cache_root=tmp_path, progress=lambda *counts: 1 / 0)
    assert list(again.bad) == [2, 5]


def test_a_changed_file_or_damaged_marks_are_looked_at_anew(files, tmp_path):
    first = open_stream(files, 24, cache_root=tmp_path)
    assert first.folder is not None
    (first.folder / MARKS).write_bytes(b"damaged")
    second = open_stream(files, 24, cache_root=tmp_path)
    assert "made anew: marks.npz is missing or damaged" in second.notes[0]
    assert open_stream(files, 24, cache_root=tmp_path).notes == ()
    shutil.copy(files[1], files[2])
    assert list(open_stream(files, 24, cache_root=tmp_path).bad) == [5]


def test_batches_are_decoded_ahead_in_bounded_number(files, tmp_path, monkeypatch):
    read = []
    decode = StreamedImages.decode_into
    monkeypatch.setattr(
        StreamedImages,
        "decode_into",
        lambda self, pixels, rows: (read.extend(rows), decode(self, pixels, rows)),
    )
    images = open_stream(files, 12, cache_root=tmp_path, num_workers=1).images
    plain = open_cache(files, 12, cache_root=tmp_path).images
    batches = torch.arange(70).flip(0).split(8)
    turns = decoding_ahead(images, batches)
    first = next(turns)
    assert torch.equal(images.index_select(0, first), plain[first])
    # Neither fewer nor more than are to be ready: those that were taken, and two chunks' worth.
    for number, rows in enumerate(turns, start=2):
        assert torch.equal(images.index_select(0, rows), plain[rows])
        assert len(read) <= 8 * (number + MIN_BATCHES_AHEAD) + CHUNK
    assert read == torch.arange(70).flip(0).tolist()


def test_rows_that_nobody_announced_come_all_the_same(files, tmp_path):
    images = open_stream(files, 12, cache_root=tmp_path).images
    plain = open_cache(files, 12, cache_root=tmp_path).images
    other = torch.tensor([40, 41])
    for rows in decoding_ahead(images, torch.arange(24).split(8)):
        assert torch.equal(images[other], plain[other])
        assert torch.equal(images[rows], plain[rows])


@pytest.mark.parametrize(
    ("harm", "found"),
    [
        (Path.unlink, "no such file or directory"),
        (lambda path: path.write_bytes(path.with_name("1.jpg").read_bytes()), "other bytes"),
    ],
)
def test_a_file_that_changes_meanwhile_ends_it_in_a_line(files, tmp_path, harm, found):
    images = open_stream(files, 12, cache_root=tmp_path).images
    harm(files[8])
    with pytest.raises(InputError, match=f"must stay as it is .*found {found}: start anew"):
        for rows in decoding_ahead(images, torch.arange(70).split(4)):
            images.index_select(0, rows)


@pytest.mark.parametrize("shuffle", ["all", "shards"])
def test_weights_are_those_of_the_cache_bit_for_bit_also_after_a_stop(
    tmp_path, stripes, monkeypatch, shuffle
):
    monkeypatch.setattr(shards, "FILES_PER_SHARD", 10)
    decoded = job_in(tmp_path / "decoded", stripes, "decoded", shuffle=shuffle)
    train(decoded)
    streamed = job_in(tmp_path / "streamed", stripes, "stream", shuffle=shuffle)
    calls = iter(range(4))
    # 48 rows train in 3 batches: stopped in the middle of the second epoch.
    train(streamed, stop=lambda: None if next(calls, None) is not None else "signal")
    assert not (streamed.output / seed_folder.WEIGHTS).exists()
    # What was begun with one goes on with the other: it is the same run.
    moved = job_in(tmp_path / "moved", stripes, "decoded", shuffle=shuffle)
    shutil.copytree(streamed.output, moved.output)
    for job in (streamed, moved):
        said = Said()
        train(job, display=said)
        assert not [line for line in said.lines if "anew" in line]
        assert same_weights(decoded, job)
