"""The whole thing through `mlflow run`, on small data, with its own store."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image
from project import Project
from sklearn.metrics import f1_score

from pose.predictions import read_predictions
from pose.seeds import folder as seed_folder
from pose.vote import combine_probs
from pose_models import Combination
from pose_models.decode import read_image

METRICS = {
    "train_loss",
    "train_acc",
    "train_f1",
    "val_loss",
    "val_acc",
    "val_f1",
    "learning_rate",
    "time/epoch_seconds",
    "time/images_per_second",
}
FILES = {
    "config.json",
    "confusion_matrix.png",
    "last_ckpt.pth",
    "pose_cnn.pth",
    "training_history.csv",
    "training_history.png",
    "val_predictions.csv",
}
SEEDS = (7, 8)
NUM_EPOCHS = 3
# ensemble_1 with changes that make it small; with a shared split, so that 60 rows are honest.
SMALL = {
    "run": "ensemble_1",
    "seeds": "7,8",
    "num_epochs": NUM_EPOCHS,
    "image_size": 32,
    "split_seed": 0,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory, make_dataset):
    folder = tmp_path_factory.mktemp("project_data") / "data"
    return make_dataset(folder, num_per_class=(200, 100), size=40, num_test=20)


@pytest.fixture(scope="module")
def project(tmp_path_factory, data) -> Project:
    """A project that has trained two seeds through `mlflow run`."""
    made = Project(tmp_path_factory.mktemp("project") / "pose")
    made.output = made.mlflow_run("train", dataset=data, **SMALL)
    return made


@pytest.fixture(scope="module")
def votes(project, data) -> dict[str, str]:
    """What `mlflow run . -e ensemble` printed, by voting."""
    return {
        rule: project.mlflow_run(
            "ensemble", run="ensemble_1", voting=rule, out_path=f"{rule}.csv", dataset=data
        )
        for rule in ("soft", "hard")
    }


def test_seeds_are_nested_runs_below_the_run_of_mlflow_run(project):
    (parent,) = project.runs("train")
    assert parent.info.run_name == "ensemble_1"
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["run"] == "ensemble_1"
    assert parent.data.tags["mlflow.project.entryPoint"] == "train"
    children = project.children(parent)
    assert [child.info.run_name for child in children] == ["seed_7", "seed_8"]
    for child, seed in zip(children, SEEDS, strict=True):
        tags = child.data.tags
        assert child.info.status == "FINISHED"
        assert tags["mlflow.parentRunId"] == parent.info.run_id
        assert tags["stop_reason"] == "epochs"
        assert (tags["seed"], tags["model"], tags["run"]) == (str(seed), "simple_cnn", "ensemble_1")


def test_a_changed_frozen_run_says_so(project):
    (parent,) = project.runs("train")
    assert parent.data.tags["is_changed"] == "true"
    assert "ensemble_1 with" in parent.data.tags["recipe"]
    assert "num_epochs=3" in parent.data.tags["recipe"]
    for child in project.children(parent):
        assert child.data.tags["recipe"] == parent.data.tags["recipe"]


def test_every_metric_stands_at_every_epoch(project):
    (parent,) = project.runs("train")
    for child, seed in zip(project.children(parent), SEEDS, strict=True):
        assert set(child.data.metrics) >= METRICS
        rows = project.history("ensemble_1", seed)
        for name in METRICS:
            history = project.client().get_metric_history(child.info.run_id, name)
            assert [metric.step for metric in history] == [1, 2, 3]
            recorded = [metric.value for metric in history]
            column = name.removeprefix("time/")
            assert recorded == pytest.approx([float(row[column]) for row in rows])


def test_the_printed_page_has_the_best_seed_and_val_f1_first(project):
    (parent,) = project.runs("train")
    (address,) = re.findall(r"mlflow ui, then (\S+)", project.output)
    query = parse_qs(urlsplit(urlsplit(address).fragment).query)
    key = query["viewStateShareKey"][0]
    assert key == parent.info.run_id
    experiment = project.client().get_experiment(parent.info.experiment_id)
    view = json.loads(experiment.tags[f"mlflow.sharedViewState.{key}"])
    assert view["searchFilter"] == f"tags.parent_run_id = '{parent.info.run_id}'"
    assert (view["orderByKey"], view["orderByAsc"]) == ("metrics.`best_val_f1`", False)
    shown = [chart["metricKey"] for chart in view["compareRunCharts"]]
    assert shown[0] == "val_f1"
    assert set(shown) <= METRICS


def test_every_setting_of_the_recipe_is_a_parameter(project):
    (parent,) = project.runs("train")
    child = project.children(parent)[0]
    params = child.data.params
    expected = {
        "seed": "7",
        "model": "simple_cnn",
        "augmentation": "ensemble_1",
        "image_size": "32",
        "batch_size": "64",
        "learning_rate": "0.001",
        "num_epochs": "3",
        "patience": "15",
        "optimizer": "adam",
        "val_fraction": "0.2",
        "split_seed": "0",
    }
    assert {key: params.get(key) for key in expected} == expected


def test_the_parent_carries_the_summary(project):
    (parent,) = project.runs("train")
    scores = [child.data.metrics["best_val_f1"] for child in project.children(parent)]
    assert parent.data.metrics["val_f1_mean"] == pytest.approx(np.mean(scores))
    assert parent.data.metrics["val_f1_std"] == pytest.approx(np.std(scores, ddof=1))
    assert parent.data.tags["best_seed"] == str(SEEDS[int(np.argmax(scores))])
    note = parent.data.tags["mlflow.note.content"]
    assert all(f"| {seed} |" in note for seed in SEEDS)
    names = {item.path for item in project.client().list_artifacts(parent.info.run_id)}
    assert names == {
        "data_report.txt",
        "label_suspects.csv",
        "near_twins.csv",
        "report.html",
        "seeds.png",
    }


def test_each_command_ends_with_the_next_and_runs_lists_them(project, votes, data):
    assert (
        f"next: mlflow run . -e ensemble --env-manager local -P run=ensemble_1 -P dataset={data}"
        in project.output
    )
    score = f"-P command=score -P dataset={data} -P predictions=hard.csv"
    assert f"next: mlflow run . -e data --env-manager local {score}" in votes["hard"]
    (parent,) = project.runs("train")
    table = project.mlflow_run("runs")
    line = next(row for row in table.splitlines() if row.startswith("ensemble_1"))
    assert line.split()[2:6] == ["2", "of", "2", "complete"]
    assert line.endswith(parent.info.run_id)
    assert "next: mlflow ui" in table
    assert parent.data.tags["command"].startswith(
        "mlflow run . -e train --env-manager local -P run="
    )


def test_a_run_and_a_vote_name_their_data_and_what_they_used(project, votes):
    (parent,) = project.runs("train")
    (data,) = parent.inputs.dataset_inputs
    assert data.dataset.digest == parent.data.tags["dataset_digest"]
    assert parent.data.params["num_epochs"] == str(NUM_EPOCHS)
    # A search leaves out the models.
    soft = project.client().get_run(project.runs("ensemble", voting="soft")[0].info.run_id)
    assert [own.tags[0].value for own in soft.inputs.dataset_inputs] == ["prediction"]
    client = project.client()
    members = [client.get_logged_model(own.model_id) for own in soft.inputs.model_inputs]
    assert {model.name for model in members} == {"ensemble_1_seed_7", "ensemble_1_seed_8"}
    for model in members:
        assert json.loads(model.tags["mlflow.modelVersions"])[0]["name"] == "pose"
        (metric,) = [metric for metric in model.metrics if metric.key == "best_val_f1"]
        assert metric.dataset_digest == data.dataset.digest


def test_the_registry_describes_its_models_and_names_the_champion(project, votes):
    client = project.client()
    assert "validation macro F1" in client.get_registered_model("pose").description
    registered = client.get_registered_model("pose-ensemble")
    assert "champion" in registered.description
    scores = {
        version.version: float(version.tags["val_f1"])
        for version in client.search_model_versions("name = 'pose-ensemble'")
    }
    assert len(scores) == 2
    for alias in ("champion", "champion-ensemble_1"):
        champion = client.get_model_version_by_alias("pose-ensemble", alias)
        assert scores[champion.version] == max(scores.values())
        assert champion.tags["num_members"] == "2" and champion.tags["dataset_digest"]


def test_the_model_card_says_what_it_is_and_loads_as_it_says(project, votes, data, tmp_path):
    soft = project.runs("ensemble", voting="soft")[0]
    path = project.client().download_artifacts(soft.info.run_id, "model_card.md", str(tmp_path))
    text = Path(path).read_text(encoding="utf-8")
    version = next(
        v for v in project.client().search_model_versions("name = 'pose-ensemble'")
        if v.run_id == soft.info.run_id
    )  # fmt: skip
    assert version.description == text
    for part in ("60 rows that no member trained on", "Calibration", "| class | rows |",
                 "Known confusions", "ensemble_1 seed 7"):  # fmt: skip
        assert part in text
    (snippet,) = re.findall("```python\n(.*?)```", text, flags=re.DOTALL)
    assert len([line for line in snippet.splitlines() if line]) <= 5
    (tmp_path / "image.jpg").write_bytes((data / "test_images" / "1000.jpg").read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "confidence" in done.stdout


def test_files_lie_in_mlflow_and_in_the_output_folder(project):
    (parent,) = project.runs("train")
    for child, seed in zip(project.children(parent), SEEDS, strict=True):
        folder = project.folder / "outputs" / "ensemble_1" / f"seed_{seed}"
        assert {path.name for path in folder.iterdir()} == FILES
        assert {i.path for i in project.client().list_artifacts(child.info.run_id)} == FILES
        with Image.open(folder / "training_history.png") as picture:
            assert picture.width > 1000
        header = (folder / "training_history.csv").read_text().splitlines()[0]
        assert header == (
            "epoch,train_loss,train_acc,train_f1,val_loss,val_acc,val_f1,"
            "learning_rate,epoch_seconds,images_per_second"
        )


def test_validation_predictions_give_the_score_that_was_logged(project):
    (parent,) = project.runs("train")
    for child, seed in zip(project.children(parent), SEEDS, strict=True):
        path = project.folder / "outputs" / "ensemble_1" / f"seed_{seed}" / "val_predictions.csv"
        predictions = read_predictions(path)
        assert predictions.probs.shape == (60, 2)
        np.testing.assert_allclose(predictions.probs.sum(axis=1), 1, atol=1e-5)
        preds = predictions.probs.argmax(axis=1)
        score = f1_score(predictions.labels, preds, average="macro")
        assert score == pytest.approx(child.data.metrics["best_val_f1"])


def test_the_data_is_an_input_of_each_seed_with_one_digest(project):
    (parent,) = project.runs("train")
    digests = set()
    for child in project.children(parent):
        (entry,) = child.inputs.dataset_inputs
        digests.add(entry.dataset.digest)
    assert digests == {parent.data.tags["dataset_digest"]}


def test_each_seed_is_a_registered_version_with_tags(project):
    (parent,) = project.runs("train")
    versions = project.client().search_model_versions("name = 'pose'")
    by_seed = {version.tags["seed"]: version for version in versions}
    assert set(by_seed) == {"7", "8"}
    for child in project.children(parent):
        version = by_seed[child.data.tags["seed"]]
        assert version.run_id == child.info.run_id
        assert version.tags["run"] == "ensemble_1"
        assert version.tags["model"] == "simple_cnn"
        assert version.tags["parent_run_id"] == parent.info.run_id
        assert version.tags["dataset_digest"] == parent.data.tags["dataset_digest"]
        assert float(version.tags["val_f1"]) == pytest.approx(
            child.data.metrics["best_val_f1"], abs=1e-6
        )


@pytest.mark.parametrize("rule", ["soft", "hard"])
def test_a_vote_is_that_of_the_registered_models(project, votes, data, rule):
    """predictions.csv against models loaded by MLflow, voting on the raw images."""
    images = [
        torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
        for path in sorted((data / "test_images").iterdir(), key=lambda path: int(path.stem))
    ]
    with open(project.folder / f"{rule}.csv", newline="") as handle:
        header, *rows = csv.reader(handle)
    assert header == ["id", "label"]
    assert [row[0] for row in rows] == [str(image_id) for image_id in range(1000, 1020)]
    probs = []
    for version in (1, 2):
        model = load_member(project, version)
        with torch.no_grad():
            probs.append(model(torch.stack(images)).softmax(dim=1).numpy())
    expected = combine_probs(np.stack(probs), Combination(rule=rule)).argmax(axis=1)
    # The cache and bfloat16 move probabilities by less than a hundredth.
    is_clear = np.abs(np.stack(probs)[:, :, 0] - 0.5).min(axis=0) > 0.02
    assert is_clear.sum() > 10
    ours = np.array([int(row[1]) for row in rows])
    np.testing.assert_array_equal(ours[is_clear], expected[is_clear])


def load_member(project, version):
    mlflow.set_tracking_uri(project.store)
    try:
        return mlflow.pytorch.load_model(f"models:/pose/{version}").eval()
    finally:
        mlflow.set_tracking_uri(None)


def test_a_vote_is_recorded_with_members_agreement_and_an_honest_score(project, votes):
    soft, hard = project.runs("ensemble")
    for run, rule in ((soft, "soft"), (hard, "hard")):
        assert run.info.status == "FINISHED"
        assert run.data.tags["voting"] == rule
        assert run.data.tags["members"] == "models:/pose/1,models:/pose/2"
        assert run.data.metrics["val_rows"] == 60
        assert 0.3 < run.data.metrics["val_f1"] <= 1
        assert 0 <= run.data.metrics["unanimity"] <= run.data.metrics["agreement_mean"] <= 1
        names = {item.path for item in project.client().list_artifacts(run.info.run_id)}
        assert names == {
            "predictions.csv", "members.csv", "ensemble_probs.csv", "ensemble.json",
            "report.html", "model_card.md",
        }  # fmt: skip
        assert "that no member trained on" in votes[rule]
    assert len(project.client().search_model_versions("name = 'pose-ensemble'")) == 2


@pytest.mark.parametrize("rule", ["soft", "hard"])
def test_the_registered_ensemble_gives_the_labels_of_its_own_file(project, votes, data, rule):
    """On the pixels that the vote saw: the registered model combines as the vote did."""
    (version,) = project.client().search_model_versions(
        f"name = 'pose-ensemble' and tags.voting = '{rule}'"
    )
    mlflow.set_tracking_uri(project.store)
    try:
        ensemble = mlflow.pytorch.load_model(f"models:/pose-ensemble/{version.version}")
    finally:
        mlflow.set_tracking_uri(None)
    assert ensemble.how.rule == rule
    with open(project.folder / f"{rule}.csv", newline="") as handle:
        _, *rows = csv.reader(handle)
    pixels = [read_image((data / "test_images" / f"{i}.jpg").read_bytes(), 32) for i, _ in rows]
    with torch.no_grad():
        preds = ensemble.eval()(torch.from_numpy(np.stack(pixels))).argmax(dim=1)
    assert [ensemble.labels[pred] for pred in preds.tolist()] == [label for _, label in rows]


@pytest.mark.parametrize("rule", ["soft", "hard"])
@pytest.mark.parametrize("read", [str, Path.read_bytes])
def test_the_table_gives_the_labels_of_its_own_file(project, votes, data, rule, read):
    """Given files or their bytes: no row may differ, however near a tie."""
    (version,) = project.client().search_model_versions(
        f"name = 'pose-ensemble' and tags.voting = '{rule}'"
    )
    mlflow.set_tracking_uri(project.store)
    try:
        table = mlflow.pyfunc.load_model(f"models:/pose-ensemble/{version.version}")
    finally:
        mlflow.set_tracking_uri(None)
    with open(project.folder / f"{rule}.csv", newline="") as handle:
        _, *rows = csv.reader(handle)
    answer = table.predict([read(data / "test_images" / f"{i}.jpg") for i, _ in rows])
    assert list(answer["label"]) == [label for _, label in rows]
    assert [column.name for column in table.metadata.get_output_schema()] == list(answer)
    assert set(table.metadata.flavors) == {"pytorch", "python_function"}


def test_a_seed_answers_with_a_table_in_a_folder_that_is_not_the_project(project, data, tmp_path):
    script = f"""
