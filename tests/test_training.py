"""The training loop on tensors: repeatable, resumable, and right on the edges."""

import dataclasses

import numpy as np
import pytest
import torch

from pose.config import Recipe
from pose.data.tensors import TrainingData
from pose.errors import DivergedError
from pose.named_runs import NAMED_RUNS
from pose.seeds import folder as seed_folder
from pose.training.loop import Pace, check_validated, split_batches, train, train_for
from pose.training.optimization import learning_rate_at
from pose.training.predict import predict_logits, score_logits
from pose.training.state import start_state
from pose.training.step import Step, class_weights
from pose_models import build_model

CPU = torch.device("cpu")
TINY = dataclasses.replace(
    NAMED_RUNS["ensemble_2"].recipe, image_size=16, batch_size=8, num_epochs=4, patience=0
)
MODERN = dataclasses.replace(
    Recipe(),
    model="simple_cnn_v2",
    image_size=16,
    batch_size=8,
    num_epochs=4,
    optimizer="muon",
    ema_decay=0.9,
    mixup_alpha=0.2,
    cutmix_alpha=0.2,
    random_erasing=0.5,
    clip_grad_norm=1.0,
    class_weighting="sqrt",
)


# Of the first and second epochs on the stripes below, float32, recorded when this was written.
GOLDEN_TRAIN_LOSSES = [0.562806, 0.090911]
GOLDEN_VAL_LOSS = 0.216178


