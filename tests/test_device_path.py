"""What a GPU would run, on tensors without data: no device is needed to see a wrong device, or a
result that the host would have to wait for."""

import dataclasses
import types

import pytest
import torch
from torch._subclasses.fake_impls import register_op_impl
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from pose.data.tensors import TrainingData
from pose.named_runs import NAMED_RUNS
from pose.training import operations
from pose.training import step as step_module
from pose.training.augment import PRESETS, augment_batch, gather, sample_params
from pose.training.optimization import build_optimizer
from pose.training.predict import predict_logits
from pose.training.state import TrainState
from pose.training.step import Step
from pose_models import build_model

# Autocast sees that there is no device; its types are of no interest here.
pytestmark = pytest.mark.filterwarnings("ignore:CUDA is not available")
CUDA = torch.device("cuda", 0)


@register_op_impl([torch.ops.aten._fused_adam_.tensor_lr, torch.ops.aten._fused_adamw_.tensor_lr])
def fused_adam(mode, function, parameters, *args, lr, **options):
    """In place on the device; torch cannot infer its shapes when the rate is a tensor."""
    assert lr.device == parameters[0].device


@pytest.fixture
def fake_cuda(monkeypatch):
    # Only a real device has a generator.
    for name in ("rand", "randn"):
        draw = getattr(torch, name)
        monkeypatch.setattr(
            torch,
            name,
            lambda *shape, generator, draw=draw, **options: draw(*shape, **options),
        )
    operations.constant.cache_clear()
    with FakeTensorMode():
        yield
    operations.constant.cache_clear()


def fake_batch(preset: str, image_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.empty(100, 3, 40, 40, dtype=torch.uint8, device=CUDA)
    labels = torch.zeros(100, dtype=torch.int64, device=CUDA)
    mirrors = torch.zeros(2, dtype=torch.int64, device=CUDA)
    rows = torch.zeros(16, dtype=torch.int64, device=CUDA)
    batch, targets = gather(images, rows, CUDA), labels[rows]
    generator = types.SimpleNamespace(device=CUDA)
    params = sample_params(PRESETS[preset], targets, mirrors, generator)
    return augment_batch(batch, params, image_size), torch.where(
        params.is_flipped, mirrors[targets], targets
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_augmentation_stays_on_the_device(fake_cuda, preset):
    images, labels = fake_batch(preset, 32)
    assert images.shape == (16, 3, 32, 32)
    assert images.device == labels.device == CUDA


EVERYTHING = {
    "mixup_alpha": 0.2,
    "cutmix_alpha": 1.0,
    "random_erasing": 0.5,
    "ema_decay": 0.9,
    "clip_grad_norm": 1.0,
    "class_weighting": "sqrt",
    "label_smoothing": 0.1,
}
RECIPES = [
    *(NAMED_RUNS[run].recipe for run in ("ensemble_2", "simple_cnn_v2", "demo", "champion")),
    dataclasses.replace(NAMED_RUNS["ensemble_2"].recipe, model="torchvision/resnet18"),
    dataclasses.replace(
        NAMED_RUNS["demo"].recipe, optimizer="adamw", batch_size=4, accumulate=4, layer_decay=0.7
    ),
    *(
        dataclasses.replace(NAMED_RUNS["demo"].recipe, optimizer=optimizer, **EVERYTHING)
        for optimizer in ("adam", "adamw", "muon")
    ),
]


def fake_step(recipe, monkeypatch) -> Step:
    with CUDA:
        model, ema = (build_model(recipe.model, ("0", "1"), 32).train() for _ in range(2))
    state = TrainState(
        model=model,
        ema=ema.requires_grad_(False) if recipe.ema_decay else None,
        optimizer=build_optimizer(model, recipe),
        shuffle_generator=None,
        augment_generator=types.SimpleNamespace(device=CUDA),
    )
    data = TrainingData(
        images=torch.empty(100, 3, 32, 32, dtype=torch.uint8, device=CUDA),
        labels=torch.zeros(100, dtype=torch.int64, device=CUDA),
        train_rows=torch.arange(80),
        val_rows=torch.arange(80, 100),
        mirrors=torch.zeros(2, dtype=torch.int64, device=CUDA),
    )

    def backward(loss):
        # torch's own backward pass asks for a driver, even for tensors without data.
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    # Counting the images of each class waits, once per training.
    monkeypatch.setattr(step_module, "class_weights", lambda *_: torch.ones(2, device=CUDA))
    return Step(state, data, recipe, torch.bfloat16)


def step_id(recipe) -> str:
    mixed = "-mixed" if recipe.mixup_alpha else ""
    return f"{recipe.model}-{recipe.augmentation}-{recipe.optimizer}{mixed}"


@pytest.mark.parametrize("recipe", RECIPES, ids=step_id)
def test_a_training_step_waits_for_nothing(fake_cuda, monkeypatch, recipe):
    step = fake_step(dataclasses.replace(recipe, image_size=32), monkeypatch)
    # A batch, a second one with moments, and a short one.
    for num_rows in (16, 16, 3):
        step.set_learning_rate(0.1)
        step.set_ema_decay(0.9)
        loss, labels, logits = step(torch.arange(num_rows, device=CUDA))
        assert loss.device == labels.device == logits.device == CUDA
        assert loss.dtype == torch.float32
        assert (loss.shape, labels.shape) == ((), (num_rows,))
        assert logits.shape == (num_rows, 2)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon"])
def test_what_changes_between_steps_lies_where_a_graph_would_read_it(
    fake_cuda, monkeypatch, optimizer
):
    recipe = dataclasses.replace(NAMED_RUNS["demo"].recipe, optimizer=optimizer, image_size=32)
    step = fake_step(recipe, monkeypatch)
    groups = step.state.optimizer.param_groups
    before = [group["lr"] for group in groups]
    assert all(
        rate.device == CUDA and group["capturable"]
        for rate, group in zip(before, groups, strict=True)
    )
    rows = torch.arange(16, device=CUDA)
    step(rows)
    weights = [id(parameter) for parameter in step.state.model.parameters()]
    step.set_learning_rate(0.5)
    step(rows)
    # The same tensors, not others with new values: a graph knows addresses.
    assert all(group["lr"] is rate for group, rate in zip(groups, before, strict=True))
    assert weights == [id(parameter) for parameter in step.state.model.parameters()]


@pytest.mark.parametrize("name", ["simple_cnn", "simple_cnn_v2", "torchvision/resnet18"])
def test_prediction_stays_on_the_device(fake_cuda, name):
    with CUDA:
        model = build_model(name, ("0", "1"), 32)
    logits = predict_logits(
        model, torch.empty(9, 3, 32, 32, dtype=torch.uint8, device=CUDA),
        torch.arange(9, device=CUDA), torch.bfloat16, batch_size=4,
    )  # fmt: skip
    assert logits.device == CUDA
    assert logits.dtype == torch.float32
    assert logits.shape == (9, 2)


def test_what_the_host_would_wait_for_is_seen(fake_cuda):
    values = torch.zeros(3, device=CUDA)
    with pytest.raises(DynamicOutputShapeException):
        values.nonzero()
    with pytest.raises(DataDependentOutputException):
        float(values.sum())
