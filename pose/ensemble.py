"""A vote: the registered members of runs predict the test images together."""

import csv
import dataclasses
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pose import metrics, seed_folder, tracking, voting
from pose.cache import open_cache
from pose.classes import sorted_texts
from pose.console import Console
from pose.dataset import find_dataset, read_test_images
from pose.device import describe, keep_freed_memory, pick_device, pick_precision
from pose.errors import InputError, first_few
from pose.files import write_text
from pose.models import ImageClassifier, SeedEnsemble, for_inference
from pose.seed_folder import Predictions
from pose.tracking import RegisteredMember
from pose.training import predict_logits, probs_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """A member that is here and can predict.

    Attributes:
        val_predictions: on the rows that validated it, which it never trained on.
    """

    registered: RegisteredMember
    model: ImageClassifier
    config: dict[str, Any]
    val_predictions: Predictions

    @property
    def name(self) -> str:
        """`ensemble_1 seed 76`."""
        return f"{self.registered.run} seed {self.registered.seed}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class HonestScore:
    """Scores on the validation rows that no member trained on.

    Attributes:
        num_rows: how many there are.
        reason: why there are no scores; None if there are.
        ensemble: macro-F1, accuracy, NLL in nats, ECE; by metric.
        members: macro-F1 of each member on the same rows.
    """

    num_rows: int
    reason: str | None = None
    ensemble: dict[str, float] = dataclasses.field(default_factory=dict)
    members: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vote:
    """What a vote produced.

    Attributes:
        artifact: where the predictions lie in MLflow.
        agreement: `(M,)` part of the images on which a member predicts what the ensemble does.
    """

    run_id: str
    out_path: Path
    artifact: str
    members: list[Member]
    agreement: np.ndarray
    unanimity: float
    score: HonestScore


def vote(
    runs: list[str],
    *,
    voting_rule: str,
    out_path: Path,
    parent: str | None,
    dataset: str | None,
    kaggle_handle: str,
    skip_bad_images: bool,
    device: str,
    precision: str,
    num_workers: int,
    cache_root: Path | None,
    console: Console,
) -> Vote:
    """Predict the test images by the members of `runs` and write `out_path` (`id,label`).

    Args:
        parent: run id of the training to take the members from; only for a single run.
        skip_bad_images: leave out test images that cannot be read, instead of refusing.

    Raises:
        InputError: no members, members that cannot vote together, or no readable test images.
    """
    if voting_rule not in voting.VOTINGS:
        raise InputError(f"voting must be one of {', '.join(voting.VOTINGS)}, got {voting_rule!r}")
    if out_path.is_dir() or not out_path.absolute().parent.is_dir():
        raise InputError(f"out_path must be a file in a folder that exists, got {str(out_path)!r}")
    if not os.access(out_path.absolute().parent, os.W_OK):
        raise InputError(f"out_path must be in a folder that can be written, got {str(out_path)!r}")
    if parent and len(runs) > 1:
        raise InputError(f"parent must go with a single run, got {len(runs)} runs")
    keep_freed_memory()
    torch_device = pick_device(device)
    dtype = pick_precision(precision, torch_device)
    client = tracking.connect()
    registered = [member for run in runs for member in tracking.find_members(client, run, parent)]
    folder = find_dataset(dataset, kaggle_handle, console.draw_progress)
    tests = read_test_images(folder)
    with tempfile.TemporaryDirectory() as staging:
        members = [
            _read_member(client, member, Path(staging) / f"member_{number}")
            for number, member in enumerate(registered)
        ]
        for member in members:
            console.say(
                f"member: {member.name}, {member.config['model']}, "
                f"val_f1 {member.config['val_f1']:.4f}, {member.registered.uri}"
            )
            if member.registered.recipe != member.registered.run:
                console.say(f"  trained as: {member.registered.recipe}")
        _check_compatible(members)
        console.say(f"device: {describe(torch_device, dtype)}")
        predictions = _predict(
            members, tests, torch_device, dtype,
            skip_bad_images=skip_bad_images, num_workers=num_workers, cache_root=cache_root,
            console=console,
        )  # fmt: skip
        probs = np.stack([p.probs for p in predictions])
        combined = Predictions(
            ids=predictions[0].ids,
            probs=voting.combine_probs(probs, voting_rule),
            class_labels=predictions[0].class_labels,
        )
        score = score_honestly(members, voting_rule)
        shares = voting.agreement(probs, combined.probs)
        name = "+".join(runs)
        run_id = tracking.start_vote(
            client, f"{name}_{voting_rule}"[:250], {"run": name, "voting": voting_rule}
        )
        with tracking.ending(client, run_id):
            files = Path(staging) / "files"
            predictions_csv = _predictions_csv(combined)
            write_text(out_path, predictions_csv)
            write_text(files / "predictions.csv", predictions_csv)
            write_text(files / "members.csv", _members_csv(members, shares, score))
            seed_folder.write_predictions(files / "ensemble_probs.csv", combined)
            result = Vote(
                run_id=run_id,
                out_path=out_path,
                artifact=tracking.artifact_uri(client, run_id, "predictions.csv"),
                members=members,
                agreement=shares,
                unanimity=voting.unanimity(probs),
                score=score,
            )
            _record(client, result, probs, voting_rule, name, sorted(files.iterdir()))
    return result