import mlflow
mlflow.set_tracking_uri({project.store!r})
model = mlflow.pyfunc.load_model("models:/pose/1")
print(*model.predict({str(data / "test_images" / "1000.jpg")!r}).columns)
"""
    expected = "label name confidence p_0 p_1 disagreement"
    assert run_script(script, tmp_path) == expected


LOAD_AND_IMPORT = """
import mlflow
mlflow.set_tracking_uri({store!r})
model = mlflow.pytorch.load_model("models:/pose/1")
import pose
print(type(model).__module__, {expression})
"""


def run_script(script: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_project_can_be_imported_after_a_model_was_loaded(project):
    expression = "__import__('pose.vote').vote.combine_probs.__name__"
    script = LOAD_AND_IMPORT.format(store=project.store, expression=expression)
    assert run_script(script, project.folder) == "pose_models.classifier combine_probs"


def test_a_model_loads_beside_a_module_of_the_users_named_pose(project, tmp_path):
    (tmp_path / "pose.py").write_text("MINE = 'mine'\n")
    script = LOAD_AND_IMPORT.format(store=project.store, expression="pose.MINE")
    assert run_script(script, tmp_path) == "pose_models.classifier mine"


def test_a_model_loads_in_a_folder_that_is_not_the_project(project, tmp_path):
    script = f"""
