"""Scores against scikit-learn and against numbers computed by hand."""

import math

import numpy as np
import pytest
from sklearn import metrics as reference

from pose.metrics import accuracy, brier, confusion_matrix, ece, macro_f1, nll


@pytest.mark.parametrize(("num_classes", "seed"), [(2, 0), (3, 1), (20, 2)])
def test_scores_are_those_of_scikit_learn(num_classes, seed):
    rng = np.random.default_rng(seed)
    labels, preds = rng.integers(0, num_classes, (2, 200))
    confusion = confusion_matrix(labels, preds, num_classes)
    np.testing.assert_array_equal(confusion, reference.confusion_matrix(labels, preds))
    assert accuracy(confusion) == pytest.approx(reference.accuracy_score(labels, preds))
    assert macro_f1(confusion) == pytest.approx(
        reference.f1_score(labels, preds, average="macro"), rel=1e-12
    )


def test_rows_are_labels_and_columns_are_predictions():
    confusion = confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 2)
    assert confusion.tolist() == [[1, 1], [0, 1]]


def test_macro_f1_by_hand():
    # Class 0: 4 right, 1 missed, 2 wrongly claimed: 8 / 11. Class 1: 3 right: 6 / 9.
    confusion = np.array([[4, 1], [2, 3]])
    assert macro_f1(confusion) == pytest.approx((8 / 11 + 6 / 9) / 2)
    assert accuracy(confusion) == 0.7


def test_class_that_never_occurs_does_not_count():
    labels, preds = np.array([0, 0, 2, 2]), np.array([0, 2, 2, 2])
    confusion = confusion_matrix(labels, preds, 4)
    expected = reference.f1_score(labels, preds, average="macro")
    assert macro_f1(confusion) == pytest.approx(expected)
    assert macro_f1(confusion) == pytest.approx((2 / 3 + 4 / 5) / 2)


def test_class_that_is_only_predicted_counts_as_zero():
    confusion = confusion_matrix(np.array([0, 0]), np.array([0, 1]), 2)
    assert macro_f1(confusion) == pytest.approx((2 / 3 + 0) / 2)


def test_nll_by_hand():
    probs = np.array([[0.5, 0.5], [0.75, 0.25]])
    expected = (math.log(2) + math.log(4)) / 2
    assert nll(probs, np.array([0, 1])) == pytest.approx(expected)
    assert nll(probs, np.array([0, 1])) == pytest.approx(reference.log_loss([0, 1], probs))


def test_nll_of_an_impossible_label_is_finite():
    assert 80 < nll(np.array([[1.0, 0.0]], dtype=np.float32), np.array([1])) < 100


def test_brier_by_hand():
    probs = np.array([[0.5, 0.5], [0.75, 0.25]])
    # Squared distances from (1, 0) and from (0, 1).
    assert brier(probs, np.array([0, 1])) == pytest.approx((0.5 + 2 * 0.75**2) / 2)


def test_ece_by_hand():
    # Ten bins. Confidence 0.95, 0.95 of which one is right: 2 x |0.95 - 0.5|; confidence 0.65,
    # right: 0.35. Together 0.9 + 0.35 over three rows.
    probs = np.array([[0.95, 0.05], [0.05, 0.95], [0.65, 0.35]])
    assert ece(probs, np.array([0, 0, 0]), num_bins=10) == pytest.approx(1.25 / 3)


def test_ece_lets_too_high_and_too_low_confidence_cancel_inside_a_bin_only():
    probs = np.array([[0.75, 0.25]] * 4)
    three_of_four = np.array([0, 0, 0, 1])
    assert ece(probs, three_of_four) == pytest.approx(0)
    assert ece(probs, np.zeros(4, dtype=int)) == pytest.approx(0.25)


def test_ece_of_certain_and_right_is_zero():
    assert ece(np.eye(3), np.arange(3)) == 0
    assert ece(np.eye(3), np.array([1, 2, 0])) == 1
