"""Ways of looking at an image: chosen on rows that they are not scored on."""

import itertools

import numpy as np
import pytest
import torch

from pose.config import VoteSetup
from pose.ensembling.fit import FitSpec
from pose.ensembling.held_out import decide
from pose.ensembling.looks import Looked, choose_views
from pose.ensembling.members import Member, RegisteredMember
from pose.ensembling.selection import NUM_FOLDS, assign_folds
from pose.errors import InputError
from pose.look import _combined
from pose.metrics import f1_of
from pose.model_card import ModelCard
from pose.predictions import Predictions
from pose.vote import combine_probs
from pose_models import AugmentedClassifier, build_model
from pose_models.views import VIEWS

LABELS = np.random.default_rng(0).integers(0, 3, size=600)


def seen(sharpness: float, seed: int, labels: np.ndarray = LABELS) -> np.ndarray:
    """Probabilities `(2, N, 3)` of two members that see the label the better, the sharper."""
    rng = np.random.default_rng(seed)
    logits = sharpness * np.eye(3)[labels] + rng.normal(size=(2, len(labels), 3))
    powers = np.exp(logits)
    return powers / powers.sum(axis=2, keepdims=True)


HELPFUL = {(): seen(1.0, 0), ("flip",): seen(2.0, 1), ("shift",): seen(0.9, 2)}
USELESS = {(): seen(1.0, 0), ("flip",): seen(1.0, 1), ("shift",): seen(1.0, 2)}


def test_views_that_help_are_kept_and_their_gain_is_honest():
    trial = choose_views(HELPFUL, LABELS, "soft", combine_probs)
    assert trial.best == ("flip",) and trial.is_kept
    new = np.random.default_rng(9).integers(0, 3, size=20_000)
    plain, flipped = (f1_of(seen(sharpness, 5, new).mean(axis=0), new) for sharpness in (1.0, 2.0))
    assert trial.gain.low <= flipped - plain <= trial.gain.high
    assert trial.note().startswith("several looks (flip): a gain of 0.2")


def test_a_single_look_stays_where_the_gain_is_within_noise():
    trial = choose_views(USELESS, LABELS, "soft", combine_probs)
    assert not trial.is_kept
    assert "which is within noise" in trial.note()
    # The best of all rows is better there, and not on rows that did not choose it.
    assert max(trial.scores.values()) - trial.scores[()] >= trial.gain.value


def test_every_row_is_seen_by_views_that_were_chosen_without_it():
    trial = choose_views(USELESS, LABELS, "soft", combine_probs)
    folds = assign_folds(LABELS, NUM_FOLDS, seed=0)
    for fold in range(NUM_FOLDS):
        rest, own = folds != fold, folds == fold
        scores = {v: f1_of(p.mean(axis=0)[rest], LABELS[rest]) for v, p in USELESS.items()}
        best = max(scores, key=lambda views: scores[views])
        np.testing.assert_array_equal(trial.nested[:, own], USELESS[best][:, own])


def member_of(seed: int, probs: np.ndarray, labels: np.ndarray) -> Member:
    """A member as a vote knows it."""
    names = ("a", "b", "c")
    return Member(
        registered=RegisteredMember(
            run="r", seed=seed, version=1, uri=f"models:/r/{seed}", parent_run_id="", run_id="",
            recipe="",
        ),
        card=ModelCard(
            model="simple_cnn", image_size=24, labels=names, names=names, mirrors=(0, 1, 2),
            run="r", seed=seed, val_f1=0.5, best_epoch=1, dataset_digest="", recipe={},
        ),
        val_predictions=Predictions(
            ids=tuple(map(str, range(len(labels)))), probs=probs, class_labels=names, labels=labels
        ),
        weights_sha256="",
    )  # fmt: skip


def members_and_looks(looks):
    members = [member_of(seed, own, LABELS) for seed, own in enumerate(looks[()])]
    return members, Looked(probs={v: list(p) for v, p in looks.items()}, seconds=2.5)


@pytest.mark.parametrize("rule", ["soft", "weighted"])
def test_a_vote_takes_the_views_and_is_scored_with_them(rule):
    members, looked = members_and_looks(HELPFUL)
    decision = decide(members, FitSpec(rule=rule), combine_probs, lambda: looked)
    assert decision.how.tta == ("flip",)
    assert decision.views.seconds == 2.5
    plain = decide(members, FitSpec(rule=rule), combine_probs)
    gain = decision.score.ensemble["val_f1"] - plain.score.ensemble["val_f1"]
    assert gain == pytest.approx(decision.views.gain.value, abs=0.02) and gain > 0.1
    members, looked = members_and_looks(USELESS)
    kept = decide(members, FitSpec(rule=rule), combine_probs, lambda: looked)
    assert kept.how.tta == ()
    plain = decide(members, FitSpec(rule=rule), combine_probs)
    assert kept.score.ensemble == plain.score.ensemble


def test_nobody_looks_again_where_rows_are_too_few():
    def look() -> Looked:
        raise AssertionError("there is nothing to choose on")

    members = [member_of(seed, own[:60], LABELS[:60]) for seed, own in enumerate(HELPFUL[()])]
    decision = decide(members, FitSpec(), combine_probs, look)
    assert decision.note == "soft, nothing fitted and one look: 60 common rows, fewer than 100"
    assert decision.how.tta == ()


def test_combinations_are_what_an_augmented_classifier_gives():
    torch.manual_seed(0)
    model = build_model("simple_cnn", ("a", "b", "c"), 24).eval()
    images = torch.randint(0, 256, (4, 3, 24, 24), dtype=torch.uint8)
    mirrors = (1, 0, 2)

    def probs(network) -> np.ndarray:
        with torch.inference_mode():
            return network(images).softmax(dim=1).double().numpy()

    plain = probs(model)
    means = {view: probs(AugmentedClassifier(model, (view,), mirrors)) for view in VIEWS}
    sums = {view: (1 + VIEWS[view]) * mean - plain for view, mean in means.items()}
    found = dict(_combined(plain, sums))
    assert len(found) == 8
    for size in range(1, 4):
        for views in itertools.combinations(VIEWS, size):
            expected = probs(AugmentedClassifier(model, views, mirrors))
            np.testing.assert_allclose(found[views], expected, atol=1e-6)


def test_auto_stands_alone():
    assert VoteSetup(tta="auto").views() == ("auto",)
    with pytest.raises(InputError, match="tta must be auto or views, got both: auto,flip"):
        VoteSetup(tta="auto,flip")
    with pytest.raises(InputError, match="tta must be one of auto, flip, shift, zoom, got 'spin'"):
        VoteSetup(tta="spin")
