"""Combining members: two members and three images by hand, and the module against the arrays."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from pose.config import TTA_VIEWS, VOTINGS
from pose.ensembling.diversity import agreement, disagreement, unanimity
from pose.ensembling.joined import join
from pose.errors import InputError
from pose.predictions import Predictions
from pose.vote import combine_probs
from pose_models import AugmentedClassifier, Combination, SeedEnsemble
from pose_models.combine import RULES
from pose_models.views import VIEWS, shift, zoom

# The members agree on the first image, and differ on the second, where the one that is surer has
# it, and on the third, where their means tie between classes 0 and 1.
PROBS = np.array(
    [
        [[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.5, 0.25, 0.25]],
        [[0.5, 0.1, 0.4], [0.0, 0.9, 0.1], [0.25, 0.5, 0.25]],
    ],
    dtype=np.float32,
)  # (M, N, C)


# One of each rule, for four members and three classes.
HOWS = (
    Combination(rule="soft"),
    Combination(rule="hard", offsets=(0.3, 0.0, -0.3)),
    Combination(rule="rank", temperature=1.5),
    Combination(rule="soft", scales=(0.5, 1.0, 2.0), biases=(0.3, 0.0, -0.1)),
    Combination(rule="weighted", weights=(0.1, 0.2, 0.3, 0.4)),
    Combination(rule="greedy", weights=(0.4, 0.6), groups=(0, 0, 1, 1), temperature=0.7),
    Combination(
        rule="stacking",
        coefficients=tuple(map(tuple, np.random.default_rng(2).normal(size=(3, 12)).tolist())),
        intercepts=(0.1, 0.2, 0.3),
        offsets=(0.0, 0.5, 0.0),
    ),
)


def vote(probs: np.ndarray, rule: str) -> np.ndarray:
    return combine_probs(np.ascontiguousarray(probs), Combination(rule=rule))


def test_soft_vote_is_the_mean():
    expected = [[0.6, 0.15, 0.25], [0.3, 0.6, 0.1], [0.375, 0.375, 0.25]]
    combined = vote(PROBS, "soft")
    np.testing.assert_allclose(combined, expected, atol=1e-7)
    assert combined.dtype == np.float64
    assert combined.argmax(axis=1).tolist() == [0, 1, 0]


def test_hard_vote_of_two_is_decided_by_the_mean_where_they_differ():
    combined = vote(PROBS, "hard")
    # Votes (1, 0, 0), (1/2, 1/2, 0), (1/2, 1/2, 0) plus a quarter of the means, over 1.25.
    expected = np.array(
        [
            [1 + 0.15, 0.0375, 0.0625],
            [0.5 + 0.075, 0.5 + 0.15, 0.025],
            [0.5 + 0.09375, 0.5 + 0.09375, 0.0625],
        ]
    )
    np.testing.assert_allclose(combined, expected / 1.25, atol=1e-7)
    assert combined.argmax(axis=1).tolist() == [0, 1, 0]


def test_hard_vote_follows_the_majority_against_the_mean():
    probs = np.array([[[0.51, 0.49]], [[0.51, 0.49]], [[0.0, 1.0]]])
    assert vote(probs, "soft").argmax() == 1
    assert vote(probs, "hard").argmax() == 0


def test_hard_tie_among_many_members_goes_to_the_higher_mean():
    sure, unsure = [[0.1, 0.9, 0.0]], [[0.45, 0.1, 0.45]]
    # Two votes for class 1, two for class 0 (the first of equals), one for class 2.
    probs = np.array([sure, sure, unsure, unsure, [[0.3, 0.3, 0.4]]])
    assert vote(probs, "hard").argmax() == 1
    assert vote(probs[::-1], "hard").argmax() == 1


@pytest.mark.parametrize("voting", ["soft", "hard"])
def test_combined_rows_sum_to_one_and_members_have_no_order(voting):
    probs = np.random.default_rng(0).dirichlet(np.ones(4), size=(5, 50))
    combined = vote(probs, voting)
    assert combined.shape == (50, 4)
    np.testing.assert_allclose(combined.sum(axis=1), 1)
    np.testing.assert_allclose(vote(probs[::-1], voting), combined, atol=1e-12)


@pytest.mark.parametrize("voting", ["soft", "hard"])
def test_single_member_keeps_its_predictions(voting):
    combined = vote(PROBS[:1], voting)
    assert combined.argmax(axis=1).tolist() == PROBS[0].argmax(axis=1).tolist()


def test_rank_vote_by_hand():
    # Ranks (2, 1, 0), (2, 1, 0), (2, 1, 0) and (2, 0, 1), (0, 2, 1), (1, 2, 0); of equals the first
    # class stands higher. Their means, plus a quarter of the mean probabilities, over 3.25.
    ranks = np.array([[2, 0.5, 0.5], [1, 1.5, 0.5], [1.5, 1.5, 0]])
    expected = (ranks + PROBS.mean(axis=0) / 4) / 3.25
    np.testing.assert_allclose(vote(PROBS, "rank"), expected, atol=1e-7)


def test_weighted_vote_temperature_and_offsets_by_hand():
    how = Combination(rule="weighted", weights=(0.25, 0.75))
    expected = 0.25 * PROBS[0] + 0.75 * PROBS[1]
    np.testing.assert_allclose(combine_probs(PROBS, how), expected, atol=1e-7)
    warmed = dataclasses.replace(how, temperature=2.0, offsets=(np.log(2.0), 0.0, 0.0))
    roots = np.sqrt(np.maximum(expected, 1e-12)) * [2, 1, 1]
    roots /= roots.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(combine_probs(PROBS, warmed), roots, atol=1e-6)


def test_vector_scaling_by_hand():
    how = Combination(scales=(2.0, 1.0, 0.5), biases=(0.0, np.log(3.0), 0.0))
    mean = np.maximum(PROBS.mean(axis=0), 1e-12)
    expected = mean ** [2, 1, 0.5] * [1, 3, 1]
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(combine_probs(PROBS, how), expected, atol=1e-6)
    calibrated, raw = dataclasses.replace(how, offsets=(1.0, 0.0, 0.0)).stages()
    assert (calibrated, raw) == (how, Combination())
    assert how.is_calibrated and not raw.is_calibrated
    with pytest.raises(ValueError, match="scales must come with as many biases"):
        Combination(scales=(1.0, 1.0))
    with pytest.raises(ValueError, match="without a temperature"):
        dataclasses.replace(how, temperature=2.0)


def test_members_of_a_group_share_its_weight():
    probs = np.concatenate([PROBS, PROBS[:1]])
    how = Combination(rule="greedy", weights=(0.8, 0.2), groups=(0, 1, 1))
    expected = 0.8 * probs[0] + 0.1 * probs[1] + 0.1 * probs[2]
    np.testing.assert_allclose(combine_probs(probs, how), expected, atol=1e-7)


def test_unknown_rule_lists_the_known_ones():
    with pytest.raises(ValueError, match="rule must be one of soft, hard, rank, .*, got 'mean'"):
        Combination(rule="mean")


def test_the_command_offers_every_view():
    assert tuple(VIEWS) == TTA_VIEWS


def test_a_classifier_looks_several_times_and_undoes_the_flip():
    class Halves(torch.nn.Module):
        """Probabilities by the brightness of the left and of the right half, and of all."""

        labels = ("left", "right", "both")

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            gray = images.float().mean(dim=1)
            left, right = gray[:, :, :8].mean(dim=(1, 2)), gray[:, :, 8:].mean(dim=(1, 2))
            return torch.stack([left, right, left + right], dim=1) / 50

    images = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    images[..., :8] = 100
    plain = Halves()(images).softmax(dim=1)
    flipped = AugmentedClassifier(Halves(), ["flip"], mirrors=(1, 0, 2))
    # A mirror image of left is right: both views say the same.
    torch.testing.assert_close(flipped(images).softmax(dim=1), plain)
    assert flipped.num_views == 2
    views = AugmentedClassifier(Halves(), ["shift", "zoom"], mirrors=(-1, -1, -1))
    copies = [
        images,
        *(shift(images, *by) for by in ((0, 0.04), (0, -0.04), (0.04, 0), (-0.04, 0))),
        zoom(images, 0.92),
    ]
    mean = torch.stack([Halves()(copy).softmax(dim=1) for copy in copies]).mean(dim=0)
    torch.testing.assert_close(views(images).softmax(dim=1), mean)
    assert views.num_views == 6
    with pytest.raises(ValueError, match="flips need a mirror for every class"):
        AugmentedClassifier(Halves(), ["flip"], mirrors=(1, 0, -1))


def test_a_shift_repeats_the_edge_and_a_zoom_keeps_the_middle():
    images = torch.arange(25, dtype=torch.uint8).reshape(1, 1, 5, 5).repeat(1, 3, 1, 1)
    right = shift(images, 0, 0.2)
    assert right[0, 0, 0].tolist() == [0, 0, 1, 2, 3]
    assert shift(images, -0.2, 0)[0, 0, :, 0].tolist() == [5, 10, 15, 20, 20]
    zoomed = zoom(images, 0.6)
    assert zoomed.dtype == torch.uint8
    assert zoomed.shape == images.shape
    assert zoomed[0, 0, 2, 2] == images[0, 0, 2, 2]
    assert (int(zoomed.min()), int(zoomed.max())) == (6, 18)


def test_the_command_offers_every_rule():
    assert (*RULES, "auto") == VOTINGS


@pytest.mark.parametrize("how", HOWS, ids=lambda how: how.rule)
def test_a_combination_survives_as_json(how):
    assert Combination.from_dict(json.loads(json.dumps(how.to_dict()))) == how


class Fixed(torch.nn.Module):
    """A member that answers with fixed probabilities."""

    labels = ("a", "b", "c")

    def __init__(self, probs: np.ndarray) -> None:
        super().__init__()
        self.probs = torch.from_numpy(probs)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.probs.log()


@pytest.mark.parametrize("how", HOWS, ids=lambda how: how.rule)
def test_the_module_and_the_arrays_combine_alike(how):
    probs = np.random.default_rng(1).dirichlet(np.ones(3), size=(4, 200)).astype(np.float32)
    ensemble = SeedEnsemble([Fixed(own) for own in probs], how)
    logits = ensemble(torch.zeros(200, 3, 8, 8))
    expected = combine_probs(probs, how)
    np.testing.assert_allclose(logits.softmax(dim=1).numpy(), expected, atol=1e-6)
    assert logits.argmax(dim=1).tolist() == expected.argmax(axis=1).tolist()


def test_an_ensemble_that_is_sure_has_finite_logits():
    certain = np.array([[1.0, 0.0, 0.0]], dtype=np.float32)
    ensemble = SeedEnsemble([Fixed(certain)] * 2, Combination(rule="soft"))
    assert bool(torch.isfinite(ensemble(torch.zeros(1, 3, 8, 8))).all())


def test_agreement_is_with_the_ensemble():
    # Predictions 0, 0, 0 and 0, 1, 1; the soft vote says 0, 1, 0.
    shares = agreement(PROBS, vote(PROBS, "soft"))
    np.testing.assert_allclose(shares, [2 / 3, 2 / 3])


def test_unanimity_and_disagreement_by_hand():
    assert unanimity(PROBS) == pytest.approx(1 / 3)
    assert disagreement(PROBS) == pytest.approx(2 / 3)
    three = np.concatenate([PROBS, PROBS[:1]])
    # The pairs differ on 2/3, 0 and 2/3 of the images.
    assert unanimity(three) == pytest.approx(1 / 3)
    assert disagreement(three) == pytest.approx((2 / 3 + 0 + 2 / 3) / 3)


def test_single_member_never_disagrees():
    assert unanimity(PROBS[:1]) == 1
    assert disagreement(PROBS[:1]) == 0


def predictions(ids: str, labels: list[int], classes: tuple[str, ...] = ("a", "b")) -> Predictions:
    """Of rows named by one letter each; the probability of the first class says which row it is."""
    first = np.array([ord(letter) / 256 for letter in ids])
    return Predictions(
        ids=tuple(ids),
        probs=np.stack([first, 1 - first], axis=1),
        class_labels=classes,
        labels=np.array(labels),
    )


def test_members_are_joined_by_id_whatever_the_order_of_their_rows():
    joined = join({"one": predictions("xyz", [0, 1, 0]), "two": predictions("wzx", [1, 0, 0])})
    assert joined.ids == ("x", "y", "z", "w")
    assert joined.labels.tolist() == [0, 1, 0, 1]
    assert joined.is_known.tolist() == [[True, True, True, False], [True, False, True, True]]
    shared = joined.shared()
    assert shared.ids == ("x", "z")
    assert shared.labels.tolist() == [0, 0]
    np.testing.assert_array_equal(shared.probs[0], shared.probs[1])
    assert shared.probs[1, :, 0].tolist() == [ord("x") / 256, ord("z") / 256]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (predictions("xy", [0, 1], ("b", "a")), "same classes in the same order"),
        (predictions("xy", [0, 0]), "two has another one than the members before it for y"),
        (predictions("xx", [0, 0]), "two has x"),
    ],
)
def test_predictions_that_do_not_belong_together_are_refused(other, message):
    with pytest.raises(InputError, match=message):
        join({"one": predictions("xy", [0, 1]), "two": other})


def test_rows_are_left_to_the_members_that_know_them_and_groups_are_averaged():
    joined = join(
        {"a": predictions("xy", [0, 1]), "b": predictions("z", [0]), "c": predictions("xz", [0, 0])}
    )
    mean = joined.combined(lambda probs: probs.mean(axis=0))
    np.testing.assert_allclose(mean[:, 0], [ord(letter) / 256 for letter in "xyz"])
    # The folds a and b of one seed know all rows together; c lacks y.
    grouped = joined.by_group((0, 0, 1))
    assert grouped.is_known.tolist() == [[True, True, True], [True, False, True]]
    assert grouped.shared().ids == ("x", "z")
    np.testing.assert_allclose(grouped.probs[0, :, 0], [ord(letter) / 256 for letter in "xyz"])
