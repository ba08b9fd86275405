"""What a side is given and gives back. Needs nothing: other environments import it too.

A side is a module that is run as a command, in an environment of its own: what to train on comes as
JSON in its first argument, what came out goes to the file that this names.
"""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Task:
    """Images to learn, and for how long.

    Attributes:
        folder: `train/<label>/`, `val/<label>/` and `test/<label>/` with the images.
        data: the same as a data folder of ours.
        seconds: by the clock from the first look at an image to the last step; validation counts,
            imports and the test do not.
        answers: the file for the predicted label of each test image, by its name.
    """

    folder: str
    data: str
    seconds: float
    seed: int
    image_size: int
    batch_size: int
    num_workers: int
    answers: str

    def test_files(self) -> list[Path]:
        """The test images, sorted."""
        return sorted(Path(self.folder).glob("test/*/*"))

    def labels(self) -> list[str]:
        """The labels, sorted as all the libraries sort them."""
        return sorted(path.name for path in (Path(self.folder) / "train").iterdir())


# Predicts the label of each of some image files.
Predict = Callable[[list[Path]], list[str]]


def run_side(train: Callable[[Task], tuple[Predict, dict[str, Any]]]) -> None:
    """Train as `train` does, predict the test images, and write what came out.

    Args:
        train: returns what predicts labels, and facts for the report: what it is, its epochs, and
            the seconds that count.
    """
    task = Task(**json.loads(sys.argv[1]))
    predict, facts = train(task)
    files = task.test_files()
    preds = predict(files)
    facts["preds"] = {path.stem: label for path, label in zip(files, preds, strict=True)}
    Path(task.answers).write_text(json.dumps(facts))
