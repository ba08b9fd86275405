"""A plan from the data: what is tried, how it goes on after a stop, and what comes of it."""

import dataclasses
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from said import Said

from pose.auto import Auto
from pose.config import Recipe, Setup
from pose.data.folder import read_dataset
from pose.data.loaded import load_data
from pose.data.split import split_rows
from pose.display import NoDisplay
from pose.errors import InputError
from pose.member_key import MemberKey
from pose.named_runs import resolve_auto, resolve_run
from pose.records import record_text
from pose.results import AutoTrial
from pose.search import progress as progress_file
from pose.search.candidates import find_candidates, pretrained_among
from pose.search.fingerprint import take_fingerprint
from pose.search.halving import plan_rounds, survivors
from pose.search.pretrained import available, names_for
from pose.search.progress import Progress, ProgressFile, read_progress
from pose.search.states import States
from pose.search.trial import rows_to_try
from pose.seeds.folder import checkpoint_bytes
from pose.tracking import Tracker

GIVEN = {"model": "simple_cnn", "batch_size": 16, "seeds": (4,), "budget": "5m"}


@pytest.fixture
def sides(tmp_path):
    """Makes a data folder of noise, its images so many pixels a side."""

    def make(side: int):
        rng = np.random.default_rng(0)
        folder = tmp_path / str(side)
        (folder / "train_images").mkdir(parents=True)
        for number in range(4):
            noise = rng.integers(0, 255, size=(side, side + 10, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / "train_images" / f"{number}.png")
        (folder / "train_solution.csv").write_text("0,a\n1,b\n2,a\n3,b\n")
        return take_fingerprint(read_dataset(folder))

    return make


def test_small_images_are_hardly_enlarged_and_large_ones_are_cropped_too(sides):
    small, large = sides(28), sides(256)
    assert (small.side, small.sides, small.fine_detail) == (28, (28, 28), 1.0)
    # Noise is finest at its own scale.
    assert large.side == 256
    assert large.fine_detail > 1.2
    assert small.counts == {"a": 2, "b": 2}
    sizes = {dict(own.changes)["image_size"] for own in find_candidates(small)}
    assert sizes == {32, 64}
    crops = [dict(own.changes) for own in find_candidates(large) if "framing" in own.name]
    assert {own["crop_from"] for own in crops} == {256}
    assert any(own.get("high_pass") for own in crops)


def test_what_is_given_is_not_varied_and_nothing_is_tried_twice(sides):
    found = sides(28)
    candidates = find_candidates(found, given=("image_size", "model"))
    assert [own.name for own in candidates] == ["as it is", "augmentation=pose_unflipped"]


def test_flips_that_somebody_thought_of_are_not_doubted(sides, tmp_path):
    sides(28)
    folder = tmp_path / "28"
    (folder / "classes.csv").write_text("label,name,mirror\na,left,b\nb,right,a\n")
    candidates = find_candidates(take_fingerprint(read_dataset(folder)))
    assert candidates
    assert not any("augmentation" in own.name for own in candidates)


def test_networks_with_weights_are_tried_where_these_can_be_had(sides, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    # Nobody answers there.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    said: list[str] = []
    assert available(names_for("cpu"), said.append) == ()
    assert "not tried: torchvision/resnet18 (pretrained weights of resnet18 must be in" in said[0]
    path = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), path)
    found = available(names_for("cpu"), said.append)
    assert found == ("torchvision/resnet18",)
    assert len(said) == 1
    large = sides(150)
    (own,) = (own for own in find_candidates(large, (), found) if "pretrained" in own.name)
    assert pretrained_among(find_candidates(large, (), found)) == found
    changes = dict(own.changes)
    assert (changes["model"], changes["image_size"]) == ("torchvision/resnet18", 160)
    assert (changes["freeze_epochs"], changes["optimizer"]) == (1, "adamw")
    for given, kept in ((large, ("model",)), (sides(28), ())):
        assert not any("pretrained" in own.name for own in find_candidates(given, kept, found))
        assert pretrained_among(find_candidates(given, kept, found)) == ()


def test_near_twins_that_flatter_stay_together(sides):
    found = sides(28)
    alone = dataclasses.replace(found, num_images=200, twins=(0, 0))
    assert not alone.has_to_keep_twins
    assert dataclasses.replace(alone, twins=(2, 2)).has_to_keep_twins
    # All alike: what could be told apart would be in one group.
    assert not dataclasses.replace(alone, twins=(200, 150)).has_to_keep_twins


