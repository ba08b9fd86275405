"""report.html of a run and of a vote: what is shown, gathered from results, data and networks."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from pose.config import Recipe
from pose.data.folder import Dataset, read_dataset
from pose.data.loaded import LoadedData
from pose.data.shards import ImageFile, read_file
from pose.display import Display
from pose.ensembling.analysis import HeldOut, confident_mistakes, held_out_of, hold_out, mean_probs
from pose.ensembling.diversity import vote_disagreement
from pose.ensembling.fit import Combine
from pose.ensembling.suspects import SUSPECTS_FILE, Suspect, find_suspects
from pose.ensembling.validated import Validated
from pose.errors import InputError, one_line
from pose.files import write_text
from pose.predictions import Predictions
from pose.reports import card, page
from pose.reports.page import MAX_CARDS, Card, Fact, Gallery, Page
from pose.results import SeedResult, Vote, spread
from pose.seeds import folder as seed_folder
from pose.training.augment import PRESETS, augment_batch, sample_params
from pose_models import Combination, ImageClassifier
from pose_models.combination import SOFT, UNFITTED
from pose_models.decode import BadImageError, read_image
from pose_models.framing import Framing
from pose_models.heatmap import heat_maps

NAME = "report.html"
FITTED = (
    "The vote was fitted on labelled rows; here each of them is predicted by what was fitted "
    "without it: five parts in turn were left out while the rest decided."
)
# Rows and columns of the sheet of augmented images.
SHEET = (3, 8)

# The pixels of an image `(H, W, 3)` uint8 by its id; None where it cannot be shown.
PixelsOf = Callable[[str], np.ndarray | None]


def write_page(path: Path, make: Callable[[], str], display: Display) -> bool:
    """Write a page; one that cannot be made is a warning, and False."""
    try:
        write_text(path, make())
    # Whatever is wrong with what it shows, the results are worth more.
    except Exception as error:
        display.say(f"warning: {path.name} could not be made: {one_line(error)}")
        return False
    return True


def run_page(
    title: str,
    recipe: Recipe,
    loaded: LoadedData,
    results: Sequence[SeedResult],
    validated: Validated,
    folder: Path,
) -> str:
    """The page of a run as HTML.

    Args:
        results: of its finished members.
        validated: their predictions. A member without them, as after a move to another machine, is
            in the table and the curves alone.
        folder: where the members' folders lie.
    """
    held_out = validated.held_out
    best = folder / max(results, key=lambda result: result.val_f1).key.folder
    model = seed_folder.read_model(best)[0] if (best / seed_folder.CONFIG).exists() else None
    row_of = dict(zip(loaded.dataset.ids, loaded.rows.tolist(), strict=True))

    def pixels(image_id: str) -> np.ndarray | None:
        row = row_of.get(image_id)
        return None if row is None else loaded.images[row].permute(1, 2, 0).cpu().numpy()

    names = loaded.dataset.classes.names
    cards = _CardMaker(names=names, pixels=pixels, model=model)
    val_f1 = spread([result.val_f1 for result in results])
    mean = Fact(
        name="a single member, macro F1",
        value=str(val_f1),
        note=f"mean and standard deviation over {len(results)} members, each at its best epoch on "
        "its own validation rows",
    )
    return page.render(
        Page(
            title=title,
            subtitle=f"{len(loaded.dataset.ids)} labelled images of {len(names)} classes, "
            f"{len(results)} members. Each member's best epoch was chosen on its validation rows, "
            "so new images score a little lower.",
            facts=(*_facts(held_out), mean),
            charts=(
                *page.history_charts({result.key: result.history for result in results}),
                *page.held_out_charts(held_out, mean_probs),
            ),
            members=(
                ("member", "val_f1", "best epoch", "epochs", "ended by", "minutes"),
                *(_member_line(result) for result in results),
            ),
            held_out=held_out,
            class_names=names,
            galleries=(
                *_labelled_galleries(held_out, cards),
                *_suspects_gallery(
                    validated.every_row, validated.suspects, cards, f"; all are in {SUSPECTS_FILE}"
                ),
            ),
            sheet=_sheet(recipe, loaded),
            data=loaded.dataset.report(),
        )
    )


def vote_page(
    result: Vote,
    tests: Predictions,
    probs: np.ndarray,
    combine: Combine,
    model: ImageClassifier,
    files: tuple[Path, Mapping[str, ImageFile]],
) -> str:
    """The page of a vote as HTML.

    Args:
        tests: the ensemble's predictions of the test images.
        probs: `(M, N, C)` of the members on the same images.
        model: the first member; draws the heat maps.
        files: the data folder, and the test images by id.
    """
    first = result.members[0].card
    how = unfitted(result.decision.how)

    def combine_probs(own: np.ndarray) -> np.ndarray:
        return combine(own, how)

    held_out = _scored(result)
    fitted = f" {FITTED}" if result.decision.selection else ""
    folder, test_files = files
    galleries: tuple[Gallery, ...] = ()
    dataset = _labelled(folder, held_out)
    if held_out is not None and dataset is not None:
        pixels = file_reader(
            dict(zip(dataset.ids, dataset.files, strict=True)), *seed_folder.decoding_of(first)
        )
        cards = _CardMaker(names=first.names, pixels=pixels, model=model)
        every_row = _held_out_from_any(result, combine)
        suspects = [] if every_row is None else find_suspects(every_row)
        galleries = (
            *_labelled_galleries(held_out, cards),
            *_suspects_gallery(every_row, suspects, cards),
        )
    disagreement = vote_disagreement(probs)
    rows = [int(row) for row in np.argsort(-disagreement, kind="stable")[:MAX_CARDS]]
    rows = [row for row in rows if disagreement[row] > 0]
    cards = _CardMaker(
        names=first.names,
        pixels=file_reader(test_files, *seed_folder.decoding_of(first)),
        model=model,
    )
    galleries += _gallery(
        "Test images on which members disagree most",
        f"of {len(tests.ids)} test images; all members agree on {result.unanimity:.1%} of them",
        cards.of(tests, rows),
    )
    lines = zip(result.members, result.agreement, strict=True)
    return page.render(
        Page(
            title=f"{result.name}: {result.voting} vote of {len(result.members)} members",
            subtitle=f"{result.num_images} test images predicted. Two members disagree on "
            f"{result.disagreement:.1%} of them.{fitted}",
            facts=_facts(held_out),
            charts=page.held_out_charts(held_out, combine_probs, is_fitted=bool(fitted)),
            members=(
                ("member", "network", "version", "val_f1", "agrees with the ensemble"),
                *(
                    (
                        member.name,
                        member.card.model,
                        str(member.registered.version),
                        f"{member.card.val_f1:.4f}",
                        f"{share:.1%}",
                    )
                    for member, share in lines
                ),
            ),
            held_out=held_out,
            class_names=first.names,
            galleries=galleries,
        )
    )


def vote_card(result: Vote, uri: str, store: str) -> str:
    """The model card of the ensemble that was registered as `uri` in the store, as Markdown."""
    return card.model_card(result, _scored(result), uri, store)


def _scored(result: Vote) -> HeldOut | None:
    """The rows that the vote's score is of, as it was scored; None without a score."""
    scored = result.decision.scored
    if scored is None:
        return None
    return held_out_of(scored.members, scored.probs, scored.calibrated)


