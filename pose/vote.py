"""A vote: the registered members of runs predict the test images together."""

import dataclasses
import functools
import hashlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from pose import result_pages
from pose.ballot import Ballot, forget_shards, hold_ballot
from pose.config import VoteSetup
from pose.data.folder import read_test_images, refuse_input
from pose.data.shards import ImageFile
from pose.data.source import find_dataset
from pose.data.submission import Submission, read_submission
from pose.device import keep_freed_memory
from pose.display import Display
from pose.ensembling import diversity
from pose.ensembling.fit import FitSpec
from pose.ensembling.held_out import Decision, decide, decided, with_abstention
from pose.ensembling.lock import (
    LOCK_FILE,
    Lock,
    lock_text,
    locked_members,
)
from pose.ensembling.looks import Looked
from pose.ensembling.members import Member
from pose.errors import InputError, first_few, one_line, printable
from pose.export import check_packages, export_all, gather_images, record_exports
from pose.files import file_to_write, is_a_record, is_a_table, refuse_other_kind, write_text
from pose.look import look_again
from pose.metrics import calibration_scores, reliability
from pose.predictions import Predictions, write_predictions
from pose.reports import plots
from pose.reports.notes import describe_vote, members_csv
from pose.results import Vote
from pose.stop import ending
from pose.tracking import DataRecord, Tracker, VoteRecord, predictor_config
from pose.voters import bring_voters, fetch_lock, find_voters
from pose_models import (
    AugmentedClassifier,
    Combination,
    ImageClassifier,
    SeedEnsemble,
    combine,
)
from pose_models.predictor import PredictorConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """What predictions.csv has besides id and label; named as in the lock.

    Attributes:
        ask_below: `ask` is true for predictions of a lower confidence; None: there is no `ask`.
    """

    has_probabilities: bool
    ask_below: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Poll:
    """A vote that was held, before anything of it is written or recorded.

    Attributes:
        name: of the runs that vote, joined by `+`.
        voters: the models as they look at an image.
        combined: the ensemble's predictions.
        text: predictions.csv.
        lock: all that repeats the vote.
        folder, tests: the data, and its test images by id.
        allowed: what was not as promised, and let pass.
    """

    name: str
    members: Sequence[Member]
    models: Sequence[ImageClassifier]
    voters: Sequence[ImageClassifier | AugmentedClassifier]
    decision: Decision
    ballot: Ballot
    combined: Predictions
    text: str
    lock: Lock
    folder: Path
    tests: dict[str, ImageFile]
    allowed: Sequence[str]


def vote(setup: VoteSetup, tracker: Tracker, display: Display) -> Vote:
    """Predict the test images with the members of runs and write `out_path` (`id,label`).

    Beside it, `ensemble.json` holds all that repeats the vote.

    Raises:
        InputError: no members, members that cannot vote together, or no readable test images.
    """
    out_path = Path(setup.out_path)
    check_packages(setup.exports())
    # Found out before the members are asked.
    targets = (
        file_to_write(out_path, "out_path"),
        file_to_write(_lock_path(out_path), "out_path's lock"),
    )
    refuse_input(targets[0], targets[0].parent, "out_path")
    refuse_other_kind(targets[0], "out_path", is_a_table)
    refuse_other_kind(targets[1], "out_path's lock", is_a_record)
    tracker.check_place()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as staging:
        lock = fetch_lock(setup, tracker, Path(staging))
        poll = _hold(setup, lock, tracker, display, Path(staging))
        record = tracker.open_vote(
            f"{poll.name}_{poll.decision.how.rule}"[:250],
            {"run": poll.name, "voting": poll.decision.how.rule},
        )
        with ending(record.finish):
            _log_setup(record, poll)
            result = _result(poll, record, out_path)
            files = _write_files(poll, result, Path(staging) / "files", display)
            # Beside what a link points at, not in place of the link.
            for target, text in zip(targets, (poll.text, lock_text(poll.lock)), strict=True):
                write_text(target, text)
            _record(record, result, files, poll.allowed)
            _register(record, poll, result, files, setup)
            _export(record, poll, setup, Path(staging) / "exported", display)
        record.finish("FINISHED")
    forget_shards(poll.ballot)
    if lock:
        _show_repetition(lock, poll.lock, display)
    return result


