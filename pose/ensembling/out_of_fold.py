"""What a run's members predict on the rows of their folds, and how good that is over all folds."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from pose import metrics
from pose.ensembling.joined import join
from pose.member_key import MemberKey
from pose.predictions import Predictions


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutOfFold:
    """The scores of a run over all rows that its folds validate.

    Attributes:
        predictions: each row's mean over the members that did not train on it, one per seed.
        ensemble: macro-F1, accuracy, NLL in nats and ECE of `predictions`, by metric.
        seeds: the same of each seed, whose every row is predicted by one member.
        folds: macro-F1 on each fold's rows, mean over the seeds.
    """

    predictions: Predictions
    ensemble: dict[str, float]
    seeds: dict[int, dict[str, float]]
    folds: dict[int, float]


def score_folds(members: Mapping[MemberKey, Predictions], num_folds: int) -> OutOfFold | None:
    """The scores over all folds of the seeds that have them all; None if none has.

    Args:
        members: each finished member's predictions of the rows that validated it.
    """
    folds_of: dict[int, int] = {}
    for key in members:
        folds_of[key.seed] = folds_of.get(key.seed, 0) + 1
    seeds = sorted(seed for seed, number in folds_of.items() if number == num_folds)
    if not seeds:
        return None
    whole = {key: members[key] for key in sorted(members) if key.seed in seeds}
    rows = join({str(key): own for key, own in whole.items()})
    by_seed = rows.by_group([seeds.index(key.seed) for key in whole])
    first = next(iter(whole.values()))
    predictions = dataclasses.replace(
        first,
        ids=by_seed.ids,
        probs=by_seed.probs.mean(axis=0),
        labels=by_seed.labels,
        groups=by_seed.group_names(),
    )
    fold_scores = {
        fold: [score(own)["f1"] for key, own in whole.items() if key.fold == fold]
        for fold in sorted({key.fold for key in whole})
    }
    return OutOfFold(
        predictions=predictions,
        ensemble=score(predictions),
        seeds={
            seed: score(dataclasses.replace(predictions, probs=by_seed.probs[number]))
            for number, seed in enumerate(seeds)
        },
        folds={fold: float(np.mean(scores)) for fold, scores in fold_scores.items()},
    )


def score(predictions: Predictions) -> dict[str, float]:
    """Macro-F1, accuracy, NLL in nats and ECE of predictions with labels, by metric."""
    assert predictions.labels is not None
    num_classes = len(predictions.class_labels)
    confusion = metrics.confusion_matrix(predictions.labels, predictions.preds(), num_classes)
    return {
        "f1": metrics.macro_f1(confusion),
        "acc": metrics.accuracy(confusion),
        "nll": metrics.nll(predictions.probs, predictions.labels),
        "ece": metrics.ece(predictions.probs, predictions.labels),
    }
