"""A finished model with all that it takes to answer for an image as its vote did."""

import dataclasses
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import nn

from pose_models.classifier import ImageClassifier
from pose_models.combine import SOFT, combine
from pose_models.decode import BadImageError
from pose_models.ensemble import SeedEnsemble
from pose_models.framing import Framing
from pose_models.hardware import has_bfloat16
from pose_models.heatmap import heat_maps
from pose_models.inference import for_inference
from pose_models.inputs import read_source, to_source
from pose_models.views import AugmentedClassifier

# Images that are in memory at a time. As many as a request usually holds; a vote's 128 are no
# faster on a CPU.
BATCH_SIZE = 64
# Of the images that a member gets at a time in a server's thread: what networks make of so many
# stays in blocks of some megabytes. 16 images of 128 pixels a side.
PIXELS_IN_THREAD = 1 << 18

# A `PredictorConfig`, beside the weights in a saved model.
CONFIG_FILE = "predictor.json"

# How an image becomes pixels: its framing, and whether it is turned as its EXIF asks.
Decoding = tuple[Framing, bool]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictorConfig:
    """What is known of a model besides its weights.

    Attributes:
        labels, names: of each class, as in the data and for people.
        decodings: of each member.
        precision: `float32`, `bfloat16`, or `auto`: bfloat16 where the processor has it.
        ask_below: the confidence below which a person is to be asked; None: no vote chose one.
    """

    labels: tuple[str, ...]
    names: tuple[str, ...]
    decodings: tuple[Decoding, ...]
    precision: str = "auto"
    ask_below: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PredictorConfig":
        """What `to_dict` gave."""
        return cls(
            labels=tuple(values["labels"]),
            names=tuple(values["names"]),
            decodings=tuple(
                (_framing(framing), bool(obeys)) for framing, obeys in values["decodings"]
            ),
            precision=values["precision"],
            # Models from before it was kept have none.
            ask_below=values.get("ask_below"),
        )


