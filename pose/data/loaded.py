"""A data folder with its decoded images."""

import dataclasses
from pathlib import Path

import numpy as np
import torch

from pose.data.cache import Progress
from pose.data.folder import Dataset, dataset_digest, read_dataset
from pose.data.streamed import Images, StreamedImages
from pose.data.survey import OPENERS
from pose.data.twin_table import TwinTable
from pose.errors import first_few, printable
from pose_models import Framing


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedData:
    """A data folder with its decoded images, shared by all seeds.

    Attributes:
        dataset: the rows that can be used.
        images: `(N, 3, S, S)` uint8, memory-mapped or streamed, S the framing's canvas.
        rows: `(len(dataset.ids),)` int64, row of each id in `images`.
        contents: `(len(dataset.ids),)` digest of each image's file.
        digest: of ids, labels, contents and named groups.
        notes: about the decoded images, for people.
        folder: of the decoded images; None: they are in memory alone.
        twins: those that the split comes between; None: not looked for.
    """

    dataset: Dataset
    images: Images
    rows: np.ndarray
    digest: str
    contents: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    folder: Path | None = None
    twins: TwinTable | None = None

    def lines(self) -> list[str]:
        """What the data is and what is wrong with it, for people."""
        dataset = self.dataset
        excluded = first_few(map(printable, dataset.excluded))
        left_out = f"exclude: {len(dataset.excluded)} labelled images left out: {excluded}"
        return [
            f"data: {dataset.folder}, {len(dataset.ids)} labelled images, "
            f"{len(dataset.classes)} classes, {len(dataset.test_ids)} test images, "
            f"digest {self.digest}",
            *([left_out] if dataset.excluded else []),
            *(f"warning: {problem.line()}" for problem in dataset.problems),
            *(f"warning: {note}" for note in self.notes),
        ]

    def excluding(self, ids: tuple[str, ...]) -> "LoadedData":
        """The same without the images of `ids`, before near twins are looked for.

        Their pixels stay where they are.

        Raises:
            InputError: a class has no image left.
        """
        dataset = self.dataset.excluding(ids)
        left = set(dataset.ids)
        keep = [row for row, image_id in enumerate(self.dataset.ids) if image_id in left]
        contents = tuple(self.contents[row] for row in keep)
        return dataclasses.replace(
            self,
            dataset=dataset,
            rows=self.rows[keep],
            contents=contents,
            digest=dataset_digest(dataset, contents),
        )

    def on(self, device: torch.device) -> "LoadedData":
        """The same with the images in the memory of a CUDA device where they fit; else itself."""
        if device.type != "cuda" or isinstance(self.images, StreamedImages) or self.images.is_cuda:
            return self
        free, _ = torch.cuda.mem_get_info(device)
        # What stays free is for the network's activations.
        if self.images.nbytes >= 0.6 * free:
            return self
        return dataclasses.replace(self, images=self.images.to(device))


def load_data(
    folder: Path,
    framing: int | Framing,
    cache_root: Path | None = None,
    num_workers: int = 0,
    progress: Progress | None = None,
    obey_exif: bool = True,
) -> LoadedData:
    """Read a data folder and decode its labelled images, or find them decoded.

    They are cached as they are framed: unless crops are taken, at the very size that the model
    sees. With room for resized crops (1.25 times that) training pictures were sharper, but each
    validation picture was resized twice: F1 was lower by 0.03 in `benchmarks.quality`, the cache
    larger by half and slower to build.

    Args:
        obey_exif: turn images as their metadata asks.

    Raises:
        InputError: nothing to train on, or contradictions in the folder.
    """
    dataset = read_dataset(folder)
    dataset.raise_if_fatal()
    return decode_dataset(
        dataset,
        framing,
        cache_root=cache_root,
        num_workers=num_workers,
        progress=progress,
        obey_exif=obey_exif,
    )


def decode_dataset(  # noqa: PLR0913 - those of `load_data`, by name
    dataset: Dataset,
    framing: int | Framing,
    *,
    cache_root: Path | None = None,
    num_workers: int = 0,
    progress: Progress | None = None,
    obey_exif: bool = True,
    cache: str = "decoded",
) -> LoadedData:
    """Decode the labelled images of a folder that was read, or some of them; see `load_data`.

    Args:
        cache: `decoded`, or `stream`: images are decoded when they are needed.
    """
    opened = OPENERS[cache](
        dataset.files,
        framing,
        cache_root=cache_root,
        num_workers=num_workers,
        progress=progress,
        obey_exif=obey_exif,
    )
    rows = np.array([row for row in range(len(dataset.files)) if row not in opened.bad])
    contents = tuple(opened.digests[row] for row in rows)
    usable = dataset.without(opened.bad).with_copies(contents)
    return LoadedData(
        dataset=usable,
        images=opened.images,
        rows=rows,
        digest=dataset_digest(usable, contents),
        contents=contents,
        notes=opened.notes,
        folder=opened.folder,
    )
