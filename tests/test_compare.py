"""Two runs on the same rows: numbers against hand, scipy and scikit-learn; and the command."""

import csv
import dataclasses
import json
import math

import mlflow
import numpy as np
import pytest
import scipy.stats
from said import Said
from sklearn.metrics import f1_score

from entrypoints.compare import next_command
from entrypoints.next_step import with_more_seeds
from pose import metrics
from pose.compare import compare_runs
from pose.config import CompareSetup
from pose.ensembling.analysis import mean_probs
from pose.ensembling.comparison import Components, Side, compare, mcnemar, meet
from pose.errors import InputError
from pose.predictions import Predictions, write_predictions
from pose.results import Compared, Further
from pose.tracking import Tracker

# Of MLflow about its own classes, while it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType")

CLASSES = ("<b>", "b", "c")
LABELS = np.random.default_rng(0).integers(0, 3, size=300)


def draw_side(name: str, skills, labels=LABELS, *, seed: int = 0) -> Side:
    """A seed for each of `skills`, right more often the higher it is."""
    rng = np.random.default_rng(seed)
    members = []
    for skill in skills:
        odds = rng.exponential(size=(len(labels), 3))
        odds[np.arange(len(labels)), labels] *= skill
        members.append(predictions_of(odds / odds.sum(axis=1, keepdims=True), labels))
    return Side(
        name=name,
        members=tuple(members),
        groups=tuple(range(len(members))),
        seeds=tuple(f"seed {number}" for number in range(len(members))),
        combine=mean_probs,
    )


def predictions_of(probs, labels, ids=None) -> Predictions:
    ids = ids or tuple(map(str, range(len(labels))))
    return Predictions(ids=ids, probs=probs, class_labels=CLASSES, labels=labels)


def compared(first: Side, second: Side):
    return compare(*meet(first, second), CLASSES)


# Numbers


@pytest.mark.parametrize(
    ("counts", "p_value", "is_exact"),
    [
        # 2 (1 + 20 + 190 + 1140 + 4845 + 15504) / 2**20
        ((5, 15), 0.04138946533203125, True),
        ((0, 0), 1.0, True),
        ((6, 6), 1.0, True),
        # (|30 - 60| - 1)**2 / 90 = 9.3444
        ((30, 60), math.erfc(math.sqrt(9.344444444444445 / 2)), False),
    ],
)
def test_mcnemar_is_what_a_hand_computes(counts, p_value, is_exact):
    test = mcnemar(*counts)
    assert test.p_value == pytest.approx(p_value)
    assert test.is_exact == is_exact


def test_the_interval_of_seeds_alone_is_that_of_welch():
    one, other = np.array([0.91, 0.94, 0.92]), np.array([0.95, 0.93, 0.96, 0.97])
    welch = scipy.stats.ttest_ind(other, one, equal_var=False).confidence_interval()
    variances = tuple(own.var(ddof=1) / len(own) for own in (one, other))
    ours = Components(rows=0, seeds=variances, num_seeds=(3, 4)).margin()
    assert ours == pytest.approx((welch.high - welch.low) / 2)
    rows_alone = Components(rows=0.01**2, seeds=(0, 0), num_seeds=(1, 1)).margin()
    assert rows_alone == pytest.approx(1.959964 * 0.01, rel=1e-5)


def test_scores_and_the_part_of_the_seeds_are_those_of_scikit_learn():
    first, second = draw_side("one", (2, 2, 3)), draw_side("two", (4, 5), seed=1)
    result = compared(first, second)

    def f1(members, average="macro"):
        preds = np.mean([own.probs for own in members], axis=0).argmax(axis=1)
        return f1_score(LABELS, preds, average=average)

    assert result.f1 == pytest.approx((f1(first.members), f1(second.members)))
    assert result.single_f1[0] == pytest.approx([f1([own]) for own in first.members])
    classes = np.array([own.f1 for own in result.classes]).T
    np.testing.assert_allclose(classes[0], f1(first.members, None))
    np.testing.assert_allclose(classes[1], f1(second.members, None))
    without = [f1([own for own in first.members if own is not one]) for one in first.members]
    jackknife = (3 - 1) / 3 * ((np.array(without) - np.mean(without)) ** 2).sum()
    assert result.components.seeds[0] == pytest.approx(jackknife)


