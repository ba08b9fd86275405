"""What a data folder is like, as far as it decides what is worth trying on it."""

import dataclasses
import statistics
from collections.abc import Sequence

import numpy as np

from pose.data.cache import spread_rows
from pose.data.folder import Dataset
from pose.data.shards import read_file
from pose_models.decode import BadImageError, read_image, size_of
from pose_models.framing import Framing

# Images whose sizes are looked at, and whose edges are, spread evenly.
NUM_SIZES = 500
NUM_EDGES = 48
# The side at which a network sees images that are shrunk.
SHRUNK = 96
# Near twins flatter a score where so many images have one; where so many are alike, all are.
TWINS_SHARE, LARGEST_SHARE = 0.01, 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """A data folder in a few numbers.

    Attributes:
        num_images: labelled ones.
        counts: of each class, by label.
        side: the shorter side of the images in pixels, median.
        sides: the least and the greatest of them.
        fine_detail: how much stronger neighbouring pixels differ at the images' own scale than in
            images shrunk to 96 pixels; 1 where they are no larger. What is below 1 is smooth.
        has_doubtful_flips: whether images may be flipped, and no class is said to be the mirror
            image of another: who wrote that down has thought of flips.
        twins: how many images have a near twin, and how many the largest group of them has; None
            where nobody looked.
    """

    num_images: int
    counts: dict[str, int]
    side: int
    sides: tuple[int, int]
    fine_detail: float
    has_doubtful_flips: bool
    twins: tuple[int, int] | None = None

    def with_twins(self, alike: np.ndarray) -> "Fingerprint":
        """The same, once somebody has looked for near twins.

        Args:
            alike: `(N,)` equal numbers for near twins.
        """
        sizes = np.bincount(alike, minlength=1)
        several = sizes[sizes > 1]
        twins = int(several.sum()), int(several.max(initial=0))
        return dataclasses.replace(self, twins=twins)

    @property
    def has_to_keep_twins(self) -> bool:
        """Whether a split must not come between near twins, or its score would flatter.

        Not where so many look alike that nothing could be split.
        """
        if self.twins is None:
            return False
        return (
            self.twins[0] >= TWINS_SHARE * self.num_images
            and self.twins[1] <= LARGEST_SHARE * self.num_images
        )

    def lines(self) -> list[str]:
        """For people."""
        rarest = min(self.counts, key=lambda label: self.counts[label])
        commonest = max(self.counts, key=lambda label: self.counts[label])
        return [
            f"{self.num_images} labelled images of {len(self.counts)} classes; the commonest, "
            f"{commonest}, has {self.counts[commonest]}, the rarest, {rarest}, "
            f"{self.counts[rarest]}",
            f"shorter sides of {self.sides[0]} to {self.sides[1]} pixels, median {self.side}",
            f"fine detail, own scale over shrunk to {SHRUNK} pixels: {self.fine_detail:.2f}",
            *(() if self.twins is None else (f"images with a near twin: {self.twins[0]}",)),
        ]


def take_fingerprint(dataset: Dataset) -> Fingerprint:
    """Look at the labelled images: at the headers of some, at the pixels of fewer."""
    sides = [side for row in spread_rows(len(dataset.files), NUM_SIZES)
             if (side := _side(dataset, row)) is not None]  # fmt: skip
    counts = np.bincount(dataset.labels, minlength=len(dataset.classes)).tolist()
    side = round(statistics.median(sides or [SHRUNK]))
    return Fingerprint(
        num_images=len(dataset.ids),
        counts=dict(zip(dataset.classes.labels, counts, strict=True)),
        side=side,
        sides=(min(sides, default=side), max(sides, default=side)),
        fine_detail=_fine_detail(dataset, side),
        has_doubtful_flips=_has_doubtful_flips(dataset.classes.mirrors),
    )


def _has_doubtful_flips(mirrors: Sequence[int]) -> bool:
    flipped = [(own, mirror) for own, mirror in enumerate(mirrors) if mirror >= 0]
    return bool(flipped) and all(own == mirror for own, mirror in flipped)


def _side(dataset: Dataset, row: int) -> int | None:
    """The shorter side of an image by its header; None where it has none."""
    try:
        return min(size_of(read_file(dataset.files[row])))
    except (OSError, BadImageError):
        # Decoding names it, and leaves it out.
        return None


def _fine_detail(dataset: Dataset, side: int) -> float:
    """The median over some images; see `Fingerprint.fine_detail`."""
    if side <= SHRUNK:
        return 1.0
    ratios = []
    for row in spread_rows(len(dataset.files), NUM_EDGES):
        try:
            data = read_file(dataset.files[row])
            own, shrunk = (
                _edges(read_image(data, Framing(size=size)))
                for size in (min(side, 2 * SHRUNK), SHRUNK)
            )
        except (OSError, BadImageError):
            continue
        ratios.append(own / max(shrunk, 1e-3))
    return round(float(np.median(ratios)), 3) if ratios else 1.0


def _edges(image: np.ndarray) -> float:
    """The mean size of a pixel's difference from its four neighbours, of `(3, H, W)` uint8."""
    gray = image.mean(axis=0)
    inner = gray[1:-1, 1:-1]
    around = (gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:]) / 4
    return float(np.abs(inner - around).mean())
