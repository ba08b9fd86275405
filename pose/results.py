"""What a seed, a run and a vote give back, as plain values."""

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pose.ensembling.comparison import Comparison
from pose.ensembling.held_out import Decision, HeldOutScore
from pose.ensembling.members import Member
from pose.ensembling.out_of_fold import OutOfFold
from pose.history import Row
from pose.member_key import MemberKey

# Why a seed may have ended for good; with any other reason it can be continued.
FINISHED_REASONS = ("epochs", "budget", "patience", "imported")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeedResult:
    """How a member ended.

    Attributes:
        fold: the fold that validated it, counted from 1; 0: its run has no folds.
        stop_reason: one of `FINISHED_REASONS`, or why it can be continued.
        best_epoch: counted from 1; 0 where not one epoch is complete.
        val_f1: the best validation macro-F1.
        seconds: of all its epochs, interrupted ones not counted.
        session_seconds: of the epochs that this process trained.
    """

    seed: int
    stop_reason: str
    best_epoch: int
    val_f1: float
    num_epochs: int
    seconds: float
    session_seconds: float
    history: list[Row]
    fold: int = 0

    @property
    def key(self) -> MemberKey:
        """Which member of its run."""
        return MemberKey(self.seed, self.fold)

    @property
    def is_finished(self) -> bool:
        """Whether there is nothing to continue."""
        return self.stop_reason in FINISHED_REASONS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and standard deviation over seeds.

    Attributes:
        std: of the sample (n - 1), since seeds are a sample of what the recipe can give; 0 for one.
    """

    mean: float
    std: float
    num: int

    def __str__(self) -> str:
        return f"{self.mean:.4f}" + (f" ± {self.std:.4f}" if self.num > 1 else "")


def spread(values: Sequence[float]) -> Spread:
    """The spread of one value or more."""
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return Spread(mean=statistics.mean(values), std=std, num=len(values))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunResult:
    """How a run ended.

    Attributes:
        run_id: of the parent run in MLflow.
        stop_reason: None if all seeds are finished, else why it stopped.
        seeds_page: address of the page that compares the members.
        out_of_fold: the scores over all folds; None without folds, or before a seed has them all.
    """

    run_id: str
    folder: Path
    members: list[SeedResult]
    stop_reason: str | None
    seeds_page: str
    out_of_fold: OutOfFold | None = None

    def val_f1(self) -> Spread:
        """Mean and standard deviation of the best val_f1 over the members."""
        return spread([member.val_f1 for member in self.members])


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoTrial:
    """A candidate that was tried for some seconds in a round of a plan.

    Attributes:
        candidate, round: numbers, from 0.
        val_f1: at its end on the fold that validates trials; 0 where training diverged.
        val_gain: by how much that is above the macro F1 of always the commonest class.
        val_auc: area under the ROC curve, mean over the classes; alike.
        num_epochs: how often an image was seen, in this round and those before.
        seconds: that the round took it.
    """

    candidate: int
    round: int
    val_f1: float
    val_gain: float
    val_auc: float
    num_epochs: float
    images_per_second: float
    seconds: float

    @property
    def score(self) -> float:
        """What candidates are ranked by.

        Macro F1 is what counts. Before a network has learned to decide, it says nothing: always the
        commonest class scores better than first guesses at a rare one. The area tells networks
        apart much earlier.
        """
        return self.val_auc + max(0.0, self.val_gain)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrialResult:
    """How a trial of a sweep ended.

    Attributes:
        name: of its run.
        values: what was tried, by setting.
        val_f1: over its seeds; None where it was not trained to its end.
        ending: `finished`, `pruned`, `diverged` or `out of time`.
        seconds: that it took, saving included.
    """

    name: str
    values: dict[str, Any]
    val_f1: Spread | None
    ending: str
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepResult:
    """How a sweep ended.

    Attributes:
        run_id: of the sweep in MLflow.
        trials: the best first, those without a score last.
        stop_reason: None if it tried all that it should, else why it stopped.
        command: trains the best values as a run of its own; empty without a finished trial.
    """

    run_id: str
    name: str
    folder: Path
    trials: list[TrialResult]
    stop_reason: str | None
    command: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vote:
    """What a vote produced.

    Attributes:
        name: of the runs that voted, joined by `+`.
        artifact: where the predictions lie in MLflow.
        agreement: part of the images on which each member predicts what the ensemble does.
        unanimity: part of the images on which all members predict the same.
        disagreement: mean over pairs of members of the part that they predict differently.
        num_images: how many were predicted.
        predict_seconds: that the members took, decoding not counted.
        decision: how the members were combined, and how good that is.
    """

    run_id: str
    name: str
    out_path: Path
    artifact: str
    members: tuple[Member, ...]
    agreement: tuple[float, ...]
    unanimity: float
    disagreement: float
    num_images: int
    predict_seconds: float
    decision: Decision

    @property
    def voting(self) -> str:
        """The rule by which the members were combined."""
        return self.decision.how.rule

    @property
    def score(self) -> HeldOutScore:
        """On rows that decided nothing about the ensemble."""
        return self.decision.score


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predicted:
    """What a prediction of image files produced.

    Attributes:
        num_images: rows of the table; `num_bad` images could not be read.
        images_per_second: of this process, reading included.
    """

    out_path: Path
    num_images: int
    num_bad: int
    images_per_second: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compared:
    """What a comparison produced.

    Attributes:
        run_id: of the comparison in MLflow.
        folder: with report.html, comparison.json and comparison.csv.
        further: the training whose further seeds would tell most, and how many of them; None where
            none would.
        winner: the training that is better for sure; None where it is open, or a vote.
    """

    run_id: str
    folder: Path
    comparison: Comparison
    further: tuple["Further", int] | None
    winner: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Further:
    """A training that seeds can be added to.

    Attributes:
        command: that trained it; empty in runs from before 0.2.
        seeds: that it has.
    """

    name: str
    command: str
    seeds: tuple[int, ...]
