"""The model card of a vote as Markdown (Mitchell et al., 2019, arXiv:1810.03993)."""

import html

from pose import metrics
from pose.ensembling.analysis import HeldOut, worst_pairs
from pose.results import Vote

FILE = "model_card.md"
# What a person reads; the page has them all.
MAX_CLASSES = 50
LOAD = """\
import mlflow

mlflow.set_tracking_uri({store!r})
model = mlflow.pyfunc.load_model({uri!r})
print(model.predict(["image.jpg"]))"""


def model_card(vote: Vote, held_out: HeldOut | None, uri: str, store: str) -> str:
    """What the registered ensemble `uri` is, how good it is, and how it is loaded.

    Args:
        held_out: rows that the score of the classes comes from; None where there are none.
        store: address of the tracking store, without a password.
    """
    lines = [
        f"# {vote.name}: {vote.voting} vote of {len(vote.members)} members",
        "",
        "## Data and recipe",
        "",
        f"Images of {len(vote.members[0].card.names)} classes, digest of the training data "
        f"`{vote.members[0].card.dataset_digest}`.",
        "",
        *(
            f"* {member.name}: {member.card.model}, {_text(member.registered.recipe)}, val_f1 "
            f"{member.card.val_f1:.4f}"
            for member in vote.members
        ),
        "",
        "## Score",
        "",
        *_score_lines(vote),
    ]
    if held_out is not None:
        lines += _class_lines(held_out, vote.members[0].card.names)
    lines += ["", "## Load", "", "```python", LOAD.format(store=store, uri=uri), "```"]
    return "\n".join(lines) + "\n"


def _score_lines(vote: Vote) -> list[str]:
    score = vote.score
    if score.reason:
        return [f"None: {score.reason}."]
    names = {"val_nll": "negative log-likelihood, nats", "val_ece": "calibration error",
             "val_brier": "Brier score"}  # fmt: skip
    calibration = [
        f"{name} {score.ensemble[key]:.4f}" for key, name in names.items() if key in score.ensemble
    ]
    return [
        f"Macro F1 **{score.interval}** (95 % bootstrap interval) on {score.rows_text()}; single "
        f"members {min(score.members):.4f} to {max(score.members):.4f}. Each member's best epoch "
        "was chosen on its validation rows, so new images score a little lower.",
        "",
        f"Calibration on the same rows: {', '.join(calibration)}.",
    ]


def _class_lines(held_out: HeldOut, names: tuple[str, ...]) -> list[str]:
    confusion = held_out.confusion
    counts = confusion.sum(axis=1)
    lines = [
        "",
        f"## Classes, on {held_out.rows_text()}",
        "",
        "| class | rows | precision | recall | F1 |",
        "|---|---|---|---|---|",
    ]
    for index, scores in enumerate(metrics.per_class(confusion)[:MAX_CLASSES]):
        precision, recall, f1 = scores.tolist()
        lines.append(
            f"| {_text(names[index])} | {counts[index]} | {precision:.4f} | {recall:.4f} "
            f"| {f1:.4f} |"
        )
    if len(names) > MAX_CLASSES:
        lines.append(f"\n{len(names) - MAX_CLASSES} more are in report.html.")
    pairs = worst_pairs(confusion)
    lines += ["", "Known confusions: " + ("" if pairs else "none on these rows.")]
    return lines + [
        f"* {_text(names[label])} is taken for {_text(names[pred])}: {count} of {counts[label]}"
        for label, pred, count in pairs
    ]


def _text(name: str) -> str:
    """A name from data as Markdown shows it, in a table as well."""
    escaped = html.escape(" ".join(name.split()), quote=False)
    return "".join(f"\\{c}" if c in "\\`*_[]|$#" else c for c in escaped)
