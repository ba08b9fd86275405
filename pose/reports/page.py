"""report.html: one file that holds all it shows, made from plain values."""

import base64
import dataclasses
import functools
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
from PIL import Image

from pose import metrics
from pose.ensembling.analysis import CombineProbs, HeldOut, f1_by_size, worst_pairs
from pose.ensembling.bootstrap import f1_interval
from pose.ensembling.diversity import pairwise_disagreement
from pose.history import Row
from pose.reports import charts

# Sides of what is shown of an image, in pixels.
THUMBNAIL = 112
# Images of a gallery at most, and classes whose probability a card shows.
MAX_CARDS = 12
TOP_CLASSES = 3
# Larger confusion matrices are shown by their worst pairs alone.
MAX_MATRIX = 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fact:
    """A number at the head of the page, and what it is about."""

    name: str
    value: str
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Lines of texts, the first of them the header."""

    title: str
    note: str
    lines: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What one of two ensembles says of an image; as in `Card`."""

    who: str
    pred: str
    probs: tuple[tuple[str, float], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """An image in a gallery.

    Attributes:
        image, heat: data URIs; `heat` is empty where there is no heat map.
        label: the true class, empty where it is unknown.
        probs: names and probabilities of the likeliest classes.
        who: whose answer that is, where there are two.
        rival: the other's answer.
    """

    image: str
    heat: str
    title: str
    label: str
    pred: str
    probs: tuple[tuple[str, float], ...]
    who: str = ""
    rival: Answer | None = None

    @property
    def answers(self) -> tuple[Answer, ...]:
        """The answer, or both."""
        own = Answer(who=self.who, pred=self.pred, probs=self.probs)
        return (own,) if self.rival is None else (own, self.rival)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gallery:
    """Images with something in common."""

    title: str
    note: str
    cards: tuple[Card, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Page:
    """What a report shows, in this order.

    Attributes:
        charts: title, note and `<svg>` of each.
        members: a table, its first row the header.
        held_out: the scored rows; None where there are none.
        tables: others.
        sheet: a picture of augmented images as a data URI, with its caption; or empty.
        data: what the data folder is and what is wrong with it, as text.
    """

    title: str
    subtitle: str
    facts: tuple[Fact, ...]
    charts: tuple[tuple[str, str, str], ...]
    members: tuple[tuple[str, ...], ...]
    held_out: HeldOut | None
    class_names: tuple[str, ...]
    tables: tuple[Table, ...] = ()
    galleries: tuple[Gallery, ...] = ()
    sheet: tuple[str, str] = ("", "")
    data: str = ""


def render(page: Page) -> str:
    """The page as HTML; every text is escaped."""
    return _template().render(page=page, **_tables(page))


@functools.cache
def _template() -> jinja2.Template:
    text = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(text)


def _tables(page: Page) -> dict[str, Any]:
    """The confusion matrix, its worst pairs and the scores of the classes, with names."""
    if page.held_out is None:
        return {"matrix": [], "pairs": [], "classes": []}
    names, confusion = page.class_names, page.held_out.confusion
    counts = confusion.sum(axis=1)
    shares = confusion / np.maximum(1, counts)[:, None]
    matrix = [
        (names[row], [(int(confusion[row, c]), float(shares[row, c])) for c in range(len(names))])
        for row in range(len(names))
    ]
    pairs = [
        (names[label], names[pred], count, count / int(counts[label]))
        for label, pred, count in worst_pairs(confusion)
    ]
    classes = [
        (names[row], int(counts[row]), *(float(score) for score in scores))
        for row, scores in enumerate(metrics.per_class(confusion))
    ]
    return {
        "matrix": matrix if len(names) <= MAX_MATRIX else [],
        "pairs": pairs,
        "classes": classes,
    }


def score_facts(held_out: HeldOut, single: Sequence[float]) -> tuple[Fact, ...]:
    """The ensemble's score with its interval, and what it gains on single members.

    Args:
        single: macro F1 of each member on the same rows; none where they share no rows.
    """
    num_classes = held_out.combined.shape[1]
    preds = held_out.combined.argmax(axis=1)
    score = f1_interval(held_out.labels, preds, num_classes, held_out.groups)
    facts = [
        Fact(
            name="ensemble, macro F1",
            value=f"{score.value:.4f}",
            note=f"95 % interval {score.low:.4f} to {score.high:.4f}; {held_out.rows_text()}",
        )
    ]
    if single:
        gain = score.value - float(np.mean(single))
        facts.append(
            Fact(
                name="gain of the ensemble",
                value=f"{100 * gain:+.2f} points",
                note="over the mean of its members on the same rows "
                f"({min(single):.4f} to {max(single):.4f})",
            )
        )
    facts.append(
        Fact(
            name="negative log-likelihood",
            value=f"{metrics.nll(held_out.calibrated, held_out.labels):.4f}",
            note=f"nats; expected calibration error "
            f"{metrics.ece(held_out.calibrated, held_out.labels):.4f}; {held_out.rows_text()}",
        )
    )
    return tuple(facts)


def single_scores(held_out: HeldOut | None) -> list[float]:
    """Macro F1 of each member on the rows that all share; none where there are none."""
    if held_out is None or held_out.probs is None:
        return []
    return [metrics.f1_of(own, held_out.labels) for own in held_out.probs]


def history_charts(histories: Mapping[Any, Sequence[Row]]) -> tuple[tuple[str, str, str], ...]:
    """F1 and loss of the members over epochs."""
    note = "each member in grey; mean and band from lowest to highest in blue"
    return tuple(
        (title, note, charts.curves(histories, metric))
        for title, metric in (
            ("Validation macro F1", "val_f1"),
            ("Validation loss", "val_loss"),
            ("Training loss (augmented images)", "train_loss"),
        )
    )


def held_out_charts(
    held_out: HeldOut | None, combine_probs: CombineProbs, *, is_fitted: bool = False
) -> tuple[tuple[str, str, str], ...]:
    """Score over members, reliability and risk-coverage, as far as the rows allow them.

    Args:
        combine_probs: fitted on none of the rows; combines subsets of the members.
        is_fitted: whether the ensemble itself is combined by something that was.
    """
    if held_out is None:
        return ()
    rows = held_out.rows_text()
    found = []
    if held_out.probs is not None and len(held_out.probs) > 1:
        scores = f1_by_size(held_out.probs, held_out.labels, combine_probs)
        disagreement = pairwise_disagreement(held_out.probs)
        pairs = disagreement[np.triu_indices(len(disagreement), 1)]
        note = (
            f"{rows}; subsets of members{', plainly averaged,' if is_fitted else ''} as points, "
            "their mean as a line. Two members disagree "
            f"on {pairs.mean():.1%} of them ({pairs.min():.1%} to {pairs.max():.1%})"
        )
        found.append(("Score over the number of members", note, charts.by_size(scores)))
    probs, labels = held_out.calibrated, held_out.labels
    error = metrics.ece(probs, labels)
    found.append(
        (
            "Reliability",
            f"{rows}; expected calibration error {error:.4f}. Below the diagonal: too confident",
            charts.reliability(*metrics.reliability(probs, labels)),
        )
    )
    found.append(
        (
            "Risk and coverage",
            f"{rows}; how much is wrong if only the surest rows are answered",
            charts.risk_coverage(*metrics.risk_coverage(probs, labels)),
        )
    )
    return tuple(found)


def likeliest(probs: np.ndarray, names: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """Names and probabilities of the likeliest classes of one image `(C,)`."""
    order = np.argsort(-probs, kind="stable")[:TOP_CLASSES]
    return tuple((names[index], float(probs[index])) for index in order)


def picture_uri(pixels: np.ndarray, side: int = THUMBNAIL) -> str:
    """An image `(H, W, 3)` uint8 as the data URI of a JPEG, no larger than `side`."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side))
    data = io.BytesIO()
    image.save(data, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


def heat_uri(pixels: np.ndarray, heat: np.ndarray) -> str:
    """The image under its heat map: `(H, W, 3)` uint8 and `(H, W)` in 0..1."""
    colors = matplotlib.colormaps["inferno"](heat)[..., :3] * 255
    gray = pixels.mean(axis=2, keepdims=True)
    return picture_uri((0.45 * gray + 0.55 * colors).astype(np.uint8))
