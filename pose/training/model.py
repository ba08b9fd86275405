"""The network that a recipe asks for, before its first step."""

from pose.config import Recipe
from pose.data.tensors import framing_of
from pose_models import ImageClassifier, TrainMode, build_model


def build_for_training(recipe: Recipe, labels: tuple[str, ...]) -> ImageClassifier:
    """A new model for these classes, with random or pretrained weights, as it trains.

    Raises:
        ModelError: there is no such model, or it does not take the recipe's settings.
    """
    return build_model(
        recipe.model,
        labels,
        framing_of(recipe),
        pretrained=recipe.pretrained,
        high_pass=recipe.high_pass,
        mode=TrainMode(
            dropout=recipe.dropout,
            drop_path=recipe.drop_path,
            checkpointing=recipe.checkpointing,
        ),
    )
