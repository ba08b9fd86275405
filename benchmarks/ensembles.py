"""Whether the score that a vote gives itself is honest, and what combining members gains.

Small members, so that everything can be repeated: scikit-learn's multilayer perceptrons on pixels,
5 seeds x 5 folds, each repetition on another draw of the training and test images. What is measured
is `pose.ensembling`: the very code that a vote decides with. Test images decide nothing.

    python -m benchmarks.ensembles
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from benchmarks import ours, report
from pose import metrics
from pose.data.loaded import load_data
from pose.ensembling.bootstrap import Interval
from pose.ensembling.fit import FitSpec
from pose.ensembling.held_out import Decision, decide
from pose.ensembling.looks import Looked, Views
from pose.ensembling.members import Member, RegisteredMember
from pose.ensembling.selection import assign_folds
from pose.model_card import ModelCard
from pose.predictions import Predictions
from pose.vote import combine_probs
from pose_models import Combination

NUM_SEEDS = 5
NUM_FOLDS = 5
# Chooses whether to look several times.
TTA = "soft, tta=auto"
# Votes by name.
VOTES = {
    "soft": FitSpec(rule="soft"),
    "auto": FitSpec(rule="auto"),
    "soft, calibrated": FitSpec(rule="soft", has_temperature=True),
    "soft, thresholds": FitSpec(rule="soft", has_offsets=True),
    TTA: FitSpec(rule="soft"),
}
DATA = ("digits", "two", "demo")
AIM = 18 / 20
# What an interval may cover, by what `Outcome` says of it. With folds, the estimate is of the
# members of one fold, and what is shipped are all.
SPLIT_TRUTHS = {"the test score": "is_covered"}
FOLD_TRUTHS = {
    "the test score of one fold's members, of whom it is,": "is_fold_covered",
    **SPLIT_TRUTHS,
}
SHIFT: Views = ("shift",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pixels:
    """Images as rows of numbers `(N, D)`, and their class indices `(N,)`."""

    features: np.ndarray
    labels: np.ndarray

    def take(self, rows: np.ndarray) -> "Pixels":
        """Those of `rows`."""
        return Pixels(features=self.features[rows], labels=self.labels[rows])

    def moved(self) -> list[np.ndarray]:
        """The features of the images as they are, and moved by a pixel in four directions."""
        side = round(self.features.shape[1] ** 0.5)
        images = self.features.reshape(-1, side, side)
        padded = np.pad(images, ((0, 0), (1, 1), (1, 1)), mode="edge")
        places = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))
        cut = [padded[:, top : top + side, left : left + side] for top, left in places]
        return [own.reshape(len(own), -1) for own in cut]


def read_digits() -> Pixels:
    """scikit-learn's digits, 1,797 images of 8 x 8 pixels in 10 classes."""
    images, labels = load_digits(return_X_y=True)
    return Pixels(features=images / 16, labels=labels)


def read_two_classes() -> Pixels:
    """The digits, of which 8 is one class and thinned to 17 %, and 1, 3, 5 and 9 are the other."""
    digits = read_digits()
    few, many = (
        np.flatnonzero(digits.labels == 8),
        np.flatnonzero(np.isin(digits.labels, (1, 3, 5, 9))),
    )
    few = few[: round(len(many) * 0.17 / 0.83)]
    picked = digits.take(np.concatenate([few, many]))
    return Pixels(features=picked.features, labels=(picked.labels == 8).astype(int))


