"""ultralytics' smallest classifier, with its own limit of time."""

import tempfile
import time
from pathlib import Path
from typing import Any

import ultralytics

from benchmarks.peers.task import Predict, Task, run_side


def train(task: Task) -> tuple[Predict, dict[str, Any]]:
    """Train with the defaults but for the size, the batch, flips and the time."""
    # What it finds installed here, MLflow and others, it would record to.
    ultralytics.settings.update(dict.fromkeys(("mlflow", "raytune", "tensorboard", "sync"), False))
    model = ultralytics.YOLO("yolo11n-cls.yaml")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as runs:
        model.train(
            data=task.folder, time=task.seconds / 3600, imgsz=task.image_size,
            batch=task.batch_size, workers=task.num_workers, seed=task.seed, device="cpu",
            fliplr=0.0, pretrained=False, plots=False, verbose=False, project=runs, name="run",
        )  # fmt: skip
        seconds = time.perf_counter() - started
        epochs = model.trainer.epoch + 1
        best = ultralytics.YOLO(str(model.trainer.best))

    def predict(files: list[Path]) -> list[str]:
        results = best.predict(
            [str(path) for path in files], imgsz=task.image_size, verbose=False, stream=True
        )
        return [result.names[result.probs.top1] for result in results]

    return predict, {
        "what": f"ultralytics {ultralytics.__version__}: yolo11n-cls, its defaults, best epoch",
        "epochs": epochs,
        "seconds": seconds,
    }


if __name__ == "__main__":
    run_side(train)
