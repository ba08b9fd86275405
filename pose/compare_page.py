"""report.html of a comparison: the effect, both scores, classes, and where the two differ."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pose.data.folder import read_dataset
from pose.display import Display
from pose.ensembling.comparison import Comparison, Contestant
from pose.errors import InputError
from pose.reports import page
from pose.reports.notes import mcnemar_text, p_text
from pose.reports.page import MAX_CARDS, THUMBNAIL, Answer, Card, Fact, Gallery, Page, Table
from pose.result_pages import NAME as NAME
from pose.result_pages import PixelsOf, file_reader
from pose_models import Framing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pictures:
    """Where images come from, and what the classes are called."""

    pixels: PixelsOf
    class_names: tuple[str, ...]


def find_pictures(
    folder: Path | None, pair: tuple[Contestant, Contestant], display: Display
) -> Pictures | None:
    """The images of the common rows; None, and said, where the data is not on this machine."""
    if folder is None:
        display.say("no images on the page: the data folder is not here; name it with dataset")
        return None
    try:
        dataset = read_dataset(folder)
    except InputError as error:
        display.say(f"warning: no images on the page: {error}")
        return None
    labels = dict(zip(dataset.ids, dataset.labels.tolist(), strict=True))
    rows = pair[0].rows
    own = dict(zip(rows.ids, rows.labels.tolist(), strict=True))
    if len(dataset.classes) != pair[0].combined.shape[1] or any(
        labels.get(image_id) != label for image_id, label in own.items()
    ):
        display.say(
            f"warning: no images on the page: the labelled rows of {folder} are not those that "
            "were trained on; name the data folder with dataset"
        )
        return None
    files = dict(zip(dataset.ids, dataset.files, strict=True))
    return Pictures(
        pixels=file_reader(files, Framing(size=THUMBNAIL), obey_exif=True),
        class_names=dataset.classes.names,
    )


def render(
    result: Comparison,
    pair: tuple[Contestant, Contestant],
    class_labels: Sequence[str],
    pictures: Pictures | None,
) -> str:
    """The page as HTML."""
    names = pictures.class_names if pictures is not None else tuple(class_labels)
    first, second = result.names
    return page.render(
        Page(
            title=f"{first} and {second}",
            subtitle=f"{result.sentence()}. Validation rows that no member of either trained on; "
            "each member's best epoch was chosen on its own, so new images score a little lower.",
            facts=_facts(result),
            charts=(),
            members=_member_lines(result, pair),
            held_out=None,
            class_names=names,
            tables=(_mcnemar_table(result), _class_table(result, names)),
            galleries=_galleries(result, pair, names, pictures) if pictures is not None else (),
        )
    )


def _facts(result: Comparison) -> tuple[Fact, ...]:
    components = result.components
    parts = [f"rows {100 * components.rows**0.5:.2f}"]
    for name, variance, num in zip(
        result.names, components.seeds, components.num_seeds, strict=True
    ):
        spread = f"{100 * variance**0.5:.2f}" if num > 1 else "unknown, one seed"
        parts.append(f"seeds of {name} {spread}")
    return (
        Fact(
            name=f"{result.names[1]} minus {result.names[0]}, macro F1",
            value=f"{100 * result.difference:+.2f} ± {100 * result.margin:.2f} points",
            note=f"95 % interval over rows and seeds; standard errors in points: "
            f"{', '.join(parts)}",
        ),
        *(
            Fact(
                name=f"{name}, macro F1",
                value=f"{f1:.4f}",
                note=f"{num} seeds vote; accuracy {accuracy:.4f}; {result.num_rows} common rows",
            )
            for name, f1, accuracy, num in zip(
                result.names, result.f1, result.accuracy, components.num_seeds, strict=True
            )
        ),
        Fact(
            name="McNemar's test",
            value=f"p {p_text(result.mcnemar.p_value)}",
            note=mcnemar_text(result),
        ),
    )


def _member_lines(
    result: Comparison, pair: tuple[Contestant, Contestant]
) -> tuple[tuple[str, ...], ...]:
    """Each seed's own score on the common rows."""
    lines = [("of", "seed", "macro F1 on the common rows")]
    for own, scores in zip(pair, result.single_f1, strict=True):
        lines += [(own.name, seed, f"{f1:.4f}") for seed, f1 in zip(own.seeds, scores, strict=True)]
    return tuple(lines)


def _mcnemar_table(result: Comparison) -> Table:
    test, total = result.mcnemar, result.num_rows
    both = round(result.accuracy[0] * total) - test.only_first
    neither = total - both - test.only_first - test.only_second
    first, second = result.names
    return Table(
        title="Right and wrong",
        note=mcnemar_text(result),
        lines=(
            ("", f"{second} right", f"{second} wrong"),
            (f"{first} right", str(both), str(test.only_first)),
            (f"{first} wrong", str(test.only_second), str(neither)),
        ),
    )


def _class_table(result: Comparison, names: Sequence[str]) -> Table:
    lines: list[tuple[str, ...]] = [
        ("class", "rows", *(f"F1 of {name}" for name in result.names), "difference, points")
    ]
    for name, own in zip(names, result.classes, strict=True):
        difference = f"{100 * own.difference:+.2f} ± {100 * own.margin:.2f}"
        is_sure = abs(own.difference) > own.margin
        lines.append(
            (
                name,
                str(own.num_rows),
                *(f"{f1:.4f}" for f1 in own.f1),
                difference + (" *" if is_sure else ""),
            )
        )
    return Table(
        title="Classes",
        note=f"{result.names[1]} minus {result.names[0]} on {result.num_rows} common rows. A star: "
        "the 95 % interval leaves out 0, as one in twenty does by chance.",
        lines=tuple(lines),
    )


def _galleries(
    result: Comparison,
    pair: tuple[Contestant, Contestant],
    names: Sequence[str],
    pictures: Pictures,
) -> tuple[Gallery, ...]:
    labels = pair[0].rows.labels
    preds = [own.preds for own in pair]
    right = [own == labels for own in preds]
    confidence = sum(own.combined.max(axis=1) for own in pair)
    first, second = result.names
    kinds = (
        (f"Only {second} is right", right[1] & ~right[0]),
        (f"Only {first} is right", right[0] & ~right[1]),
        ("Both are wrong, and differ", ~right[0] & ~right[1] & (preds[0] != preds[1])),
    )
    galleries = []
    for title, is_meant in kinds:
        rows = np.flatnonzero(is_meant)
        order = rows[np.argsort(-confidence[rows], kind="stable")][:MAX_CARDS]
        cards = tuple(card for row in order.tolist() if (card := _card(pair, row, names, pictures)))
        if cards:
            note = f"{len(rows)} of {result.num_rows} common rows; the most confident answers first"
            galleries.append(Gallery(title=title, note=note, cards=cards))
    return tuple(galleries)


def _card(
    pair: tuple[Contestant, Contestant], row: int, names: Sequence[str], pictures: Pictures
) -> Card | None:
    image = pictures.pixels(pair[0].rows.ids[row])
    if image is None:
        return None
    first, second = (
        Answer(
            who=own.name,
            pred=names[own.preds[row]],
            probs=page.likeliest(own.combined[row], names),
        )
        for own in pair
    )
    return Card(
        image=page.picture_uri(image),
        heat="",
        title=pair[0].rows.ids[row],
        label=names[pair[0].rows.labels[row]],
        pred=first.pred,
        probs=first.probs,
        who=first.who,
        rival=second,
    )