def _hold(
    setup: VoteSetup, lock: Lock | None, tracker: Tracker, display: Display, staging: Path
) -> _Poll:
    """Find the members, decide how they are combined, and predict the test images."""
    found = find_voters(setup, lock, tracker, display)
    folder = find_dataset(dataclasses.replace(setup, dataset=found.dataset), display)
    refuse_input(Path(setup.out_path), folder, "out_path")
    tests = read_test_images(folder, display.say)
    submission = read_submission(folder, tuple(tests))
    models, members, allowed = bring_voters(found, setup, tracker, display, staging)
    look = functools.partial(look_again, models, members, folder, setup, display)
    decision = _decide(members, setup, lock, look)
    voters = with_views(models, members, decision.how.tta)
    ballot = hold_ballot(members, voters, tests, setup, display)
    combined = Predictions(
        ids=ballot.ids,
        probs=combine_probs(ballot.probs, decision.how),
        class_labels=members[0].card.labels,
    )
    columns = _columns(setup, decision, lock)
    text = _predictions_text(submission, combined, ballot.probs, decision.how, columns)
    own_lock = _lock_of(members, decision.how, ballot, text)
    return _Poll(
        name="+".join(dict.fromkeys(member.registered.run for member in members)),
        members=members,
        models=models,
        voters=voters,
        decision=decision,
        ballot=ballot,
        combined=combined,
        text=text,
        lock=dataclasses.replace(own_lock, **dataclasses.asdict(columns)),
        folder=folder,
        tests=tests,
        allowed=allowed,
    )


def _result(poll: _Poll, record: VoteRecord, out_path: Path) -> Vote:
    probs = poll.ballot.probs
    return Vote(
        run_id=record.run_id,
        name=poll.name,
        out_path=out_path,
        artifact=record.artifact("predictions.csv"),
        members=tuple(poll.members),
        agreement=tuple(diversity.agreement(probs, poll.combined.probs).tolist()),
        unanimity=diversity.unanimity(probs),
        disagreement=diversity.disagreement(probs),
        num_images=len(poll.ballot.ids),
        predict_seconds=poll.ballot.seconds,
        decision=poll.decision,
    )


def _log_setup(record: VoteRecord, poll: _Poll) -> None:
    ballot = poll.ballot
    recipes = dict.fromkeys(member.registered.recipe for member in poll.members)
    record.log_setup(
        {"run": poll.name, "voting": poll.decision.how.rule, "recipes": "; ".join(recipes)},
        DataRecord(ids=ballot.ids, labels=None, folder=poll.folder, digest=ballot.digest),
        [member.registered.uri for member in poll.members],
    )


def _register(
    record: VoteRecord, poll: _Poll, result: Vote, files: dict[str, Path], setup: VoteSetup
) -> None:
    """Register the ensemble as it voted, with its score and its card."""
    tags = {
        "run": poll.name,
        "voting": result.voting,
        "num_members": str(len(poll.members)),
        "dataset_digest": poll.members[0].card.dataset_digest,
    }
    if "val_f1" in result.score.ensemble:
        tags["val_f1"] = f"{result.score.ensemble['val_f1']:.6f}"
        tags["val_rows"] = str(result.score.num_rows)
    ensemble, config = _ensemble(poll, setup)
    kept = [files["members.csv"], files[LOCK_FILE]]
    version = record.log_model(ensemble, config, kept, tags, setup.registry_name)
    write_card = functools.partial(result_pages.vote_card, result)
    record.log_card(setup.registry_name, version, write_card)


def _ensemble(poll: _Poll, setup: VoteSetup) -> tuple[SeedEnsemble, PredictorConfig]:
    """The members as one module, and what is known of it."""
    cards = [member.card for member in poll.members]
    config = predictor_config(cards, setup.precision, poll.lock.ask_below)
    return SeedEnsemble(poll.voters, poll.decision.how).eval(), config


def _export(
    record: VoteRecord, poll: _Poll, setup: VoteSetup, staging: Path, display: Display
) -> None:
    """Log the ensemble in the other formats that were asked for, checked on its own images."""
    formats = setup.exports()
    if not formats:
        return
    ensemble, config = _ensemble(poll, setup)
    members = [member.val_predictions for member in poll.members]
    images = gather_images(poll.folder, config, members, formats)
    exported = export_all(ensemble, formats, images, staging, display)
    for name, address in record_exports(record, exported, ensemble, config).items():
        display.say(f"{name}: {address}")


