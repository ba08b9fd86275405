"""fastai's recipe for training from scratch, that of its Imagenette examples."""

import time
from pathlib import Path
from typing import Any

import fastai
from fastai.vision import all as vision

from benchmarks.peers.task import Predict, Task, run_side

# More than fit into any time.
MANY_EPOCHS = 1000


class Clock(vision.Callback):
    """Has the schedule follow the clock, and ends training where the time does."""

    # Before the schedule, which is of order 60.
    order = 50

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.started = time.perf_counter()

    def before_batch(self) -> None:
        """Called before each step."""
        if not self.training:
            return
        part = (time.perf_counter() - self.started) / self.seconds
        if part >= 1:
            raise vision.CancelFitException
        self.learn.pct_train = part


def train(task: Task) -> tuple[Predict, dict[str, Any]]:
    """Train until the time is over."""
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

    learner = vision.Learner(
        loaders,
        vision.xresnet18(n_out=loaders.c),
        opt_func=vision.ranger,
        loss_func=vision.LabelSmoothingCrossEntropy(),
        metrics=vision.accuracy,
    )
    started = time.perf_counter()
    with learner.no_bar(), learner.no_logging():
        learner.fit_flat_cos(MANY_EPOCHS, 8e-3, cbs=[Clock(task.seconds)])
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


if __name__ == "__main__":
    run_side(train)
