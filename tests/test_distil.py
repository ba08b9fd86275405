"""A student learns what others say of its images, and no teacher marks what it trained on."""

import dataclasses

import numpy as np
import pytest
import torch

from pose.config import Recipe
from pose.data.tensors import TrainingData
from pose.distil import mean_of_free
from pose.errors import InputError
from pose.predictions import Predictions, write_predictions
from pose.soft_labels import read_soft_labels, soft_labels_path
from pose.training.mixing import mix_batch
from pose.training.step import mirror_soft, training_batch


def test_a_row_is_marked_by_those_that_did_not_train_on_it():
    probs = np.array([[[0.9, 0.1]] * 3, [[0.5, 0.5]] * 3, [[0.1, 0.9]] * 3])
    is_free = np.array([[True, False, False], [True, False, False], [False, True, False]])
    expected = [[0.7, 0.3], [0.1, 0.9], [0.5, 0.5]]  # the last: all trained on it
    np.testing.assert_allclose(mean_of_free(probs, is_free), expected)


def test_a_flipped_image_has_the_mirrored_soft_label():
    soft = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.1, 0.2, 0.3, 0.4]])
    mirrors = torch.tensor([1, 0, 2, -1])
    found = mirror_soft(soft, torch.tensor([True, False]), mirrors)
    torch.testing.assert_close(found, torch.tensor([[0.3, 0.5, 0.2, 0.0], [0.1, 0.2, 0.3, 0.4]]))


def make_data(soft: torch.Tensor | None) -> TrainingData:
    return TrainingData(
        images=torch.zeros(6, 3, 16, 16, dtype=torch.uint8),
        labels=torch.tensor([0, 1, 0, 1, 0, 1]),
        train_rows=torch.arange(4),
        val_rows=torch.arange(4, 6),
        mirrors=torch.tensor([1, 0]),
        soft_labels=soft,
    )


def test_a_batch_has_the_soft_labels_of_its_rows():
    soft = torch.softmax(torch.arange(12.0).view(6, 2).sin(), dim=1)
    recipe = Recipe(augmentation="none", image_size=16)
    rows = torch.tensor([3, 0])
    _, labels, targets = training_batch(make_data(soft), rows, recipe, torch.Generator())
    assert labels.tolist() == [1, 0]
    torch.testing.assert_close(targets, soft[rows])
    _, _, hard = training_batch(make_data(None), rows, recipe, torch.Generator())
    assert hard.tolist() == [1, 0]


def test_the_labels_may_have_a_part():
    """Both losses are weighted: that of the mixed targets is their sum."""
    soft = torch.softmax(torch.arange(12.0).view(6, 2).sin(), dim=1)
    recipe = Recipe(augmentation="none", image_size=16, distil="demo", distil_weight=0.3)
    rows = torch.arange(6)
    _, labels, targets = training_batch(make_data(soft), rows, recipe, torch.Generator())
    logits = torch.randn(6, 2)
    loss, by_soft, by_labels = (
        torch.nn.functional.cross_entropy(logits, own) for own in (targets, soft, labels)
    )
    torch.testing.assert_close(loss, 0.3 * by_soft + 0.7 * by_labels)
    for wrong in (0, 1.1):
        with pytest.raises(InputError, match=r"distil_weight must be in \(0, 1\]"):
            Recipe(distil="demo", distil_weight=wrong)
    with pytest.raises(InputError, match="distil_weight must go with distil"):
        Recipe(distil_weight=0.5)


def test_soft_labels_are_mixed_as_hard_ones_are():
    recipe = Recipe(mixup_alpha=0.4)
    images, labels = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 1, 0])
    soft = torch.nn.functional.one_hot(labels, 2).float()
    mixed = [
        mix_batch(images, own, 2, recipe, torch.Generator().manual_seed(1))
        for own in (labels, soft)
    ]
    for one, other in zip(*mixed, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_the_identity_has_the_teachers_and_not_their_name():
    plain = Recipe()
    one = dataclasses.replace(plain, distil="demo", distil_sha256="aa")
    assert one.digest() == dataclasses.replace(one, distil="other").digest()
    others = {plain.digest(), dataclasses.replace(one, distil_sha256="bb").digest()}
    assert one.digest() not in others
    with pytest.raises(InputError, match="distil_sha256 must go with distil"):
        Recipe(distil_sha256="aa")


def test_soft_labels_are_found_by_id_and_missing_ones_are_named(tmp_path):
    path = soft_labels_path(tmp_path, "f" * 64, tmp_path)
    assert path != soft_labels_path(tmp_path, "f" * 64, tmp_path / "other")
    probs = np.array([[0.25, 0.75], [0.5, 0.5]])
    path.parent.mkdir()
    write_predictions(path, Predictions(ids=("a", "b"), probs=probs, class_labels=("0", "1")))
    np.testing.assert_allclose(read_soft_labels(path, ("b", "a"), ("0", "1")), probs[::-1])
    with pytest.raises(InputError, match="found none of c: were images added"):
        read_soft_labels(path, ("a", "c"), ("0", "1"))
    with pytest.raises(InputError, match="found none of these classes"):
        read_soft_labels(path, ("a",), ("0", "2"))
