"""What members say of test images: here, from decoded images, or over a cluster in shards.

On a cluster no machine holds more than a shard, and what is said of it is kept until the vote is
recorded: a vote that was interrupted asks only about the shards that it does not have.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from pose.arrays import read_arrays, write_arrays
from pose.cluster import in_turn, joined
from pose.config import VoteSetup
from pose.data.cache import cache_root_of
from pose.data.decoding import decode_file
from pose.data.shards import ImageFile, absolute_file, absolute_name, version_of
from pose.device import describe, pick_device, pick_precision
from pose.display import Display
from pose.ensembling.lock import digest_of_images
from pose.ensembling.members import Member
from pose.errors import InputError, first_few, printable
from pose.look import decode
from pose.seeds.folder import decoding_of
from pose.training.predict import predict_logits, probs_of
from pose_models import AugmentedClassifier, Framing, ImageClassifier, for_inference

# Whole shards of images are predicted in batches of their own, here as on a cluster: what a batch
# is made of decides the last bits of its predictions.
SHARD_FILES = 1024
BATCH_SIZE = 128

Voter = ImageClassifier | AugmentedClassifier
Decoding = tuple[Framing, bool]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ballot:
    """What the members say of the test images.

    Attributes:
        ids: `(N,)` of the images that can be read.
        probs: `(M, N, C)` float32.
        digest: of ids and contents of the images.
        conditions: versions of software, device and arithmetic, by name.
        seconds: that the members took, decoding not counted; on a cluster, all that it took.
        kept: folder of what was said of shards, to be forgotten when the vote is recorded.
    """

    ids: tuple[str, ...]
    probs: np.ndarray
    digest: str
    conditions: dict[str, str]
    seconds: float
    kept: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """What the members say of a piece of the test images.

    Attributes:
        probs: `(M, n, C)` float32, of those that can be read, in their order.
        digests: of the bytes of all its files; empty where they cannot be had.
        bad: why others cannot be read, by place in the shard.
    """

    probs: np.ndarray
    digests: tuple[str, ...]
    bad: dict[int, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """Who is asked, and how.

    Attributes:
        voters: on the CPU, in evaluation mode.
        decodings: how each of them wants its images decoded.
        identity: of their weights and of how they look.
    """

    voters: Sequence[Voter]
    decodings: Sequence[Decoding]
    precision: torch.dtype
    identity: str


def hold_ballot(
    members: Sequence[Member],
    voters: Sequence[Voter],
    tests: Mapping[str, ImageFile],
    setup: VoteSetup,
    display: Display,
) -> Ballot:
    """Each member's predictions of the test images.

    Args:
        voters: the members as they look at an image.
        tests: files by id.

    Raises:
        InputError: images that cannot be read, unless they are to be left out, or no others; or
            the cluster cannot be had.
    """
    device = pick_device("cpu" if setup.engine == "ray" else setup.device)
    panel = Panel(
        voters=voters,
        decodings=[decoding_of(member.card) for member in members],
        precision=pick_precision(setup.precision, device),
        identity=_identity(members, voters),
    )
    display.say(f"device: {describe(device, panel.precision)}")
    threads = setup.threads or torch.get_num_threads()
    if setup.engine == "ray":
        whole, seconds = _ask_cluster(panel, list(tests.values()), threads, setup, display)
    else:
        torch.set_num_threads(threads)
        whole, seconds = _ask_here(panel, list(tests.values()), device, setup, display)
    if isinstance(voters[0], AugmentedClassifier):
        display.say(f"test-time augmentation: {voters[0].num_views} views, {seconds:.1f} s")
    versions = {"device": describe(device, panel.precision), **_versions()}
    return Ballot(
        ids=tuple(image_id for row, image_id in enumerate(tests) if row not in whole.bad),
        probs=whole.probs,
        digest=digest_of_images(dict(zip(tests, whole.digests, strict=True))),
        conditions=versions,
        seconds=seconds,
        kept=KeptShards(setup, panel).folder if setup.engine == "ray" else None,
    )


def forget_shards(ballot: Ballot) -> None:
    """Remove what was kept of a vote that is recorded."""
    if ballot.kept is not None:
        shutil.rmtree(ballot.kept, ignore_errors=True)


def _identity(members: Sequence[Member], voters: Sequence[Voter]) -> str:
    views = getattr(voters[0], "views", ())
    weights = [member.weights_sha256 for member in members]
    return hashlib.sha256("\n".join((*weights, *views)).encode()).hexdigest()[:20]


def _versions() -> dict[str, str]:
    """The versions of what decides the predictions."""
    packages = ("torch", "torchvision", "numpy", "pillow", "simplejpeg")
    found = {package: importlib.metadata.version(package) for package in packages}
    return {"python": platform.python_version(), **found}


def _ask_here(
    panel: Panel,
    files: Sequence[ImageFile],
    device: torch.device,
    setup: VoteSetup,
    display: Display,
) -> tuple[Shard, float]:
    """All members about all images, each image decoded once per way of decoding."""
    caches = decode(files, panel.decodings, setup, display)
    for note in (note for cache in caches.values() for note in cache.notes):
        display.say(f"warning: {note}")
    # A file's bytes are the same however they are decoded.
    digests = caches[panel.decodings[0]].digests
    bad = {row: why for cache in caches.values() for row, why in cache.bad.items()}
    _check_bad(files, bad, setup, display)
    shards = [
        torch.tensor([row for row in rows if row not in bad], dtype=torch.int64)
        for rows in _shards(len(files))
    ]
    shards = [rows for rows in shards if len(rows)]
    total = sum(-(-len(rows) // BATCH_SIZE) for rows in shards)
    probs = []
    started = time.monotonic()
    for voter, decoding in zip(panel.voters, panel.decodings, strict=True):
        fast = for_inference(voter).to(device).to(memory_format=torch.channels_last)
        parts, done = [], 0
        for rows in shards:
            logits = predict_logits(
                fast,
                caches[decoding].images,
                rows,
                panel.precision,
                batch_size=BATCH_SIZE,
                progress=functools.partial(_after, display, done, total),
            )
            parts.append(probs_of(logits))
            done += -(-len(rows) // BATCH_SIZE)
        probs.append(np.concatenate(parts))
    shard = Shard(probs=np.stack(probs), digests=digests, bad=bad)
    return shard, time.monotonic() - started


def _after(display: Display, before: int, total: int, done: int, _: int) -> None:
    display.predict_progress(before + done, total)


def _shards(num_files: int) -> list[range]:
    return [range(num_files)[s : s + SHARD_FILES] for s in range(0, num_files, SHARD_FILES)]


def _check_bad(
    files: Sequence[ImageFile], bad: Mapping[int, str], setup: VoteSetup, display: Display
) -> None:
    """Name the images that cannot be read.

    Raises:
        InputError: they are not to be left out, or there are no others.
    """
    if bad:
        named = first_few(
            f"{printable(files[row].name)} ({why})" for row, why in sorted(bad.items())
        )
        if not setup.skip_bad_images:
            raise InputError(
                f"test images must all be readable, found {len(bad)} that are not: "
                f"{named}; repair them, or leave them out with --skip-bad-images"
            )
        display.say(f"warning: {len(bad)} unreadable test images left out: {named}")
    if len(bad) == len(files):
        raise InputError("test images must be readable, found not a single one that is")


def _ask_cluster(
    panel: Panel, files: Sequence[ImageFile], threads: int, setup: VoteSetup, display: Display
) -> tuple[Shard, float]:
    """The same on the cluster's CPUs, a shard at a time."""
    shards = [[absolute_file(files[row]) for row in rows] for rows in _shards(len(files))]
    kept = KeptShards(setup, panel)
    started = time.monotonic()
    with joined(threads):
        found = {number: shard for number, own in enumerate(shards) if (shard := kept.read(own))}
        if found:
            display.say(f"continued: {len(found)} of {len(shards)} shards were predicted before")
        waiting = [number for number in range(len(shards)) if number not in found]
        answers = in_turn(
            _ask_about, panel, [(shards[number], threads) for number in waiting], threads
        )
        for done, (number, shard) in enumerate(zip(waiting, answers, strict=True), len(found) + 1):
            kept.write(shards[number], shard)
            found[number] = shard
            display.predict_progress(done, len(shards))
    in_order = [found[number] for number in range(len(shards))]
    whole = Shard(
        probs=np.concatenate([shard.probs for shard in in_order], axis=1),
        digests=tuple(digest for shard in in_order for digest in shard.digests),
        bad={
            number * SHARD_FILES + row: why
            for number, shard in enumerate(in_order)
            for row, why in shard.bad.items()
        },
    )
    _check_bad(files, whole.bad, setup, display)
    return whole, time.monotonic() - started


