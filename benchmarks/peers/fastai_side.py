"""fastai's recipe for training from scratch, that of its Imagenette examples."""

import time
from pathlib import Path
from typing import Any

import fastai
from fastai.vision import all as vision

from benchmarks.peers.task import Predict, Task, num_epochs_in, run_side


class Deadline(vision.Callback):
    """Ends training where the time does."""

    def __init__(self, seconds: float) -> None:
        self.ends = time.perf_counter() + seconds

    def after_batch(self) -> None:
        """Called after each step."""
        if self.training and time.perf_counter() >= self.ends:
            raise vision.CancelFitException


def train(task: Task) -> tuple[Predict, dict[str, Any]]:
    """As many epochs as fit by the rate of some batches, and no step after the time."""
    vision.set_seed(task.seed)
    loaders = vision.ImageDataLoaders.from_folder(
        task.folder,
        train="train",
        valid="val",
        item_tfms=vision.Resize(task.image_size, method="squish"),
        batch_tfms=vision.aug_transforms(do_flip=False),
        bs=task.batch_size,
        num_workers=task.num_workers,
    )

    def new_learner() -> vision.Learner:
        return vision.Learner(
            loaders,
            vision.xresnet18(n_out=loaders.c),
            opt_func=vision.ranger,
            loss_func=vision.LabelSmoothingCrossEntropy(),
            metrics=vision.accuracy,
        )

    epoch_seconds = _epoch_seconds(new_learner(), len(loaders.train))
    learner = new_learner()
    started = time.perf_counter()
    with learner.no_bar(), learner.no_logging():
        learner.fit_flat_cos(
            num_epochs_in(task.seconds, epoch_seconds, 1), 8e-3, cbs=[Deadline(task.seconds)]
        )
    seconds = time.perf_counter() - started
    labels = list(loaders.vocab)

    def predict(files: list[Path]) -> list[str]:
        with learner.no_bar(), learner.no_logging():
            probs, _ = learner.get_preds(dl=loaders.test_dl(files))
        return [labels[index] for index in probs.argmax(dim=1).tolist()]

    return predict, {
        "what": f"fastai {fastai.__version__}: xresnet18, ranger, fit_flat_cos, last epoch",
        "epochs": learner.train_iter / len(loaders.train),
        "seconds": seconds,
    }


def _epoch_seconds(learner: vision.Learner, num_batches: int) -> float:
    """From ten batches after the first ones, with a third more for validation."""
    with learner.no_bar(), learner.no_logging():
        learner.fit(1, 1e-5, cbs=[vision.ShortEpochCallback(3 / num_batches, short_valid=True)])
        started = time.perf_counter()
        learner.fit(1, 1e-5, cbs=[vision.ShortEpochCallback(10 / num_batches, short_valid=True)])
    return (time.perf_counter() - started) * num_batches / 10


if __name__ == "__main__":
    run_side(train)
