"""Folds: who validates what, and the scores over all of them, through the command line too."""

import csv

import numpy as np
import pytest
from project import PATIENCE, Project
from sklearn.metrics import f1_score, log_loss
from sklearn.model_selection import StratifiedKFold

from pose.config import Recipe
from pose.data.split import fold_of_rows, split_rows, unvalidated_classes
from pose.ensembling.out_of_fold import score_folds
from pose.errors import InputError
from pose.member_key import MemberKey
from pose.predictions import Predictions, read_predictions

# 60, 30 and 10 of three classes, mixed.
LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [60, 30, 10]))


# Members


def test_members_are_named_by_seed_and_fold_and_sorted_by_number():
    keys = [MemberKey(10), MemberKey(2, 1), MemberKey(2, 10), MemberKey(2, 9)]
    assert [str(key) for key in sorted(keys)] == [
        "seed 2 fold 1",
        "seed 2 fold 9",
        "seed 2 fold 10",
        "seed 10",
    ]
    assert MemberKey(2, 9).folder == "seed_2_fold_9"
    assert MemberKey(10).folder == "seed_10"


@pytest.mark.parametrize("key", [MemberKey(7), MemberKey(7, 2)])
def test_a_member_survives_as_tags(key):
    assert MemberKey.from_tags({"run": "x", **key.tags()}) == key
    assert ("fold" in key.tags()) == (key.fold > 0)


def test_a_seed_promises_a_member_per_fold():
    assert Recipe(folds=2).members((5, 3)) == (
        MemberKey(5, 1),
        MemberKey(5, 2),
        MemberKey(3, 1),
        MemberKey(3, 2),
    )
    assert Recipe().members((5, 3)) == (MemberKey(5), MemberKey(3))


def test_folds_are_part_of_the_identity_and_val_fraction_is_not():
    assert "folds" not in Recipe().identity()
    assert Recipe(folds=5).digest() != Recipe().digest()
    assert Recipe(folds=5).digest() == Recipe(folds=5, val_fraction=0.5).digest()


def test_a_budget_is_shared_by_all_members():
    assert Recipe(folds=5, budget="30m", seeds=(0, 1, 2)).member_seconds() == 120
    message = "budget must be at least 5 seconds for each of 15 members, got 60s"
    with pytest.raises(InputError, match=message):
        Recipe(folds=5, budget="60s")


# Split


@pytest.mark.parametrize("seed", range(20))
def test_folds_are_those_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    # The classes in any order, and so that they cannot be dealt out evenly.
    labels = rng.permutation(np.repeat(rng.permutation(4), rng.integers(7, 40, 4)))
    for folds in (2, 5, 7):
        splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
        found = fold_of_rows(labels, folds=folds, split_seed=seed)
        for fold, (_, val) in enumerate(splitter.split(labels, labels), start=1):
            assert np.flatnonzero(found == fold).tolist() == val.tolist()


def test_every_row_validates_once_and_trains_in_the_other_folds():
    recipe = Recipe(folds=4)
    splits = [split_rows(LABELS, recipe, member) for member in recipe.members((9,))]
    assert sorted(np.concatenate([val for _, val in splits])) == list(range(100))
    for train, val in splits:
        assert sorted([*train, *val]) == list(range(100))
        assert np.bincount(LABELS[val]).tolist() in ([15, 7, 2], [15, 7, 3], [15, 8, 2], [15, 8, 3])


def test_seeds_share_the_folds_unless_each_has_its_own_split():
    shared, own = Recipe(folds=4), Recipe(folds=4, split_seed=None)
    members = MemberKey(1, 2), MemberKey(5, 2)
    first, second = (split_rows(LABELS, shared, member)[1].tolist() for member in members)
    assert first == second
    first, second = (split_rows(LABELS, own, member)[1].tolist() for member in members)
    assert first != second


def test_a_class_rarer_than_the_folds_is_spread_and_a_single_row_trains():
    labels = np.append(LABELS, [3, 3, 4])
    found = fold_of_rows(labels, folds=5, split_seed=0)
    assert found[-1] == 0
    assert 0 < found[100] != found[101] > 0
    assert unvalidated_classes(labels, Recipe(folds=5)) == [4]


