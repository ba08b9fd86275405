"""What a GPU would run, on tensors without data: no device is needed to see a wrong device, or a
result that the host would have to wait for."""

import types

import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.nn import functional as F

from pose import augment
from pose.augment import PRESETS, augment_batch, gather, sample_params
from pose.models import build_model

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


@pytest.mark.parametrize(
    "name", ["simple_cnn", "simple_cnn_v2", "pose_net", "torchvision/resnet18"]
)
def test_network_and_loss_stay_on_the_device(fake_cuda, name):
    images, labels = fake_batch("ensemble_2", 32)
    with CUDA:
        model = build_model(name, ("0", "1"), 32).train()
    loss = F.cross_entropy(model(images), labels)
    assert loss.device == CUDA
    assert loss.dtype == torch.float32


def test_what_the_host_would_wait_for_is_seen(fake_cuda):
    values = torch.zeros(3, device=CUDA)
    with pytest.raises(DynamicOutputShapeException):
        values.nonzero()
    with pytest.raises(DataDependentOutputException):
        float(values.sum())