def _read_member(client, registered: RegisteredMember, folder: Path) -> Member:
    tracking.fetch_member(client, registered, folder)
    model, config = seed_folder.read_model(folder)
    return Member(
        registered=registered,
        model=model,
        config=config,
        val_predictions=seed_folder.read_predictions(folder / seed_folder.VAL_PREDICTIONS),
    )


def _check_compatible(members: list[Member]) -> None:
    first = members[0]
    for member in members[1:]:
        if member.config["labels"] != first.config["labels"]:
            raise InputError(
                f"members must know the same classes, but {first.name} has "
                f"{first_few(first.config['labels'])} and {member.name} has "
                f"{first_few(member.config['labels'])}: vote with runs of the same data"
            )


def _predict(
    members: list[Member],
    tests: dict[str, Path],
    device: torch.device,
    dtype: torch.dtype,
    *,
    skip_bad_images: bool,
    num_workers: int,
    cache_root: Path | None,
    console: Console,
) -> list[Predictions]:
    """Each member's predictions of the test images, each image decoded once a size."""
    ids, files = list(tests), list(tests.values())
    images = {}
    rows = torch.arange(len(ids))
    for size in sorted({member.config["image_size"] for member in members}):
        cache = open_cache(
            files, size,
            cache_root=cache_root, num_workers=num_workers, progress=console.cache_progress,
        )  # fmt: skip
        images[size] = cache.images
        if cache.bad:
            named = first_few(f"{files[row].name} ({why})" for row, why in cache.bad.items())
            if not skip_bad_images:
                raise InputError(
                    f"test images must all be readable, found {len(cache.bad)} that are not: "
                    f"{named}; repair them, or leave them out with --skip-bad-images"
                )
            console.say(f"warning: {len(cache.bad)} unreadable test images left out: {named}")
            rows = torch.tensor([row for row in range(len(ids)) if row not in cache.bad])
    if len(rows) == 0:
        raise InputError("test images must be readable, found not a single one that is")
    predictions = []
    for member in members:
        model = for_inference(member.model).to(device, memory_format=torch.channels_last)
        size = member.config["image_size"]
        logits = predict_logits(model, images[size], rows, dtype, progress=console.predict_progress)
        predictions.append(
            Predictions(
                ids=tuple(ids[row] for row in rows.tolist()),
                probs=probs_of(logits),
                class_labels=tuple(member.config["labels"]),
            )
        )
    return predictions


