"""Distillation: what an ensemble says of the labelled images becomes what a student learns.

Hinton, Vinyals and Dean, 2015, arXiv:1503.02531, with the mean of the members' probabilities as
targets and out of fold where it can be: a network that trained on an image says little of it but
its label.
"""

import dataclasses
import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pose.config import Setup
from pose.data.cache import cache_root_of
from pose.data.folder import Dataset, read_dataset
from pose.data.source import find_dataset
from pose.device import pick_device, pick_precision
from pose.display import Display
from pose.ensembling.members import Member, check_classes
from pose.errors import InputError, first_few
from pose.files import make_folder
from pose.look import decode_labelled
from pose.named_runs import ResolvedRun
from pose.predictions import Predictions, write_predictions
from pose.seeds.folder import decoding_of
from pose.soft_labels import soft_labels_path
from pose.tracking import Tracker
from pose.training.predict import predict_logits, probs_of
from pose.voters import bring_member
from pose_models import ImageClassifier, for_inference


def bring_soft_labels(
    run: ResolvedRun, setup: Setup, tracker: Tracker, display: Display
) -> ResolvedRun:
    """The same run, with what its teachers say of its labelled images on this machine.

    Raises:
        InputError: there is no such run or vote, or it knows other images or classes.
    """
    assert run.recipe.distil is not None
    folder = find_dataset(setup, display)
    dataset = read_dataset(folder)
    with tempfile.TemporaryDirectory() as staging:
        found = tracker.find_side(run.recipe.distil, setup.registry_name, Path(staging), "distil")
        brought = [
            bring_member(registered, tracker, Path(staging) / f"member_{number}")
            for number, registered in enumerate(found.members)
        ]
    models, members = [model for model, _ in brought], [member for _, member in brought]
    check_classes(members)
    _check_data(dataset, members)
    display.say(f"distil: {found.name}, {found.run_id}, {len(members)} teachers")
    rows, probs = _predict(dataset, models, members, setup, display)
    is_free = held_out_from(dataset.ids, members)[:, rows]
    teachers = hashlib.sha256(
        "\n".join(sorted(member.weights_sha256 for member in members)).encode()
    ).hexdigest()
    if run.recipe.distil_sha256 not in (None, teachers):
        raise InputError(
            f"distil_sha256 must be that of the members of {found.name}, {teachers}, got "
            f"{run.recipe.distil_sha256}"
        )
    path = soft_labels_path(cache_root_of(setup.cache_root), teachers, folder)
    make_folder(path.parent)
    labels = dataset.labels[rows]
    soft = mean_of_free(probs, is_free)
    write_predictions(
        path,
        Predictions(
            ids=tuple(dataset.ids[row] for row in rows.tolist()),
            probs=soft,
            class_labels=members[0].card.labels,
            labels=labels,
        ),
    )
    num_taught = int((~is_free.any(axis=0)).sum())
    display.say(
        f"soft labels: {len(rows)} images, {len(rows) - num_taught} of them by teachers that did "
        f"not train on them, {num_taught} by all, since each trained on them; right on "
        f"{(soft.argmax(axis=1) == labels).mean():.1%}"
    )
    recipe = dataclasses.replace(run.recipe, distil_sha256=teachers)
    return dataclasses.replace(run, recipe=recipe)


def held_out_from(ids: Sequence[str], members: Sequence[Member]) -> np.ndarray:
    """Whether member m did not train on row n, `(M, N)`."""
    validated = [set(member.val_predictions.ids) for member in members]
    return np.array([[image_id in own for image_id in ids] for own in validated])


def mean_of_free(probs: np.ndarray, is_free: np.ndarray) -> np.ndarray:
    """The mean of those members that did not train on a row; of all where each did.

    Args:
        probs: `(M, N, C)`.
        is_free: `(M, N)`.

    Returns:
        `(N, C)`.
    """
    weights = np.where(is_free.any(axis=0), is_free, True).astype(np.float64)
    mean: np.ndarray = np.einsum("mn,mnc->nc", weights / weights.sum(axis=0), probs)
    return mean


def _check_data(dataset: Dataset, members: Sequence[Member]) -> None:
    """Refuse teachers of other classes, or whose images have other labels here.

    Raises:
        InputError: they are.
    """
    first = members[0]
    if first.card.labels != dataset.classes.labels:
        raise InputError(
            f"distil must name a run of the same classes, {first.name} knows "
            f"{first_few(first.card.labels)}, the data has {first_few(dataset.classes.labels)}"
        )
    label_of = dict(zip(dataset.ids, dataset.labels.tolist(), strict=True))
    for member in members:
        known = member.val_predictions
        assert known.labels is not None
        pairs = zip(known.ids, known.labels.tolist(), strict=True)
        unlike = [i for i, label in pairs if label_of.get(i, label) != label]
        if unlike:
            raise InputError(
                f"distil must name a run of the same data, {member.name} was trained with other "
                f"labels of {first_few(unlike)}"
            )


def _predict(
    dataset: Dataset,
    models: Sequence[ImageClassifier],
    members: Sequence[Member],
    setup: Setup,
    display: Display,
) -> tuple[np.ndarray, np.ndarray]:
    """The rows that can be read, `(n,)`, and each member's probabilities of them `(M, n, C)`."""
    device = pick_device(setup.device)
    precision = pick_precision(setup.precision, device)
    images = decode_labelled(dataset, members, setup, display)
    bad = {row for cache in images.values() for row in cache.bad}
    rows = np.array([row for row in range(len(dataset.ids)) if row not in bad])
    probs = []
    for model, member in zip(models, members, strict=True):
        fast = for_inference(model).to(device).to(memory_format=torch.channels_last)
        logits = predict_logits(
            fast,
            images[decoding_of(member.card)].images,
            torch.from_numpy(rows),
            precision,
            progress=display.predict_progress,
        )
        probs.append(probs_of(logits))
    return rows, np.stack(probs)