def stripes(num_images: int, size: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy images with horizontal (class 0) or vertical (class 1) stripes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(num_images) % 2
    wave = ((torch.arange(size) // 3) % 2 * 160).float()
    images = torch.where(
        labels.view(-1, 1, 1, 1) == 0, wave.view(1, 1, -1, 1), wave.view(1, 1, 1, -1)
    )
    noise = torch.rand(num_images, 3, size, size, generator=generator) * 90
    return (images + noise).to(torch.uint8), labels


@pytest.fixture(scope="module")
def data() -> TrainingData:
    images, labels = stripes(38)
    rows = torch.arange(38)
    # 26 train: the last batch of 8 has 2 images.
    return TrainingData(
        images=images,
        labels=labels,
        train_rows=rows[:26],
        val_rows=rows[26:],
        mirrors=torch.tensor([0, 1]),
    )


def start(recipe: Recipe, seed: int = 0):
    return start_state(
        lambda: build_model(recipe.model, ("a", "b"), recipe.image_size), recipe, seed, CPU
    )


def train_tiny(data, recipe, seed=0, **options):
    state = start(recipe, seed)
    reason = train(Step(state, data, recipe, torch.float32), **options)
    return state, reason


def weights_of(state) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in state.scored_model().parameters()])


def without_times(history):
    return [
        {k: v for k, v in row.items() if k not in ("epoch_seconds", "images_per_second")}
        for row in history
    ]


@pytest.mark.parametrize("recipe", [TINY, MODERN], ids=["frozen", "modern"])
def test_same_seed_gives_identical_weights_and_another_seed_others(data, recipe):
    first, _ = train_tiny(data, recipe, seed=3)
    again, _ = train_tiny(data, recipe, seed=3)
    other, _ = train_tiny(data, recipe, seed=4)
    assert torch.equal(weights_of(first), weights_of(again))
    assert without_times(first.history) == without_times(again.history)
    assert not torch.equal(weights_of(first), weights_of(other))


@pytest.mark.parametrize("recipe", [TINY, MODERN], ids=["frozen", "modern"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_interrupted_training_equals_straight_training(data, recipe, precision, tmp_path):
    straight = start(recipe, 5)
    train(Step(straight, data, recipe, precision))

    calls = 0

    def stop_in_the_third_epoch():
        nonlocal calls
        calls += 1
        return "signal" if calls > 10 else None  # 4 batches per epoch: in the middle of the third

    broken = start(recipe, 5)
    reason = train(
        Step(broken, data, recipe, precision),
        stop=stop_in_the_third_epoch,
        callbacks=[lambda state, row: seed_folder.write_checkpoint(tmp_path, state.state_dict())],
    )
    assert reason == "signal"
    torch.manual_seed(999)  # whatever happened in between
    resumed = start(recipe, 77)
    resumed.load_state_dict(seed_folder.read_checkpoint(tmp_path / seed_folder.CHECKPOINT))
    assert resumed.num_epochs_done == 2
    assert train(Step(resumed, data, recipe, precision)) == "epochs"

    assert torch.equal(weights_of(straight), weights_of(resumed))
    assert without_times(straight.history) == without_times(resumed.history)
    assert straight.best_epoch == resumed.best_epoch
    for name, value in straight.best_weights.items():
        assert torch.equal(value, resumed.best_weights[name])


def test_overfits_one_batch(data):
    one = dataclasses.replace(data, train_rows=data.train_rows[:8], val_rows=data.train_rows[:8])
    recipe = dataclasses.replace(TINY, augmentation="none", num_epochs=60, learning_rate=3e-3)
    state, _ = train_tiny(one, recipe)
    assert state.best_val_f1 == 1.0
    assert state.history[-1]["val_loss"] < 0.05


def test_golden_losses(data):
    """Frozen recipes keep giving what they gave; a difference here changes everybody's results."""
    state, _ = train_tiny(data, dataclasses.replace(TINY, num_epochs=2), seed=76)
    losses = [row["train_loss"] for row in state.history]
    assert losses == pytest.approx(GOLDEN_TRAIN_LOSSES, rel=2e-3)
    assert state.history[-1]["val_loss"] == pytest.approx(GOLDEN_VAL_LOSS, rel=2e-3)


def test_callbacks_see_each_epoch_once_and_progress_each_batch(data):
    epochs, batches = [], []
    train_tiny(
        data,
        TINY,
        callbacks=[lambda state, row: epochs.append(row["epoch"])],
        progress=lambda done, total: batches.append((done, total)),
    )
    assert epochs == [1, 2, 3, 4]
    assert batches == [(n, 4) for n in (1, 2, 3, 4)] * 4


def test_patience_stops_after_epochs_without_a_better_f1(data):
    # A learning rate this small changes no prediction, so that the first epoch stays the best.
    recipe = dataclasses.replace(TINY, num_epochs=50, patience=3, learning_rate=1e-12)
    # Normalisation statistics still move; without momentum of their own they would change scores.
    state = start(recipe)
    for module in state.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    assert train(Step(state, data, recipe, torch.float32)) == "patience"
    assert state.best_epoch == 1
    assert state.num_epochs_done == 4


def test_a_loss_that_is_not_finite_stops_with_epoch_and_step(data):
    recipe = dataclasses.replace(TINY, learning_rate=1e20)
    with pytest.raises(DivergedError, match=r"in epoch 1 at step \d+: lower learning_rate"):
        train_tiny(data, recipe)


def test_an_epoch_whose_validation_is_not_finite_diverged_and_is_not_kept(data):
    # One batch: its loss is taken before the step that loses the weights.
    one = dataclasses.replace(data, train_rows=data.train_rows[:8])
    recipe = dataclasses.replace(TINY, num_epochs=1, learning_rate=1e20)
    state, epochs = start(recipe), []
    with pytest.raises(DivergedError, match=r"must stay finite, .* after epoch 1: lower"):
        train(Step(state, one, recipe, torch.float32),
            callbacks=[lambda state, row: epochs.append(row)],
        )  # fmt: skip
    assert not state.history and not state.best_weights and not epochs


def test_statistics_that_are_not_finite_are_seen_behind_finite_logits():
    state, logits = start(TINY), torch.zeros(3, 2)
    check_validated(state, logits, 0.7)
    norm = next(m for m in state.model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    # Divided by, so that the map is 0.
    norm.running_var[0] = float("inf")
    with pytest.raises(DivergedError, match="the weights must stay finite"):
        check_validated(state, logits, 0.7)


@pytest.mark.parametrize(
    ("logit", "loss", "name"),
    [(float("nan"), 0.7, "validation logits"), (0.0, float("inf"), "validation loss")],
)
def test_logits_and_loss_that_are_not_finite_diverged(logit, loss, name):
    with pytest.raises(DivergedError, match=f"the {name} must stay finite, .* after epoch 1"):
        check_validated(start(TINY), torch.tensor([[0.0, logit]]), loss)


@pytest.mark.parametrize(
    ("num_rows", "batch_size", "sizes"),
    [
        (32, 8, [8, 8, 8, 8]),
        (33, 8, [8, 8, 8, 9]),
        (34, 8, [8, 8, 8, 8, 2]),
        (9, 8, [9]),
        (1, 8, [1]),
        (3, 1, [1, 1, 1]),
        (3, 2, [3]),
    ],
)
def test_a_last_batch_of_one_joins_the_one_before(num_rows, batch_size, sizes):
    batches = split_batches(torch.arange(num_rows), batch_size)
    assert [len(batch) for batch in batches] == sizes
    assert torch.equal(torch.cat(tuple(batches)), torch.arange(num_rows))


@pytest.mark.parametrize("model", ["pose_net", "torchvision/resnet18"])
def test_one_row_more_than_a_batch_trains_where_maps_end_at_one_pixel(data, model):
    rows = dataclasses.replace(data, train_rows=data.train_rows[:17])
    recipe = dataclasses.replace(TINY, model=model, num_epochs=1)
    batches = []
    state, _ = train_tiny(rows, recipe, progress=lambda done, total: batches.append((done, total)))
    assert batches == [(1, 2), (2, 2)]
    assert len(state.history) == 1


def test_best_weights_are_those_of_the_best_epoch(data):
    scores = {}

    def keep(state, row):
        scores[row["epoch"]] = row["val_f1"]

    state, _ = train_tiny(data, dataclasses.replace(TINY, num_epochs=6), callbacks=[keep])
    state.model.load_state_dict(state.best_weights)
    logits = predict_logits(state.model, data.images, data.val_rows, torch.float32)
    row = score_logits(logits, data.labels[data.val_rows], "val")
    assert row["val_f1"] == pytest.approx(state.best_val_f1)
    assert state.best_val_f1 == max(scores.values())
    assert state.best_epoch == min(e for e, s in scores.items() if s == state.best_val_f1)


def test_predictions_keep_the_order_of_rows_and_the_short_last_batch(data):
    model = start(TINY).model.eval()
    rows = torch.tensor([5, 1, 30, 2, 2])
    batched = predict_logits(model, data.images, rows, torch.float32, batch_size=2)
    single = torch.cat(
        [predict_logits(model, data.images, row.view(1), torch.float32) for row in rows]
    )
    assert batched.shape == (5, 2)
    torch.testing.assert_close(batched, single)


def test_one_cycle_is_that_of_torch():
    recipe = Recipe(learning_rate=0.3, schedule="one_cycle", warmup_fraction=0.25)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    total = 400
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.3, total_steps=total, pct_start=0.25, cycle_momentum=False
    )
    for step in range(total):
        ours = learning_rate_at(recipe, step / total)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=0.003)
        optimizer.step()
        theirs.step()


def test_cosine_warms_up_linearly_and_ends_at_zero():
    recipe = Recipe(learning_rate=1.0, schedule="cosine", warmup_fraction=0.5)
    rates = [learning_rate_at(recipe, p) for p in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert rates == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0])


def test_a_time_limit_replaces_the_number_of_epochs(data):
    recipe = dataclasses.replace(MODERN, num_epochs=1)
    state, reason = train_tiny(data, recipe, time_limit=3.0)
    assert reason == "budget"
    assert len(state.history) > 1
    # The schedule follows the clock: the last step before the end is nearly at rate 0.
    rates = [row["learning_rate"] for row in state.history]
    assert rates[-1] < 0.2 * max(rates)
    # A continued seed whose time is used up trains no further.
    num_epochs = len(state.history)
    assert train(Step(state, data, recipe, torch.float32), time_limit=1e-6) == "budget"
    assert len(state.history) == num_epochs


def test_a_seed_trains_something_however_little_time_there_is(data):
    state, reason = train_tiny(data, MODERN, time_limit=1e-6)
    assert (reason, len(state.history)) == ("budget", 1)
    assert state.best_epoch == 1


def test_class_weights_by_hand():
    labels = torch.tensor([0, 0, 0, 1])
    assert class_weights(labels, 2, "none") is None
    balanced = class_weights(labels, 2, "balanced")
    np.testing.assert_allclose(balanced.numpy(), [2 / 3, 2.0], rtol=1e-6)
    root = class_weights(labels, 2, "sqrt")
    assert float(root[1] / root[0]) == pytest.approx(3**0.5)
    assert float(root[labels].mean()) == pytest.approx(1.0)


def test_training_in_parts_follows_the_clock_of_the_whole(data):
    state = start(TINY)
    step = Step(state, data, TINY, torch.float32)
    assert train_for(step, 0.3, of=1.0)
    first, num_epochs = state.seconds, state.num_epochs_done
    # A batch may end after the time is up.
    assert 0.3 <= first < 0.6
    assert train_for(step, 0.3, of=1.0)
    assert first + 0.3 <= state.seconds < first + 0.6
    assert state.num_epochs_done > num_epochs
    assert not train_for(step, 0.3, of=1.0, stop=lambda: "signal")
    assert all(row["images_per_second"] > 0 for row in state.history)


def test_a_head_start_counts_for_the_schedule_and_not_for_the_limit(data):
    state = start(TINY)
    state.head_start = 30.0
    assert Pace(TINY, state, 10.0).progress(0.0) == pytest.approx(0.75, abs=0.01)
    assert Pace(TINY, state, 10.0, until=5.0).end == 0.5
    state.history = [{"epoch": 1, "epoch_seconds": 5.0}]
    assert Pace(TINY, state, 10.0).progress(0.0) == pytest.approx(0.875, abs=0.01)
    again = start(TINY)
    again.load_state_dict(state.state_dict())
    assert (again.head_start, again.seconds) == (30.0, 5.0)
    # A checkpoint of an earlier version.
    older = {name: value for name, value in state.state_dict().items() if name != "head_start"}
    again.load_state_dict(older)
    assert again.head_start == 0
