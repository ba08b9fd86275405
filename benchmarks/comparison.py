"""Whether the interval of a comparison covers the true difference, and what else it could be.

Members are drawn: logits with a common difficulty of each row, noise of each member and a skill of
each seed; so the true difference is known, as a mean over many drawings. What is measured is
`pose.ensembling.comparison`, the code that `compare` runs; beside it the same interval with a
bootstrap over seeds in place of the jackknife.

    python -m benchmarks.comparison
"""

import argparse
import dataclasses
from collections.abc import Iterator

import numpy as np

from benchmarks import report
from pose import metrics
from pose.ensembling.analysis import mean_probs
from pose.ensembling.comparison import Components, Contestant, compare
from pose.ensembling.joined import Joined

NUM_CLASSES = 6
CLASS_LABELS = tuple(map(str, range(NUM_CLASSES)))
NUM_BOOTSTRAP = 200
AIM = 0.93


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """Two recipes: their mean skills, how far their seeds spread, and what is drawn of them."""

    skills: tuple[float, float]
    seed_std: float
    num_rows: int
    num_seeds: int


CASES = (
    Case(skills=(1.5, 1.6), seed_std=0.0, num_rows=600, num_seeds=3),
    Case(skills=(1.5, 1.6), seed_std=0.1, num_rows=600, num_seeds=3),
    Case(skills=(1.5, 1.6), seed_std=0.3, num_rows=600, num_seeds=3),
    Case(skills=(1.5, 1.6), seed_std=0.3, num_rows=600, num_seeds=2),
    Case(skills=(1.5, 1.6), seed_std=0.3, num_rows=2000, num_seeds=5),
    Case(skills=(2.5, 2.5), seed_std=0.2, num_rows=600, num_seeds=3),
)


def draw_pair(case: Case, num_rows: int, rng: np.random.Generator) -> tuple[Contestant, Contestant]:
    """Both ensembles on rows of their own."""
    labels = rng.integers(0, NUM_CLASSES, num_rows)
    difficulty = rng.normal(size=(num_rows, NUM_CLASSES))
    one, other = (
        _contestant(labels, difficulty, rng.normal(skill, case.seed_std, case.num_seeds), rng)
        for skill in case.skills
    )
    return one, other


def _contestant(
    labels: np.ndarray, difficulty: np.ndarray, skills: np.ndarray, rng: np.random.Generator
) -> Contestant:
    logits = difficulty + rng.normal(size=(len(skills), *difficulty.shape))
    logits[:, np.arange(len(labels)), labels] += skills[:, None]
    odds = np.exp(logits)
    probs = odds / odds.sum(axis=2, keepdims=True)
    rows = Joined(
        ids=tuple(map(str, range(len(labels)))),
        labels=labels,
        probs=probs,
        is_known=np.ones(probs.shape[:2], dtype=bool),
    )
    names = tuple(map(str, range(len(skills))))
    combined = mean_probs(probs)
    return Contestant(name="drawn", seeds=names, rows=rows, combined=combined, combine=mean_probs)


def true_difference(case: Case, rng: np.random.Generator) -> float:
    """The expected difference of macro F1, a mean over 200 drawings of 4,000 rows."""
    return float(np.mean([_difference(draw_pair(case, 4000, rng)) for _ in range(200)]))


def _difference(pair: tuple[Contestant, Contestant]) -> float:
    one, other = (metrics.f1_of(own.combined, own.rows.labels) for own in pair)
    return other - one


def bootstrap_variance(own: Contestant, rng: np.random.Generator) -> float:
    """What drawing the seeds with replacement says instead of the jackknife, made unbiased."""
    num = own.num_seeds
    scores = [
        metrics.f1_of(mean_probs(own.rows.probs[rng.integers(0, num, num)]), own.rows.labels)
        for _ in range(NUM_BOOTSTRAP)
    ]
    return float(np.var(scores)) * num / (num - 1)


def measure(case: Case, repetitions: int) -> Iterator[tuple[bool, float, bool, float]]:
    """Whether each of both intervals covers the truth, and its margin; a line per repetition."""
    rng = np.random.default_rng(1)
    truth = true_difference(case, rng)
    for _ in range(repetitions):
        pair = draw_pair(case, case.num_rows, rng)
        result = compare(*pair, CLASS_LABELS)
        error = abs(result.difference - truth)
        one, other = (bootstrap_variance(own, rng) for own in pair)
        rival = Components(
            rows=result.components.rows,
            seeds=(one, other),
            num_seeds=result.components.num_seeds,
        )
        yield error <= result.margin, result.margin, error <= rival.margin(), rival.margin()


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=150)
    report.add_options(parser, "comparison")
    args = parser.parse_args()
    rows, shares = [], []
    for case in CASES:
        means = np.mean(list(measure(case, args.repetitions)), axis=0)
        shares.append(float(means[0]))
        rows.append(
            [
                f"{case.skills[0]}, {case.skills[1]}",
                f"{case.seed_std}",
                f"{case.num_rows}",
                f"{case.num_seeds}",
                f"{means[0]:.1%}",
                f"{100 * means[1]:.2f}",
                f"{means[2]:.1%}",
                f"{100 * means[3]:.2f}",
            ]
        )
    columns = (
        "mean skills", "spread of seeds", "rows", "seeds of each", "covered",
        "margin, points", "bootstrap over seeds: covered", "its margin",
    )  # fmt: skip
    report.write_report(
        args.report,
        title="Comparisons: how often their interval covers the true difference",
        module="benchmarks.comparison",
        repetitions=f"{args.repetitions} drawings of rows and seeds per line",
        goals=[
            report.Goal(
                text=f"the 95 % interval covers the true difference in at least {AIM:.0%} of the "
                "drawings, in every case",
                measured=f"{min(shares):.1%} at the least",
                is_reached=min(shares) >= AIM,
            )
        ],
        tables=[report.Table(columns=columns, rows=rows)],
        notes=[
            "Members are drawn, so that the truth is known; real ones depend on rows in more ways.",
            "The bootstrap draws a seed twice now and then, and an ensemble of fewer different "
            "seeds is a weaker one: it takes that for a spread of seeds.",
        ],
    )


if __name__ == "__main__":
    main()