def _ask_about(panel: Panel, files: Sequence[ImageFile], threads: int) -> Shard:
    """What a machine of the cluster does: decode a batch, ask everybody, forget it."""
    torch.set_num_threads(threads)
    fast = [for_inference(v).to(memory_format=torch.channels_last) for v in panel.voters]
    digests: list[str] = []
    bad: dict[int, str] = {}
    parts: list[np.ndarray] = []
    decodings = sorted(set(panel.decodings))
    for images in _batches(files, decodings, digests, bad):
        rows = torch.arange(len(images[decodings[0]]))
        own = [
            probs_of(predict_logits(voter, images[decoding], rows, panel.precision))
            for voter, decoding in zip(fast, panel.decodings, strict=True)
        ]
        parts.append(np.stack(own))
    empty = np.zeros((len(fast), 0, len(panel.voters[0].labels)), dtype=np.float32)
    return Shard(probs=np.concatenate([empty, *parts], axis=1), digests=tuple(digests), bad=bad)


def _batches(
    files: Sequence[ImageFile],
    decodings: Sequence[Decoding],
    digests: list[str],
    bad: dict[int, str],
) -> Iterator[dict[Decoding, torch.Tensor]]:
    """The images that can be read, a batch at a time; adds to `digests` and `bad`."""
    batch: list[list[np.ndarray]] = []
    for row, path in enumerate(files):
        digest, pixels, reason = decode_file(path, decodings)
        digests.append(digest)
        if reason:
            bad[row] = reason
        else:
            batch.append(pixels)
        if batch and (len(batch) == BATCH_SIZE or row == len(files) - 1):
            yield {
                decoding: torch.from_numpy(np.stack([image[number] for image in batch]))
                for number, decoding in enumerate(decodings)
            }
            batch = []


