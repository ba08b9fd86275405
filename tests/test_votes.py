"""Votes in this process, on three tiny members in a store of MLflow's own."""

import contextlib
import csv
import dataclasses
import importlib.util
import json
import re
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from mlflow.entities.model_registry import ModelVersion
from mlflow.models.cli import commands as models_commands
from said import Said

from pose import ballot
from pose.cluster import joined
from pose.compare import compare_runs
from pose.config import CompareSetup, ExportSetup, Setup, VoteSetup
from pose.display import NoDisplay
from pose.distil import bring_soft_labels
from pose.ensembling.fit import FitSpec
from pose.ensembling.held_out import decide, with_abstention
from pose.ensembling.members import check_classes
from pose.errors import InputError
from pose.export_command import export_model
from pose.look import look_again
from pose.member_key import MemberKey
from pose.named_runs import resolve_run
from pose.plan import make_plan
from pose.restore import restore_results
from pose.results import Vote
from pose.run import train_run
from pose.tracking import Tracker
from pose.tracking.models import load_model
from pose.vote import combine_probs, vote, with_views
from pose_models.decode import read_image

# Of MLflow about its own classes, while it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType")

TEST_IDS = [str(number) for number in range(1000, 1012)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, make_dataset):
    """Data, and a store with a run `tiny` of three seeds on it."""
    folder = tmp_path_factory.mktemp("votes")
    data = make_dataset(folder / "data", num_per_class=(400, 200), size=32)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        # MLflow remembers the store of the test before.
        mlflow.set_tracking_uri(None)
        train(data)
    return folder


def train(data: Path, registry_name: str = "pose", **changes: object) -> None:
    """Train a run `tiny` in the folder and the store of the moment."""
    small = {"model": "simple_cnn", "image_size": 16, "num_epochs": 2, "batch_size": 64, **changes}
    setup = Setup(dataset=str(data), registry_name=registry_name)
    plan = make_plan(resolve_run(None, "tiny", small), setup)
    train_run(plan, Tracker(), NoDisplay(), lambda: None)


class Place:
    """A copy of the store and of the data, to be changed by one test."""

    def __init__(self, trained: Path, folder: Path) -> None:
        self.data = folder / "data"
        shutil.copytree(trained / "data", self.data)
        shutil.copy(trained / "mlflow.db", folder)
        self.store = f"sqlite:///{folder / 'mlflow.db'}"
        self.out = folder / "predictions.csv"
        self.said = ""

    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(tracking_uri=self.store, registry_uri=self.store)

    def vote(self, **settings: object) -> Vote:
        display = Said()
        setup = VoteSetup(**{"dataset": str(self.data), "out_path": str(self.out), **settings})
        try:
            return vote(setup, Tracker(), display)
        finally:
            self.said = display.text


@pytest.fixture
def place(trained, tmp_path, monkeypatch) -> Iterator[Place]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    # MLflow remembers the store of the test before.
    mlflow.set_tracking_uri(None)
    yield Place(trained, tmp_path)
    mlflow.set_tracking_uri(None)


# The form of predictions.csv


def test_the_sample_decides_names_and_order(place):
    rows = [f"{i}.jpg" for i in reversed(TEST_IDS)]
    sample = "\n".join(["Label,ID", *(f"0,{row}" for row in rows)])
    (place.data / "sample_submission.csv").write_text(sample)
    place.vote()
    header, *written = place.out.read_text().splitlines()
    assert header == "Label,ID"
    assert [line.partition(",")[2] for line in written] == rows
    by_id = {line.partition(",")[2].removesuffix(".jpg"): line[0] for line in written}
    (place.data / "sample_submission.csv").unlink()
    place.vote()
    assert place.out.read_text().splitlines() == [
        "id,label",
        *(f"{i},{by_id[i]}" for i in TEST_IDS),
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (TEST_IDS[2:], r"found 2 missing \(1000, 1001\)"),
        ([*TEST_IDS, "7", "x"], r"found 2 without an image \(7, x\)"),
        ([*TEST_IDS, "1003.jpg"], r"found 1 twice \(1003\)"),
    ],
)
def test_a_sample_of_other_ids_is_refused_before_anything_is_predicted(place, rows, message):
    sample = "\n".join(["id,label", *(f"{row},0" for row in rows)])
    (place.data / "sample_submission.csv").write_text(sample)
    with pytest.raises(InputError, match=message):
        place.vote()
    assert "member:" not in place.said
    assert not place.out.exists()


