"""The zoo: every model by its name.

A model takes raw RGB images and gives logits; what it does to the pixels first is part of it.
This package depends on torch and torchvision alone, so that it can travel with a saved model.
"""

from pose.models.classifier import ImageClassifier
from pose.models.ensemble import SeedEnsemble
from pose.models.inference import for_inference
from pose.models.zoo import MODELS, TORCHVISION_PREFIX, build_model, check_model_name

__all__ = [
    "MODELS",
    "TORCHVISION_PREFIX",
    "ImageClassifier",
    "SeedEnsemble",
    "build_model",
    "check_model_name",
    "for_inference",
]
