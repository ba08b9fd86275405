"""Models by name, and all that a finished one needs; the package travels with each saved model.

A model takes raw RGB images and gives logits; what it does to the pixels first is part of it.
Needs torch, torchvision, NumPy and Pillow, and nothing of `pose`.
"""

from pose_models.classifier import ImageClassifier
from pose_models.combination import Combination
from pose_models.combine import combine
from pose_models.ensemble import SeedEnsemble
from pose_models.errors import ModelError
from pose_models.framing import Framing
from pose_models.inference import for_inference
from pose_models.sources import (
    MODELS,
    TORCHVISION_PREFIX,
    build_model,
    check_model_name,
    list_models,
    own_image_size,
)
from pose_models.train_mode import TrainMode
from pose_models.views import AugmentedClassifier

__all__ = [
    "MODELS",
    "TORCHVISION_PREFIX",
    "AugmentedClassifier",
    "Combination",
    "Framing",
    "ImageClassifier",
    "ModelError",
    "SeedEnsemble",
    "TrainMode",
    "build_model",
    "check_model_name",
    "combine",
    "for_inference",
    "list_models",
    "own_image_size",
]
