"""Named runs: frozen facts, and what happens when they are changed."""

import dataclasses

import pytest

from pose.config import Recipe
from pose.errors import InputError
from pose.named_runs import NAMED_RUNS, resolve_run

# Section 3 of the design, spelled out a second time on purpose: these are facts of the original.
FROZEN = {
    # run: model, augmentation, seeds, patience
    "simple_cnn_seed_105": ("simple_cnn", "baseline", (105,), 20),
    "ensemble_1": ("simple_cnn", "ensemble_1", (76, 100, 123), 15),
    "ensemble_2": ("simple_cnn", "ensemble_2", (76, 100, 123), 50),
    "ensemble_3": ("simple_cnn", "ensemble_2", (76, 100, 101, 102, 103, 123), 50),
    "simple_cnn_v2": ("simple_cnn_v2", "ensemble_2", (100, 101, 102, 103, 104), 50),
}
SHARED = {
    "pretrained": False,
    "image_size": 128,
    "exif": "ignore",
    "batch_size": 64,
    "num_epochs": 300,
    "optimizer": "adam",
    "learning_rate": 0.001,
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup_fraction": 0.0,
    "label_smoothing": 0.0,
    "ema_decay": 0.0,
    "clip_grad_norm": 0.0,
    "mixup_alpha": 0.0,
    "cutmix_alpha": 0.0,
    "random_erasing": 0.0,
    "class_weighting": "none",
    "val_fraction": 0.2,
    "split_seed": None,
}


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_run_is_what_the_original_was(name):
    model, augmentation, seeds, patience = FROZEN[name]
    expected = {
        **SHARED,
        "model": model,
        "augmentation": augmentation,
        "seeds": seeds,
        "patience": patience,
    }
    recipe = dataclasses.asdict(NAMED_RUNS[name].recipe)
    assert {key: recipe[key] for key in expected} == expected
    newer = {key: value for key, value in recipe.items() if key not in expected}
    does_something = NAMED_RUNS[name].recipe.identity()
    assert not set(newer) & set(does_something), (
        f"settings that are newer than the frozen runs must do nothing in them, got {newer}"
    )


def test_what_the_original_reached_stands_beside_its_runs():
    ensemble_2 = {76: 0.937592, 100: 0.938555, 123: 0.942760}
    assert NAMED_RUNS["ensemble_1"].val_f1 == {76: 0.921257, 100: 0.914943, 123: 0.921880}
    assert NAMED_RUNS["ensemble_2"].val_f1 == ensemble_2
    assert NAMED_RUNS["ensemble_3"].val_f1 == {**ensemble_2, 101: 0.928942, 102: 0.933440}
    assert NAMED_RUNS["simple_cnn_v2"].val_f1 == {
        100: 0.952854,
        101: 0.951362,
        102: 0.957075,
        103: 0.953491,
        104: 0.958306,
    }
    assert NAMED_RUNS["ensemble_1"].leaderboard == "soft 0.93749, hard 0.93358"
    assert "soft 0.95197, hard 0.95038" in NAMED_RUNS["ensemble_2"].leaderboard


def test_new_runs_share_one_split():
    new = set(NAMED_RUNS) - set(FROZEN)
    assert new
    assert all(NAMED_RUNS[name].recipe.split_seed is not None for name in new)


def test_named_run_without_changes_is_itself():
    resolved = resolve_run("ensemble_1", None, {})
    assert resolved.name == resolved.title() == "ensemble_1"
    assert resolved.recipe == NAMED_RUNS["ensemble_1"].recipe
    assert resolved.changes == {}


def test_overrides_are_recorded_where_they_change_something():
    overrides = {"num_epochs": 3, "seeds": (1, 2), "batch_size": 64}
    resolved = resolve_run("ensemble_1", None, overrides)
    assert resolved.changes == {"num_epochs": 3, "seeds": "1,2"}
    assert resolved.title() == "ensemble_1 with num_epochs=3 seeds=1,2"
    assert resolved.recipe == dataclasses.replace(
        NAMED_RUNS["ensemble_1"].recipe, num_epochs=3, seeds=(1, 2)
    )
    assert NAMED_RUNS["ensemble_1"].recipe.num_epochs == 300, "the named run stays"


def test_free_run_is_named_after_its_model():
    resolved = resolve_run(None, None, {"model": "torchvision/resnet18", "num_epochs": 3})
    assert resolved.name == "torchvision_resnet18"
    assert resolved.title() == "free run of torchvision/resnet18"
    assert resolved.base is None
    assert resolved.changes == {}
    assert resolved.recipe == Recipe(model="torchvision/resnet18", num_epochs=3)


def test_run_name_renames_without_hiding_where_it_comes_from():
    resolved = resolve_run("ensemble_1", "mine-2", {})
    assert (resolved.name, resolved.base, resolved.title()) == ("mine-2",) + ("ensemble_1",) * 2


def test_unknown_run_lists_the_known_ones():
    with pytest.raises(InputError) as caught:
        resolve_run("ensemble_9", None, {})
    assert "got 'ensemble_9'" in str(caught.value)
    assert all(name in str(caught.value) for name in NAMED_RUNS)


@pytest.mark.parametrize("name", ["a b", "../up", "a/b", ".", "ä", "a\n"])
def test_run_name_that_is_no_folders_name_is_refused(name):
    with pytest.raises(InputError, match=r"run_name must match \[A-Za-z0-9_-\]\+, got"):
        resolve_run("ensemble_1", name, {})


def test_value_out_of_range_is_refused():
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
        resolve_run("ensemble_1", None, {"batch_size": 0})
