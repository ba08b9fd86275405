"""Members look again, and in several ways, at the rows that validated them."""

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from pose.config import ComputeSetup, VoteSetup
from pose.data.cache import ImageCache, cache_root_of
from pose.data.folder import Dataset, read_dataset
from pose.data.shards import ImageFile
from pose.data.streamed import Images
from pose.data.survey import OPENERS
from pose.device import pick_device, pick_precision
from pose.display import Display
from pose.ensembling.looks import Looked, Views
from pose.ensembling.members import Member
from pose.errors import InputError, first_few, printable
from pose.seeds.folder import decoding_of
from pose.training.predict import predict_logits, probs_of
from pose_models import AugmentedClassifier, Framing, ImageClassifier, for_inference
from pose_models.views import VIEWS

# Mean difference of a member's probabilities from those that it had in training; other devices and
# arithmetics stay below a tenth of it.
MAX_DIFFERENCE = 0.02


def look_again(
    models: Sequence[ImageClassifier],
    members: Sequence[Member],
    folder: Path,
    setup: VoteSetup,
    display: Display,
) -> Looked:
    """What members say of their validation rows by all combinations of views.

    Flips are left out where a class has no mirror image.

    Args:
        folder: with the labelled images that the members were trained on.
    """
    try:
        dataset = read_dataset(folder)
        images = decode_labelled(dataset, members, setup, display)
    except InputError as error:
        return Looked(reason=f"the labelled images cannot be read ({error})")
    row_of = {image_id: row for row, image_id in enumerate(dataset.ids)}
    bad = {dataset.ids[row] for cache in images.values() for row in cache.bad}
    wanted = dict.fromkeys(i for member in members for i in member.val_predictions.ids)
    lacking = [i for i in wanted if i not in row_of or i in bad]
    if lacking:
        names = first_few(map(printable, lacking))
        return Looked(reason=f"{folder} lacks {len(lacking)} images that validated: {names}")
    views = [v for v in VIEWS if v != "flip" or min(members[0].card.mirrors) >= 0]
    display.say(
        f"test-time augmentation: {', '.join(views)} are tried on {len(wanted)} validation images"
    )
    started = time.monotonic()
    found: dict[Views, list[np.ndarray]] = {}
    for model, member in zip(models, members, strict=True):
        rows = torch.tensor([row_of[i] for i in member.val_predictions.ids])
        looks = _look(model, member, images[decoding_of(member.card)].images, rows, setup, views)
        difference = float(np.abs(looks[()] - member.val_predictions.probs).mean())
        if not difference <= MAX_DIFFERENCE:
            return Looked(
                reason=f"{member.name} predicts its validation rows otherwise than in training "
                f"(mean difference {difference:.3f}): were the images changed?"
            )
        for own, probs in looks.items():
            found.setdefault(own, []).append(probs)
    return Looked(probs=found, seconds=time.monotonic() - started)


def _look(  # noqa: PLR0913 - a member, its rows, and how it looks at them
    model: ImageClassifier,
    member: Member,
    images: Images,
    rows: torch.Tensor,
    setup: VoteSetup,
    views: Sequence[str],
) -> dict[Views, np.ndarray]:
    """The probabilities `(n, C)` of one member, by each combination of views."""
    device = pick_device(setup.device)
    precision = pick_precision(setup.precision, device)

    def probs(network: ImageClassifier | AugmentedClassifier) -> np.ndarray:
        fast = for_inference(network).to(device).to(memory_format=torch.channels_last)
        return probs_of(predict_logits(fast, images, rows, precision)).astype(np.float64)

    plain = probs(model)
    sums = {}
    for view in views:
        mean = probs(AugmentedClassifier(model, (view,), member.card.mirrors))
        sums[view] = np.maximum((1 + VIEWS[view]) * mean - plain, 0)
    return dict(_combined(plain, sums))


def _combined(plain: np.ndarray, sums: Mapping[str, np.ndarray]) -> list[tuple[Views, np.ndarray]]:
    """Every combination of views, as `AugmentedClassifier` averages them.

    Args:
        sums: of the probabilities of each view's looks.
    """
    subsets = itertools.chain.from_iterable(
        itertools.combinations(sums, size) for size in range(len(sums) + 1)
    )
    return [
        (own, (plain + sum(sums[v] for v in own)) / (1 + sum(VIEWS[v] for v in own)))
        for own in subsets
    ]


def decode_labelled(
    dataset: Dataset, members: Sequence[Member], setup: ComputeSetup, display: Display
) -> dict[tuple[Framing, bool], ImageCache]:
    """The labelled images of each way of decoding; training has left them decoded."""
    return decode(dataset.files, {decoding_of(member.card) for member in members}, setup, display)


def decode(
    files: Sequence[ImageFile],
    ways: Iterable[tuple[Framing, bool]],
    setup: ComputeSetup,
    display: Display,
) -> dict[tuple[Framing, bool], ImageCache]:
    """The images of `files` by how they are decoded: framing, and whether EXIF is obeyed."""
    return {
        (framing, obey_exif): OPENERS[setup.cache](
            files,
            framing,
            cache_root=cache_root_of(setup.cache_root),
            num_workers=setup.num_workers,
            progress=display.cache_progress,
            obey_exif=obey_exif,
        )
        for framing, obey_exif in sorted(set(ways))
    }