def _framing(value: int | Mapping[str, Any]) -> Framing:
    """What `to_dict` made of a framing; before there were others, a size alone."""
    return Framing(size=value) if isinstance(value, int) else Framing(**value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pixels:
    """Decoded images.

    Attributes:
        images: `(N, 3, S, S)` uint8 for each way of decoding; rows of bad images are black.
        bad: why an image cannot be read, by row.
    """

    images: dict[Decoding, torch.Tensor]
    bad: dict[int, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model says of N images.

    Attributes:
        preds: `(N,)` class indices.
        probs: `(N, C)` float64, the combined probabilities, calibrated where the vote was. Offsets
            of a vote with thresholds move the predictions, and are no part of how probable a class
            is, so that the prediction need not be the likeliest class then.
        disagreement: `(N,)` part of the pairs of members that predict different classes.
    """

    preds: np.ndarray
    probs: np.ndarray
    disagreement: np.ndarray

    @property
    def confidence(self) -> np.ndarray:
        """`(N,)` the probability of each prediction."""
        found: np.ndarray = self.probs[np.arange(len(self.preds)), self.preds]
        return found


class Predictor:
    """Reads images and predicts them with every member, as a vote does.

    May be called from several threads: images are read side by side, and one batch at a time is
    computed, since torch uses all cores for one.

    Args:
        model: an `ImageClassifier`, a `SeedEnsemble`, or a module of torch.export.
        device: as torch names it.
    """

    def __init__(self, model: nn.Module, config: PredictorConfig, device: str = "cpu") -> None:
        self.config = config
        self.how = model.how if isinstance(model, SeedEnsemble) else SOFT
        self._device = torch.device(device)
        members = list(model.members) if isinstance(model, SeedEnsemble) else [model]
        self._first = members[0]
        self._decodings = config.decodings
        if len(members) < len(config.decodings):
            # An ensemble that was exported is one module, and resizes for its members itself.
            self._decodings = (max(config.decodings, key=lambda decoding: decoding[0].canvas),)
        self._members = [self._prepared(member) for member in members]
        self._uses_bfloat16 = config.precision != "float32" and has_bfloat16(self._device)
        self._start_threads()

    def __getstate__(self) -> dict[str, Any]:
        # Threads and locks belong to a process.
        return {k: v for k, v in vars(self).items() if k not in ("_pool", "_computing")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start_threads()

    def _start_threads(self) -> None:
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="decode")
        self._computing = threading.Lock()

    def _prepared(self, member: nn.Module) -> nn.Module:
        if isinstance(member, ImageClassifier | AugmentedClassifier):
            member = for_inference(member).to(memory_format=torch.channels_last)
        return member.to(self._device)

    def columns(self, answer: Answer) -> dict[str, Any]:
        """An answer as the columns of a table, one row per image.

        `label`, `name`, `confidence` (the probability of the label), `p_<label>` of each class,
        `disagreement`, and, of a vote that chose a confidence to keep predictions at, `ask`.
        """
        preds = answer.preds
        labels, ask_below = self.config.labels, self.config.ask_below
        return {
            "label": [labels[pred] for pred in preds],
            "name": [self.config.names[pred] for pred in preds],
            "confidence": answer.confidence,
            **{f"p_{label}": answer.probs[:, index] for index, label in enumerate(labels)},
            "disagreement": answer.disagreement,
            **({} if ask_below is None else {"ask": answer.confidence < ask_below}),
        }

    def read(self, images: Sequence[Any], *, allow_paths: bool = True) -> Pixels:
        """Decode images, each once per way of decoding.

        Args:
            images: as `pose_models.inputs.to_source` takes them, of any kinds and sizes.
            allow_paths: whether a text may name a file on this machine.
        """
        decodings = sorted(set(self._decodings))
        pixels = {
            (framing, obeys): np.zeros(
                (len(images), 3, framing.canvas, framing.canvas), dtype=np.uint8
            )
            for framing, obeys in decodings
        }
        bad: dict[int, str] = {}

        def read_one(row: int) -> None:
            try:
                source = to_source(images[row], allow_paths=allow_paths)
                for framing, obeys in decodings:
                    pixels[framing, obeys][row] = read_source(source, framing, obeys)
            except BadImageError as error:
                bad[row] = str(error)

        if len(images) == 1:
            read_one(0)
        else:
            list(self._pool.map(read_one, range(len(images))))
        tensors = {decoding: torch.from_numpy(array) for decoding, array in pixels.items()}
        return Pixels(images=tensors, bad=dict(sorted(bad.items())))

    def predict(self, pixels: Pixels) -> Answer:
        """Predict decoded images."""
        with self._computing, torch.inference_mode():
            probs = torch.stack(
                [
                    self._member_probs(member, pixels.images[decoding])
                    for member, decoding in zip(self._members, self._decodings, strict=True)
                ]
            )
            combined = combine(probs, self.how)
            calibrated = combined
            if self.how.offsets:
                calibrated = combine(probs, dataclasses.replace(self.how, offsets=()))
        return Answer(
            preds=combined.argmax(dim=1).cpu().numpy(),
            probs=calibrated.double().cpu().numpy(),
            disagreement=_disagreement(probs.argmax(dim=2).cpu().numpy(), len(self.config.labels)),
        )

    def _member_probs(self, member: nn.Module, images: torch.Tensor) -> torch.Tensor:
        logits = []
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._uses_bfloat16):
            num = self._num_at_once(images.shape[-1])
            for start in range(0, len(images), num):
                logits.append(member(images[start : start + num].to(self._device)).float())
        return torch.cat(logits).softmax(dim=1)

    def _num_at_once(self, size: int) -> int:
        """How many images of `size` pixels a side a member gets at a time.

        All, but in a server's thread on the CPU: other threads than the first have heaps of 64 MB.
        What does not fit is mapped by glibc and given back at once, and every page of it is zeroed
        anew for the next layer, which took a third of the time. `keep_freed_memory` cannot help.
        """
        if self._device.type != "cpu" or threading.current_thread() is threading.main_thread():
            return BATCH_SIZE
        return max(1, torch.get_num_threads(), PIXELS_IN_THREAD // size**2)

    def heat_maps(self, pixels: Pixels, classes: np.ndarray) -> np.ndarray:
        """What the first member looked at for each image's class, `(N, S, S)` in 0..1.

        Raises:
            ValueError: it has nothing to show: no maps, or several looks at an image.
        """
        images = self.first_images(pixels)
        if not isinstance(self._first, ImageClassifier):
            raise ValueError("the first member must be a plain classifier, found another module")
        if images.shape[-1] != self._first.preprocess.image_size:
            raise ValueError("the first member must look once at an image, found several crops")
        first = self._first.eval()
        device = next(first.parameters()).device
        # Gradients, which the batches of other threads must not be mixed with.
        with self._computing:
            heat = heat_maps(first, images.to(device), torch.from_numpy(classes).to(device))
        return heat.cpu().numpy()

    def first_images(self, pixels: Pixels) -> torch.Tensor:
        """The images as the first member gets them, `(N, 3, S, S)` uint8."""
        return pixels.images[self._decodings[0]]

    def predict_all(
        self,
        images: Sequence[Any],
        *,
        allow_paths: bool = True,
        refuse: Callable[[int, str], Exception],
    ) -> Answer:
        """Predict any number of images in batches.

        Args:
            refuse: the exception for an image that cannot be read, of its row and the reason.
        """
        answers = []
        for start in range(0, len(images), BATCH_SIZE):
            pixels = self.read(images[start : start + BATCH_SIZE], allow_paths=allow_paths)
            for row, reason in pixels.bad.items():
                raise refuse(start + row, reason)
            answers.append(self.predict(pixels))
        return Answer(
            preds=np.concatenate([answer.preds for answer in answers]),
            probs=np.concatenate([answer.probs for answer in answers]),
            disagreement=np.concatenate([answer.disagreement for answer in answers]),
        )


def _disagreement(preds: np.ndarray, num_classes: int) -> np.ndarray:
    """Part of the pairs of members that differ, `(N,)`, of predictions `(M, N)`; 0 for one."""
    num_members = len(preds)
    if num_members == 1:
        return np.zeros(preds.shape[1])
    votes = (preds[:, :, None] == np.arange(num_classes)).sum(axis=0)
    agreeing = (votes * (votes - 1)).sum(axis=1)
    shares: np.ndarray = 1 - agreeing / (num_members * (num_members - 1))
    return shares