def _held_out_from_any(result: Vote, combine: Combine) -> HeldOut | None:
    """All rows that any member did not train on, combined by nothing that was fitted on them."""
    how = unfitted(result.decision.how)
    members = [member.val_predictions for member in result.members]
    return hold_out(members, lambda own: combine(own, how), has_all=True)


def unfitted(how: Combination) -> Combination:
    """The combination itself where nothing in it was fitted, else the soft vote."""
    return how if how == Combination(rule=how.rule if how.rule in UNFITTED else "soft") else SOFT


def _facts(held_out: HeldOut | None) -> tuple[Fact, ...]:
    if held_out is None:
        return ()
    return page.score_facts(held_out, page.single_scores(held_out))


def _member_line(result: SeedResult) -> tuple[str, ...]:
    return (
        str(result.key),
        f"{result.val_f1:.4f}",
        str(result.best_epoch),
        str(result.num_epochs),
        result.stop_reason,
        f"{result.seconds / 60:.1f}",
    )


def _labelled(folder: Path, held_out: HeldOut | None) -> Dataset | None:
    """The data folder, where its labelled rows are those that validated the members."""
    if held_out is None:
        return None
    try:
        dataset = read_dataset(folder)
    except InputError:
        # A folder of test images alone.
        return None
    labels = dict(zip(dataset.ids, dataset.labels.tolist(), strict=True))
    own = dict(zip(held_out.ids, held_out.labels.tolist(), strict=True))
    return dataset if all(labels.get(key) == value for key, value in own.items()) else None


def file_reader(files: Mapping[str, ImageFile], framing: Framing, obey_exif: bool) -> PixelsOf:
    """The pixels of image files by id, decoded as `framing` says."""

    def pixels(image_id: str) -> np.ndarray | None:
        try:
            return read_image(read_file(files[image_id]), framing, obey_exif).transpose(1, 2, 0)
        except (OSError, BadImageError):
            # Gone or damaged since it was predicted.
            return None

    return pixels