def score_honestly(members: list[Member], voting_rule: str) -> HonestScore:
    """Score the ensemble on the rows that no member trained on, if there are enough."""
    digests = {member.config["dataset_digest"] for member in members}
    if len(digests) > 1:
        return HonestScore(num_rows=0, reason="the members were trained on different data")
    ids = voting.shared_rows([member.val_predictions.ids for member in members])
    if len(ids) < voting.MIN_HONEST_ROWS:
        return HonestScore(
            num_rows=len(ids),
            reason=f"only {len(ids)} validation rows were in no member's training, fewer than "
            f"{voting.MIN_HONEST_ROWS}",
        )
    picked = []
    for member in members:
        row_of = {image_id: row for row, image_id in enumerate(member.val_predictions.ids)}
        picked.append([row_of[image_id] for image_id in ids])
    labels = members[0].val_predictions.labels[picked[0]]
    probs = np.stack(
        [m.val_predictions.probs[rows] for m, rows in zip(members, picked, strict=True)]
    )
    combined = voting.combine_probs(probs, voting_rule)
    num_classes = probs.shape[2]
    confusion = metrics.confusion_matrix(labels, combined.argmax(axis=1), num_classes)
    return HonestScore(
        num_rows=len(ids),
        ensemble={
            "val_f1": metrics.macro_f1(confusion),
            "val_acc": metrics.accuracy(confusion),
            "val_nll": metrics.nll(combined, labels),
            "val_ece": metrics.ece(combined, labels),
        },
        members=tuple(
            metrics.macro_f1(metrics.confusion_matrix(labels, own.argmax(axis=1), num_classes))
            for own in probs
        ),
    )


def _predictions_csv(combined: Predictions) -> str:
    """`id,label`, a row an image, sorted by id."""
    preds = combined.probs.argmax(axis=1)
    label_of = {
        image_id: combined.class_labels[pred]
        for image_id, pred in zip(combined.ids, preds, strict=True)
    }
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "label"])
    writer.writerows((image_id, label_of[image_id]) for image_id in sorted_texts(label_of))
    return text.getvalue()


def _members_csv(members: list[Member], shares: np.ndarray, score: HonestScore) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["run", "seed", "model", "version", "val_f1", "shared_rows_f1", "agreement", "trained_as"]
    )
    shared = score.members or [None] * len(members)
    for member, share, own in zip(members, shares, shared, strict=True):
        registered = member.registered
        writer.writerow(
            [
                registered.run,
                registered.seed,
                member.config["model"],
                registered.uri,
                f"{member.config['val_f1']:.6f}",
                "" if own is None else f"{own:.6f}",
                f"{share:.6f}",
                registered.recipe,
            ]
        )
    return text.getvalue()


def _record(
    client, result: Vote, probs: np.ndarray, voting_rule: str, name: str, files: list[Path]
) -> None:
    """Record the vote in MLflow and register the ensemble as one model."""
    members = result.members
    scores = {f"member_val_f1/{m.name.replace(' ', '_')}": m.config["val_f1"] for m in members}
    tracking.log_ensemble(
        client,
        result.run_id,
        metrics={
            **result.score.ensemble,
            "val_rows": result.score.num_rows,
            "agreement_mean": float(result.agreement.mean()),
            "unanimity": result.unanimity,
            "disagreement": voting.disagreement(probs),
            "num_members": len(members),
            "num_images": probs.shape[1],
            **scores,
        },
        tags={
            "members": ",".join(member.registered.uri for member in members),
            "parents": ",".join(sorted({member.registered.parent_run_id for member in members})),
        },
        note=describe_vote(result, voting_rule, name),
        files=files,
    )
    tracking.log_model(
        client,
        result.run_id,
        SeedEnsemble([member.model for member in members]).eval(),
        name=tracking.ENSEMBLE_NAME,
        num_classes=len(members[0].config["labels"]),
        extra_files=[path for path in files if path.name == "members.csv"],
        model_format="pickle",
        tags={"run": name, "voting": voting_rule, "num_members": str(len(members))},
    )


def describe_vote(result: Vote, voting_rule: str, name: str) -> str:
    """A Markdown description of a vote: who voted, how far they agree, and the honest score."""
    score = result.score
    lines = [f"### {name}: {voting_rule} vote of {len(result.members)} members", ""]
    if score.reason:
        lines.append(f"No validation score: {score.reason}.")
    else:
        lines.append(
            f"Validation macro F1 **{score.ensemble['val_f1']:.4f}** on {score.num_rows} rows that "
            "no member trained on (each member's best epoch was chosen on its validation rows)."
        )
    lines += [
        "",
        f"All members agree on {result.unanimity:.1%} of the images.",
        "",
        "| member | model | version | val_f1 | agrees with the ensemble |",
        "|---|---|---|---|---|",
    ]
    for member, share in zip(result.members, result.agreement, strict=True):
        lines.append(
            f"| {member.name} | {member.config['model']} | {member.registered.version} "
            f"| {member.config['val_f1']:.4f} | {share:.1%} |"
        )
    return "\n".join(lines) + "\n"