import mlflow, torch
mlflow.set_tracking_uri({project.store!r})
model = mlflow.pytorch.load_model("models:/pose/1")
assert model.labels == ("0", "1")
model.eval().to("cpu")
with torch.no_grad():
    whole = model(torch.randint(0, 256, (3, 3, 57, 91), dtype=torch.uint8))
    floats = model(torch.rand(1, 3, 32, 32))
assert whole.shape == (3, 2) and floats.shape == (1, 2)
model.train()
model(torch.rand(2, 3, 32, 32)).sum().backward()
print(type(model).__module__)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "pose_models.classifier"


def test_exported_models_load_without_the_code(data, tmp_path):
    made = Project(tmp_path / "pose")
    made.run(*made.train_command(dataset=data, model_format="pt2", **{**SMALL, "seeds": "7"}))
    trained, _ = seed_folder.read_model(made.folder / "outputs" / "ensemble_1" / "seed_7")
    images = torch.randint(0, 256, (5, 3, 57, 91), dtype=torch.uint8)
    torch.save({"images": images, "logits": trained.eval()(images)}, tmp_path / "expected.pt")
    script = f"""
import mlflow, sys, torch
mlflow.set_tracking_uri({made.store!r})
model = mlflow.pytorch.load_model("models:/pose/1")
expected = torch.load("expected.pt")
with torch.no_grad():
    torch.testing.assert_close(model(expected["images"]), expected["logits"])
    torch.testing.assert_close(model(expected["images"][:1]), expected["logits"][:1])
answer = mlflow.pyfunc.load_model("models:/pose/1").predict(expected["images"])
assert list(answer["label"]) == [str(i) for i in expected["logits"].argmax(dim=1).tolist()]
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_a_path_is_meant_from_the_folder_of_the_user(project, data, tmp_path):
    (tmp_path / "my data").symlink_to(data)
    # One of this name in the project's folder is not what somebody elsewhere means.
    (project.folder / "my data").mkdir()
    command = project.mlflow_command("data", dataset="my data")
    command[2] = str(project.folder)
    asked = subprocess.run(
        command, cwd=tmp_path, env=project.environment(), capture_output=True, text=True
    )
    assert asked.returncode == 0, asked.stdout + asked.stderr
    assert f"'dataset={tmp_path}/my data'" in asked.stdout
    assert f"mlflow run {project.folder} -e train" in asked.stdout


def test_another_training_of_the_run_keeps_the_first(project, data, votes):
    """Tests that come after it find another parent and more versions."""
    out = project.run(*project.train_command(dataset=data, **SMALL))
    first, second = project.runs("train")
    assert second.info.run_id != first.info.run_id
    assert len(project.client().search_model_versions("name = 'pose'")) == 4
    kept = project.folder / "outputs" / f"ensemble_1.{first.info.run_id[:15]}"
    assert str(kept.relative_to(project.folder)) in out
    assert {path.name for path in (kept / "seed_7").iterdir()} == FILES
    # The same recipe on the same data: the same model, bit for bit.
    old = torch.load(kept / "seed_7" / "pose_cnn.pth", weights_only=True)
    new = torch.load(
        project.folder / "outputs" / "ensemble_1" / "seed_7" / "pose_cnn.pth", weights_only=True
    )
    assert all(torch.equal(old[name], new[name]) for name in old)
    again = project.mlflow_run("ensemble", run="ensemble_1", dataset=data)
    assert "models:/pose/3" in again
    assert "models:/pose/1" not in again


def test_seeds_are_added_to_the_newest_finished_run(project, data, votes):
    """Must come after the test above: it grows the newest parent."""
    grown = {**SMALL, "add_seeds": "9"}
    folder = project.folder / "outputs" / "ensemble_1"
    lost = folder / "seed_7" / "pose_cnn.pth"
    weights = lost.read_bytes()
    lost.write_bytes(weights[: len(weights) // 2])
    before = {path.name: path.read_bytes() for path in (folder / "seed_8").iterdir()}
    shutil.rmtree(folder / "seed_8")
    out = project.mlflow_run("train", dataset=data, **grown)
    # What finished seeds have lost here is brought back from the registry.
    assert re.search(
        r"warning: seed 7: pose_cnn.pth must .*; restored from models:/pose/\d+\n", out
    )
    assert re.search(r"warning: seed 8: config.json is gone; restored from models:/pose/\d+\n", out)
    assert lost.read_bytes() == weights
    assert {path.name: path.read_bytes() for path in (folder / "seed_8").iterdir()} == before
    parents = project.runs("train")
    newest = parents[-1]
    assert "seed 7: finished before" in out
    assert newest.info.status == "FINISHED"
    assert newest.data.tags["seeds"] == "7,8,9"
    children = project.children(newest)
    assert [child.data.tags["seed"] for child in children] == ["7", "8", "9"]
    scores = [child.data.metrics["best_val_f1"] for child in children]
    assert newest.data.metrics["val_f1_mean"] == pytest.approx(np.mean(scores))
    # Once more: nothing is left to add.
    said = project.run(*project.train_command(dataset=data, **grown), code=2)
    assert "add_seeds must name seeds that run" in said
    # Without a name the newest run votes, on the data that it was trained on, and says who does
    # not.
    voted = project.mlflow_run("ensemble")
    assert voted.count("member: ensemble_1 seed") == 3
    assert f"left out: 2 members of the earlier run {parents[0].info.run_id}" in voted
    assert f"data: {data}, where ensemble_1 was trained" in voted
    # A plain repetition stays a new run.
    project.run(*project.train_command(dataset=data, **SMALL))
    assert len(project.runs("train")) == len(parents) + 1
