"""ensemble.json: all that writes the same predictions.csv again, and what to compare it with."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pose.ensembling.members import Member, RegisteredMember
from pose.records import read_record, record_text

LOCK_FILE = "ensemble.json"
FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lock:
    """A vote that can be repeated.

    Attributes:
        members: each with the SHA-256 of its weights.
        combination: as `pose_models.Combination.to_dict` wrote it.
        has_probabilities, ask_below: which columns predictions.csv has besides id and label, and
            the confidence below which `ask` is true.
        test_digest: of ids and contents of the test images.
        predictions_sha256: of predictions.csv.
        conditions: versions of software, device and arithmetic, by name.
    """

    members: tuple[RegisteredMember, ...]
    combination: dict[str, Any]
    class_labels: tuple[str, ...]
    test_digest: str
    predictions_sha256: str
    conditions: dict[str, str]
    has_probabilities: bool = False
    ask_below: float | None = None

    def differences(self, other: "Lock") -> list[str]:
        """What `other`, a repetition of this vote, has otherwise, a line each."""
        lines = [
            f"{name}: {self.conditions.get(name, 'none')} in the lock, "
            f"{other.conditions.get(name, 'none')} here"
            for name in sorted({*self.conditions, *other.conditions})
            if self.conditions.get(name) != other.conditions.get(name)
        ]
        if self.test_digest != other.test_digest:
            lines.append(f"test images: {self.test_digest} in the lock, {other.test_digest} here")
        return lines


def locked_members(members: Sequence[Member]) -> tuple[RegisteredMember, ...]:
    """The members by version and weights."""
    return tuple(
        dataclasses.replace(member.registered, weights_sha256=member.weights_sha256)
        for member in members
    )


def digest_of_images(digests: Mapping[str, str]) -> str:
    """16 hexadecimal digits of images' ids and contents, the same on every machine.

    Args:
        digests: of each image's file, by id.
    """
    digest = hashlib.sha256()
    for image_id in sorted(digests):
        digest.update(f"{image_id}\0{digests[image_id]}\n".encode())
    return digest.hexdigest()[:16]


def lock_text(lock: Lock) -> str:
    """The lock as JSON: equal votes have equal locks."""
    return record_text(lock, FORMAT)


def read_lock(path: Path) -> Lock:
    """What `lock_text` gave.

    Raises:
        InputError: the file is missing or damaged, or from a newer version of this software.
    """
    return read_record(path, FORMAT, f"lock must be a whole {LOCK_FILE}", _make)


def _make(values: dict[str, Any]) -> Lock:
    values["members"] = tuple(RegisteredMember(**member) for member in values["members"])
    values["class_labels"] = tuple(values["class_labels"])
    return Lock(**values)
