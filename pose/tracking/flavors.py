"""One logged model with two flavours: the PyTorch module, and images in, a table out.

MLflow's `Model.log` calls `save_model` here, as it does in its own flavours' modules.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from torch import nn

from pose.model_card import ModelCard
from pose.seeds.folder import decoding_of
from pose_models.predictor import CONFIG_FILE, PredictorConfig
from pose_models.seal import sealed_text

# MLflow imports it by this name when the model is loaded; importing it here would make every
# command wait for what it needs.
LOADER = "pose_models.pyfunc"


def predictor_config(
    cards: Sequence[ModelCard], precision: str = "auto", ask_below: float | None = None
) -> PredictorConfig:
    """What a model of these members must know besides their weights."""
    return PredictorConfig(
        labels=cards[0].labels,
        names=cards[0].names,
        decodings=tuple(decoding_of(card) for card in cards),
        precision=precision,
        ask_below=ask_below,
    )


def save_model(
    path: str,
    mlflow_model: Model,
    pytorch_model: nn.Module,
    config: PredictorConfig,
    **options: Any,
) -> None:
    """Write the module as MLflow's own flavour does, then the table around it.

    Args:
        pytorch_model: in evaluation mode, `(N, 3, H, W)` uint8 to `(N, num_classes)`.
        options: of `mlflow.pytorch.save_model`.
    """
    mlflow.pytorch.save_model(
        pytorch_model,
        path,
        mlflow_model=mlflow_model,
        signature=tensor_signature(len(config.labels)),
        **options,
    )
    flavor = mlflow_model.flavors[mlflow.pyfunc.FLAVOR_NAME]
    data = Path(path, flavor["data"])
    (data / CONFIG_FILE).write_text(sealed_text(config.to_dict(), data), encoding="utf-8")
    mlflow.pyfunc.add_to_model(
        mlflow_model,
        loader_module=LOADER,
        data=flavor["data"],
        code=flavor["code"],
        conda_env=flavor["env"]["conda"],
        python_env=flavor["env"]["virtualenv"],
        model_config={"device": "cpu"},
    )
    mlflow_model.signature = _table_signature(config)
    mlflow_model.save(str(Path(path, "MLmodel")))


def tensor_signature(num_classes: int) -> ModelSignature:
    """Images of any number and size to logits."""
    return ModelSignature(
        inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, 3, -1, -1))]),
        outputs=Schema([TensorSpec(np.dtype("float32"), (-1, num_classes))]),
    )


def _table_signature(config: PredictorConfig) -> ModelSignature:
    """What the table's columns are, and that an input is text: base64, over HTTP."""
    numbers = ("confidence", *(f"p_{label}" for label in config.labels), "disagreement")
    flags = () if config.ask_below is None else ("ask",)
    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.string)]),
        outputs=Schema(
            [
                *(ColSpec(DataType.string, name) for name in ("label", "name")),
                *(ColSpec(DataType.double, name) for name in numbers),
                *(ColSpec(DataType.boolean, name) for name in flags),
            ]
        ),
    )
    # As of a function whose argument is a `list[str]`: MLflow then passes on what it is given.
    # It would refuse all but text otherwise, and its server would copy a request into an array
    # whose rows are all as long as the longest image.
    signature._is_signature_from_type_hint = True
    return signature
