"""Training as photographs are fine-tuned: accumulation, memory, layers, regularisation."""

import dataclasses

import pytest
import torch
from test_seeds import Listener, Said, job_in, never
from test_training import CPU, MODERN, TINY, stripes, weights_of, without_times

from pose.config import Recipe
from pose.data.tensors import TrainingData
from pose.errors import InputError
from pose.seeds import folder as seed_folder
from pose.seeds import train as seed_train
from pose.seeds.train import load_job_data, train_seed
from pose.training.loop import train
from pose.training.state import TrainState, start_state
from pose.training.step import Step
from pose_models import ImageClassifier, build_model


@pytest.fixture(scope="module")
def data() -> TrainingData:
    images, labels = stripes(38)
    rows = torch.arange(38)
    # 26 train: the last step of 8 learns from 2 images; the classes are not alike.
    return TrainingData(
        images=images,
        labels=torch.where(rows < 20, labels, 0),
        train_rows=rows[:26],
        val_rows=rows[26:],
        mirrors=torch.tensor([0, 1]),
    )


def plain_network(recipe: Recipe) -> ImageClassifier:
    """Without batch norm and dropout, which depend on what is seen together."""
    model = build_model(recipe.model, ("a", "b"), recipe.image_size)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.BatchNorm2d | torch.nn.Dropout):
                setattr(parent, name, torch.nn.Identity())
    return model


def start(recipe: Recipe, build=plain_network, seed: int = 0) -> TrainState:
    return start_state(lambda: build(recipe), recipe, seed, CPU)


def trained(data, recipe, **options) -> TrainState:
    state = start(recipe)
    train(Step(state, data, recipe, torch.float32), **options)
    return state


def assert_same_steps(state: TrainState, other: TrainState) -> None:
    """But for rounding, which Adam's first steps enlarge where a gradient is almost 0."""
    difference = (weights_of(state) - weights_of(other)).abs()
    assert difference.mean() < 1e-6
    assert difference.max() < 2e-4, "a fifth of one of its steps"


# Accumulation

EVERYTHING = {
    "class_weighting": "balanced",
    "label_smoothing": 0.1,
    "clip_grad_norm": 0.5,
    "augmentation": "ensemble_2",
    "num_epochs": 2,
}


@pytest.mark.parametrize(
    "changes",
    [EVERYTHING, {**EVERYTHING, "mixup_alpha": 0.4, "random_erasing": 0.5, "ema_decay": 0.9}],
    ids=["labels", "mixed"],
)
@pytest.mark.parametrize(("batch_size", "accumulate"), [(4, 2), (1, 8), (3, 3)])
def test_accumulated_batches_are_the_large_batch(data, changes, batch_size, accumulate):
    large = dataclasses.replace(
        TINY, **{**changes, "batch_size": batch_size * accumulate, "optimizer": "adamw"}
    )
    small = dataclasses.replace(large, batch_size=batch_size, accumulate=accumulate)
    one, many = trained(data, large), trained(data, small)
    assert_same_steps(many, one)
    for row, other in zip(many.history, one.history, strict=True):
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)
        assert row["train_acc"] == other["train_acc"]


def test_accumulation_is_part_of_the_identity_where_it_does_something():
    assert "accumulate" not in Recipe().identity()
    assert Recipe(accumulate=4).digest() != Recipe().digest()
    with pytest.raises(InputError, match="accumulate must be at least 1, got 0"):
        Recipe(accumulate=0)


# Memory


def refuse_more_than(model: torch.nn.Module, limit: int) -> None:
    """What a GPU raises, by a hook, for want of one: in training and above `limit` images."""

    def check(module, inputs):
        if module.training and len(inputs[0]) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    model.network.register_forward_pre_hook(check)


def small_network(limit: int, build=plain_network):
    def built(recipe: Recipe) -> ImageClassifier:
        model = build(recipe)
        refuse_more_than(model, limit)
        return model

    return built


def test_too_large_a_batch_is_learned_from_in_parts(data):
    recipe = dataclasses.replace(TINY, num_epochs=2)
    whole = trained(data, recipe)
    told = []
    state = start(recipe, small_network(3))
    train(Step(state, data, recipe, torch.float32, told.append))
    assert told == [4, 2]
    assert_same_steps(state, whole)
    # Whoever continues it does not run out of memory again.
    saved, resumed = state.state_dict(), start(recipe, small_network(3))
    resumed.load_state_dict(saved)
    longer = dataclasses.replace(recipe, num_epochs=3)
    train(Step(resumed, data, longer, torch.float32, told.append))
    assert resumed.num_epochs_done == 3
    assert told == [4, 2]


def test_a_checkpoint_of_before_still_continues(data):
    saved = trained(data, dataclasses.replace(TINY, num_epochs=1)).state_dict()
    del saved["smaller_batch"]
    state = start(TINY)
    state.load_state_dict(saved)
    assert state.smaller_batch is None and state.num_epochs_done == 1


def test_memory_for_no_image_is_one_line(data):
    state = start(TINY, small_network(0))
    with pytest.raises(InputError, match="one image at a time, found: CUDA out of memory") as error:
        train(Step(state, data, TINY, torch.float32))
    assert "\n" not in str(error.value)


class Tags(Listener):
    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[str, str] = {}

    def log_tags(self, tags: dict[str, str]) -> None:
        self.tags.update(tags)


def test_a_seed_says_and_records_that_memory_was_not_enough(tmp_path, stripes, monkeypatch):
    build = seed_train.build_fitted

    def built(*arguments):
        model = build(*arguments)
        refuse_more_than(model, 5)
        return model

    monkeypatch.setattr(seed_train, "build_fitted", built)
    job = job_in(tmp_path, stripes, num_epochs=1, accumulate=2)
    display, tracker = Said(), Tags()
    train_seed(job, load_job_data(job, display), tracker, display, never)
    said = [line for line in display.lines if "out of memory" in line]
    assert said[-1] == (
        "seed 4: out of memory, goes on with batch_size 4 and accumulate 8: a step still learns "
        "from 32 images, of which batch norm sees 4 at a time"
    )
    assert len(said) == 2
    assert tracker.tags == {"batch_size_in_memory": "4", "accumulate_in_memory": "8"}
    assert tracker.ends == [("FINISHED", "epochs")]


# Stopping


@pytest.mark.parametrize("changes", [{"accumulate": 2, "batch_size": 4}], ids=str)
@pytest.mark.parametrize("recipe", [TINY, MODERN], ids=["frozen", "modern"])
def test_interrupted_training_equals_straight_training(data, recipe, changes, tmp_path):
    recipe = dataclasses.replace(recipe, num_epochs=3, **changes)

    def built(recipe: Recipe) -> ImageClassifier:
        return build_model(recipe.model, ("a", "b"), recipe.image_size)

    straight = start(recipe, built, seed=5)
    train(Step(straight, data, recipe, torch.float32))
    broken, asked = start(recipe, built, seed=5), iter([None] * 6)
    train(
        Step(broken, data, recipe, torch.float32),
        stop=lambda: next(asked, "signal"),
        callbacks=[lambda state, row: seed_folder.write_checkpoint(tmp_path, state.state_dict())],
    )
    resumed = start(recipe, built, seed=77)
    resumed.load_state_dict(seed_folder.read_checkpoint(tmp_path / seed_folder.CHECKPOINT))
    assert resumed.num_epochs_done == 1
    train(Step(resumed, data, recipe, torch.float32))
    assert torch.equal(weights_of(straight), weights_of(resumed))
    assert without_times(straight.history) == without_times(resumed.history)
