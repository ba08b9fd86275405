"""Label suspects: rows whose label is contradicted by members that did not train on them.

Confident learning (Northcutt et al., 2021, https://arxiv.org/abs/1911.00068): a row is suspect
where another class than its label is likelier than that class usually is on rows that bear its
name. Measuring each class by itself makes up for members that are surer of some classes.
"""

import csv
import dataclasses
import io
from collections.abc import Sequence

import numpy as np

from pose.ensembling.analysis import HeldOut

SUSPECTS_FILE = "label_suspects.csv"
COLUMNS = ("id", "label", "suggested", "p_label", "p_suggested", "agreeing", "members")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suspect:
    """A row whose label is contradicted.

    Attributes:
        row: its place among the rows that were looked at.
        label, suggested: class indices.
        p_label, p_suggested: the ensemble's probabilities of them.
        num_agreeing: members whose choice is `suggested`, of the `num_members` that predicted it.
    """

    row: int
    label: int
    suggested: int
    p_label: float
    p_suggested: float
    num_agreeing: int
    num_members: int


def find_suspects(held_out: HeldOut) -> list[Suspect]:
    """The rows whose label is contradicted, by the normalised margin: the worst first."""
    suggested = contradicted(held_out.combined, held_out.labels)
    rows = np.flatnonzero(suggested >= 0)
    p_label = held_out.combined[rows, held_out.labels[rows]]
    p_suggested = held_out.combined[rows, suggested[rows]]
    order = np.argsort(p_label - p_suggested, kind="stable")
    num_members = held_out.votes.sum(axis=1)
    return [
        Suspect(
            row=int(rows[place]),
            label=int(held_out.labels[rows[place]]),
            suggested=int(suggested[rows[place]]),
            p_label=float(p_label[place]),
            p_suggested=float(p_suggested[place]),
            num_agreeing=int(held_out.votes[rows[place], suggested[rows[place]]]),
            num_members=int(num_members[rows[place]]),
        )
        for place in order
    ]


def contradicted(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The class that each row's label should rather be, `(N,)` int64; -1 where nothing speaks.

    These are the rows beside the diagonal of the paper's confident joint, without those whose
    label is the likelier one all the same.

    Args:
        probs: `(N, C)` by members that did not train on the rows.
        labels: `(N,)` class indices.
    """
    num_classes = probs.shape[1]
    # A class that no row bears cannot be suggested.
    usual = np.full(num_classes, np.inf)
    for own in np.unique(labels):
        usual[own] = probs[labels == own, own].mean()
    confident = np.where(probs >= usual, probs, -1.0)
    suggested: np.ndarray = confident.argmax(axis=1)
    rows = np.arange(len(labels))
    return np.where(confident[rows, suggested] > probs[rows, labels], suggested, -1)


def suspects_csv(
    suspects: Sequence[Suspect], ids: Sequence[str], class_labels: Sequence[str]
) -> str:
    """One row per suspect, in the order given.

    Args:
        ids: of all rows that were looked at.
        class_labels: by class index.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for own in suspects:
        labels = class_labels[own.label], class_labels[own.suggested]
        probs = f"{own.p_label:.6f}", f"{own.p_suggested:.6f}"
        writer.writerow((ids[own.row], *labels, *probs, own.num_agreeing, own.num_members))
    return text.getvalue()
