"""A vote: the registered members of runs predict the test images together."""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pose.config import VoteSetup
from pose.data.cache import open_cache
from pose.data.folder import read_test_images, refuse_input
from pose.data.source import find_dataset
from pose.data.submission import read_submission
from pose.device import describe, keep_freed_memory, pick_device, pick_precision
from pose.display import Display
from pose.ensembling import diversity
from pose.ensembling.held_out import score_held_out
from pose.ensembling.members import Member, RegisteredMember, check_compatible
from pose.errors import InputError, first_few, printable
from pose.files import file_to_write, write_text
from pose.predictions import Predictions, read_predictions, write_predictions
from pose.reports.notes import describe_vote, members_csv
from pose.results import Vote
from pose.seeds import folder as seed_folder
from pose.stop import ending
from pose.tracking import Tracker, VoteRecord
from pose.training.predict import predict_logits, probs_of
from pose_models import Combination, ImageClassifier, SeedEnsemble, combine, for_inference


def vote(setup: VoteSetup, tracker: Tracker, display: Display) -> Vote:
    """Predict the test images with the members of runs and write `out_path` (`id,label`).

    Raises:
        InputError: no members, members that cannot vote together, or no readable test images.
    """
    out_path = Path(setup.out_path)
    written_to = file_to_write(out_path, "out_path")
    keep_freed_memory()
    how = Combination(rule=setup.voting)
    runs = setup.runs() or (tracker.newest_run_name(),)
    name = "+".join(runs)
    with tempfile.TemporaryDirectory() as staging:
        registered, dataset = _find_members(runs, setup, tracker, display)
        data_setup = dataclasses.replace(setup, dataset=dataset)
        folder = find_dataset(data_setup, display)
        refuse_input(out_path, folder, "out_path")
        tests = read_test_images(folder, display.say)
        submission = read_submission(folder, tuple(tests))
        models, members = [], []
        for number, found in enumerate(registered):
            model, member = _bring(found, tracker, Path(staging) / f"member_{number}")
            _show_member(member, display)
            models.append(model)
            members.append(member)
        check_compatible(members)
        predictions = _predict(members, models, tests, setup, display)
        probs = np.stack([own.probs for own in predictions])
        combined = dataclasses.replace(predictions[0], probs=combine_probs(probs, how))
        record = tracker.open_vote(f"{name}_{how.rule}"[:250], {"run": name, "voting": how.rule})
        with ending(record.finish):
            result = Vote(
                run_id=record.run_id,
                name=name,
                voting=how.rule,
                out_path=out_path,
                artifact=record.artifact("predictions.csv"),
                members=tuple(members),
                agreement=tuple(diversity.agreement(probs, combined.probs).tolist()),
                unanimity=diversity.unanimity(probs),
                disagreement=diversity.disagreement(probs),
                num_images=probs.shape[1],
                score=score_held_out(members, lambda own: combine_probs(own, how)),
            )
            text = submission.csv(combined.pred_labels())
            files = _write_files(result, combined, text, Path(staging) / "files")
            # Beside what a link points at, not in place of the link.
            write_text(written_to, text)
            _record(record, result, files)
            ensemble = SeedEnsemble(models, how).eval()
            tags = {"run": name, "voting": how.rule, "num_members": str(len(members))}
            record.log_model(ensemble, [files["members.csv"]], tags)
        record.finish("FINISHED")
    return result


def combine_probs(probs: np.ndarray, how: Combination) -> np.ndarray:
    """`pose_models.combine` of an array `(M, N, C)`; `(N, C)` float64."""
    return combine(torch.from_numpy(probs), how).numpy()


def _find_members(
    runs: Sequence[str], setup: VoteSetup, tracker: Tracker, display: Display
) -> tuple[list[RegisteredMember], str | None]:
    """The members of all runs, and the data folder.

    The folder is the one that was named, else the one that the first run was trained on, where it
    is still there.
    """
    members: list[RegisteredMember] = []
    dataset = setup.dataset
    for run in runs:
        found = tracker.find_members(run, setup.parent)
        members += found.members
        display.say(f"run: {run}, {found.members[0].parent_run_id}, {len(found.members)} members")
        for parent, seeds in found.left_out.items():
            display.say(
                f"  left out: {len(seeds)} members of the earlier run {parent} of that name "
                f"(seeds {first_few(seeds)})"
            )
        if dataset is None and found.dataset and Path(found.dataset).is_dir():
            dataset = found.dataset
            display.say(f"data: {dataset}, where {run} was trained")
    return members, dataset