def _labelled_galleries(held_out: HeldOut | None, cards: "_CardMaker") -> tuple[Gallery, ...]:
    if held_out is None:
        return ()
    rows_text = held_out.rows_text()
    combined = _combined(held_out)
    galleries = _gallery(
        "Most confident mistakes",
        f"of the ensemble on {rows_text}",
        cards.of(combined, confident_mistakes(held_out, MAX_CARDS)),
    )
    if held_out.probs is not None and len(held_out.probs) > 1:
        disagreement = vote_disagreement(held_out.probs)
        order = np.argsort(-disagreement, kind="stable")[:MAX_CARDS]
        rows = [int(row) for row in order if disagreement[row] > 0]
        galleries += _gallery(
            "Members disagree most",
            f"on these of {rows_text}",
            cards.of(combined, rows),
        )
    return galleries


def _suspects_gallery(
    held_out: HeldOut | None,
    suspects: Sequence[Suspect],
    cards: "_CardMaker",
    where: str = "",
) -> tuple[Gallery, ...]:
    """The worst of the label suspects among rows; `where` says where all of them are."""
    if held_out is None or not suspects:
        return ()
    rows = [suspect.row for suspect in suspects[:MAX_CARDS]]
    return _gallery(
        "Suspect labels",
        f"{len(suspects)} labels that confident learning doubts, on {held_out.rows_text()}; the "
        f"surest first{where}",
        cards.of(_combined(held_out), rows),
    )


def _combined(held_out: HeldOut) -> Predictions:
    """The ensemble's predictions of the rows, for cards."""
    return Predictions(
        ids=held_out.ids, probs=held_out.combined, class_labels=(), labels=held_out.labels
    )


def _gallery(title: str, note: str, cards: tuple[Card, ...]) -> tuple[Gallery, ...]:
    """A gallery; none where there are no cards."""
    note += ". Right: what one member looked at for its prediction (Grad-CAM)"
    return (Gallery(title=title, note=note, cards=cards),) if cards else ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _CardMaker:
    """Makes cards of images.

    Attributes:
        names: of the classes.
        pixels: of an image that is to be shown.
        model: draws the heat maps, if there is one.
    """

    names: Sequence[str]
    pixels: PixelsOf
    model: ImageClassifier | None

    def of(self, predictions: Predictions, rows: Sequence[int]) -> tuple[Card, ...]:
        """A card for each of `rows` whose image can be shown."""
        found = [(row, self.pixels(predictions.ids[row])) for row in rows]
        shown = [(row, image) for row, image in found if image is not None]
        if not shown:
            return ()
        preds = predictions.preds()
        images = np.stack([image for _, image in shown])
        heats = _heats(self.model, images, preds[[row for row, _ in shown]])
        labels = predictions.labels
        return tuple(
            Card(
                image=page.picture_uri(image),
                heat="" if heat is None else page.heat_uri(image, heat),
                title=predictions.ids[row],
                label="" if labels is None else self.names[labels[row]],
                pred=self.names[preds[row]],
                probs=page.likeliest(predictions.probs[row], self.names),
            )
            for (row, image), heat in zip(shown, heats, strict=True)
        )


def _heats(
    model: ImageClassifier | None, images: np.ndarray, classes: np.ndarray
) -> list[np.ndarray | None]:
    """Heat maps of images `(n, H, W, 3)`; None each where the network has none to give.

    A model that looks at several crops of an image has none for the whole.
    """
    if model is None or images.shape[1:3] != (model.preprocess.image_size,) * 2:
        return [None] * len(images)
    batch = torch.from_numpy(images).permute(0, 3, 1, 2)
    try:
        return list(heat_maps(model, batch, torch.from_numpy(classes)).numpy())
    except ValueError:
        return [None] * len(images)


def _sheet(recipe: Recipe, loaded: LoadedData) -> tuple[str, str]:
    """Augmented images in rows and columns as a data URI, and what they are."""
    num_rows, num_columns = SHEET
    num = min(num_rows * num_columns, len(loaded.rows))
    if num < num_columns or recipe.framing == "crop":
        return "", ""
    num -= num % num_columns
    picked = np.linspace(0, len(loaded.rows) - 1, num).astype(int)
    images = loaded.images[torch.from_numpy(loaded.rows[picked])].cpu()
    labels = torch.from_numpy(loaded.dataset.labels[picked])
    mirrors = torch.tensor(loaded.dataset.classes.mirrors)
    generator = torch.Generator().manual_seed(0)
    params = sample_params(PRESETS[recipe.augmentation], labels, mirrors, generator)
    size = recipe.image_size
    augmented = (augment_batch(images, params, size) * 255).round().clamp(0, 255).byte().numpy()
    tiles = augmented.reshape(num // num_columns, num_columns, 3, size, size)
    sheet = tiles.transpose(0, 3, 1, 4, 2).reshape(-1, num_columns * size, 3)
    caption = f"labelled images as the preset {recipe.augmentation} may show them in training"
    return page.picture_uri(sheet, 96 * num_columns), caption