def test_more_folds_than_images_of_the_largest_class_are_refused():
    with pytest.raises(InputError, match="images of the largest class, 60, got 61"):
        fold_of_rows(LABELS, folds=61, split_seed=0)


@pytest.mark.parametrize("folds", [-1, 1])
def test_one_fold_is_refused(folds):
    with pytest.raises(InputError, match=f"folds must be 0 or at least 2, got {folds}"):
        Recipe(folds=folds)


# Scores


def predictions(ids: str, *probs: list[float], labels: list[int]) -> Predictions:
    return Predictions(
        ids=tuple(ids), probs=np.array(probs), class_labels=("x", "y"), labels=np.array(labels)
    )


# Two seeds of two folds: rows a, b and c, d; the second seed names them in another order.
MEMBERS = {
    MemberKey(0, 1): predictions("ab", [0.9, 0.1], [0.4, 0.6], labels=[0, 0]),
    MemberKey(0, 2): predictions("cd", [0.2, 0.8], [0.6, 0.4], labels=[1, 1]),
    MemberKey(1, 1): predictions("ba", [0.7, 0.3], [0.5, 0.5], labels=[0, 0]),
    MemberKey(1, 2): predictions("dc", [0.3, 0.7], [0.4, 0.6], labels=[1, 1]),
}


def test_out_of_fold_scores_by_hand():
    scored = score_folds(MEMBERS, 2)
    assert scored is not None
    assert scored.predictions.ids == ("a", "b", "c", "d")
    expected = [[0.7, 0.3], [0.55, 0.45], [0.3, 0.7], [0.45, 0.55]]
    np.testing.assert_allclose(scored.predictions.probs, expected)
    assert scored.ensemble["f1"] == 1
    assert scored.ensemble["nll"] == pytest.approx(log_loss([0, 0, 1, 1], expected))
    # Seed 0 says 0, 1, 1, 0; seed 1 says 0, 0, 1, 1.
    assert scored.seeds[0]["f1"] == pytest.approx(0.5)
    assert scored.seeds[1]["f1"] == 1
    # In its fold each member of seed 0 has one of two right: F1 2/3 and 0 of the two classes.
    assert scored.folds == pytest.approx({1: (1 / 3 + 1) / 2, 2: (1 / 3 + 1) / 2})


def test_a_seed_without_all_folds_is_not_scored():
    partial = {key: own for key, own in MEMBERS.items() if key != MemberKey(1, 2)}
    scored = score_folds(partial, 2)
    assert scored is not None
    assert set(scored.seeds) == {0}
    assert scored.ensemble == scored.seeds[0]
    assert score_folds({MemberKey(1, 1): MEMBERS[MemberKey(1, 1)]}, 2) is None


# The command line

FOLDED = {"model": "simple_cnn", "run_name": "folded", "image_size": 16, "folds": 2}
FOLDED |= {"seeds": "7,8", "num_epochs": 2, "batch_size": 16, "augmentation": "none"}


@pytest.fixture(scope="module")
def data(tmp_path_factory, make_dataset):
    folder = tmp_path_factory.mktemp("folds_data") / "data"
    return make_dataset(folder, num_per_class=(40, 30), size=20, num_test=8)


@pytest.fixture(scope="module")
def project(tmp_path_factory, data) -> Project:
    """Two seeds of two folds, stopped while the third member trained, continued elsewhere."""
    made = Project(tmp_path_factory.mktemp("folds") / "pose")
    long = {**FOLDED, "num_epochs": 60}
    process = made.start(*made.train_command(dataset=data, **long))
    while "seed 8 fold 1 epoch" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
    process.terminate()
    process.communicate(timeout=PATIENCE)
    # What was finished is taken from MLflow where the folder is gone.
    (made.folder / "outputs" / "folded" / "seed_7_fold_1").rename(made.folder / "lost")
    made.output = made.mlflow_run("train", dataset=data, **long)
    return made