def _decide(
    members: Sequence[Member], setup: VoteSetup, lock: Lock | None, look: Callable[[], Looked]
) -> Decision:
    """How the members are combined: as they were in the lock, or as `setup` asks."""
    if lock is None:
        spec = FitSpec(
            rule=setup.voting,
            has_temperature=setup.probabilities or setup.abstain is not None,
            has_offsets=setup.thresholds,
        )
        is_auto = setup.views() == ("auto",)
        decision = decide(members, spec, combine_probs, look if is_auto else None)
        if setup.abstain is not None:
            decision = with_abstention(decision, setup.abstain)
        if is_auto:
            return decision
        how = dataclasses.replace(decision.how, tta=setup.views())
        return dataclasses.replace(decision, how=how)
    try:
        how = Combination.from_dict(lock.combination)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"lock must hold a combination, found: {one_line(error)}") from error
    return decided(members, how, combine_probs)


def with_views(
    models: Sequence[ImageClassifier], members: Sequence[Member], views: tuple[str, ...]
) -> Sequence[ImageClassifier | AugmentedClassifier]:
    """The members as they look at an image: once, or several times.

    Raises:
        InputError: images are to be flipped, and a class has no mirror image.
    """
    if not views:
        return models
    card = members[0].card
    lonely = [label for label, mirror in zip(card.labels, card.mirrors, strict=True) if mirror < 0]
    if "flip" in views and lonely:
        raise InputError(
            f"tta must go without flip where a class has no mirror image, as classes.csv says of "
            f"{first_few(map(printable, lonely))}: take shift and zoom"
        )
    return [
        AugmentedClassifier(model, views, member.card.mirrors)
        for model, member in zip(models, members, strict=True)
    ]


def _columns(setup: VoteSetup, decision: Decision, lock: Lock | None) -> Columns:
    if lock is not None:
        return Columns(has_probabilities=lock.has_probabilities, ask_below=lock.ask_below)
    ask_below = decision.abstention.threshold if decision.abstention else None
    return Columns(has_probabilities=setup.probabilities, ask_below=ask_below)


def _predictions_text(
    submission: Submission,
    combined: Predictions,
    probs: np.ndarray,
    how: Combination,
    columns: Columns,
) -> str:
    """predictions.csv; `probs` `(M, N, C)` are the members'."""
    # Offsets move decisions, and are no part of how probable a class is.
    calibrated = combine_probs(probs, how.stages()[0])
    confidence = calibrated[np.arange(len(calibrated)), combined.preds()]
    names: list[str] = []
    cells: list[list[str]] = [[] for _ in combined.ids]
    if columns.has_probabilities:
        names += [*(f"p_{label}" for label in combined.class_labels), "confidence"]
        for row, own in enumerate(cells):
            own += [f"{value:.6f}" for value in (*calibrated[row], confidence[row])]
    if columns.ask_below is not None:
        names.append("ask")
        for row, own in enumerate(cells):
            own.append("true" if confidence[row] < columns.ask_below else "false")
    more_of = dict(zip(combined.ids, cells, strict=True))
    return submission.csv(combined.pred_labels(), names, more_of)


def _lock_of(members: Sequence[Member], how: Combination, ballot: Ballot, text: str) -> Lock:
    return Lock(
        members=locked_members(members),
        combination=how.to_dict(),
        class_labels=members[0].card.labels,
        test_digest=ballot.digest,
        predictions_sha256=hashlib.sha256(text.encode()).hexdigest(),
        conditions=ballot.conditions,
    )


def _lock_path(out_path: Path) -> Path:
    """`ensemble.json`, with the name of the predictions where they have one of their own."""
    prefix = "" if out_path.stem == "predictions" else f"{out_path.stem}_"
    return out_path.with_name(f"{prefix}{LOCK_FILE}")


def _show_repetition(lock: Lock, own: Lock, display: Display) -> None:
    """Say whether a vote is the one that was locked, and what differs."""
    for line in lock.differences(own):
        display.say(f"differs from the lock: {line}")
    is_equal = lock.predictions_sha256 == own.predictions_sha256
    display.say(
        "the predictions are those of the lock, byte for byte"
        if is_equal
        else "warning: the predictions are not byte for byte those of the lock"
    )


def combine_probs(probs: np.ndarray, how: Combination) -> np.ndarray:
    """`pose_models.combine` of an array `(M, N, C)`; `(N, C)` float64."""
    return combine(torch.from_numpy(probs), how).numpy()


