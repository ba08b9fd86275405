"""Markdown descriptions and tables of runs and votes."""

import csv
import io
from collections.abc import Sequence

from pose.config import typed
from pose.ensembling.comparison import Comparison
from pose.ensembling.held_out import Decision
from pose.ensembling.out_of_fold import OutOfFold
from pose.metrics import calibration_scores
from pose.named_runs import NAMED_RUNS, ResolvedRun
from pose.results import AutoTrial, SeedResult, SweepResult, Vote, spread


def describe_seeds(
    resolved: ResolvedRun,
    results: list[SeedResult],
    num_promised: int,
    out_of_fold: OutOfFold | None = None,
) -> str:
    """A run: its recipe, the scores over all folds, and a table of its finished members."""
    members = "members" if resolved.recipe.folds else "seeds"
    budget = resolved.recipe.budget
    bought = ""
    if budget:
        seconds = sum(result.seconds for result in results)
        epochs = sum(result.num_epochs for result in results) / len(results)
        bought = (
            f" The budget of {budget} bought {epochs:.1f} epochs per {members[:-1]}, "
            f"{seconds / 60:.1f} minutes in all; the last epoch of each ends where its time does."
        )
    lines = [
        f"### {resolved.name}: {resolved.title()}",
        "",
        f"Validation macro F1 of {len(results)} of {num_promised} {members}: "
        f"**{spread([result.val_f1 for result in results])}** (mean ± standard deviation). The "
        f"best epoch of each was chosen on the same validation images, so new images score a "
        "little lower." + bought,
        "",
        *(_fold_lines(out_of_fold) if out_of_fold else []),
        *_member_table(resolved, results),
    ]
    return "\n".join(lines) + "\n"


def _member_table(resolved: ResolvedRun, results: list[SeedResult]) -> list[str]:
    """A row per member; beside the original's score where it trained the same."""
    has_folds = resolved.recipe.folds > 0
    published = NAMED_RUNS[resolved.base].val_f1 if resolved.base and not has_folds else {}
    first = "member" if has_folds else "seed"
    lines = [
        f"| {first} | val_f1 | best epoch | epochs | ended by | minutes |"
        + (" original's val_f1 |" if published else ""),
        "|---|---|---|---|---|---|" + ("---|" if published else ""),
    ]
    for result in results:
        line = (
            f"| {result.key if result.fold else result.seed} | {result.val_f1:.4f} "
            f"| {result.best_epoch} | {result.num_epochs} | {result.stop_reason} "
            f"| {result.seconds / 60:.1f} |"
        )
        if published:
            original = published.get(result.seed)
            line += f" {original:.6f} |" if original else " |"
        lines.append(line)
    return lines


def _fold_lines(out_of_fold: OutOfFold) -> list[str]:
    """The scores over all folds, each row predicted by members that did not train on it."""
    num_rows, num_seeds = len(out_of_fold.predictions.ids), len(out_of_fold.seeds)
    folds = spread(list(out_of_fold.folds.values()))
    lines = [
        f"Out of fold, {num_rows} rows, each predicted by the members that did not train on it: "
        f"the ensemble of {num_seeds} seeds has macro F1 **{out_of_fold.ensemble['f1']:.4f}**. "
        f"Over the {folds.num} folds a member's macro F1 is {folds} (mean over the seeds).",
        "",
        "| out of fold | macro F1 | accuracy | NLL | ECE |",
        "|---|---|---|---|---|",
    ]
    rows = {f"seed {seed}": scores for seed, scores in out_of_fold.seeds.items()}
    for name, scores in {**rows, "ensemble": out_of_fold.ensemble}.items():
        values = " | ".join(f"{scores[metric]:.4f}" for metric in ("f1", "acc", "nll", "ece"))
        lines.append(f"| {name} | {values} |")
    return [*lines, ""]