def test_a_stopped_run_of_folds_is_continued_member_by_member(project):
    for member in ("seed 7 fold 1", "seed 7 fold 2"):
        assert f"{member}: finished before" in project.output
    assert "seed 8 fold 1: simple_cnn at 16 px, at most 60 epochs, continued" in project.output
    (parent,) = project.runs("train")
    assert parent.data.tags["is_complete"] == "true"
    assert (parent.data.tags["seeds"], parent.data.tags["folds"]) == ("7,8", "2")
    children = project.children(parent)
    names = ["seed_7_fold_1", "seed_7_fold_2", "seed_8_fold_1", "seed_8_fold_2"]
    assert [child.info.run_name for child in children] == names
    assert [child.data.tags["fold"] for child in children] == ["1", "2", "1", "2"]
    assert [child.data.params["fold"] for child in children] == ["1", "2", "1", "2"]
    versions = project.client().search_model_versions("name = 'pose'")
    assert len({version.tags["weights_sha256"] for version in versions}) == 4
    assert sorted((v.tags["seed"], v.tags["fold"]) for v in versions) == [
        ("7", "1"), ("7", "2"), ("8", "1"), ("8", "2"),
    ]  # fmt: skip


def test_the_parent_has_the_scores_over_all_rows(project, tmp_path):
    (parent,) = project.runs("train")
    of_seed: dict[str, dict[str, np.ndarray]] = {}
    labels = {}
    for child in project.children(parent):
        path = project.client().download_artifacts(
            child.info.run_id, "val_predictions.csv", str(tmp_path)
        )
        own = read_predictions(path)
        of_seed.setdefault(child.data.tags["seed"], {}).update(zip(own.ids, own.probs, strict=True))
        labels.update(zip(own.ids, own.labels, strict=True))
    assert len(labels) == 70
    true = list(labels.values())
    metrics = parent.data.metrics
    scores = []
    for seed, probs in of_seed.items():
        assert set(probs) == set(labels)
        preds = [int(probs[image_id].argmax()) for image_id in labels]
        scores.append(f1_score(true, preds, average="macro"))
        assert metrics[f"oof_f1/seed_{seed}"] == pytest.approx(scores[-1])
    assert metrics["oof_f1_mean"] == pytest.approx(np.mean(scores))
    mean = {image_id: (of_seed["7"][image_id] + of_seed["8"][image_id]) / 2 for image_id in labels}
    expected = f1_score(true, [int(mean[i].argmax()) for i in labels], average="macro")
    assert metrics["oof_f1"] == pytest.approx(expected)
    path = project.client().download_artifacts(parent.info.run_id, "out_of_fold.csv", str(tmp_path))
    written = read_predictions(path)
    np.testing.assert_allclose(written.probs, [mean[i] for i in written.ids], atol=1e-6)
    note = parent.data.tags["mlflow.note.content"]
    assert f"the ensemble of 2 seeds has macro F1 **{expected:.4f}**" in note


def test_members_of_folds_vote_and_are_scored_on_rows_they_did_not_train_on(project, data):
    out = project.run(*[*project.mlflow_command("ensemble", run="folded", dataset=data)])
    assert out.count("member: folded seed") == 4
    assert "on 70 rows, each predicted by those members that did not train on it (2.0 of 4" in out
    (parent,) = project.runs("train")
    (vote,) = project.runs("ensemble")
    assert vote.data.metrics["val_f1"] == pytest.approx(parent.data.metrics["oof_f1"])
    with open(project.folder / "predictions.csv", newline="") as handle:
        assert len(list(csv.reader(handle))) == 9


def test_an_added_seed_brings_all_its_folds(project, data):
    out = project.run(
        *project.train_command(dataset=data, **{**FOLDED, "num_epochs": 60, "add_seeds": "9"})
    )
    assert "val_f1 of 6 members" in out
    (parent,) = project.runs("train")
    assert parent.data.tags["seeds"] == "7,8,9"
    assert len(project.children(parent)) == 6
    assert "oof_f1/seed_9" in parent.data.metrics