def _write_files(poll: _Poll, result: Vote, folder: Path, display: Display) -> dict[str, Path]:
    """Write the files of the record, by name."""
    texts = {
        "predictions.csv": poll.text,
        "members.csv": members_csv(result),
        LOCK_FILE: lock_text(poll.lock),
    }
    files = {name: folder / name for name in (*texts, "ensemble_probs.csv")}
    for name, text in texts.items():
        write_text(files[name], text)
    write_predictions(files["ensemble_probs.csv"], poll.combined)
    files |= _draw(poll.decision, folder, poll.name)
    page = functools.partial(
        result_pages.vote_page,
        result,
        poll.combined,
        poll.ballot.probs,
        combine_probs,
        poll.models[0],
        (poll.folder, poll.tests),
    )
    if result_pages.write_page(folder / result_pages.NAME, page, display):
        files[result_pages.NAME] = folder / result_pages.NAME
    return files


def _draw(decision: Decision, folder: Path, name: str) -> dict[str, Path]:
    """The pictures of what was fitted, by name."""
    files = {}
    selection, abstention = decision.selection, decision.abstention
    if selection is not None and decision.how.is_calibrated:
        stages = {
            stage: reliability(probs, selection.labels)[:2]
            for stage, probs in (
                ("before", selection.rows.raw),
                ("after", selection.rows.calibrated),
            )
        }
        path = files["reliability.png"] = folder / "reliability.png"
        title = f"{name}: confidence and accuracy, {decision.how.calibration_text()}"
        plots.write_figure(lambda: plots.plot_reliability(stages, title), path)
    if abstention is not None:
        path = files["risk_coverage.png"] = folder / "risk_coverage.png"
        plots.write_figure(
            lambda: plots.plot_risk_coverage(abstention, f"{name}: predictions kept, and right"),
            path,
        )
    return files


def _record(
    record: VoteRecord, result: Vote, files: dict[str, Path], allowed: Sequence[str]
) -> None:
    members = result.members
    scores = {f"member_val_f1/{m.name.replace(' ', '_')}": m.card.val_f1 for m in members}
    record.log(
        metrics={
            **_score_metrics(result.decision),
            "agreement_mean": float(np.mean(result.agreement)),
            "unanimity": result.unanimity,
            "disagreement": result.disagreement,
            "num_members": len(members),
            "num_images": result.num_images,
            "time/predict_seconds": result.predict_seconds,
            **scores,
        },
        tags={
            "members": ",".join(member.registered.uri for member in members),
            "parents": ",".join(sorted({member.registered.parent_run_id for member in members})),
            **({"allowed": "; ".join(allowed)} if allowed else {}),
            **({"decision": result.decision.note} if result.decision.note else {}),
        },
        note=describe_vote(result),
        files=list(files.values()),
    )


def _score_metrics(decision: Decision) -> dict[str, float]:
    score, selection = decision.score, decision.selection
    metrics = {**score.ensemble, "val_rows": float(score.num_rows)}
    if score.interval:
        metrics |= {"val_f1_low": score.interval.low, "val_f1_high": score.interval.high}
    if selection:
        metrics |= {f"rule_f1/{rule}": f1 for rule, f1 in selection.rule_scores.items()}
    if selection and decision.how.is_calibrated:
        for stage, probs in (("before", selection.rows.raw), ("after", selection.rows.calibrated)):
            scores = calibration_scores(probs, selection.labels)
            metrics |= {f"calibration/{score}_{stage}": value for score, value in scores.items()}
    if decision.views:
        metrics |= {f"tta_f1/{_named(own)}": f1 for own, f1 in decision.views.scores.items()}
        metrics["tta_gain"] = decision.views.gain.value
        metrics["time/tta_choice_seconds"] = decision.views.seconds
    if selection and selection.scaling:
        metrics["calibration/nll_gain_of_scales"] = selection.scaling.nll_gain.value
    if decision.abstention:
        metrics["ask/coverage"] = decision.abstention.coverage
        metrics["ask/kept_acc"] = decision.abstention.accuracy
    if selection and selection.gain:
        metrics["gain_over_soft"] = selection.gain.value
    return metrics


def _named(views: tuple[str, ...]) -> str:
    """`flip-zoom`; `none` for a single look."""
    return "-".join(views) or "none"
