"""What all tests share: tiny data that can be learned, and an environment that stays clean."""

import csv
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from stripes import draw_stripes

# Before anything imports MLflow and torch, which read them once.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["DO_NOT_TRACK"] = "1"
# Tensors here are too small to share among threads: their waiting was half of the tests' time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

FIRST_TEST_ID = 1000


@pytest.fixture(scope="session", autouse=True)
def cache_root(tmp_path_factory) -> Path:
    """Where decoded images go, instead of the home folder; subprocesses inherit it."""
    root = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POSE_CACHE", str(root))
        yield root


@pytest.fixture(scope="module", autouse=True)
def no_remembered_store() -> Iterator[None]:
    """MLflow remembers the store of the file before, whichever files a worker happens to get."""
    yield
    if "mlflow" in sys.modules:
        sys.modules["mlflow"].set_tracking_uri(None)


@pytest.fixture
def small_files() -> Iterator[None]:
    """Files end at 10,000 bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, previous)


def write_dataset(
    folder: Path,
    *,
    num_per_class: int | Sequence[int] = 20,
    labels: Sequence[str] = ("0", "1"),
    size: int = 32,
    num_test: int = 12,
    has_header: bool = True,
    seed: int = 0,
) -> Path:
    """A data folder of striped JPGs; test_solution.csv has the truth about the test images.

    Labelled ids are 0, 1, 2 and so on in random order of classes; test ids start at 1000.
    """
    rng = np.random.default_rng(seed)
    counts = [num_per_class] * len(labels) if isinstance(num_per_class, int) else num_per_class
    train = rng.permutation(np.repeat(np.arange(len(labels)), counts))
    test = rng.permutation(np.arange(num_test) % len(labels))
    for name, classes, first in (("train", train, 0), ("test", test, FIRST_TEST_ID)):
        images = folder / f"{name}_images"
        images.mkdir(parents=True)
        with open(folder / f"{name}_solution.csv", "w", newline="", encoding="utf-8") as handle:
            rows = csv.writer(handle, lineterminator="\n")
            if has_header:
                rows.writerow(["id", "label"])
            for image_id, index in enumerate(classes.tolist(), start=first):
                rows.writerow([image_id, labels[index]])
                image = draw_stripes(index, len(labels), size, rng)
                image.save(images / f"{image_id}.jpg", quality=90)
    return folder


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., Path]:
    """`write_dataset`: makes a data folder of striped images and returns it."""
    return write_dataset


@pytest.fixture(scope="session")
def stripes(tmp_path_factory) -> Path:
    """40 and 20 labelled images of two classes, 12 test images. Not to be written to."""
    return write_dataset(tmp_path_factory.mktemp("stripes") / "data", num_per_class=(40, 20))


SERVED_LABELS = ("3", "left")


@pytest.fixture(scope="session")
def saved_ensemble(tmp_path_factory) -> Path:
    """An ensemble of two untrained networks, saved as votes are; labels 3 and left."""
    import torch
    from mlflow.models import Model

    from pose.tracking import flavors, packaging
    from pose_models import Framing, SeedEnsemble, build_model
    from pose_models.predictor import PredictorConfig

    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    members = [build_model("simple_cnn", SERVED_LABELS, 24).eval() for _ in range(2)]
    ensemble = SeedEnsemble(members).eval()
    flavors.save_model(
        str(folder / "model"),
        Model(),
        ensemble,
        PredictorConfig(
            labels=SERVED_LABELS,
            names=("three", "L <b>"),
            decodings=((Framing(size=24), True),) * 2,
            # Networks that learned nothing are never as sure.
            ask_below=0.99,
        ),
        code_paths=[str(packaging.stage_code(folder))],
        pip_requirements=packaging.requirements(ensemble),
        serialization_format="pickle",
    )
    return folder / "model"