def test_the_part_of_the_rows_is_that_of_drawing_them_for_both():
    pair = meet(draw_side("one", (2, 2, 3)), draw_side("two", (3, 4), seed=1))
    rng = np.random.default_rng(5)
    drawn = rng.integers(0, len(LABELS), size=(400, len(LABELS)))
    scores = [[metrics.f1_of(own.combined[rows], LABELS[rows]) for own in pair] for rows in drawn]
    variance = np.var(np.diff(scores, axis=1))
    assert compare(*pair, CLASSES).components.rows == pytest.approx(variance, rel=0.25)


def test_an_interval_covers_the_difference_that_other_seeds_and_rows_have():
    """Members alike but for chance: the true difference is 0."""
    rng = np.random.default_rng(0)
    covered = []
    for number in range(40):
        labels = rng.integers(0, 3, size=200)
        skills = rng.lognormal(1, 0.4, size=(2, 3))
        sides = (
            draw_side(name, own, labels, seed=1000 * number + place)
            for place, (name, own) in enumerate(zip("ab", skills, strict=True))
        )
        result = compared(*sides)
        covered.append(abs(result.difference) <= result.margin)
    assert 0.87 <= np.mean(covered) <= 1


def test_seeds_that_would_settle_it_are_the_fewest_that_would():
    first, second = draw_side("one", (2, 2.6, 3.2)), draw_side("two", (2.6, 3.2, 3.9), seed=3)
    result = compared(first, second)
    number = result.more_seeds()
    assert number is not None and not result.is_settled
    assert result.components.margin(number) < abs(result.difference)
    assert number == 1 or result.components.margin(number - 1) >= abs(result.difference)
    assert f"{number} more seeds of each would settle it" in result.sentence() or number == 1
    far = dataclasses.replace(result, f1=(0.1, 0.9))
    assert far.is_settled and far.more_seeds() is None
    assert far.sentence() == (
        f"two is better than one by 80.00 ± {100 * far.margin:.2f} points of macro F1 on 300 "
        "common rows"
    )
    near = dataclasses.replace(result, f1=(0.5, 0.5001))
    assert near.sentence().endswith("which may be chance; 30 more seeds would not settle it")
    equal = dataclasses.replace(result, f1=(0.5, 0.5))
    assert equal.sentence().startswith("one and two are equal, 0.00 ± ")


def test_one_seed_has_no_spread_and_the_sentence_says_so():
    result = compared(draw_side("one", (3,)), draw_side("two", (3.1, 3), seed=1))
    assert result.components.seeds[0] == 0
    assert abs(result.difference) > result.margin, "of the rows alone"
    assert not result.is_settled and result.more_seeds() is None
    assert result.sentence().endswith(
        "not counting how far seeds differ: one with one seed cannot tell, a second one would"
    )


# Rows


def test_rows_are_joined_by_id():
    first, second = draw_side("one", (3, 3)), draw_side("two", (4, 4), seed=1)
    order = np.random.default_rng(2).permutation(len(LABELS))
    ids = [own.ids[row] for own in second.members[:1] for row in order]
    shuffled = dataclasses.replace(second, members=tuple(own.take(ids) for own in second.members))
    assert compared(first, shuffled) == compared(first, second)


def test_folds_of_a_seed_are_one_seed():
    whole, rival = draw_side("one", (3, 4)), draw_side("two", (4,), seed=1)
    halves = [tuple(map(str, range(start, 300, 2))) for start in (0, 1)]
    folds = Side(
        name="one",
        members=tuple(own.take(half) for own in whole.members for half in halves),
        groups=(0, 0, 1, 1),
        seeds=whole.seeds,
        combine=mean_probs,
    )
    assert compared(folds, rival).f1 == pytest.approx(compared(whole, rival).f1)
    assert compared(folds, rival).components.num_seeds == (2, 1)


