"""The run `champion` as it trains any data folder."""

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.task import Predict, Task, run_side
from pose.data.cache import open_cache
from pose.data.tensors import framing_of, load_recipe_data, training_data
from pose.device import keep_freed_memory, pick_precision
from pose.member_key import MemberKey
from pose.named_runs import NAMED_RUNS
from pose.seeds.train import build_fitted
from pose.training.loop import train as train_epochs
from pose.training.predict import predict_logits
from pose.training.state import start_state
from pose.training.step import Step

CPU = torch.device("cpu")


def train(task: Task) -> tuple[Predict, dict[str, Any]]:
    """Decode, and train until the time is over."""
    started = time.perf_counter()
    keep_freed_memory()
    recipe = dataclasses.replace(
        NAMED_RUNS["champion"].recipe, image_size=task.image_size, batch_size=task.batch_size
    )
    precision = pick_precision("auto", CPU)
    with tempfile.TemporaryDirectory() as cache:
        loaded = load_recipe_data(Path(task.data), recipe, Path(cache), task.num_workers)
        data = training_data(loaded, recipe, MemberKey(task.seed), CPU)
        labels = loaded.dataset.classes.labels
        state = start_state(lambda: build_fitted(recipe, labels, data), recipe, task.seed, CPU)
        left = task.seconds - (time.perf_counter() - started)
        train_epochs(Step(state, data, recipe, precision), time_limit=left)
    seconds = time.perf_counter() - started
    model = state.scored_model()
    model.load_state_dict(state.best_weights)

    def predict(files: list[Path]) -> list[str]:
        with tempfile.TemporaryDirectory() as cache:
            images = open_cache(files, framing_of(recipe), cache_root=Path(cache)).images
            logits = predict_logits(model, images, torch.arange(len(files)), precision)
        return [labels[index] for index in logits.argmax(dim=1).tolist()]

    return predict, {
        "what": f"champion: {recipe.model}, {recipe.optimizer}, best epoch by validation",
        "epochs": state.num_epochs_done,
        "seconds": seconds,
    }


if __name__ == "__main__":
    run_side(train)