def describe_sweep(sweep: SweepResult) -> str:
    """A sweep: its trials, and how to train the best."""
    finished = [trial for trial in sweep.trials if trial.val_f1]
    lines = [
        f"### {sweep.name}: {len(sweep.trials)} trials, {len(finished)} to their end",
        "",
        "| trial | values | val_f1 | ended by | minutes |",
        "|---|---|---|---|---|",
    ]
    for trial in sweep.trials:
        values = ", ".join(f"{key}={typed(value)}" for key, value in trial.values.items())
        lines.append(
            f"| {trial.name} | {values} | {trial.val_f1 or ''} | {trial.ending} "
            f"| {trial.seconds / 60:.1f} |"
        )
    if sweep.command:
        lines += [
            "",
            "The best was chosen by these scores, so its own is flattering: train it with seeds "
            "that the sweep did not use, and believe those.",
            "",
            f"    {sweep.command}",
        ]
    return "\n".join(lines) + "\n"


def describe_auto(
    name: str,
    found: Sequence[str],
    candidates: Sequence[tuple[str, str]],
    trials: Sequence[AutoTrial],
    chosen: int,
    rest: str,
) -> str:
    """A plan from the data: what the folder is like, what was tried, and what came of it.

    Args:
        found: the folder in lines.
        candidates: name and reason of each.
        rest: what was done with the rest of the time.
    """
    num_rounds = 1 + max((own.round for own in trials), default=-1)
    score_of = {(own.candidate, own.round): own for own in trials}
    lines = [
        f"### {name}: planned from the data",
        "",
        *(f"* {line}" for line in found),
        "",
        "| candidate | why | images/s |"
        + "".join(f" round {number + 1} |" for number in range(num_rounds)),
        "|" + "---|" * (3 + num_rounds),
    ]
    for index, (candidate, reason) in enumerate(candidates):
        own_trials = [score_of.get((index, number)) for number in range(num_rounds)]
        rates = [own.images_per_second for own in own_trials if own]
        scores = "".join(f" {_scores_of(own)} |" if own else " |" for own in own_trials)
        mark = "**" if index == chosen else ""
        rate = f"{rates[-1]:.0f}" if rates else ""
        lines.append(f"| {mark}{candidate}{mark} | {reason} | {rate} |{scores}")
    lines += [
        "",
        f"Chosen: **{candidates[chosen][0]}**, {_why_chosen(trials)}",
        "",
        rest,
    ]
    return "\n".join(lines) + "\n"


def _scores_of(trial: AutoTrial) -> str:
    took = f"{trial.seconds:.0f} s, {trial.num_epochs:.1f} epochs"
    return f"{trial.val_f1:.4f}, {trial.val_auc:.4f} ({took})"


def _why_chosen(trials: Sequence[AutoTrial]) -> str:
    if not trials:
        return "the only candidate: the settings that were given leave nothing to try."
    return (
        "which was the best of the last round; those far behind the best go no further. A trial's "
        "numbers are macro F1 and the area under the ROC curve; it is ranked by the area, and by "
        "how much its F1 is above that of always "
        "the commonest class. All are validated on one fold of the rows that train. "
        "Each round goes on where the last one ended, and gives those that are left more time."
    )


def describe_vote(vote: Vote) -> str:
    """A vote: who voted, how far they agree, and the score on rows that nobody trained on."""
    score = vote.score
    lines = [f"### {vote.name}: {vote.voting} vote of {len(vote.members)} members", ""]
    if score.reason:
        lines.append(f"No validation score: {score.reason}.")
    else:
        lines.append(
            f"Validation macro F1 **{score.interval}** (95 % bootstrap interval) on "
            f"{score.rows_text()} (each member's best epoch was chosen on its validation rows)."
        )
    lines += _decision_lines(vote.decision)
    if vote.decision.how.tta:
        lines += [
            "",
            f"Members looked several times at each test image ({', '.join(vote.decision.how.tta)}; "
            f"{vote.predict_seconds:.1f} s in all). The validation score is "
            + ("with it." if vote.decision.views else "without it."),
        ]
    lines += [
        "",
        f"All members agree on {vote.unanimity:.1%} of the images."
        if len(vote.members) > 1
        else "A single member: there is nobody to agree with.",
        "",
        "| member | model | version | val_f1 | agrees with the ensemble |",
        "|---|---|---|---|---|",
    ]
    for member, share in zip(vote.members, vote.agreement, strict=True):
        lines.append(
            f"| {member.name} | {member.card.model} | {member.registered.version} "
            f"| {member.card.val_f1:.4f} | {share:.1%} |"
        )
    return "\n".join(lines) + "\n"


