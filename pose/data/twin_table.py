"""Which near twins a split comes between, in words and as a table."""

import csv
import dataclasses
import io

import numpy as np

from pose.config import Recipe
from pose.data.folder import Dataset
from pose.data.near_twins import Twins
from pose.data.split import split_rows
from pose.errors import first_few, printable

TWINS_FILE = "near_twins.csv"
_COLUMNS = ("id", "split", "twin_id", "twin_split", "distance")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwinTable:
    """Images that validate or test, and look like one that trains.

    Attributes:
        validating: a row of `near_twins.csv` for each that validates: id, split, the nearest
            image that trains and its split, in how many bits of 64 their hashes differ.
        testing: the same for each test image, whose twin may be any labelled one.
        num_validating, num_testing: of all such images.
        member: whose split it is, in words.
    """

    validating: tuple[tuple[str, str, str, str, int], ...]
    testing: tuple[tuple[str, str, str, str, int], ...]
    num_validating: int
    num_testing: int
    member: str

    def lines(self) -> tuple[str, ...]:
        """What the report on the data says."""
        lines = [
            f"near twins between training and validation: {len(self.validating)} of the "
            f"{self.num_validating} images that validate {self.member} look like one that trains"
            + _examples(self.validating)
        ]
        if self.num_testing:
            lines.append(
                f"near twins between training and test: {len(self.testing)} of the "
                f"{self.num_testing} test images look like a labelled one" + _examples(self.testing)
            )
        return tuple(lines)

    def warnings(self) -> list[str]:
        """What to say before training, if there is anything."""
        if not self.validating:
            return []
        return [
            f"{len(self.validating)} of the {self.num_validating} images that validate "
            f"{self.member} look like one that trains it, which flatters val_f1; {TWINS_FILE} has "
            "them, group_near_twins=true keeps them together"
        ]

    def csv(self) -> str:
        """near_twins.csv; its header alone where there are none."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([_COLUMNS, *self.validating, *self.testing])
        return text.getvalue()


def tabulate(dataset: Dataset, recipe: Recipe, twins: Twins) -> TwinTable:
    """The near twins that the split of a recipe's first member comes between.

    With folds, every image validates in its own and trains in the others.

    Args:
        twins: of the labelled images, then the test images of `dataset`, in their order.
    """
    num_labelled, num_testing = len(dataset.ids), len(dataset.test_ids)
    side = np.full(num_labelled + num_testing, -1)
    members = recipe.members(recipe.seeds[:1])
    for number, member in enumerate(members, start=1):
        _, val = split_rows(dataset.labels, recipe, member, dataset.groups)
        side[val] = number
    side[:num_labelled][side[:num_labelled] < 0] = 0
    names = ["train", *(f"fold {m.fold}" if m.fold else "val" for m in members), "test"]
    ids = (*dataset.ids, *dataset.test_ids)
    both_ways = np.concatenate([twins.pairs, twins.pairs[:, ::-1]])
    distances = np.concatenate([twins.distances, twins.distances])
    own, other = side[both_ways].T
    is_leak = ((own > 0) & (other >= 0) & (own != other)) | ((own < 0) & (other >= 0))
    rows = {}
    # The nearest twin is written last, and stays; of equals the first image.
    for place in np.lexsort((-both_ways[:, 1], -distances)):
        if is_leak[place]:
            row, twin = both_ways[place].tolist()
            rows[row] = (
                ids[row], names[side[row]], ids[twin], names[side[twin]], int(distances[place]),
            )  # fmt: skip
    return TwinTable(
        validating=tuple(rows[row] for row in sorted(rows) if row < num_labelled),
        testing=tuple(rows[row] for row in sorted(rows) if row >= num_labelled),
        num_validating=int((side > 0).sum()),
        num_testing=num_testing,
        member=str(members[0]) if not recipe.folds else f"the folds of seed {members[0].seed}",
    )


def _examples(rows: tuple[tuple[str, str, str, str, int], ...]) -> str:
    if not rows:
        return ""
    return ": " + first_few(f"{printable(row[0])} and {printable(row[2])}" for row in rows)