def test_rows_that_members_split_apart_are_left_to_those_that_did_not_train_on_them():
    parts = [tuple(map(str, range(start, start + 100))) for start in (0, 70)]
    side = draw_side("one", (3, 4))
    apart = dataclasses.replace(
        side, members=tuple(own.take(ids) for own, ids in zip(side.members, parts, strict=True))
    )
    first, second = meet(apart, draw_side("two", (3,), seed=1))
    assert len(first.rows.ids) == 170
    np.testing.assert_allclose(first.combined[0], side.members[0].probs[0])
    result = compare(first, second, CLASSES)
    assert result.num_rows == 170
    assert math.isfinite(result.margin)


def test_too_few_common_rows_and_unlike_labels_are_refused():
    first, second = draw_side("one", (3,)), draw_side("two", (3,), seed=1)
    few = tuple(map(str, range(40)))
    with pytest.raises(InputError, match="at least 50 validation rows in common.*found 40"):
        compared(first, dataclasses.replace(second, members=(second.members[0].take(few),)))
    other = dataclasses.replace(second.members[0], labels=(LABELS + 1) % 3)
    with pytest.raises(InputError, match="agree on the true label"):
        compared(first, dataclasses.replace(second, members=(other,)))
    unknown = dataclasses.replace(second.members[0], labels=None)
    with pytest.raises(InputError, match="labelled validation rows, member 1 of two has none"):
        compared(first, dataclasses.replace(second, members=(unknown,)))


# The next command


@pytest.mark.parametrize(
    ("command", "again"),
    [
        (
            "python -m entrypoints.train --run a",
            "python -m entrypoints.train --run a --add_seeds 4",
        ),
        (
            "mlflow run '/a b' -e train -P run=a",
            "mlflow run '/a b' -e train -P run=a -P add_seeds=4",
        ),
        ("mlflow run . -P add_seeds=3 -P run=a", "mlflow run . -P run=a -P add_seeds=4"),
        ("", ""),
    ],
)
def test_seeds_are_added_with_the_command_that_trained(command, again):
    assert with_more_seeds(command, "4") == again


@pytest.mark.parametrize(
    ("further", "winner", "command"),
    [
        (
            (Further(name="tiny", command="", seeds=(7, 8)), 2),
            None,
            "python -m entrypoints.train --run tiny --add_seeds 9,10",
        ),
        (None, "tiny", "python -m entrypoints.ensemble --run tiny"),
        (None, None, "mlflow ui"),
    ],
)
def test_the_next_command_brings_the_question_further(further, winner, command, tmp_path):
    result = Compared(run_id="", folder=tmp_path, comparison=None, further=further, winner=winner)
    assert next_command(result, None) == command


# The command


@pytest.fixture(scope="module")
def place(tmp_path_factory, make_dataset):
    """Data and a store in which runs `one` and `two` of two seeds are recorded as training does.

    `test_a_vote_and_its_run_are_compared` in test_votes.py compares what was really trained.
    """
    folder = tmp_path_factory.mktemp("compare")
    data = make_dataset(folder / "data", num_per_class=30, labels=CLASSES, size=24, num_test=3)
    with open(data / "train_solution.csv", newline="", encoding="utf-8") as handle:
        label_of = {row["id"]: row["label"] for row in csv.DictReader(handle)}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        mlflow.set_tracking_uri(None)
        mlflow.MlflowClient().create_registered_model("pose")
        labels = np.array([CLASSES.index(label) for label in label_of.values()])
        for number, (name, skills) in enumerate({"one": (2, 3), "two": (5, 6)}.items()):
            side = draw_side(name, skills, labels, seed=number)
            record_run(side, tuple(label_of), data, folder / f"{name}.csv")
        yield folder
    mlflow.set_tracking_uri(None)


def record_run(side: Side, ids: tuple[str, ...], data, staging) -> None:
    client = mlflow.MlflowClient()
    tags = {"run": side.name, "seeds": "0,1", "dataset": str(data), "dataset_digest": "d1"}
    parent = client.create_run("0", tags={**tags, "kind": "train", "is_complete": "true"}).info
    staging = staging.with_name("val_predictions.csv")
    for seed, own in enumerate(side.members):
        own_tags = {"run": side.name, "seed": str(seed), "parent_run_id": parent.run_id}
        nested = {"kind": "seed", "mlflow.parentRunId": parent.run_id, **own_tags}
        run_id = client.create_run("0", tags=nested).info.run_id
        write_predictions(staging, dataclasses.replace(own, ids=ids))
        client.log_artifact(run_id, str(staging))
        client.set_terminated(run_id)
        client.create_model_version(
            "pose", str(staging), run_id, tags={**own_tags, "dataset_digest": "d1"}
        )
    client.set_terminated(parent.run_id)


