"""What a finished seed leaves in its folder."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pose import metrics
from pose.data.loaded import LoadedData
from pose.data.tensors import TrainingData
from pose.display import Display
from pose.errors import DivergedError, one_line
from pose.model_card import ModelCard, write_card
from pose.predictions import Predictions, write_predictions
from pose.seeds import folder as seed_folder
from pose.seeds.job import SeedJob
from pose.training.predict import predict_logits, probs_of
from pose.training.state import TrainState

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_results(
    job: SeedJob,
    state: TrainState,
    data: TrainingData,
    loaded: LoadedData,
    precision: torch.dtype,
    display: Display,
) -> None:
    """Write weights, card, validation predictions and pictures of a finished seed.

    The weights come first: a picture that cannot be drawn is a warning.

    Raises:
        DivergedError: the best weights give logits that are not finite.
    """
    # Imported here: matplotlib takes a second, and the first epoch comes long before.
    from pose.reports import plots

    val_predictions = predict_validation(state, data, loaded, precision)
    seed_folder.write_weights(job.output / seed_folder.WEIGHTS, state.best_weights)
    write_card(job.output / seed_folder.CONFIG, model_card(job, state, loaded))
    write_predictions(job.output / seed_folder.VAL_PREDICTIONS, val_predictions)
    seed_folder.write_history(job.output, state.history)
    names = loaded.dataset.classes.names
    assert val_predictions.labels is not None
    confusion = metrics.confusion_matrix(
        val_predictions.labels, val_predictions.preds(), len(names)
    )
    title = f"{job.title}: validation macro F1 {metrics.macro_f1(confusion):.4f}"
    _draw(
        job.output / seed_folder.HISTORY_PLOT,
        lambda: plots.plot_history(state.history, state.best_epoch, job.title),
        display,
    )
    _draw(
        job.output / seed_folder.CONFUSION_PLOT,
        lambda: plots.plot_confusion(confusion, names, title),
        display,
    )
    (job.output / seed_folder.PREVIOUS_CHECKPOINT).unlink(missing_ok=True)


def predict_validation(
    state: TrainState, data: TrainingData, loaded: LoadedData, precision: torch.dtype
) -> Predictions:
    """The best weights' predictions of the validation images.

    Raises:
        DivergedError: a logit is not finite.
    """
    logits = state.best_logits
    if logits is None:
        model = state.scored_model()
        model.load_state_dict(state.best_weights)
        logits = predict_logits(model, data.images, data.val_rows, precision)
    if not bool(torch.isfinite(logits).all()):
        raise DivergedError(
            "the logits of the best weights must be finite, found some that are not"
        )
    ids_of_rows = dict(zip(loaded.rows.tolist(), loaded.dataset.ids, strict=True))
    ids = tuple(ids_of_rows[row] for row in data.val_rows.tolist())
    group_of = loaded.dataset.group_names()
    return Predictions(
        ids=ids,
        groups=tuple(group_of[image_id] for image_id in ids) if group_of else None,
        probs=probs_of(logits),
        class_labels=loaded.dataset.classes.labels,
        labels=data.labels[data.val_rows.to(data.labels.device)].cpu().numpy(),
    )


def model_card(job: SeedJob, state: TrainState, loaded: LoadedData) -> ModelCard:
    """The card of the seed's best weights."""
    classes = loaded.dataset.classes
    return ModelCard(
        model=job.recipe.model,
        image_size=job.recipe.image_size,
        labels=classes.labels,
        names=classes.names,
        mirrors=classes.mirrors,
        run=job.run,
        seed=job.seed,
        fold=job.fold,
        val_f1=state.best_val_f1,
        best_epoch=state.best_epoch,
        dataset_digest=loaded.digest,
        recipe=dataclasses.asdict(job.recipe),
        weights_sha256=seed_folder.weights_sha256(state.best_weights),
    )


def _draw(path: Path, draw: Callable[[], "Figure"], display: Display) -> None:
    from pose.reports import plots

    try:
        plots.write_figure(draw, path)
    # Whatever matplotlib cannot do with these names and numbers, the weights are worth more.
    except Exception as error:
        display.say(f"warning: {path.name} could not be drawn: {one_line(error)}")