def _decision_lines(decision: Decision) -> list[str]:
    """What was chosen and fitted, and how good it is on rows that it was not fitted on."""
    selection = decision.selection
    lines = ["", f"Voting: {decision.note}."] if decision.note else []
    if decision.views:
        lines += [
            "",
            f"Looks were tried on validation images, {decision.views.seconds:.1f} s:",
            "",
            "| looks besides the plain one | macro F1 on all of them |",
            "|---|---|",
            *(
                f"| {', '.join(v) or 'none'} | {f1:.4f} |"
                for v, f1 in decision.views.scores.items()
            ),
        ]
    if decision.abstention:
        lines += ["", f"`ask`: {decision.abstention}."]
    if selection and decision.how.is_calibrated:
        before = calibration_scores(selection.rows.raw, selection.labels)
        after = calibration_scores(selection.rows.calibrated, selection.labels)
        lines += [
            "",
            f"Calibrated with {decision.how.calibration_text()}, on rows that were not fitted to:",
            "",
            "| | before | after |",
            "|---|---|---|",
            *(f"| {name} | {before[name]:.4f} | {after[name]:.4f} |" for name in before),
        ]
    if selection and selection.scaling:
        lines += ["", f"Calibration: {selection.scaling.note()}."]
    if selection and selection.gain:
        lines += ["", "| rule | macro F1, cross-fitted |", "|---|---|"]
        lines += [f"| {rule} | {score:.4f} |" for rule, score in selection.rule_scores.items()]
    return lines


def members_csv(vote: Vote) -> str:
    """One row per member: what it is, its scores, and how far it agrees with the ensemble."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "run",
            "seed",
            "fold",
            "model",
            "version",
            "val_f1",
            "shared_rows_f1",
            "agreement",
            "trained_as",
        ]  # fmt: skip
    )
    shared = vote.score.members or [None] * len(vote.members)
    for member, share, own in zip(vote.members, vote.agreement, shared, strict=True):
        registered = member.registered
        writer.writerow(
            [
                registered.run,
                registered.seed,
                registered.fold or "",
                member.card.model,
                registered.uri,
                f"{member.card.val_f1:.6f}",
                "" if own is None else f"{own:.6f}",
                f"{share:.6f}",
                registered.recipe,
            ]
        )
    return text.getvalue()


def p_text(p_value: float) -> str:
    """`= 0.031`, or `< 0.0001`."""
    return "< 0.0001" if p_value < 0.0001 else f"= {p_value:.2g}"


def mcnemar_text(result: Comparison) -> str:
    """McNemar's test in words."""
    test, (first, second) = result.mcnemar, result.names
    how = "exact binomial" if test.is_exact else "chi-squared with continuity correction"
    return (
        f"On {result.num_rows} common rows only {first} is right on {test.only_first}, only "
        f"{second} on {test.only_second} ({how}). The test takes the networks as they are: seeds "
        "are no part of it."
    )


def describe_comparison(result: Comparison) -> str:
    """A comparison: its sentence, both scores, McNemar's test, and the classes."""
    lines = [
        f"**{result.sentence()}**",
        "",
        "The interval is of 95 %, over rows (bootstrap, paired) and seeds (jackknife). Rows are "
        "validation rows that no member of either trained on.",
        "",
        "| | macro F1 | accuracy | seeds | macro F1 of a seed |",
        "|---|---|---|---|---|",
    ]
    for number, name in enumerate(result.names):
        single = spread(result.single_f1[number])
        lines.append(
            f"| {name} | {result.f1[number]:.4f} | {result.accuracy[number]:.4f} "
            f"| {len(result.single_f1[number])} | {single} |"
        )
    lines += [
        "",
        f"McNemar's test: p {p_text(result.mcnemar.p_value)}. {mcnemar_text(result)}",
    ]
    return "\n".join(lines) + "\n"