def test_rounds_fill_the_time_and_keep_the_best():
    rounds = plan_rounds(8, 90.0)
    assert [own.num_candidates for own in rounds] == [8, 3, 2, 2]
    assert sum(own.num_candidates * own.seconds for own in rounds) == pytest.approx(90)
    assert rounds[0].seconds < rounds[1].seconds < rounds[2].seconds + rounds[3].seconds
    assert plan_rounds(1, 90.0) == ()
    assert survivors({0: 0.8, 1: 0.9, 2: 0.8, 3: 0.75}, 3) == [1, 0, 2]
    # Whoever is far behind needs no other round to lose.
    assert survivors({0: 0.5, 1: 0.9, 2: 0.8}, 3) == [1, 2]
    assert survivors({0: 0.5, 1: 0.9, 2: 0.6}, 3) == [1]


def test_a_network_that_has_not_learned_to_decide_is_not_below_the_commonest_class():
    """First guesses at a rare class cost F1; the area says who is on the way."""
    common = {"candidate": 0, "round": 0, "num_epochs": 1, "images_per_second": 1, "seconds": 1}
    constant = AutoTrial(val_f1=0.454, val_gain=0.0, val_auc=0.514, **common)
    guessing = AutoTrial(val_f1=0.145, val_gain=-0.309, val_auc=0.584, **common)
    learned = AutoTrial(val_f1=0.8, val_gain=0.346, val_auc=0.6, **common)
    assert constant.score < guessing.score < learned.score


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "run=auto must have a budget of at least 120s, such as budget=10m, got none"),
        ({"budget": "30s"}, "at least 120s, such as budget=10m, got 30s"),
        ({"budget": "10m", "pretrained": True}, "pretrained must go with a run whose network"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(given, message):
    with pytest.raises(InputError, match=message):
        Auto(resolve_auto(None, given), tuple(given), Setup(), NoDisplay(), lambda: None)
    with pytest.raises(InputError, match="a recipe of its own here, got auto"):
        resolve_run("auto", None, {})


def test_a_plan_goes_on_after_a_stop_and_its_choice_never_saw_what_validates(
    tmp_path, monkeypatch, stripes
):
    monkeypatch.setattr(progress_file, "SEARCH_SHARE", 0.02)
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    setup = Setup(dataset=str(stripes), cache_root=str(tmp_path / "cache"))
    said = Said()

    def plan(stop):
        return Auto(resolve_auto(None, GIVEN), tuple(GIVEN), setup, said, stop)

    stopped = plan(lambda: "stop_file" if said.trials else None).choose(Tracker())
    assert (stopped.run, stopped.stop_reason) == (None, "stop_file")
    path = tmp_path / "outputs" / "auto_plan" / "plan.json"
    before = read_progress(path)
    assert len(before.trials) == len(said.trials) == 1
    whole = plan(lambda: None)
    chosen = whole.choose(Tracker())
    progress = read_progress(path)
    assert progress.trials[0] == before.trials[0]
    assert len(set(said.trials)) == len(said.trials) == len(progress.trials)
    assert chosen.run.name == "auto"
    assert chosen.run.recipe.model == "simple_cnn"
    assert chosen.run.recipe.budget == f"{progress.rest:.0f}s"
    assert "seeds=4 " in f"{chosen.run.title()} "
    assert progress.seconds + progress.rest == pytest.approx(300, abs=1)
    # One after another, as earlier versions read it.
    assert "at_once" not in path.read_text()
    rest = f"Members for the other {progress.rest:.0f} s: 1; the first goes on from its trials. The"
    assert rest in chosen.text
    # Chosen already: it is not tried again.
    assert plan(lambda: None).choose(Tracker()) == chosen
    # The first member goes on from the winner's last trial; others leave nothing.
    last = [own.round for own in progress.trials if own.candidate == progress.chosen][-1]
    own = path.with_name(f"round_{last + 1}_candidate_{progress.chosen + 1}.pth")
    assert chosen.head_start == Path("outputs", "auto_plan", own.name)
    assert list(path.parent.glob("*.pth")) == [own]

    client = mlflow.MlflowClient()
    (record,) = client.search_runs(["0"], "tags.kind = 'plan'")
    assert (record.info.run_id, record.info.status) == (progress.run_id, "FINISHED")
    nested = client.search_runs(["0"], f"tags.mlflow.parentRunId = '{progress.run_id}'")
    assert {run.info.run_name for run in nested} == set(said.trials)
    assert {run.info.status for run in nested} == {"FINISHED"}
    assert client.list_artifacts(progress.run_id)[0].path == "plan.md"

    loaded = load_data(stripes, 24, tmp_path / "cache")
    recipe = dataclasses.replace(Recipe(), seeds=(4,))
    known = rows_to_try(loaded, recipe)
    _, val = split_rows(loaded.dataset.labels, recipe, MemberKey(4), loaded.dataset.groups)
    assert not set(known.tolist()) & set(val.tolist())
    whole.complete()
    assert read_progress(path).is_done
    assert not own.exists()


def test_a_state_that_is_damaged_or_no_file_is_named(tmp_path):
    states = States(tmp_path)
    assert states.find(0, 0) is None
    whole = checkpoint_bytes({"history": []})
    states.keep(0, 0, whole)
    assert states.find(0, 0) == whole
    states.path(0, 0).write_bytes(whole[:-1] + b"#")
    with pytest.raises(InputError, match=r"round_1_candidate_1\.pth must be a whole checkpoint"):
        states.find(0, 0)
    states.path(1, 0).mkdir()
    with pytest.raises(InputError, match=r"must be readable, found: a folder, not a file"):
        states.find(1, 0)


def test_a_late_plan_decides_by_the_rounds_that_it_had(tmp_path, monkeypatch, stripes):
    monkeypatch.setattr(progress_file, "SEARCH_SHARE", 0.0)
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    setup = Setup(dataset=str(stripes), cache_root=str(tmp_path / "cache"))
    Auto(resolve_auto(None, GIVEN), tuple(GIVEN), setup, NoDisplay(), lambda: None).choose(
        Tracker()
    )
    progress = read_progress(tmp_path / "outputs" / "auto_plan" / "plan.json")
    assert len(progress.rounds) > 1
    assert {own.round for own in progress.trials} == {0}
    assert progress.scores(0)[progress.chosen] == max(progress.scores(0).values())


def test_a_plan_that_many_stops_made_late_still_trains(tmp_path, monkeypatch, stripes):
    monkeypatch.setattr(progress_file, "SEARCH_SHARE", 0.02)
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    setup = Setup(dataset=str(stripes), cache_root=str(tmp_path / "cache"))
    said = Said()

    def plan(stop):
        return Auto(resolve_auto(None, GIVEN), tuple(GIVEN), setup, said, stop)

    plan(lambda: "signal" if said.trials else None).choose(Tracker())
    path = tmp_path / "outputs" / "auto_plan" / "plan.json"
    stopped = read_progress(path)
    assert stopped.trials
    path.write_text(record_text(dataclasses.replace(stopped, seconds=299.0), progress_file.FORMAT))
    chosen = plan(lambda: None).choose(Tracker())
    assert chosen.run.recipe.budget == "5s"
    (warning,) = [line for line in said.lines if line.startswith("warning: ")]
    assert "s went into trying and into starting again; the members have 5 s" in warning


def test_decoding_that_takes_the_whole_budget_is_one_line_and_leaves_nothing(tmp_path):
    file = ProgressFile(tmp_path / "plan.json", 120.0, 10.0)
    with pytest.raises(InputError, match=r"budget must leave 10 s for .* found 9 s left of 120"):
        file.begin(Progress(identity="own", run_id="1", seconds=111.0), 4)
    assert not file.path.exists()


def test_a_single_candidate_is_not_tried_and_has_all_its_seeds(tmp_path, monkeypatch, stripes):
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    given = {"model": "simple_cnn", "image_size": 24, "augmentation": "none", "budget": "5m"}
    setup = Setup(dataset=str(stripes), cache_root=str(tmp_path / "cache"))
    run = resolve_auto(None, given)
    chosen = Auto(run, tuple(given), setup, NoDisplay(), lambda: None).choose(Tracker())
    assert read_progress(tmp_path / "outputs" / "auto_plan" / "plan.json").trials == ()
    assert chosen.run.recipe.seeds == run.recipe.seeds
    assert len(run.recipe.seeds) > 1
    assert "the only candidate" in chosen.text
    # A table needs as many dashes as columns.
    head, dashes = [line for line in chosen.text.splitlines() if line.startswith("|")][:2]
    assert (head, dashes) == ("| candidate | why | images/s |", "|---|---|---|")
    assert f"s: {len(run.recipe.seeds)}. The rows" in chosen.text
