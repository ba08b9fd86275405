"""Two ensembles on the same held-out rows: which is better, by how much, and how sure that is.

Two things are drawn by chance: the rows, which both ensembles predict, and the seeds of each. The
variance of the difference is the sum of what the rows give (bootstrap, the same drawn rows for
both) and of what the seeds of each give. As in the pigeonhole bootstrap (Owen, 2007,
arXiv:0712.1111) what rows and seeds do together is counted more than once: intervals are rather
too wide than too narrow.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from pose import metrics
from pose.ensembling.analysis import CombineProbs
from pose.ensembling.bootstrap import LEVEL, class_f1, draw_rows, macro_of
from pose.ensembling.held_out import MIN_ROWS
from pose.ensembling.joined import Joined, join
from pose.errors import InputError
from pose.predictions import Predictions

# Rows on which just one ensemble is right; with fewer, McNemar's test is exact (Dietterich, 1998).
MIN_APPROXIMATE = 25
# Further seeds that are thought about at most.
MAX_MORE_SEEDS = 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two ensembles, before rows are joined.

    Attributes:
        members: each one's predictions of rows that it did not train on.
        groups: `(M,)` the seed of each member, counted from 0; folds of a seed share it.
        seeds: `(G,)` what the seeds are called.
        combine: the ensemble's probabilities from those of its seeds; fitted on none of the rows.
    """

    name: str
    members: tuple[Predictions, ...]
    groups: tuple[int, ...]
    seeds: tuple[str, ...]
    combine: CombineProbs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contestant:
    """One of the two ensembles on the common rows.

    Attributes:
        rows: the common rows; a seed in place of its folds.
        combined: `(N, C)` probabilities of the ensemble.
    """

    name: str
    seeds: tuple[str, ...]
    rows: Joined
    combined: np.ndarray
    combine: CombineProbs

    @property
    def num_seeds(self) -> int:
        """How many seeds vote."""
        return len(self.rows.probs)

    @property
    def preds(self) -> np.ndarray:
        """Predicted class indices `(N,)`."""
        indices: np.ndarray = self.combined.argmax(axis=1)
        return indices

    def single_f1(self) -> tuple[float, ...]:
        """Macro F1 of each seed, on those of the common rows that it did not train on."""
        return tuple(
            metrics.f1_of(probs[known], self.rows.labels[known]) if known.any() else math.nan
            for probs, known in zip(self.rows.probs, self.rows.is_known, strict=True)
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Components:
    """The variance of a difference by what it comes from, and of how many seeds.

    Attributes:
        rows: of the drawing of the rows.
        seeds: of the seeds of each ensemble; 0 where there is one seed, which has no spread.
    """

    rows: float
    seeds: tuple[float, float]
    num_seeds: tuple[int, int]

    def margin(self, more_seeds: int = 0) -> float:
        """Half the width of the interval, with so many further seeds on both sides.

        Student's t with the degrees of freedom of Welch and Satterthwaite: what is estimated from
        three seeds is not known well.
        """
        parts = [
            (variance * num / (num + more_seeds), num + more_seeds - 1)
            for variance, num in zip(self.seeds, self.num_seeds, strict=True)
            if variance > 0
        ]
        total = self.rows + sum(variance for variance, _ in parts)
        uncertain = sum(variance**2 / degrees for variance, degrees in parts)
        degrees = total**2 / uncertain if uncertain else math.inf
        # Imported here: results are known to training, which needs no SciPy.
        from scipy import stats

        return float(stats.t.ppf((1 + LEVEL) / 2, degrees)) * math.sqrt(total)


@dataclasses.dataclass(frozen=True, kw_only=True)
class McNemar:
    """McNemar's test of two ensembles on the same rows: is one right more often?

    It takes the networks as they are; that others may come of other seeds is no part of it.

    Attributes:
        only_first, only_second: rows on which just that one is right.
        p_value: two-sided; exact binomial where `is_exact`, else chi-squared with correction.
    """

    only_first: int
    only_second: int
    p_value: float
    is_exact: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassDifference:
    """F1 of one class; `margin` is half the width of the difference's interval."""

    label: str
    num_rows: int
    f1: tuple[float, float]
    margin: float

    @property
    def difference(self) -> float:
        """Of the second from the first."""
        return self.f1[1] - self.f1[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """How two ensembles compare on common rows; differences are second minus first.

    Attributes:
        f1: macro F1 of both; `accuracy` alike.
        single_f1: macro F1 of the seeds of both.
    """

    names: tuple[str, str]
    num_rows: int
    f1: tuple[float, float]
    accuracy: tuple[float, float]
    single_f1: tuple[tuple[float, ...], tuple[float, ...]]
    components: Components
    mcnemar: McNemar
    classes: tuple[ClassDifference, ...]

    @property
    def difference(self) -> float:
        """Of the second's macro F1 from the first's."""
        return self.f1[1] - self.f1[0]

    @property
    def margin(self) -> float:
        """Half the width of the 95 % interval of the difference."""
        return self.components.margin()

    @property
    def is_settled(self) -> bool:
        """Whether the interval leaves out 0; never where a side has one seed, of unknown spread."""
        return min(self.components.num_seeds) > 1 and abs(self.difference) > self.margin

    @property
    def better(self) -> str | None:
        """The name of the one with the higher score; None where they are equal."""
        return None if self.difference == 0 else self.names[self.difference > 0]

    def more_seeds(self) -> int | None:
        """Further seeds of each that would settle it if the difference stays; None: none would.

        None as well where it is settled, and where a side has one seed, whose spread is unknown.
        """
        if self.is_settled or min(self.components.num_seeds) < 2:
            return None
        for number in range(1, MAX_MORE_SEEDS + 1):
            if abs(self.difference) > self.components.margin(number):
                return number
        return None

    def sentence(self) -> str:
        """Effect and interval in one sentence, with what would settle it where it is open."""
        first, second = self.names
        size = f"{abs(100 * self.difference):.2f} ± {100 * self.margin:.2f} points of macro F1"
        rows = f"on {self.num_rows:,} common rows"
        if self.better is None:
            text = f"{first} and {second} are equal, {size} {rows}"
        else:
            other = first if self.better == second else second
            text = f"{self.better} is better than {other} by {size} {rows}"
        return text + self._open_text()

    def _open_text(self) -> str:
        if self.is_settled:
            return ""
        lone = [
            name
            for name, num in zip(self.names, self.components.num_seeds, strict=True)
            if num == 1
        ]
        if lone:
            return (
                f", not counting how far seeds differ: {' and '.join(lone)} with one seed cannot "
                "tell, a second one would"
            )
        more = self.more_seeds()
        if more is None:
            return f", which may be chance; {MAX_MORE_SEEDS} more seeds would not settle it"
        number = "one more seed" if more == 1 else f"{more} more seeds"
        return f", which may be chance; {number} of each would settle it if the difference stays"


def meet(first: Side, second: Side) -> tuple[Contestant, Contestant]:
    """Both ensembles on the same rows, joined by id, that no member trained on.

    Those that all members of both predicted, where there are enough; else those that a member of
    each predicted, each left to the members that did.

    Raises:
        InputError: labels are unknown, classes or labels differ, or common rows are too few.
    """
    sides = (first, second)
    named = {
        f"member {number + 1} of {side.name}": own
        for side in sides
        for number, own in enumerate(side.members)
    }
    unlabelled = [name for name, own in named.items() if own.labels is None]
    if unlabelled:
        raise InputError(f"runs must have labelled validation rows, {unlabelled[0]} has none")
    joined = join(named)
    num_first = len(first.members)
    parts = (slice(0, num_first), slice(num_first, None))
    rows = [
        dataclasses.replace(
            joined, probs=joined.probs[part], is_known=joined.is_known[part]
        ).by_group(side.groups)
        for side, part in zip(sides, parts, strict=True)
    ]
    by_all, by_any = (
        np.flatnonzero(test(rows[0].is_known) & test(rows[1].is_known))
        for test in (lambda known: known.all(axis=0), lambda known: known.any(axis=0))
    )
    common = by_all if len(by_all) >= MIN_ROWS else by_any
    if len(common) < MIN_ROWS:
        raise InputError(
            f"runs must have at least {MIN_ROWS} validation rows in common, which neither of "
            f"{first.name} and {second.name} trained on, found {len(common)}: train both with the "
            "same split_seed, or with folds"
        )
    one, other = (
        Contestant(
            name=side.name,
            seeds=side.seeds,
            rows=own.take(common),
            combined=own.take(common).combined(side.combine),
            combine=side.combine,
        )
        for side, own in zip(sides, rows, strict=True)
    )
    return one, other


def compare(first: Contestant, second: Contestant, class_labels: Sequence[str]) -> Comparison:
    """Differences with their intervals, in all and by class; the same every time."""
    labels, num_classes = first.rows.labels, len(class_labels)
    both = (first, second)
    confusions = [metrics.confusion_matrix(labels, own.preds, num_classes) for own in both]
    scores = np.stack([metrics.per_class(own)[:, 2] for own in confusions])  # (2, C)
    drawn_rows = _row_differences(first, second, num_classes)
    left_out = [_seed_differences(own, rival, num_classes) for own, rival in (both, both[::-1])]
    num_seeds = (first.num_seeds, second.num_seeds)

    def components(column: int) -> Components:
        one, other = (_jackknife_variance(own[:, column]) for own in left_out)
        drawn = drawn_rows[:, column]
        # A class that no row has and nothing predicts is in no drawing either.
        rows = float(np.var(drawn[np.isfinite(drawn)])) if np.isfinite(drawn).any() else 0.0
        return Components(rows=rows, seeds=(one, other), num_seeds=num_seeds)

    one_right, other_right = (own.preds == labels for own in both)
    f1_first, f1_second = (metrics.macro_f1(own) for own in confusions)
    return Comparison(
        names=(first.name, second.name),
        num_rows=len(labels),
        f1=(f1_first, f1_second),
        accuracy=(float(one_right.mean()), float(other_right.mean())),
        single_f1=(first.single_f1(), second.single_f1()),
        components=components(0),
        mcnemar=mcnemar(
            int((one_right & ~other_right).sum()), int((other_right & ~one_right).sum())
        ),
        classes=tuple(
            ClassDifference(
                label=label,
                num_rows=int((labels == index).sum()),
                f1=(float(scores[0, index]), float(scores[1, index])),
                margin=components(1 + index).margin(),
            )
            for index, label in enumerate(class_labels)
        ),
    )


def mcnemar(only_first: int, only_second: int) -> McNemar:
    """The test of the rows on which just one of two is right (McNemar, 1947)."""
    from scipy import stats

    num = only_first + only_second
    is_exact = num < MIN_APPROXIMATE
    if num == 0:
        p_value = 1.0
    elif is_exact:
        p_value = float(stats.binomtest(only_first, num).pvalue)
    else:
        p_value = float(stats.chi2.sf((abs(only_first - only_second) - 1) ** 2 / num, 1))
    return McNemar(
        only_first=only_first, only_second=only_second, p_value=p_value, is_exact=is_exact
    )


def _row_differences(first: Contestant, second: Contestant, num_classes: int) -> np.ndarray:
    """Macro F1 and the F1 of each class, second minus first, `(B, 1 + C)` of drawn rows.

    NaN where a class was not drawn.
    """
    drawn = draw_rows(first.rows.labels, [first.preds, second.preds], first.rows.groups)
    labels, *preds = drawn.cells
    one, other = (
        _with_macro(class_f1(drawn.weights[1:], labels, own, num_classes)) for own in preds
    )
    differences: np.ndarray = other - one
    return differences


def _with_macro(scores: np.ndarray) -> np.ndarray:
    return np.column_stack([macro_of(scores), scores])


def _seed_differences(own: Contestant, rival: Contestant, num_classes: int) -> np.ndarray:
    """The difference from the rival `(M, 1 + C)` without each of the seeds in turn.

    The jackknife (Efron and Stein, 1981), and not the bootstrap: that would draw a seed twice, and
    an ensemble of fewer different seeds is a weaker one.
    """
    if own.num_seeds == 1:
        return np.zeros((1, 1 + num_classes))
    lines = []
    for left_out in range(own.num_seeds):
        kept = np.arange(own.num_seeds) != left_out
        rows = np.flatnonzero(own.rows.is_known[kept].any(axis=0))
        part = dataclasses.replace(
            own.rows, probs=own.rows.probs[kept], is_known=own.rows.is_known[kept]
        ).take(rows)
        scores = [
            _with_macro(class_f1(np.ones((1, len(rows))), part.labels, preds, num_classes))
            for preds in (part.combined(own.combine).argmax(axis=1), rival.preds[rows])
        ]
        lines.append((scores[0] - scores[1])[0])
    return np.stack(lines)


def _jackknife_variance(values: np.ndarray) -> float:
    """The variance of a statistic from its values `(M,)` without each of M parts."""
    num = len(values)
    if not np.isfinite(values).all():
        return 0.0
    return float((num - 1) / num * ((values - values.mean()) ** 2).sum())