def _bring(
    found: RegisteredMember, tracker: Tracker, folder: Path
) -> tuple[ImageClassifier, Member]:
    tracker.fetch_member(found, folder)
    model, card = seed_folder.read_model(
        folder, name=f"{found.run} seed {found.seed} ({found.uri})"
    )
    if found.weights_sha256 and found.weights_sha256 != card.weights_sha256:
        raise InputError(
            f"{found.run} seed {found.seed} must be the model that was registered as {found.uri}, "
            "found another one there: its SHA-256 differs from the version's tag"
        )
    val_predictions = read_predictions(folder / seed_folder.VAL_PREDICTIONS)
    return model, Member(registered=found, card=card, val_predictions=val_predictions)


def _show_member(member: Member, display: Display) -> None:
    display.say(
        f"member: {member.name}, {member.card.model}, val_f1 {member.card.val_f1:.4f}, "
        f"{member.registered.uri}"
    )
    if member.registered.recipe != member.registered.run:
        display.say(f"  trained as: {member.registered.recipe}")


def _predict(
    members: Sequence[Member],
    models: Sequence[ImageClassifier],
    tests: dict[str, Path],
    setup: VoteSetup,
    display: Display,
) -> list[Predictions]:
    """Each member's predictions of the test images, each image decoded once per way of decoding."""
    device = pick_device(setup.device)
    precision = pick_precision(setup.precision, device)
    display.say(f"device: {describe(device, precision)}")
    images, rows = _decode(tests, sorted(set(map(_decoding, members))), setup, display)
    ids = tuple(tests)
    predictions = []
    for member, model in zip(members, models, strict=True):
        fast = for_inference(model).to(device).to(memory_format=torch.channels_last)
        logits = predict_logits(
            fast,
            images[_decoding(member)],
            rows,
            precision,
            progress=display.predict_progress,
        )
        predictions.append(
            Predictions(
                ids=tuple(ids[row] for row in rows.tolist()),
                probs=probs_of(logits),
                class_labels=member.card.labels,
            )
        )
    return predictions


def _decoding(member: Member) -> tuple[int, bool]:
    """The size that a member sees, and whether photographs are turned for it as they ask."""
    return member.card.image_size, member.card.recipe.get("exif", "ignore") == "obey"


def _decode(
    tests: dict[str, Path],
    decodings: Sequence[tuple[int, bool]],
    setup: VoteSetup,
    display: Display,
) -> tuple[dict[tuple[int, bool], torch.Tensor], torch.Tensor]:
    """The test images `(N, 3, size, size)` of each decoding, and the rows that can be read."""
    files = list(tests.values())
    cache_root = Path(setup.cache_root) if setup.cache_root else None
    images: dict[tuple[int, bool], torch.Tensor] = {}
    bad: dict[int, str] = {}
    for size, obey_exif in decodings:
        cache = open_cache(
            files,
            size,
            cache_root=cache_root,
            num_workers=setup.num_workers,
            progress=display.cache_progress,
            obey_exif=obey_exif,
        )
        for note in cache.notes:
            display.say(f"warning: {note}")
        images[size, obey_exif] = cache.images
        bad |= cache.bad
    if bad:
        named = first_few(
            f"{printable(files[row].name)} ({why})" for row, why in sorted(bad.items())
        )
        if not setup.skip_bad_images:
            raise InputError(
                f"test images must all be readable, found {len(bad)} that are not: "
                f"{named}; repair them, or leave them out with --skip-bad-images"
            )
        display.say(f"warning: {len(bad)} unreadable test images left out: {named}")
    rows = torch.tensor([row for row in range(len(files)) if row not in bad], dtype=torch.int64)
    if len(rows) == 0:
        raise InputError("test images must be readable, found not a single one that is")
    return images, rows


def _write_files(result: Vote, combined: Predictions, text: str, folder: Path) -> dict[str, Path]:
    """Write the files of the record, by name; `text` is that of predictions.csv."""
    files = {
        name: folder / name for name in ("predictions.csv", "members.csv", "ensemble_probs.csv")
    }
    write_text(files["predictions.csv"], text)
    write_text(files["members.csv"], members_csv(result))
    write_predictions(files["ensemble_probs.csv"], combined)
    return files


def _record(record: VoteRecord, result: Vote, files: dict[str, Path]) -> None:
    members = result.members
    scores = {f"member_val_f1/{m.name.replace(' ', '_')}": m.card.val_f1 for m in members}
    record.log(
        metrics={
            **result.score.ensemble,
            "val_rows": result.score.num_rows,
            "agreement_mean": float(np.mean(result.agreement)),
            "unanimity": result.unanimity,
            "disagreement": result.disagreement,
            "num_members": len(members),
            "num_images": result.num_images,
            **scores,
        },
        tags={
            "members": ",".join(member.registered.uri for member in members),
            "parents": ",".join(sorted({member.registered.parent_run_id for member in members})),
        },
        note=describe_vote(result),
        files=list(files.values()),
    )