# On a cluster


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is an extra")
def test_a_cluster_votes_to_the_same_bytes_and_goes_on_after_a_kill(place, tmp_path, monkeypatch):
    monkeypatch.setattr(ballot, "SHARD_FILES", 5)
    shutil.copy(place.data / "train_solution.csv", place.data / "test_images" / "1003.jpg")
    asked = {"skip_bad_images": True, "probabilities": True, "tta": "shift", "threads": 1}
    place.vote(**asked)
    expected = place.out.read_bytes()
    lock = place.out.with_name("ensemble.json").read_text()
    cache = tmp_path / "cache"
    asked |= {"engine": "ray", "cache_root": str(cache)}

    class Interrupted(Said):
        def predict_progress(self, done: int, total: int) -> None:
            assert total == 3
            if done == 2:
                raise KeyboardInterrupt

    with joined(1):
        setup = VoteSetup(dataset=str(place.data), out_path=str(place.out), **asked)
        with pytest.raises(KeyboardInterrupt):
            vote(setup, Tracker(), Interrupted())
        kept = sorted(cache.glob("ballots/*/*.npz"))
        assert len(kept) == 2
        # What a flipped bit has changed is asked about again.
        data = bytearray(kept[0].read_bytes())
        data[len(data) // 2] ^= 1
        kept[0].write_bytes(data)
        place.out.unlink()
        place.vote(**asked)
    assert "continued: 1 of 3 shards were predicted before" in place.said
    assert "1 unreadable test images left out: 1003.jpg" in place.said
    assert place.out.read_bytes() == expected
    assert place.out.with_name("ensemble.json").read_text() == lock
    assert not list(cache.glob("ballots/*"))


# Members are those that the run promised


def version_of(client: mlflow.MlflowClient, seed: int) -> ModelVersion:
    (found,) = client.search_model_versions(f"name = 'pose' and tags.seed = '{seed}'")
    return found


def delete_version(client):
    client.delete_model_version("pose", version_of(client, 1).version)


def fail(client):
    run_id = version_of(client, 1).run_id
    client.set_tag(run_id, "stop_reason", "diverged")
    client.set_terminated(run_id, "FAILED")


def run_on(client):
    client.update_run(version_of(client, 1).run_id, status="RUNNING")


def delete_run(client):
    client.delete_run(version_of(client, 1).run_id)


def register_again(client, seed: int = 1):
    """The model of seed 1 as another version, of seed 1 or of another seed."""
    found = version_of(client, 1)
    client.create_model_version(
        "pose", found.source, found.run_id, tags={**found.tags, "seed": str(seed)}
    )


def promise_less(client):
    client.set_tag(version_of(client, 1).tags["parent_run_id"], "seeds", "0,2")


def change_data(client):
    client.set_model_version_tag("pose", version_of(client, 1).version, "dataset_digest", "f00d")


def copy_a_seed(client):
    """The weights of seed 1 under the name of seed 2."""
    client.delete_model_version("pose", version_of(client, 2).version)
    register_again(client, seed=2)


FAULTS = {
    delete_version: "tiny seed 1: no version",
    fail: r"tiny seed 1: models:/pose/2, its run is failed \(diverged\)",
    run_on: "tiny seed 1: models:/pose/2, its run is running",
    delete_run: "tiny seed 1: models:/pose/2, its run is deleted",
    register_again: "tiny seed 1: models:/pose/2, models:/pose/4, 2 versions",
    promise_less: "tiny seed 1: models:/pose/2, its run did not promise it",
    change_data: r"tiny seed 1: models:/pose/2, trained on other data \(f00d, not",
    copy_a_seed: "tiny seed 2: sha256 .*, the weights of tiny seed 1",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_members_that_are_not_as_promised_are_refused_with_a_table(place, fault):
    fault(place.client())
    with pytest.raises(InputError, match=f"1 of 3 that are not: {FAULTS[fault]}.*--allow-missing"):
        place.vote()
    lines = place.said.splitlines()
    (marked,) = [line for line in lines if line.startswith("x tiny seed")]
    assert [line.split()[:3] for line in lines if line.startswith("  tiny")]
    assert re.search(FAULTS[fault].partition(": ")[2].split(",")[0], marked)
    assert not place.out.exists()


def test_missing_members_are_allowed_when_asked_for_and_it_is_recorded(place):
    delete_version(place.client())
    voted = place.vote(allow_missing=True)
    assert [member.registered.seed for member in voted.members] == [0, 2]
    assert voted_tags(place, voted)["allowed"] == "tiny seed 1: no version"
    assert "x tiny seed 1  one version, finished  no version" in place.said


def test_a_double_votes_once_where_it_is_allowed(place):
    copy_a_seed(place.client())
    voted = place.vote(allow_missing=True)
    assert [member.registered.seed for member in voted.members] == [0, 1]
    assert "the weights of tiny seed 1" in voted_tags(place, voted)["allowed"]


def voted_tags(place: Place, voted: Vote) -> dict[str, str]:
    return place.client().get_run(voted.run_id).data.tags


def test_members_of_other_classes_never_vote_together(place):
    members = place.vote().members
    card = dataclasses.replace(members[1].card, labels=("1", "0"))
    other = dataclasses.replace(members[1], card=card)
    with pytest.raises(InputError, match="the same in another order, 1, 0"):
        check_classes([members[0], other])


# A lock repeats a vote


def test_a_lock_writes_the_same_predictions_byte_for_byte(place):
    sample = "\n".join(["Id,Category", *(f"{i}.jpg,0" for i in reversed(TEST_IDS))])
    (place.data / "sample_submission.csv").write_text(sample)
    first = place.vote(voting="hard")
    written, lock = place.out.read_bytes(), place.out.with_name("ensemble.json").read_text()
    # Another finished version of a member, which a new vote would stop at.
    register_again(place.client())
    place.out.unlink()
    again = place.vote(lock="ensemble.json")
    assert place.out.read_bytes() == written
    assert place.out.with_name("ensemble.json").read_text() == lock
    assert "the predictions are those of the lock, byte for byte" in place.said
    assert "differs from the lock" not in place.said
    assert again.voting == "hard"
    # The same by the vote's run, into a file of another name, with a lock of its own.
    other = place.out.with_name("other.csv")
    place.vote(lock=first.run_id, out_path=str(other))
    assert other.read_bytes() == written
    assert other.with_name("other_ensemble.json").read_text() == lock


def test_a_lock_says_what_differs(place):
    place.vote()
    path = place.out.with_name("ensemble.json")
    values = json.loads(path.read_text())
    values["conditions"]["torch"] = "1.0"
    path.write_text(json.dumps(values))
    (place.data / "test_images" / "1000.jpg").unlink()
    place.vote(lock=str(path))
    assert f"differs from the lock: torch: 1.0 in the lock, {version('torch')} here" in place.said
    assert "differs from the lock: test images: " in place.said
    assert "warning: the predictions are not byte for byte those of the lock" in place.said


def test_a_lock_of_other_weights_is_refused(place):
    place.vote()
    path = place.out.with_name("ensemble.json")
    values = json.loads(path.read_text())
    values["members"][1]["weights_sha256"] = "f00d"
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match="tiny seed 1 must be the model that was registered as"):
        place.vote(lock=str(path))
    path.write_text(json.dumps(values)[:-9])
    with pytest.raises(InputError, match="lock must be a whole ensemble.json"):
        place.vote(lock=str(path))
    with pytest.raises(InputError, match="lock must be a file, or the id of a vote that has an"):
        place.vote(lock="nowhere.json")


# The rules


@pytest.mark.parametrize("voting", ["rank", "weighted", "greedy", "stacking", "auto"])
def test_the_registered_ensemble_gives_the_labels_of_predictions_csv(place, voting):
    # One of them with test-time augmentation, which is part of the model then.
    views = "flip,shift,zoom" if voting == "greedy" else None
    voted = place.vote(voting=voting, tta=views)
    assert ("test-time augmentation: 7 views, " in place.said) == (views is not None)
    if voting == "auto":
        assert "over soft" in voted.decision.note or "within noise" in voted.decision.note
    else:
        assert voted.voting == voting
    (version,) = place.client().search_model_versions(
        f"name = 'pose-ensemble' and run_id = '{voted.run_id}'"
    )
    ensemble = mlflow.pytorch.load_model(f"models:/pose-ensemble/{version.version}").eval()
    assert ensemble.how == voted.decision.how
    with open(place.out, newline="") as handle:
        _, *rows = csv.reader(handle)
    files = [place.data / "test_images" / f"{image_id}.jpg" for image_id, _ in rows]
    pixels = np.stack([read_image(path.read_bytes(), 16) for path in files])
    with torch.no_grad():
        preds = ensemble(torch.from_numpy(pixels)).argmax(dim=1)
    assert [ensemble.labels[pred] for pred in preds.tolist()] == [label for _, label in rows]
    metrics = place.client().get_run(voted.run_id).data.metrics
    assert metrics["val_f1_low"] <= metrics["val_f1"] <= metrics["val_f1_high"]


def test_a_vote_in_a_container_has_what_it_needs(place, tmp_path, monkeypatch):
    place.vote()
    # As `mlflow models generate-dockerfile -m ... -d image --env-manager local`.
    image = tmp_path / "image"
    command = ["generate-dockerfile", "-m", "models:/pose-ensemble/1", "-d", str(image)]
    done = CliRunner().invoke(models_commands, [*command, "--env-manager", "local"])
    assert done.exit_code == 0, done.output
    dockerfile = (image / "Dockerfile").read_text()
    assert "COPY model_dir /opt/ml/model" in dockerfile
    assert "_install_pyfunc_deps('/opt/ml/model'" in dockerfile
    requirements = (image / "model_dir" / "requirements.txt").read_text()
    names = {re.split("[=<>!~ ]", line)[0].lower() for line in requirements.splitlines()}
    assert {"mlflow", "torch", "torchvision", "numpy", "pillow", "simplejpeg"} <= names
    assert not names & {"kagglehub", "scikit-learn", "matplotlib"}
    assert "+" not in requirements
    # What is copied answers alone, without the store that it came from.
    (tmp_path / "mlflow.db").unlink()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
    model = mlflow.pyfunc.load_model(str(image / "model_dir"))
    files = sorted((place.data / "test_images").glob("*.jpg"))
    with open(place.out, newline="") as handle:
        labels = [row["label"] for row in csv.DictReader(handle)]
    assert list(model.predict([str(path) for path in files])["label"]) == labels


def test_too_few_rows_make_a_vote_soft_and_it_says_so(place):
    members = place.vote().members
    few = [
        dataclasses.replace(m, val_predictions=m.val_predictions.take(m.val_predictions.ids[:60]))
        for m in members
    ]
    decision = decide(few, FitSpec(rule="auto"), combine_probs)
    assert decision.how.rule == "soft"
    assert decision.note == "soft, nothing fitted: 60 common rows, fewer than 100"
    assert decision.score.num_rows == 60
    with pytest.raises(InputError, match="abstain must have rows to choose a confidence on, found"):
        with_abstention(decision, 0.9)


def test_flips_are_refused_where_a_class_has_no_mirror_image(place):
    members = place.vote(tta="shift").members
    lonely = dataclasses.replace(
        members[0], card=dataclasses.replace(members[0].card, mirrors=(-1, 1))
    )
    with pytest.raises(InputError, match="as classes.csv says of 0: take shift and zoom"):
        with_views([], [lonely], ("flip",))


def test_looks_are_chosen_on_validation_images_and_what_they_cost_is_recorded(place):
    voted = place.vote(tta="auto")
    trial = voted.decision.views
    assert "test-time augmentation: flip, shift, zoom are tried on 120 validation" in place.said
    assert voted.decision.how.tta == (trial.best if trial.is_kept else ())
    assert trial.note() in voted.decision.note
    run = place.client().get_run(voted.run_id)
    assert run.data.metrics["time/tta_choice_seconds"] == trial.seconds > 0
    assert run.data.metrics["tta_f1/flip-shift-zoom"] == trial.scores["flip", "shift", "zoom"]
    assert len([name for name in run.data.metrics if name.startswith("tta_f1/")]) == 8
    plain = decide(voted.members, FitSpec(), combine_probs).score
    assert run.data.metrics["tta_f1/none"] == pytest.approx(plain.ensemble["val_f1"])
    assert "| flip, shift, zoom | " in run.data.tags["mlflow.note.content"]


def test_looks_are_not_chosen_on_images_that_changed_or_are_gone(place):
    images = sorted((place.data / "train_images").iterdir())
    held = images[0].read_bytes()
    for path in images:
        path.write_bytes(held)
    voted = place.vote(tta="auto")
    assert "; one look: tiny seed 0 predicts its validation rows" in voted.decision.note
    assert (voted.decision.how.tta, voted.decision.views) == ((), None)

    def reason() -> str:
        setup = VoteSetup(tta="auto")
        return look_again([], voted.members, place.data, setup, NoDisplay()).reason

    for path in images[50:]:
        path.unlink()
    assert re.match(r".*/data lacks \d+ images that validated: ", reason())
    (place.data / "train_solution.csv").unlink()
    assert reason().startswith("the labelled images cannot be read (")


# Probabilities, and when to ask


def test_probabilities_confidence_and_ask_are_columns_that_a_lock_repeats(place):
    voted = place.vote(voting="hard", thresholds=True, probabilities=True, abstain=0.8)
    written = place.out.read_bytes()
    with open(place.out, newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert list(rows[0]) == ["id", "label", "p_0", "p_1", "confidence", "ask"]
    for row in rows:
        assert float(row["p_0"]) + float(row["p_1"]) == pytest.approx(1, abs=2e-6)
        assert row["confidence"] == row[f"p_{row['label']}"]
        margin = float(row["confidence"]) - voted.decision.abstention.threshold
        # The file has six digits of it.
        assert abs(margin) < 1e-5 or row["ask"] == str(margin < 0).lower()
    run = place.client().get_run(voted.run_id)
    assert {
        f"calibration/{score}_{stage}"
        for score in ("nll", "ece", "brier")
        for stage in ("before", "after")
    } < set(run.data.metrics)
    assert run.data.metrics["val_nll"] == run.data.metrics["calibration/nll_after"]
    names = {item.path for item in place.client().list_artifacts(voted.run_id)}
    assert {"reliability.png", "risk_coverage.png"} < names
    # What is served says the same.
    files = [place.data / "test_images" / f"{row['id']}.jpg" for row in rows]
    served = load_model("models:/pose-ensemble/1", "cpu").predictor
    answer = served.predict_all(files, refuse=lambda row, reason: AssertionError(reason))
    columns = served.columns(answer)
    assert list(columns["label"]) == [row["label"] for row in rows]
    for name in ("p_0", "p_1", "confidence"):
        expected = [float(row[name]) for row in rows]
        np.testing.assert_allclose(columns[name], expected, atol=1e-5)
    assert list(columns["ask"]) == [row["ask"] == "true" for row in rows]
    place.vote(lock=voted.run_id)
    assert place.out.read_bytes() == written


# Names in a registry that others use too


def test_the_page_of_a_fitted_vote_has_the_numbers_of_its_score(place):
    done = place.vote(voting="weighted", thresholds=True, probabilities=True)
    score = done.score
    client = place.client()
    page, card = (
        Path(client.download_artifacts(done.run_id, name, str(place.data))).read_text()
        for name in ("report.html", "model_card.md")
    )
    assert f"{score.interval.value:.4f}</" in page
    assert f"95 % interval {score.interval.low:.4f} to {score.interval.high:.4f}; " in page
    assert f">{score.ensemble['val_nll']:.4f}</" in page
    assert f"expected calibration error {score.ensemble['val_ece']:.4f}" in page
    assert "each of them is predicted by what was fitted without it" in page
    assert "subsets of members, plainly averaged, as points" in page
    scored = done.decision.scored
    preds = scored.probs.argmax(axis=1)
    right = [int(((preds == c) & (scored.members.labels == c)).sum()) for c in range(2)]
    for row, hits in enumerate(right):
        count = int((scored.members.labels == row).sum())
        assert f"| {row} | {count} | " in card and f"| {hits / count:.4f} |" in card
    # What an unfitted vote shows is of the same rows, and not the same.
    plain = place.vote()
    assert plain.score.num_rows == score.num_rows
    assert plain.score.ensemble["val_nll"] != score.ensemble["val_nll"]


def test_members_are_found_by_registry_name_or_by_parent(place):
    """A run of the same name by somebody else, newer, under another name in the registry."""
    train(place.data, registry_name="team", seeds=(5,), num_epochs=1)
    (theirs,) = place.client().search_model_versions("name = 'team'")
    assert [m.registered.seed for m in place.vote().members] == [0, 1, 2]
    voted = place.vote(registry_name="team")
    assert [m.registered.uri for m in voted.members] == ["models:/team/1"]
    assert place.client().search_model_versions("name = 'team-ensemble'")
    # A parent says itself what it is called and where its members are.
    by_parent = place.vote(parent=theirs.tags["parent_run_id"])
    assert by_parent.members[0].registered == voted.members[0].registered
    with pytest.raises(InputError, match="run must have models registered as nobody, found none"):
        place.vote(registry_name="nobody", run="tiny")
    with pytest.raises(InputError, match="found no finished one below nobody"):
        place.vote(registry_name="nobody")
    with pytest.raises(InputError, match="parent must be the id of a training run, got 'x'"):
        place.vote(parent="x")


# Comparisons


def test_a_vote_and_its_run_are_compared(place):
    place.vote(voting="weighted")
    display = Said()
    settings = {"dataset": str(place.data), "out_dir": str(place.out.parent / "comparison")}
    setup = CompareSetup(runs="tiny_weighted,tiny", **settings)
    result = compare_runs(setup, Tracker(), display).comparison
    assert "was fitted on labelled rows; compared is the soft vote" in display.text
    assert result.f1[0] == result.f1[1] and result.difference == 0
    assert result.f1[0] == pytest.approx(place.vote().score.ensemble["val_f1"])


# Exports


def test_a_vote_and_a_member_are_exported_as_models_of_mlflow(place):
    has_onnx = importlib.util.find_spec("onnxscript") is not None
    name = "onnx" if has_onnx else "pt2"
    voted = place.vote(export=name)
    images = torch.randint(0, 256, (3, 3, 20, 30), dtype=torch.uint8)
    uris = dict(re.findall(r"^(pt2|onnx): (models:/m-\w+)$", place.said, re.MULTILINE))
    expected = mlflow.pytorch.load_model("models:/pose-ensemble/1")(images).detach().exp()
    assert mlflow.get_run(voted.run_id).data.metrics[f"export/{name}_max_difference"] < 1e-5
    if has_onnx:
        import onnxruntime

        model = mlflow.onnx.load_model(uris["onnx"]).SerializeToString()
        (logits,) = onnxruntime.InferenceSession(model).run(None, {"images": images.numpy()})
        np.testing.assert_allclose(np.exp(logits), expected, atol=1e-5)
    out_dir = place.out.parent / "exported"
    settings = {"dataset": str(place.data), "out_dir": str(out_dir), "formats": "pt2"}
    addresses = export_model(ExportSetup(model="models:/pose/1", **settings), Tracker(), Said())
    record = json.loads((out_dir / "export.json").read_text())
    assert record["exports"][0]["logged"] == addresses["pt2"]
    member = mlflow.pytorch.load_model("models:/pose/1")(images).detach()
    found = mlflow.pytorch.load_model(addresses["pt2"])(images).detach()
    torch.testing.assert_close(found, member, rtol=0, atol=1e-4)
    assert record["exports"][0]["equal_labels"] == 1
    assert (out_dir / "model.pt2").exists()


# Students


def test_a_student_learns_from_a_run(place):
    small = {"model": "simple_cnn", "image_size": 16, "num_epochs": 1, "batch_size": 64}
    setup = Setup(dataset=str(place.data))
    display = Said()
    asked = resolve_run(None, "student", {**small, "seeds": (5,), "distil": "tiny"})
    run = bring_soft_labels(asked, setup, Tracker(), display)
    assert "480 by all, since each trained on them" in display.text
    assert "120 of them by teachers that did not train on them" in display.text
    train_run(make_plan(run, setup), Tracker(), NoDisplay(), lambda: None)
    (student,) = place.client().search_model_versions("tags.run = 'student'")
    tags = place.client().get_run(student.run_id).data.params
    assert tags["distil"] == "tiny"
    assert tags["distil_sha256"] == run.recipe.distil_sha256
    lost = dataclasses.replace(asked.recipe, distil="nobody")
    with pytest.raises(InputError, match="distil must be names or ids .*none of 'nobody'"):
        bring_soft_labels(dataclasses.replace(asked, recipe=lost), setup, Tracker(), NoDisplay())
    wrong = dataclasses.replace(asked.recipe, distil_sha256="0")
    with pytest.raises(InputError, match="distil_sha256 must be that of the members of tiny"):
        bring_soft_labels(dataclasses.replace(asked, recipe=wrong), setup, Tracker(), NoDisplay())


@pytest.mark.parametrize("name", ["mlflow.db", "notes.txt"])
def test_predictions_take_the_place_of_no_file_of_another_kind(place, tmp_path, name):
    (tmp_path / "notes.txt").write_text("Bring milk, bread\nand nothing else\n")
    before = (tmp_path / name).read_bytes()
    with pytest.raises(InputError, match="out_path must not replace a file of another kind"):
        place.vote(out_path=name)
    assert (tmp_path / name).read_bytes() == before


def test_predictions_take_the_place_of_no_other_datas_tables(place, tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="out_path must not replace what lies in the data folder"):
        place.vote(out_path="other/classes.csv")


def test_a_text_that_can_be_no_id_is_no_parent(place):
    with pytest.raises(InputError, match="parent must be the id of a training run"):
        place.vote(run="tiny", parent="a' or tags.run = 'tiny")


@pytest.mark.parametrize("name", ["val_predictions.csv", "config.json"])
def test_what_a_member_was_recorded_with_is_what_votes(place, monkeypatch, name):
    fetch = Tracker.fetch_member

    def damage(tracker, member, folder):
        fetch(tracker, member, folder)
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace("0.4", "0.5").replace('"exif": "o', '"exif": "n'))

    monkeypatch.setattr(Tracker, "fetch_member", damage)
    with pytest.raises(InputError, match=r"found others: their checksum is wrong"):
        place.vote()


@contextlib.contextmanager
def one_bit_flipped(path: Path) -> Iterator[None]:
    """The file has another bit in its middle for a while."""
    data = path.read_bytes()
    place = (
        data.rindex(b"0.", 0, len(data) * 2 // 3) + 2 if path.suffix == ".csv" else len(data) // 2
    )
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    yield
    path.write_bytes(data)


def test_comparisons_students_and_restored_folders_take_what_was_recorded_alone(place, tmp_path):
    """What a vote checks of a member in MLflow, whoever reads it checks."""
    place.vote()
    tracker = Tracker(say=lambda line: None)
    (newest,) = tracker.find_members("tiny").states[0].versions
    artifact_uri = place.client().get_run(newest.run_id).info.artifact_uri
    artifacts = Path(artifact_uri.removeprefix("file://"))
    setup, message = Setup(dataset=str(place.data)), "found others: their checksum is wrong"
    compare = CompareSetup(runs="tiny_soft,tiny", out_dir=str(tmp_path / "out"))
    student = resolve_run(None, "student", {"model": "simple_cnn", "distil": "tiny"})
    for name in ("val_predictions.csv", "config.json"):
        with one_bit_flipped(artifacts / name), pytest.raises(InputError, match=message):
            compare_runs(compare, tracker, Said())
    with one_bit_flipped(artifacts / "val_predictions.csv"):
        with pytest.raises(InputError, match=message):
            bring_soft_labels(student, setup, tracker, NoDisplay())
        with pytest.raises(InputError, match=message):
            place.vote()
    # Here, not in MLflow: brought back.
    tracker.fetch_results(newest, tmp_path / "seed_0")
    local, display = tmp_path / "seed_0" / "val_predictions.csv", Said()
    before = local.read_bytes()
    with one_bit_flipped(local):
        key = MemberKey(newest.seed)
        restore_results("tiny", newest.parent_run_id, {key: local.parent}, tracker, display)
        assert local.read_bytes() == before
    assert f"are not as they were recorded; restored from {newest.uri}\n" in display.text


def test_weights_of_a_registered_model_are_those_that_were_registered(place, tmp_path):
    uri = place.client().get_model_version_download_uri("pose", "1")
    (path,) = (
        own
        for own in Path(mlflow.artifacts.download_artifacts(uri)).rglob("pose_cnn.pth")
        if "extra_files" in own.parts
    )
    tracker = Tracker(say=lambda line: None)
    message = "must have the weights that were registered, found"
    with one_bit_flipped(path), pytest.raises(InputError, match=message):
        tracker.fetch_weights("models:/pose/1", tmp_path)
    assert tracker.fetch_weights("models:/pose/1", tmp_path).read_bytes() == path.read_bytes()


def test_a_copied_store_says_where_its_artifacts_go(place, trained, capsys):
    Tracker().check_place()
    said = capsys.readouterr().out
    assert said.startswith(f"warning: this tracking store is a copy of {trained / 'mlflow.db'}, ")
    tracker = Tracker(say=lambda line: None)
    tracker.check_place()
    assert capsys.readouterr().out == ""


def test_an_experiment_that_is_gone_is_said_before_anybody_votes(place, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "77")
    with pytest.raises(InputError, match="77"):
        place.vote()
    assert "member:" not in place.said


def test_a_run_goes_on_and_says_which_finished_member_mlflow_has_lost(place, tmp_path):
    tracker = Tracker(say=lambda line: None)
    found = tracker.find_members("tiny")
    (newest,) = found.states[0].versions
    assert tracker.missing_files(newest) == []
    artifact_uri = place.client().get_run(newest.run_id).info.artifact_uri
    lost = Path(artifact_uri.removeprefix("file://")) / "val_predictions.csv"
    kept = lost.rename(tmp_path / "kept.csv")
    display = Said()
    try:
        key = found.states[0].key
        restore_results("tiny", found.parent_run_id, {key: tmp_path / "none"}, tracker, display)
    finally:
        kept.rename(lost)
    assert (
        f"warning: {key}: MLflow has lost val_predictions.csv of {newest.uri}, and no vote can use"
    ) in display.text
