"""What is fitted to members' probabilities, and whether the score of it is honest."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import softmax
from scipy.stats import bootstrap
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, log_loss

from pose.ensembling import fit as fitting
from pose.ensembling import selection
from pose.ensembling.abstention import choose_threshold
from pose.ensembling.bootstrap import f1_interval, gain_interval, mean_interval
from pose.ensembling.fit import FitSpec, fit, fit_offsets, fit_temperature, mixture_weights
from pose.ensembling.scaling import fit_scales
from pose.ensembling.selection import assign_folds, select, too_few
from pose.metrics import accuracy_of_surest, calibration_scores, f1_of
from pose.vote import combine_probs
from pose_models import Combination
from pose_models.combination import RULES

NUM_CLASSES = 3


PRIORS = np.array([0.6, 0.3, 0.1])


def draw(sharpness: list[float], num_rows: int = 600, seed: int = 0):
    """Probabilities `(G, N, C)` of members that see the label the better, the sharper they are."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(NUM_CLASSES, size=num_rows, p=PRIORS)
    one_hot = np.eye(NUM_CLASSES)[labels]
    logits = np.stack([s * one_hot + rng.normal(size=one_hot.shape) for s in sharpness])
    probs = np.exp(logits)
    return probs / probs.sum(axis=2, keepdims=True), labels


# One member knows, the others guess: soft voting drowns it.
UNEQUAL = draw([4.0, 0.0, 0.0, 0.0, 0.0, 0.0])
EQUAL = draw([1.5, 1.5, 1.5])


def test_weights_of_a_mixture_have_the_lowest_nll():
    probs, labels = draw([2.0, 0.5, 1.0], num_rows=300)
    best = log_loss(labels, np.einsum("g,gnc->nc", mixture_weights(probs, labels), probs))
    grid = [(a, b, 1 - a - b) for a in np.linspace(0, 1, 21) for b in np.linspace(0, 1 - a, 21)]
    own = probs[:, np.arange(300), labels]
    others = [-np.log(weights @ own).mean() for weights in grid]
    assert best <= min(others) + 1e-6
    assert best == pytest.approx(min(others), abs=2e-3)


def test_greedy_selection_finds_the_member_that_knows_and_repeats_itself():
    probs, labels = UNEQUAL
    how = fit(probs, labels, FitSpec(rule="greedy"), combine_probs)
    assert int(np.argmax(how.weights)) == 0
    assert sum(how.weights) == pytest.approx(1)
    assert fit(probs, labels, FitSpec(rule="greedy"), combine_probs) == how


@pytest.mark.parametrize("num_classes", [2, 3])
def test_stacking_is_scikit_learns_regression(num_classes, monkeypatch):
    monkeypatch.setattr(fitting, "_RIDGES", (0.1,))
    probs, labels = draw([1.0, 2.0])
    kept = labels < num_classes
    labels, probs = labels[kept], probs[:, kept, :num_classes]
    probs = probs / probs.sum(axis=2, keepdims=True)
    how = fit(probs, labels, FitSpec(rule="stacking"), combine_probs)
    features = np.concatenate([np.log(own) for own in probs], axis=1)
    model = LogisticRegression(C=0.1, max_iter=1000, tol=1e-3).fit(features, labels)
    expected = model.predict_proba(features)
    np.testing.assert_allclose(combine_probs(probs, how), expected, atol=1e-9)


def test_a_temperature_is_found_again():
    rng = np.random.default_rng(0)
    true = rng.dirichlet(np.ones(4), size=20_000)
    labels = (true.cumsum(axis=1) > rng.random((len(true), 1))).argmax(axis=1)
    sharpened = true**3 / (true**3).sum(axis=1, keepdims=True)
    assert fit_temperature(sharpened, labels) == pytest.approx(3, rel=0.05)
    assert fit_temperature(true, labels) == pytest.approx(1, rel=0.05)


def test_offsets_raise_the_macro_f1_of_unequal_classes():
    probs, labels = draw([1.0], num_rows=2000)
    # A model that has seen the rare class too seldom.
    skewed = probs[0] * [1, 0.3, 0.1]
    offsets = fit_offsets(skewed, labels)
    assert sum(offsets) == pytest.approx(0)
    before = f1_score(labels, skewed.argmax(axis=1), average="macro")
    after = f1_score(labels, (np.log(skewed) + offsets).argmax(axis=1), average="macro")
    assert after > before + 0.05