def read_demo(folder: Path, cache_root: Path) -> Pixels:
    """The drawn poses at 20 x 20 pixels, without colour."""
    loaded = load_data(folder, 20, cache_root)
    gray = loaded.images[torch.from_numpy(loaded.rows)].float().mean(dim=1).flatten(1).numpy() / 255
    return Pixels(features=gray, labels=loaded.dataset.labels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """The members of one repetition, and what they say of the test images.

    Attributes:
        test_probs: `(M, N, C)` by views.
        looked: what the members say of the rows that validated them, by views.
    """

    members: tuple[Member, ...]
    test_probs: dict[Views, np.ndarray]
    test_labels: np.ndarray
    looked: Looked


def train_members(data: Pixels, num_train: int, seed: int, has_folds: bool) -> Trained:
    """Train 5 seeds, of 5 folds each or on one split, on `num_train` rows; others are test rows."""
    order = np.random.default_rng(seed).permutation(len(data.labels))
    train, test = data.take(order[:num_train]), data.take(order[num_train:])
    num_classes = int(data.labels.max()) + 1
    folds = assign_folds(train.labels, NUM_FOLDS, seed)
    members: list[Member] = []
    val_looks: dict[Views, list[np.ndarray]] = {(): [], SHIFT: []}
    test_looks: dict[Views, list[np.ndarray]] = {(): [], SHIFT: []}
    for member_seed in range(NUM_SEEDS):
        for fold in range(NUM_FOLDS if has_folds else 1):
            rest, own = train.take(folds != fold), np.flatnonzero(folds == fold)
            scaler = StandardScaler().fit(rest.features)
            network = MLPClassifier(
                (24,), max_iter=20, batch_size=32, random_state=100 * seed + 5 * member_seed + fold
            )
            network.fit(scaler.transform(rest.features), rest.labels)
            assert len(network.classes_) == num_classes
            for part, looks in ((train.take(own), val_looks), (test, test_looks)):
                for views, probs in _look(network, scaler, part).items():
                    looks[views].append(probs)
            labels = train.labels[own]
            number = fold + 1 if has_folds else 0
            members.append(_member(member_seed, number, own, val_looks[()][-1], labels))
    return Trained(
        members=tuple(members),
        test_probs={views: np.stack(probs) for views, probs in test_looks.items()},
        test_labels=test.labels,
        looked=Looked(probs=val_looks),
    )


def _look(network: MLPClassifier, scaler: StandardScaler, data: Pixels) -> dict[Views, np.ndarray]:
    """A member's probabilities `(N, C)`: of the images, and with them moved by a pixel."""
    probs = [network.predict_proba(scaler.transform(own)) for own in data.moved()]
    return {(): probs[0], SHIFT: np.mean(probs, axis=0)}


def _member(
    seed: int, fold: int, rows: np.ndarray, probs: np.ndarray, labels: np.ndarray
) -> Member:
    """A member as a vote knows it; `rows` validated it."""
    class_labels = tuple(map(str, range(probs.shape[1])))
    registered = RegisteredMember(
        run="small",
        seed=seed,
        fold=fold,
        version=0,
        uri=f"{seed}/{fold}",
        parent_run_id="small",
        run_id="",
        recipe="",
    )
    card = ModelCard(
        model="mlp",
        image_size=0,
        labels=class_labels,
        names=class_labels,
        mirrors=(-1,) * len(class_labels),
        run="small",
        seed=seed,
        val_f1=metrics.f1_of(probs, labels),
        best_epoch=0,
        dataset_digest="",
        recipe={},
    )
    predictions = Predictions(
        ids=tuple(map(str, rows)), probs=probs, class_labels=class_labels, labels=labels
    )
    return Member(registered=registered, card=card, val_predictions=predictions, weights_sha256="")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """One vote of one repetition: its own estimate, and the truth on test images.

    Attributes:
        test: scores of all members together, by metric.
        fold_f1: macro F1 of the members of one fold together, mean over the folds: the estimate is
            of them, since of a seed only one member did not train on a row.
    """

    decision: Decision
    test: dict[str, float]
    fold_f1: float

    @property
    def interval(self) -> Interval:
        """What the vote says of itself."""
        assert self.decision.score.interval is not None
        return self.decision.score.interval

    @property
    def is_covered(self) -> bool:
        """Whether the interval has the test score of all members in it."""
        return self.interval.low <= self.test["f1"] <= self.interval.high

    @property
    def is_fold_covered(self) -> bool:
        """Whether it has that of the members of one fold in it."""
        return self.interval.low <= self.fold_f1 <= self.interval.high

    @property
    def is_too_high(self) -> bool:
        """Whether it promises more than all members reach."""
        return self.interval.low > self.test["f1"]


def measure(trained: Trained, vote: str, spec: FitSpec) -> Outcome:
    """Let the members of a repetition vote."""
    look = (lambda: trained.looked) if vote == TTA else None
    decision = decide(trained.members, spec, combine_probs, look)
    labels, seen = trained.test_labels, trained.test_probs[decision.how.tta]
    probs = combine_probs(seen, decision.how)
    calibrated = combine_probs(seen, decision.how.stages()[0])
    test = {"f1": metrics.f1_of(probs, labels), **metrics.calibration_scores(calibrated, labels)}
    return Outcome(decision=decision, test=test, fold_f1=_fold_f1(seen, decision.how, labels))


def _fold_f1(probs: np.ndarray, how: Combination, labels: np.ndarray) -> float:
    """Macro F1 of the members of one fold, mean over the folds; `probs` `(M, N, C)` of all."""
    if how.groups:
        how = dataclasses.replace(how, groups=tuple(range(NUM_SEEDS)))
    num_folds = len(probs) // NUM_SEEDS
    scores = [
        metrics.f1_of(combine_probs(probs[fold::num_folds], how), labels)
        for fold in range(num_folds)
    ]
    return statistics.mean(scores)


def train_all(
    data: Pixels, num_train: int, num_repetitions: int, has_folds: bool
) -> Iterator[Trained]:
    """The members of all repetitions, one after the other."""
    for repetition in range(num_repetitions):
        started = time.monotonic()
        yield train_members(data, num_train, repetition, has_folds)
        print(f"repetition {repetition + 1}, {time.monotonic() - started:.0f} s", flush=True)


def measure_data(
    title: str, repetitions: Iterable[Trained], votes: Mapping[str, FitSpec]
) -> tuple[report.Table, dict[str, list[Outcome]]]:
    """All votes of all repetitions, and their table."""
    outcomes: dict[str, list[Outcome]] = {vote: [] for vote in votes}
    singles: list[dict[str, float]] = []
    for trained in repetitions:
        labels = trained.test_labels
        for own in trained.test_probs[()]:
            singles.append(
                {"f1": metrics.f1_of(own, labels), **metrics.calibration_scores(own, labels)}
            )
        for vote, spec in votes.items():
            outcomes[vote].append(measure(trained, vote, spec))
    rows = [["single member", *_means(singles), *[""] * 6]]
    for vote, own_outcomes in outcomes.items():
        scores = [outcome.decision.score.ensemble["val_f1"] for outcome in own_outcomes]
        folds = [outcome.fold_f1 for outcome in own_outcomes]
        counts = [
            [outcome.is_fold_covered for outcome in own_outcomes],
            [outcome.is_covered for outcome in own_outcomes],
            [outcome.is_too_high for outcome in own_outcomes],
        ]
        choices = [_choice(vote, outcome) for outcome in own_outcomes]
        rows.append(
            [
                vote,
                *_means([outcome.test for outcome in own_outcomes]),
                f"{statistics.mean(scores):.4f}",
                f"{statistics.mean(folds):.4f}",
                *(f"{sum(own)} of {len(own)}" for own in counts),
                ", ".join(
                    f"{name} {choices.count(name)}" for name in dict.fromkeys(choices) if name
                ),
            ]
        )
    columns = (
        "vote", "test macro F1", "test NLL", "test ECE", "estimated macro F1",
        "test macro F1 of one fold's members", "interval covers that", "it covers the test score",
        "it lies above the test score", "chosen",
    )  # fmt: skip
    return report.Table(title=title, columns=columns, rows=rows), outcomes


def _choice(vote: str, outcome: Outcome) -> str:
    """What a vote chose where it had a choice."""
    how = outcome.decision.how
    if vote == "auto":
        return how.rule
    if vote == TTA:
        return "several looks" if how.tta else "one look"
    if how.is_calibrated:
        return "vector scaling" if how.scales else "temperature"
    return ""


def _means(scores: list[dict[str, float]]) -> list[str]:
    """Mean and standard deviation over repetitions of F1, NLL and ECE."""
    texts = []
    for name in ("f1", "nll", "ece"):
        values = [score[name] for score in scores]
        texts.append(f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}")
    return texts


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ours.add_dataset_option(parser)
    parser.add_argument("--num-images", type=int, default=6000, help="images of the demo data")
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument(
        "--quick", action="store_true", help="no demo data, and auto for two classes only"
    )
    parser.add_argument(
        "--max-auto-classes", type=int, default=20, help="no auto for data of more classes"
    )
    report.add_options(parser, "ensembles")
    args = parser.parse_args()
    max_auto_classes = 2 if args.quick else args.max_auto_classes
    warnings.filterwarnings("ignore", category=ConvergenceWarning)
    sources = {}
    if "digits" in args.data:
        sources["digits"] = (read_digits(), 450)
    if "two" in args.data:
        sources["digits, two classes, 83 % and 17 %"] = (read_two_classes(), 300)
    if "demo" in args.data and not args.quick:
        with (
            ours.data_folder(args.dataset, args.num_images) as demo,
            tempfile.TemporaryDirectory() as cache,
        ):
            demo_pixels = read_demo(demo, Path(cache))
        sources["demo, drawn poses at 20 x 20 pixels"] = (demo_pixels, 800)
    tables: list[report.Table] = []
    goals: list[report.Goal] = []
    for name, (data, num_train) in sources.items():
        votes = {
            vote: spec
            for vote, spec in VOTES.items()
            if vote != "auto" or data.labels.max() < max_auto_classes
        }
        sizes = f"{num_train} training images, {len(data.labels) - num_train} test images"
        table, outcomes = measure_data(
            f"{name}: {sizes}", train_all(data, num_train, args.repetitions, True), votes
        )
        tables.append(table)
        goals += _goals(name, outcomes, FOLD_TRUTHS)
        table, outcomes = measure_data(
            f"{name}, {NUM_SEEDS} seeds on one split: {sizes}",
            train_all(data, num_train, args.repetitions, False),
            {"soft": VOTES["soft"]},
        )
        tables.append(table)
        goals += _goals(f"{name}, one split", outcomes, SPLIT_TRUTHS)
    report.write_report(
        args.report,
        title="Votes: what they gain, and whether their own scores are honest",
        module="benchmarks.ensembles",
        repetitions=f"{args.repetitions} draws of training and test images, "
        f"{NUM_SEEDS} seeds x {NUM_FOLDS} folds each; mean ± standard deviation over draws",
        goals=goals,
        tables=tables,
        notes=[
            "The estimate is made of rows that neither the members that predict them nor what was "
            "fitted has seen; its interval is the 95 % bootstrap interval over these rows.",
            "It is of one member per seed, all of the same fold and trained on the same rows, and "
            "the ensemble on test images has all folds of each: it is better by what averaging "
            "over training sets gains, which no row can tell. The interval errs on the safe side.",
            "The test score has a sampling error of its own, which the interval is not made for: "
            "with few test images it covers a little less often.",
            "tta=auto has images moved by a pixel in four directions to choose from; members were "
            "trained without any augmentation.",
            "Members are small on purpose (24 hidden units on pixels): what is judged is the "
            "voting, not the score.",
        ],
    )


def _goals(
    name: str, outcomes: dict[str, list[Outcome]], truths: Mapping[str, str]
) -> Iterator[report.Goal]:
    """Whether intervals cover the truths, each by what `Outcome` calls that."""
    for what, name_of_test in truths.items():
        counts = {
            vote: sum(getattr(outcome, name_of_test) for outcome in own)
            for vote, own in outcomes.items()
        }
        lowest = min(counts, key=lambda vote: counts[vote])
        num = len(outcomes[lowest])
        yield report.Goal(
            text=f"{name}: the interval covers {what} in at least 18 of 20 repetitions, for every "
            "way of voting",
            measured=f"{counts[lowest]} of {num} at the least ({lowest})",
            is_reached=counts[lowest] >= AIM * num,
        )


if __name__ == "__main__":
    main()