class KeptShards:
    """What was said of shards, in the cache, until a vote has recorded it."""

    def __init__(self, setup: VoteSetup, panel: Panel) -> None:
        self._panel = panel
        self.folder = cache_root_of(setup.cache_root) / "ballots" / panel.identity

    def read(self, files: Sequence[ImageFile]) -> Shard | None:
        """What was said of these files as they are now; None where that is not known."""
        kept = read_arrays(self._path(files))
        if kept is None or set(kept) != {"probs", "digests", "bad_rows", "reasons"}:
            return None
        bad = dict(zip(kept["bad_rows"].tolist(), kept["reasons"].tolist(), strict=True))
        return Shard(probs=kept["probs"], digests=tuple(kept["digests"].tolist()), bad=bad)

    def write(self, files: Sequence[ImageFile], shard: Shard) -> None:
        """Keep what was said of these files.

        Raises:
            InputError: it cannot be written.
        """
        write_arrays(
            self._path(files),
            probs=shard.probs,
            digests=np.array(shard.digests, dtype=str),
            bad_rows=np.array(list(shard.bad), dtype=np.int64),
            reasons=np.array(list(shard.bad.values()), dtype=str),
        )

    def _path(self, files: Sequence[ImageFile]) -> Path:
        panel = self._panel
        digest = hashlib.sha256(f"{panel.precision} {panel.decodings}".encode())
        for file in files:
            digest.update(os.fsencode(f"\n{absolute_name(file)}\0{version_of(file)}"))
        return self.folder / f"{digest.hexdigest()[:20]}.npz"