def test_an_interval_is_that_of_scores_on_drawn_rows():
    probs, labels = draw([1.0, 1.4], num_rows=300)
    preds, better = probs.argmax(axis=2)
    rng = np.random.default_rng(1)
    drawn = [rng.integers(0, 300, size=300) for _ in range(1000)]
    scores = np.array([f1_of(np.eye(3)[preds[r]], labels[r]) for r in drawn])
    found = f1_interval(labels, preds, NUM_CLASSES)
    assert found.value == pytest.approx(f1_score(labels, preds, average="macro"))
    assert [found.low, found.high] == pytest.approx(
        list(np.percentile(scores, [2.5, 97.5])), abs=0.015
    )
    gains = np.array([f1_of(np.eye(3)[better[r]], labels[r]) for r in drawn]) - scores
    gain = gain_interval(labels, better, preds, NUM_CLASSES)
    assert [gain.low, gain.high] == pytest.approx(
        list(np.percentile(gains, [2.5, 97.5])), abs=0.015
    )


def test_an_interval_is_that_of_scipys_bca():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 4, size=60)
    preds = np.where(rng.random(60) < 0.4, labels, rng.integers(0, 4, size=60))

    def score(one: np.ndarray, other: np.ndarray) -> float:
        return f1_of(np.eye(4)[other], one)

    known = bootstrap(
        (labels, preds), score, paired=True, vectorized=False, n_resamples=2000, method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    found = f1_interval(labels, preds, 4)
    assert [found.low, found.high] == pytest.approx([known.low, known.high], abs=0.015)
    alone = f1_interval(labels, preds, 4, np.arange(60))
    assert [alone.low, alone.high] == pytest.approx([found.low, found.high], abs=0.015)


def test_an_interval_of_what_has_no_spread_is_a_point():
    labels = np.array([0, 1, 1])
    assert str(f1_interval(labels, labels, 2)) == "1.0000 [1.0000, 1.0000]"
    assert str(f1_interval(labels, labels, 2, np.zeros(3))) == "1.0000 [1.0000, 1.0000]"


def test_rows_of_a_group_are_drawn_together():
    """Copies of every row say nothing new: the interval is that of the rows, not a narrower one."""
    probs, labels = draw([1.0, 1.4], num_rows=300)
    preds, better = probs.argmax(axis=2)
    copies = np.repeat(np.arange(300), 4)
    alone = f1_interval(labels, preds, NUM_CLASSES)
    kept = f1_interval(labels[copies], preds[copies], NUM_CLASSES, copies)
    naive = f1_interval(labels[copies], preds[copies], NUM_CLASSES)
    assert kept.value == alone.value == naive.value
    assert [kept.low, kept.high] == pytest.approx([alone.low, alone.high], abs=0.01)
    assert naive.high - naive.low < 0.6 * (kept.high - kept.low)
    gains = [
        gain_interval(labels[rows], better[rows], preds[rows], NUM_CLASSES, groups)
        for rows, groups in ((np.arange(300), None), (copies, copies))
    ]
    assert [gains[1].low, gains[1].high] == pytest.approx([gains[0].low, gains[0].high], abs=0.01)
    values = np.random.default_rng(0).normal(size=300)
    means = [mean_interval(values), mean_interval(values[copies], copies)]
    assert means[1].value == pytest.approx(means[0].value)
    assert [means[1].low, means[1].high] == pytest.approx([means[0].low, means[0].high], abs=0.02)


def test_rows_of_a_group_decide_about_none_of_their_own():
    """Labels are drawn by group: whoever knows another row of the group knows the label."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 10)
    labels = rng.integers(0, 2, size=40)[groups]
    # A member's probabilities tell the group apart, and nothing else.
    first = rng.uniform(0.2, 0.8, size=40)[groups]
    probs = np.stack([first, 1 - first], axis=1)[None]
    folds = assign_folds(labels, 5, 0, groups)
    assert all(len(set(folds[groups == group])) == 1 for group in range(40))
    chosen = select(probs, labels, FitSpec(rule="stacking"), combine_probs, groups=groups)
    assert (chosen.groups == groups).all()
    # A part without one of the classes teaches nothing, and breaks nothing.
    alone = fit(probs[:, labels == 1], labels[labels == 1], FitSpec(rule="stacking"), combine_probs)
    assert alone == Combination(rule="soft")


def test_groups_count_as_one_row_of_each_class():
    labels, groups = np.repeat([0, 1], 60), np.repeat(np.arange(12), 10)
    assert too_few(labels, ("a", "b")) is None
    assert too_few(labels, ("a", "b"), groups) is None
    few = np.repeat([0, 1, 2, 3, 4, 5, 6, 6, 7, 7, 8, 8], 10)
    assert too_few(labels, ("a", "b"), few) == "3 groups of common rows of class b, fewer than 5"


def test_folds_have_their_share_of_every_class():
    labels = np.repeat([0, 1, 2], [60, 27, 13])
    folds = assign_folds(labels, 5, seed=0)
    for label, number in ((0, 60), (1, 27), (2, 13)):
        counts = np.bincount(folds[labels == label], minlength=5)
        assert counts.min() >= number // 5
        assert counts.max() <= -(-number // 5)


def test_auto_keeps_soft_where_the_gain_is_within_noise():
    chosen = select(*EQUAL, FitSpec(rule="auto"), combine_probs)
    assert chosen.how == Combination(rule="soft")
    assert set(chosen.rule_scores) == set(RULES)
    assert chosen.gain.low <= 0
    assert "which is within noise" in chosen.note()
    np.testing.assert_allclose(chosen.rows.probs, EQUAL[0].mean(axis=0))


def test_auto_leaves_soft_where_one_member_knows_better_and_its_score_is_honest():
    probs, labels = UNEQUAL
    chosen = select(probs, labels, FitSpec(rule="auto"), combine_probs)
    assert chosen.how.rule in ("weighted", "greedy", "stacking")
    assert chosen.gain.low > 0
    new_probs, new_labels = draw([4.0, 0.0, 0.0, 0.0, 0.0, 0.0], num_rows=20_000, seed=1)
    true = f1_score(new_labels, combine_probs(new_probs, chosen.how).argmax(1), average="macro")
    interval = f1_interval(labels, chosen.rows.probs.argmax(axis=1), NUM_CLASSES)
    assert interval.low <= true <= interval.high


def test_what_is_fitted_to_noise_is_not_praised():
    """Members that guess: whatever is fitted, the score stays that of guessing."""
    probs, labels = draw([0.0] * 6, num_rows=400)
    labels = np.random.default_rng(3).integers(0, NUM_CLASSES, size=400)
    for rule in ("stacking", "greedy"):
        spec = FitSpec(rule=rule, has_offsets=True)
        chosen = select(probs, labels, spec, combine_probs)
        fitted = combine_probs(probs, chosen.how).argmax(axis=1)
        honest = f1_score(labels, chosen.rows.probs.argmax(axis=1), average="macro")
        assert honest < 0.39
        assert f1_score(labels, fitted, average="macro") > honest


def test_too_few_rows_are_named():
    labels = np.repeat([0, 1], [100, 4])
    assert too_few(labels[:99], ("a", "b")) == "99 common rows, fewer than 100"
    assert too_few(labels, ("a", "b")) == "4 common rows of class b, fewer than 5"
    assert too_few(np.repeat([0, 1], [60, 60]), ("a", "b")) is None


def draw_sure(num_rows: int, seed: int = 0):
    """A member that knows how frequent classes are, and is four times as sure as it should be.

    Logits of unit noise and a shift of 1.5 ask for a factor of 1.5.
    """
    probs, labels = draw([1.5], num_rows=num_rows, seed=seed)
    sure = (PRIORS * probs**1.5) ** 4
    return sure / sure.sum(axis=2, keepdims=True), labels


def test_a_temperature_calibrates_rows_that_it_was_not_fitted_on():
    probs, labels = draw_sure(2000)
    chosen = select(probs, labels, FitSpec(rule="soft", has_temperature=True), combine_probs)
    assert chosen.how.temperature == pytest.approx(4, rel=0.1)
    before = calibration_scores(chosen.rows.raw, labels)
    after = calibration_scores(chosen.rows.calibrated, labels)
    assert all(after[name] < before[name] for name in ("nll", "ece", "brier"))
    np.testing.assert_array_equal(chosen.rows.raw.argmax(1), chosen.rows.calibrated.argmax(1))


def test_scales_and_biases_have_the_lowest_nll():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(3), size=400)
    labels = rng.choice(3, size=400)
    scales, biases = fit_scales(probs, labels, 1.3)
    start = np.repeat([1 / 1.3, 0.0], 3)

    def loss(values: np.ndarray) -> float:
        own = softmax(np.log(probs) * values[:3] + values[3:], axis=1)
        return 400 * log_loss(labels, own) + 0.5 * ((values - start) ** 2).sum()

    found = minimize(loss, start, method="BFGS", options={"gtol": 1e-4})
    np.testing.assert_allclose([*scales, *biases], found.x, atol=1e-3)


def draw_skewed(num_rows: int, seed: int = 0):
    """Members that are right on average, but take the last class for too likely."""
    probs, labels = draw([1.5, 1.5], num_rows=num_rows, seed=seed)
    skewed = probs * [1.0, 1.0, 6.0]
    return skewed / skewed.sum(axis=2, keepdims=True), labels


def test_vector_scaling_is_taken_where_classes_are_wrong_by_different_amounts():
    probs, labels = draw_skewed(2000)
    spec = FitSpec(rule="soft", has_temperature=True)
    chosen = select(probs, labels, spec, combine_probs)
    assert chosen.how.scales and chosen.how.temperature == 1
    assert chosen.scaling.nll_gain.low > 0 and chosen.scaling.f1_gain > 0
    before = calibration_scores(chosen.rows.raw, labels)
    after = calibration_scores(chosen.rows.calibrated, labels)
    assert all(after[name] < before[name] for name in ("nll", "ece", "brier"))
    new_probs, new_labels = draw_skewed(20_000, seed=1)
    true = calibration_scores(combine_probs(new_probs, chosen.how), new_labels)
    assert true["nll"] == pytest.approx(after["nll"], rel=0.05)
    assert true["ece"] < 0.02


def test_a_temperature_stays_where_scales_gain_nothing_or_rows_are_few():
    spec = FitSpec(rule="soft", has_temperature=True)
    chosen = select(*draw_sure(2000), spec, combine_probs)
    assert not chosen.how.scales
    assert "within noise" in chosen.scaling.note()
    few = draw_skewed(120)
    assert np.bincount(few[1]).min() < 20
    assert select(*few, spec, combine_probs).scaling is None
    assert select(*draw_skewed(2000), FitSpec(rule="soft"), combine_probs).scaling is None


def test_vector_scaling_that_costs_macro_f1_is_not_taken():
    """A rare class that is made likely on purpose, for macro F1: its probabilities are wrong."""
    rng = np.random.default_rng(0)
    labels = (rng.random(4000) < 0.1).astype(int)
    logits = 1.6 * (0.8 * (2 * labels - 1) + rng.normal(size=4000)) + np.log(0.1 / 0.9)
    likely = 1 / (1 + np.exp(-logits - np.log(0.7 / 0.3)))
    probs = np.stack([1 - likely, likely], axis=1)[None]
    chosen = select(probs, labels, FitSpec(has_temperature=True), combine_probs)
    assert chosen.scaling.nll_gain.low > 0 > chosen.scaling.f1_gain
    assert not chosen.how.scales
    assert "but macro F1 by" in chosen.scaling.note()


def test_auto_scales_with_the_rules_that_it_chose(monkeypatch):
    monkeypatch.setattr(selection, "RULES", ("soft", "weighted"))
    probs, labels = draw([2.0, 1.0], num_rows=300)
    skewed = probs * [1.0, 1.0, 8.0]
    skewed = skewed / skewed.sum(axis=2, keepdims=True)
    chosen = select(skewed, labels, FitSpec(rule="auto", has_temperature=True), combine_probs)
    assert bool(chosen.how.scales) == chosen.scaling.is_taken
    assert (chosen.how.temperature == 1) == chosen.scaling.is_taken
    assert chosen.gain is not None


def test_the_surest_predictions_are_kept_while_enough_are_right():
    confidence = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    is_right = np.array([True, True, False, True, False])
    coverage, accuracy = accuracy_of_surest(confidence, is_right)
    np.testing.assert_allclose(coverage, [0.2, 0.4, 0.6, 0.8, 1])
    np.testing.assert_allclose(accuracy, [1, 1, 2 / 3, 3 / 4, 3 / 5])
    labels = np.zeros(5, dtype=int)
    assert choose_threshold(confidence, is_right, labels, 0.75).threshold == 0.6
    assert choose_threshold(confidence, is_right, labels, 0.9).threshold == 0.8
    # Nothing is sure enough: all are asked about.
    assert choose_threshold(confidence, ~is_right, labels, 0.9).threshold > 1


def test_as_many_new_predictions_are_right_as_was_asked_for():
    probs, labels = draw([1.5, 1.5], num_rows=2000)
    right = probs.mean(axis=0).argmax(axis=1) == labels
    confidence = probs.mean(axis=0).max(axis=1)
    chosen = choose_threshold(confidence, right, labels, 0.95)
    new_probs, new_labels = draw([1.5, 1.5], num_rows=20_000, seed=1)
    kept = new_probs.mean(axis=0).max(axis=1) >= chosen.threshold
    new_right = new_probs.mean(axis=0).argmax(axis=1) == new_labels
    assert right.mean() < 0.92
    assert new_right[kept].mean() == pytest.approx(0.95, abs=0.02)
    assert kept.mean() == pytest.approx(chosen.coverage, abs=0.08)
    assert chosen.accuracy == pytest.approx(0.95, abs=0.03)
