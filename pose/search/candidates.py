"""What is worth trying on a data folder: networks, sizes, framings, augmentations."""

import dataclasses
from collections.abc import Collection, Iterable
from typing import Any

from pose.config import typed
from pose.search.fingerprint import Fingerprint
from pose.search.pretrained import finetuning

# Sides that a network sees, from the smallest to the largest that is tried.
MIN_SIDE, MAX_SIDE = 24, 384
# Images of fewer pixels a side are small: enlarged, if anything.
SMALL = 64
# From here on squares are taken out of an image at its own scale.
CROPPED_FROM = 128
# The side that most pretrained networks know.
PRETRAINED_SIDE = 224


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """Settings that are tried together.

    Attributes:
        changes: settings that differ from those of the run that it starts from, by name.
        reason: why it is worth trying, in words.
    """

    changes: tuple[tuple[str, Any], ...]
    reason: str

    @property
    def name(self) -> str:
        """What differs, as it is typed."""
        return ", ".join(f"{key}={typed(value)}" for key, value in self.changes) or "as it is"


def find_candidates(
    found: Fingerprint, given: Collection[str] = (), pretrained: Collection[str] = ()
) -> tuple[Candidate, ...]:
    """The candidates for a folder, each once; the first is the plainest.

    Args:
        given: settings that are fixed; no candidate changes them.
        pretrained: networks whose weights from ImageNet can be had.
    """
    candidates: dict[tuple[tuple[str, Any], ...], Candidate] = {}
    if "model" in given:
        pretrained = ()
    for changes, reason in (*_ideas(found), *_pretrained_ideas(found, pretrained)):
        kept = tuple((key, value) for key, value in changes.items() if key not in given)
        candidates.setdefault(kept, Candidate(changes=kept, reason=reason))
    return tuple(candidates.values())


def pretrained_among(candidates: Iterable[Candidate]) -> tuple[str, ...]:
    """The networks of those candidates that begin with weights."""
    settings = [dict(candidate.changes) for candidate in candidates]
    return tuple(own["model"] for own in settings if own.get("pretrained"))


def _ideas(found: Fingerprint) -> list[tuple[dict[str, Any], str]]:
    own = min(MAX_SIDE, max(MIN_SIDE, _up_to(found.side, 8)))
    if own <= SMALL:
        sides = [own, min(2 * own, 96)]
    elif own < CROPPED_FROM:
        sides = [64, own]
    else:
        sides = [96, min(own, 224)]
    ideas: list[tuple[dict[str, Any], str]] = [
        ({"image_size": side}, f"the whole image at {side} pixels") for side in sides
    ]
    if own < CROPPED_FROM:
        ideas.append(
            (
                {"image_size": sides[-1], "model": "simple_cnn"},
                "a plain network, for what is simple",
            )
        )
        if found.has_doubtful_flips:
            ideas.append(
                (
                    {"image_size": sides[0], "augmentation": "pose_unflipped"},
                    "a mirror image may mean something else",
                )
            )
    else:
        crop = {"image_size": 96, "framing": "crop", "crop_from": own}
        ideas += [
            (crop, "squares at the image's own scale keep fine detail"),
            ({**crop, "high_pass": True}, "fine detail, shown to the network as a channel"),
            ({**crop, "augmentation": "photo_light"}, "own scale, augmented as photographs are"),
        ]
    return ideas


def _pretrained_ideas(
    found: Fingerprint, pretrained: Collection[str]
) -> list[tuple[dict[str, Any], str]]:
    """Networks that know photographs, at a size that they know; not for small images."""
    if found.side < SMALL:
        return []
    side = min(PRETRAINED_SIDE, max(CROPPED_FROM, _up_to(found.side, 32)))
    return [
        (
            {"model": name, **finetuning(), "image_size": side},
            f"what a network learned of photographs, fine-tuned at {side} pixels",
        )
        for name in pretrained
    ]


def _up_to(value: int, step: int) -> int:
    return -(-value // step) * step
