"""Models as MLflow keeps them: what is logged with one, and what it needs to be loaded."""

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.models import Model
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS
from torch import nn

import pose_models
from pose.tracking import flavors, registry
from pose.tracking.store import Store, StoreError, store_errors
from pose_models.predictor import PredictorConfig

# What a loaded model imports. Named here, because inferring them takes 11 seconds per model.
MODEL_PACKAGES = ("mlflow", "torch", "torchvision", "numpy", "pandas", "pillow", "simplejpeg")
# Needed by a model that has modules of theirs.
OPTIONAL_PACKAGES = ("timm",)


def log_model(
    store: Store,
    run_id: str,
    model: nn.Module,
    *,
    config: PredictorConfig,
    extra_files: Sequence[Path],
    model_format: str = "pickle",
) -> str:
    """Log `model` to the run; returns the logged model's id.

    Args:
        model: on the CPU, in evaluation mode, `(N, 3, H, W)` uint8 to `(N, num_classes)`.
    """
    options: dict[str, Any] = {"serialization_format": model_format}
    if model_format == "pt2":
        options["input_example"] = np.zeros((2, 3, 256, 256), dtype=np.uint8)
    name = model_name(store.client.get_run(run_id).data.tags)
    with (
        tempfile.TemporaryDirectory() as staging,
        store_errors(store.uri),
        quiet_fluent_run(run_id),
    ):
        info = Model.log(
            artifact_path=None,
            name=name if model_format == "pickle" else f"{name}_{model_format}",
            flavor=flavors,
            pytorch_model=model,
            config=config,
            code_paths=[str(stage_code(Path(staging)))],
            extra_files=[str(path) for path in extra_files],
            pip_requirements=requirements(model),
            **options,
        )
    # Leaving MLflow's own context has ended the run; it ends when all is recorded.
    store.client.update_run(run_id, status="RUNNING")
    model_id: str = info.model_id
    return model_id


def model_name(tags: Mapping[str, str]) -> str:
    """`demo_seed_0` or `demo_soft`, from the tags of the run."""
    member = [f"{key}_{tags[key]}" for key in ("seed", "fold") if key in tags]
    vote = [tags["voting"]] if "voting" in tags else []
    return "_".join([tags["run"], *member, *vote])[:250]


def register(store: Store, name: str, run_id: str, model_id: str, tags: Mapping[str, str]) -> int:
    """Register a logged model under `name`; returns the version."""
    try:
        store.client.create_registered_model(name, description=registry.description_of(name))
    except StoreError as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    registered = store.client.create_model_version(
        name,
        source=f"models:/{model_id}",
        run_id=run_id,
        tags=dict(tags),
        model_id=model_id,
        # A version is there when the call returns, or will be; either way there is nothing to do.
        await_creation_for=0,
    )
    # As MLflow's own register_model does: the model's page says where it is registered.
    links = json.dumps([{"name": name, "version": registered.version}])
    store.client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: links})
    return int(registered.version)


def requirements(model: nn.Module) -> list[str]:
    """The installed versions of what a loaded `model` imports, as pip takes them."""
    modules = {type(module).__module__.partition(".")[0] for module in model.modules()}
    lines = []
    for package in (*MODEL_PACKAGES, *sorted(modules & set(OPTIONAL_PACKAGES))):
        try:
            lines.append(pinned(package))
        except PackageNotFoundError:
            continue
    return lines


def pinned(package: str) -> str:
    """The installed version of `package` as pip takes it.

    Raises:
        PackageNotFoundError: it is not installed.
    """
    # A build's own mark (`+cpu`, `+cu128`) names a wheel that no index has.
    return f"{package}=={version(package).partition('+')[0]}"


def stage_code(folder: Path) -> Path:
    """A copy of the package that travels, without what Python left in it."""
    source = Path(pose_models.__file__).parent
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(source, folder / source.name, ignore=ignored))


@contextmanager
def quiet_fluent_run(run_id: str) -> Iterator[None]:
    """Make `run_id` MLflow's active run, for the calls that know no other way."""
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with mlflow.start_run(run_id=run_id, log_system_metrics=False):
            yield
    finally:
        logger.setLevel(level)
