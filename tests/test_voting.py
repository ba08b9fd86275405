"""Two members and three images, voted by hand."""

import numpy as np
import pytest

from pose.errors import InputError
from pose.voting import agreement, combine_probs, disagreement, shared_rows, unanimity

pytestmark = pytest.mark.filterwarnings("error")

# The members agree on the first image, and differ on the second, where the one that is surer has
# it, and on the third, where their means tie between classes 0 and 1.
PROBS = np.array(
    [
        [[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.5, 0.25, 0.25]],
        [[0.5, 0.1, 0.4], [0.0, 0.9, 0.1], [0.25, 0.5, 0.25]],
    ],
    dtype=np.float32,
)  # (M, N, C)


def test_soft_vote_is_the_mean():
    expected = [[0.6, 0.15, 0.25], [0.3, 0.6, 0.1], [0.375, 0.375, 0.25]]
    combined = combine_probs(PROBS, "soft")
    np.testing.assert_allclose(combined, expected, atol=1e-7)
    assert combined.dtype == np.float64
    assert combined.argmax(axis=1).tolist() == [0, 1, 0]


def test_hard_vote_of_two_is_decided_by_the_mean_where_they_differ():
    combined = combine_probs(PROBS, "hard")
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
    assert combine_probs(probs, "soft").argmax() == 1
    assert combine_probs(probs, "hard").argmax() == 0


def test_hard_tie_among_many_members_goes_to_the_higher_mean():
    sure, unsure = [[0.1, 0.9, 0.0]], [[0.45, 0.1, 0.45]]
    # Two votes for class 1, two for class 0 (the first of equals), one for class 2.
    probs = np.array([sure, sure, unsure, unsure, [[0.3, 0.3, 0.4]]])
    assert combine_probs(probs, "hard").argmax() == 1
    assert combine_probs(probs[::-1], "hard").argmax() == 1


@pytest.mark.parametrize("voting", ["soft", "hard"])
def test_combined_rows_sum_to_one_and_members_have_no_order(voting):
    probs = np.random.default_rng(0).dirichlet(np.ones(4), size=(5, 50))
    combined = combine_probs(probs, voting)
    assert combined.shape == (50, 4)
    np.testing.assert_allclose(combined.sum(axis=1), 1)
    np.testing.assert_allclose(combine_probs(probs[::-1], voting), combined, atol=1e-12)


@pytest.mark.parametrize("voting", ["soft", "hard"])
def test_single_member_keeps_its_predictions(voting):
    combined = combine_probs(PROBS[:1], voting)
    assert combined.argmax(axis=1).tolist() == PROBS[0].argmax(axis=1).tolist()


def test_unknown_voting_lists_the_known_ones():
    with pytest.raises(InputError, match="voting must be one of hard, soft, got 'mean'"):
        combine_probs(PROBS, "mean")


def test_agreement_is_with_the_ensemble():
    # Predictions 0, 0, 0 and 0, 1, 1; the soft vote says 0, 1, 0.
    shares = agreement(PROBS, combine_probs(PROBS, "soft"))
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


def test_shared_rows_are_those_that_every_member_has_in_the_first_ones_order():
    assert shared_rows([("7", "3", "5"), ("5", "7", "9"), ("1", "5", "7")]) == ["7", "5"]
    assert shared_rows([("7", "3"), ("4", "5")]) == []
    assert shared_rows([("7", "3")]) == ["7", "3"]
