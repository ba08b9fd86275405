"""What a GPU would run, on tensors without data: no device is needed to see a wrong device, or a
result that the host would have to wait for."""

import dataclasses
import types

import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from pose.data.tensors import TrainingData
from pose.named_runs import NAMED_RUNS
from pose.training import augment
from pose.training.augment import PRESETS, augment_batch, gather, sample_params
from pose.training.optimization import build_optimizer
from pose.training.predict import predict_logits
from pose.training.state import TrainState
from pose.training.step import train_step, training_batch
from pose_models import build_model

# Autocast sees that there is no device; its types are of no interest here.
pytestmark = pytest.mark.filterwarnings("ignore:CUDA is not available")
CUDA = torch.device("cuda", 0)


@pytest.fixture
def fake_cuda(monkeypatch):
    rand = torch.rand
    # Only a real device has a generator.
    monkeypatch.setattr(
        torch, "rand", lambda *shape, generator, device: rand(*shape, device=device)
    )
    augment._constant.cache_clear()
    with FakeTensorMode():
        yield
    augment._constant.cache_clear()


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


RECIPES = [
    *(NAMED_RUNS[run].recipe for run in ("ensemble_2", "simple_cnn_v2", "demo", "champion")),
    dataclasses.replace(NAMED_RUNS["ensemble_2"].recipe, model="torchvision/resnet18"),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: f"{r.model}-{r.augmentation}")
def test_a_training_step_waits_for_nothing(fake_cuda, monkeypatch, recipe):
    recipe = dataclasses.replace(recipe, image_size=32, clip_grad_norm=1.0)
    with CUDA:
        model = build_model(recipe.model, ("0", "1"), 32).train()
    state = TrainState(
        model=model,
        ema=None,
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
    rows = torch.arange(16, device=CUDA)
    weight = torch.ones(2, device=CUDA)
    for _ in range(2):
        images, labels, targets = training_batch(data, rows, recipe, state.augment_generator)
        loss, logits = train_step(state, images, targets, recipe, torch.bfloat16, weight)
    assert loss.device == labels.device == logits.device == CUDA
    assert loss.dtype == torch.float32
    assert loss.shape == () and labels.shape == (16,) and logits.shape == (16, 2)


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
