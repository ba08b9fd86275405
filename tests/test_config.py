"""Settings: what they refuse, and in which words."""

import dataclasses
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from entrypoints.options import field_options, fields_given
from pose.config import Recipe, Setup
from pose.data.cache import default_cache_root
from pose.errors import InputError

NAN, INFINITY = float("nan"), float("inf")

REFUSED = [
    ({"seeds": ()}, "seeds must name at least one seed, got none"),
    ({"seeds": (1, 2, 1)}, "seeds must differ from each other, got 1,2,1"),
    ({"seeds": (-1,)}, "seeds must be in [0, 2**32), got -1"),
    ({"seeds": (2**32,)}, "seeds must be in [0, 2**32), got 4294967296"),
    ({"image_size": 15}, "image_size must be in [16, 2048], got 15"),
    ({"image_size": 2049}, "image_size must be in [16, 2048], got 2049"),
    ({"batch_size": 2**31}, "batch_size must be at most 2147483647, got 2147483648"),
    ({"batch_size": 2**20, "accumulate": 2**20}, "batch_size times accumulate must be at most 21"),
    ({"patience": 10**30}, f"patience must be at most 2147483647, got {10**30}"),
    (
        {"budget": "9" * 400 + "s"},
        "budget must be a time such as 90s, 10m or 2h, got '99",
    ),
    ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ({"num_epochs": 0}, "num_epochs must be at least 1, got 0"),
    ({"patience": -1}, "patience must be at least 0, got -1"),
    ({"val_fraction": 0.0}, "val_fraction must be in (0, 1), got 0.0"),
    ({"val_fraction": 2}, "val_fraction must be in (0, 1), got 2"),
    ({"val_fraction": NAN}, "val_fraction must be in (0, 1), got nan"),
    ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
    ({"learning_rate": INFINITY}, "learning_rate must be positive, got inf"),
    ({"learning_rate": NAN}, "learning_rate must be positive, got nan"),
    ({"weight_decay": -0.1}, "weight_decay must be at least 0, got -0.1"),
    ({"weight_decay": INFINITY}, "weight_decay must be at least 0, got inf"),
    ({"clip_grad_norm": -1.0}, "clip_grad_norm must be at least 0, got -1.0"),
    ({"mixup_alpha": -1.0}, "mixup_alpha must be at least 0, got -1.0"),
    ({"mixup_alpha": INFINITY}, "mixup_alpha must be at least 0, got inf"),
    ({"cutmix_alpha": -1.0}, "cutmix_alpha must be at least 0, got -1.0"),
    ({"cutmix_alpha": NAN}, "cutmix_alpha must be at least 0, got nan"),
    ({"label_smoothing": 1.0}, "label_smoothing must be in [0, 1), got 1.0"),
    ({"ema_decay": 1.0}, "ema_decay must be in [0, 1), got 1.0"),
    ({"warmup_fraction": -0.1}, "warmup_fraction must be in [0, 1), got -0.1"),
    ({"random_erasing": 1.1}, "random_erasing must be in [0, 1], got 1.1"),
    ({"optimizer": "sgd"}, "optimizer must be one of adam, adamw, muon, got 'sgd'"),
    ({"schedule": "step"}, "schedule must be one of constant, cosine, one_cycle, got 'step'"),
    ({"class_weighting": "x"}, "class_weighting must be one of balanced, none, sqrt, got 'x'"),
    ({"split_seed": -1}, "split_seed must be in [0, 2**32), got -1"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_recipe_refuses_a_value_out_of_range_in_one_line(values, message):
    with pytest.raises(InputError) as caught:
        Recipe(**values)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "values",
    [
        {"seeds": (0, 2**32 - 1)},
        {"image_size": 16},
        {"image_size": 2048},
        {"random_erasing": 1.0},
        {"label_smoothing": 0.0},
        {"split_seed": None},
    ],
)
def test_recipe_takes_the_ends_of_its_ranges(values):
    ((name, value),) = values.items()
    assert getattr(Recipe(**values), name) == value


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"precision": "half"}, "precision must be one of auto, bfloat16, float32, got 'half'"),
        ({"model_format": "onnx"}, "model_format must be one of pickle, pt2, got 'onnx'"),
        ({"num_workers": -1}, "num_workers must be at least 0, got -1"),
        ({"num_workers": 10**6}, "num_workers must be at most 1024, got 1000000"),
        ({"threads": 100_000}, "threads must be at most 1024, got 100000"),
        (
            {"engine": "ray", "gpus": NAN},
            "gpus must be 0, a fraction of one, or a whole number, got nan",
        ),
        (
            {"engine": "ray", "gpus": INFINITY},
            "gpus must be 0, a fraction of one, or a whole number, got inf",
        ),
    ],
)
def test_setup_refuses_what_it_does_not_know(values, message):
    with pytest.raises(InputError) as caught:
        Setup(**values)
    assert str(caught.value) == message


def test_digest_is_shared_by_equal_recipes_only():
    assert Recipe().digest() == Recipe().digest()
    assert len(Recipe().digest()) == 16
    changed = [
        Recipe(batch_size=65),
        Recipe(split_seed=None),
        Recipe(mixup_alpha=0.1),
        Recipe(learning_rate=2.0000001e-3),
    ]
    assert len({recipe.digest() for recipe in [Recipe(), *changed]}) == 5


def test_the_seeds_are_no_part_of_the_identity():
    assert Recipe(seeds=(7,)).digest() == Recipe(seeds=(0, 1, 2)).digest()
    # A budget counts per seed: three in 30 minutes learn what six in 60 do.
    three = Recipe(budget="30m")
    assert three.digest() == Recipe(budget="60m", seeds=(0, 1, 2, 3, 4, 5)).digest()
    assert three.digest() != Recipe(budget="60m").digest()


def test_settings_that_do_nothing_are_no_part_of_the_identity():
    identity = Recipe(mixup_alpha=0.0, ema_decay=0.9).identity()
    assert "mixup_alpha" not in identity
    assert identity["ema_decay"] == 0.9
    # What always does something is always part of it.
    assert {"model", "learning_rate", "num_epochs", "split_seed"} <= set(identity)


def test_settings_cannot_be_changed_afterwards():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().batch_size = 3


def test_seeds_are_written_as_they_are_typed():
    assert Recipe(seeds=(76, 100)).seeds_text() == "76,100"


def test_a_path_at_home_is_meant_as_a_shell_means_it(monkeypatch):
    monkeypatch.setenv("HOME", "/home/kim")

    @click.command()
    @field_options(Setup)
    def command(**given):
        for name, value in fields_given(Setup, given).items():
            click.echo(f"{name} {value}")

    said = CliRunner().invoke(command, ["--dataset=~/data", "--output_root", "~", "--run-name=a~b"])
    expected = {"dataset /home/kim/data", "output_root /home/kim", "run_name a~b"}
    assert set(said.output.splitlines()) == expected
    monkeypatch.setenv("POSE_CACHE", "~/cache")
    assert default_cache_root() == Path("/home/kim/cache")