def run_compare(**settings) -> tuple[Compared, str]:
    display = Said()
    return compare_runs(CompareSetup(**settings), Tracker(), display), display.text


def test_two_runs_are_compared_in_a_run_of_their_own(place):
    done, said = run_compare(runs="one,two", out_dir="new/comparison")
    assert "run: one, " in said and "2 of 2 members" in said
    values = json.loads((place / "new/comparison/comparison.json").read_text())
    with open(place / "new/comparison/comparison.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert values["num_rows"] == len(rows) == 90
    labels = [row["label"] for row in rows]
    for number, name in enumerate(("first", "second")):
        preds = [row[f"pred_{name}"] for row in rows]
        assert values["f1"][number] == pytest.approx(f1_score(labels, preds, average="macro"))
    run = mlflow.get_run(done.run_id)
    assert run.data.tags["kind"] == "compare"
    assert run.info.status == "FINISHED"
    assert run.data.metrics["f1_difference"] == pytest.approx(values["difference"])
    assert values["sentence"] in run.data.tags["mlflow.note.content"]
    files = {file.path for file in mlflow.MlflowClient().list_artifacts(done.run_id)}
    assert files == {"report.html", "comparison.json", "comparison.csv"}
    page = (place / "new/comparison/report.html").read_text(encoding="utf-8")
    assert done.comparison.sentence() in page
    assert "<b>&lt;b&gt;</b>" in page and "<b><b>" not in page, "names from data are escaped"
    differ = {}
    for row in rows:
        kind = tuple(row[f"pred_{name}"] == row["label"] for name in ("first", "second"))
        if row["pred_first"] != row["pred_second"]:
            differ[kind] = differ.get(kind, 0) + 1
    assert page.count("<figure><img") == sum(min(12, number) for number in differ.values())
    assert page.count("one: <b") == page.count("two: <b") == page.count("<figure><img")


def test_the_data_may_be_elsewhere_and_a_run_is_found_by_its_id(place):
    first, _ = run_compare(runs="one,two")
    parents = mlflow.search_runs(filter_string="tags.kind = 'train'", order_by=["start_time"])
    (place / "data").rename(place / "away")
    try:
        second, said = run_compare(runs=",".join(parents["run_id"]))
        third, told = run_compare(runs="one,two", dataset="away")
    finally:
        (place / "away").rename(place / "data")
    assert "no images on the page: the data folder is not here" in said
    assert "no images" not in told
    assert first.comparison == second.comparison == third.comparison


def test_runs_that_cannot_be_compared_are_refused_in_a_line(place):
    with pytest.raises(InputError, match="found none of 'nobody'; there are: one, "):
        run_compare(runs="one,nobody")
    client = mlflow.MlflowClient()
    (seed, *_) = mlflow.search_runs(filter_string="tags.kind = 'seed'")["run_id"]
    with pytest.raises(InputError, match="is of the kind seed"):
        run_compare(runs=f"one,{seed}")
    (parent,) = mlflow.search_runs(filter_string="tags.kind = 'train' and tags.run = 'one'")[
        "run_id"
    ]
    with pytest.raises(InputError, match="two different ones, both are"):
        run_compare(runs=f"one,{parent}")
    version = client.search_model_versions("tags.run = 'two'")[0]
    digest = version.tags["dataset_digest"]
    client.set_model_version_tag("pose", version.version, "dataset_digest", "other")
    num_runs = len(mlflow.search_runs())
    with pytest.raises(InputError, match="must be trained on the same data.*two: .*other"):
        run_compare(runs="one,two", out_dir="not_made")
    client.set_model_version_tag("pose", version.version, "dataset_digest", digest)
    assert not (place / "not_made").exists()
    assert len(mlflow.search_runs()) == num_runs


@pytest.mark.parametrize("runs", [None, "one", "one,one", "one,two,three"])
def test_runs_must_be_two(runs):
    with pytest.raises(InputError, match="runs must be two different ones joined by a comma"):
        CompareSetup(runs=runs)
