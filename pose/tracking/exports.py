"""Exported models as MLflow keeps them."""

import dataclasses
from pathlib import Path
from typing import Any

from mlflow.models import Model
from torch import nn

from pose.tracking import flavors, packaging
from pose.tracking.store import Store, store_errors
from pose_models.predictor import PredictorConfig

ONNX_PACKAGES = ("mlflow", "onnx", "onnxruntime", "numpy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """A model in another format, and how it answers beside torch.

    Attributes:
        max_difference: the largest of a probability, over `num_checked` answers to `num_images`
            images at several sizes.
        num_equal: of these answers whose label is that of torch.
        f1_before, f1_after: macro F1 of torch and of the export on `rows_text`; None where it was
            not measured.
    """

    format: str
    path: Path
    max_difference: float
    num_equal: int
    num_checked: int
    num_images: int
    f1_before: float | None = None
    f1_after: float | None = None
    rows_text: str = ""

    def __str__(self) -> str:
        """Format, size and checks in a line."""
        text = (
            f"{self.format}: {self.path.stat().st_size / 1e6:.1f} MB; on {self.num_images} images "
            f"at {self.num_checked // self.num_images} sizes {self.num_equal} of "
            f"{self.num_checked} labels are those of torch, probabilities differ by "
            f"{self.max_difference:.2g} at most"
        )
        if self.f1_before is None or self.f1_after is None:
            return text
        loss = 100 * (self.f1_before - self.f1_after)
        return (
            f"{text}; macro F1 {self.f1_after:.4f}, torch {self.f1_before:.4f}, a loss of "
            f"{loss:.2f} points on {self.rows_text}"
        )

    def scores(self) -> dict[str, float]:
        """The checks by name."""
        found = {
            "max_difference": self.max_difference,
            "equal_labels": self.num_equal / self.num_checked,
            "megabytes": self.path.stat().st_size / 1e6,
        }
        if self.f1_before is not None and self.f1_after is not None:
            found |= {"f1": self.f1_after, "f1_loss": self.f1_before - self.f1_after}
        return found


def log_exported(
    store: Store, run_id: str, exported: Exported, model: nn.Module, config: PredictorConfig
) -> str:
    """Log an export to the run as a model of MLflow's own flavour; returns its address.

    Args:
        model: what was exported.
    """
    scores = exported.scores()
    store.log_metrics(
        run_id, {f"export/{exported.format}_{name}": value for name, value in scores.items()}
    )
    if exported.format == "pt2":
        model_id = packaging.log_model(
            store, run_id, model, config=config, extra_files=[], model_format="pt2"
        )
    else:
        model_id = _log_onnx(store, run_id, exported, len(config.labels))
    return f"models:/{model_id}"


def _log_onnx(store: Store, run_id: str, exported: Exported, num_classes: int) -> str:
    # Imported here: extras, which only exports need.
    import mlflow.onnx
    import onnx

    tags = store.client.get_run(run_id).data.tags
    with store_errors(store.uri), packaging.quiet_fluent_run(run_id):
        options: dict[str, Any] = {"save_as_external_data": False}
        info = Model.log(
            artifact_path=None,
            name=f"{packaging.model_name(tags)}_{exported.format}",
            flavor=mlflow.onnx,
            onnx_model=onnx.load(str(exported.path)),
            signature=flavors.tensor_signature(num_classes),
            pip_requirements=[packaging.pinned(package) for package in ONNX_PACKAGES],
            **options,
        )
    store.client.update_run(run_id, status="RUNNING")
    return str(info.model_id)
