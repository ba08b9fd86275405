"""A trial of a plan: a candidate trained for some seconds, and how good it is then.

Which rows it may know, how it is trained and scored; what is tried when is `pose.auto`'s business.
"""

import dataclasses
import socket
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from pose.config import Recipe
from pose.data.cache import Progress
from pose.data.folder import Dataset
from pose.data.loaded import LoadedData, decode_dataset
from pose.data.shards import absolute_file
from pose.data.split import split_rows
from pose.data.tensors import TrainingData, framing_of, training_data
from pose.device import pick_device, pick_precision
from pose.errors import DivergedError, InputError
from pose.member_key import MemberKey
from pose.metrics import f1_of
from pose.results import AutoTrial
from pose.seeds.folder import checkpoint_bytes, parse_checkpoint
from pose.seeds.train import build_fitted
from pose.stop import Stop
from pose.training.loop import check_validated, train_for
from pose.training.predict import predict_logits, probs_of
from pose.training.state import start_state
from pose.training.step import Step

# Folds of the rows that train, of which one says how good a candidate is.
NUM_FOLDS = 5
# Trials train and validate on so many images at most: they have seconds.
MAX_ROWS = 8000
MIN_ROWS_PER_CLASS = 20
MAX_VAL, MAX_VAL_CROPPED = 600, 250


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrialJob:
    """What there is to try: plain values, for this process, another one, or another machine.

    Attributes:
        candidate, round: numbers, from 0.
        recipe: of the candidate, as `trial_recipe` makes it.
        limit: seconds of training in this round.
        of: seconds of the whole training that this is the beginning of.
        device, precision: that were asked for.
        state: where the round before ended, as `checkpoint_bytes` has it; None: from scratch.
        threads: of the CPU; 0: as many as torch takes.
    """

    candidate: int
    round: int
    recipe: Recipe
    limit: float
    of: float
    device: str
    precision: str
    state: bytes | None = None
    threads: int = 0

    def __str__(self) -> str:
        return f"round_{self.round + 1}_candidate_{self.candidate + 1}"

    @property
    def key(self) -> MemberKey:
        """The seed, and the fold that validates it: the same in all rounds."""
        return MemberKey(self.recipe.seeds[0], 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tried:
    """What came of a trial.

    Attributes:
        state: to go on from, as `checkpoint_bytes` has it; None where training diverged.
    """

    trial: AutoTrial
    state: bytes | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrialData:
    """The rows that trials may know, for whoever decodes them where they are needed.

    Attributes:
        dataset: those rows; their files are named from any folder.
        cache: `decoded`, or `stream`: images are decoded when they are needed.
        digest: that the decoded rows must have; None: not known yet.
    """

    dataset: Dataset
    cache_root: Path
    num_workers: int = 0
    cache: str = "decoded"
    digest: str | None = None

    def load(self, recipe: Recipe, progress: Progress | None = None) -> LoadedData:
        """The rows with their images as the recipe frames them.

        Raises:
            InputError: they are not what was found elsewhere.
        """
        folder = self.dataset.folder
        if not folder.is_dir():
            raise InputError(
                f"{folder} must be at the same path on every machine that trials run on, found "
                f"none on {socket.gethostname()}"
            )
        loaded = decode_dataset(
            self.dataset,
            framing_of(recipe),
            cache_root=self.cache_root,
            num_workers=self.num_workers,
            progress=progress,
            obey_exif=recipe.exif == "obey",
            cache=self.cache,
        )
        if self.digest not in (None, loaded.digest):
            raise InputError(f"{folder} must stay as it is while it is trained on")
        return loaded


def trial_recipe(recipe: Recipe) -> Recipe:
    """The recipe of a trial of a candidate."""
    return dataclasses.replace(recipe, folds=NUM_FOLDS, budget=None)


def try_candidate(job: TrialJob, loaded: LoadedData, stop: Stop) -> Tried | None:
    """Train a candidate for a while, and score it; None where it was asked to stop.

    Args:
        loaded: the rows that trials may know.

    Raises:
        InputError: the state to go on from is damaged.
    """
    device = pick_device(job.device)
    precision = pick_precision(job.precision, device)
    started = time.monotonic()
    recipe = job.recipe
    data = _with_few_that_validate(training_data(loaded, recipe, job.key, device), recipe)
    labels = loaded.dataset.classes.labels
    state = start_state(partial(build_fitted, recipe, labels, data), recipe, job.key.seed, device)
    if job.state is not None:
        state.load_state_dict(parse_checkpoint(job.state, f"the state of {job}"))
    step = Step(state, data, recipe, precision)
    kept, scores = None, (0.0, 0.0, 0.0)
    try:
        if not train_for(step, job.limit, of=job.of, stop=stop):
            return None
        logits = predict_logits(state.scored_model(), data.images, data.val_rows, precision)
        check_validated(state, logits, 0.0)
        scores = _scores(probs_of(logits), data)
        kept = checkpoint_bytes({**state.state_dict(), "precision": str(precision)})
    except DivergedError:
        # Its scores are those of knowing nothing: another one wins.
        pass
    rates = [row["images_per_second"] for row in state.history]
    num_images = sum(row["images_per_second"] * row["epoch_seconds"] for row in state.history)
    val_f1, val_gain, val_auc = scores
    trial = AutoTrial(
        candidate=job.candidate,
        round=job.round,
        val_f1=val_f1,
        val_gain=val_gain,
        val_auc=val_auc,
        num_epochs=round(num_images / len(data.train_rows), 1),
        images_per_second=float(np.median(rates)) if rates else 0.0,
        seconds=time.monotonic() - started,
    )
    return Tried(trial=trial, state=kept)


def _with_few_that_validate(data: TrainingData, recipe: Recipe) -> TrainingData:
    """The same with some hundred rows that validate: with crops, each many times."""
    limit = MAX_VAL_CROPPED if recipe.framing == "crop" else MAX_VAL
    order = torch.randperm(len(data.val_rows), generator=torch.Generator().manual_seed(0))
    return dataclasses.replace(data, val_rows=data.val_rows[order[:limit].sort().values])


def _scores(probs: np.ndarray, data: TrainingData) -> tuple[float, float, float]:
    """Macro F1 of predictions `(V, K)` of the rows that validate, its gain, and the ROC area.

    As `AutoTrial` has them.
    """
    # Imported here, as in `pose.ensembling.fit`: it brings SciPy along.
    from sklearn.metrics import roc_auc_score

    labels = data.labels[data.val_rows.to(data.labels.device)].cpu().numpy()
    areas = [
        float(roc_auc_score(labels == label, probs[:, label]))
        for label in range(probs.shape[1])
        if 0 < int((labels == label).sum()) < len(labels)
    ]
    commonest = np.eye(probs.shape[1])[np.full(len(labels), np.bincount(labels).argmax())]
    val_f1 = f1_of(probs, labels)
    return val_f1, val_f1 - f1_of(commonest, labels), float(np.mean(areas)) if areas else 0.5


def part_to_try(loaded: LoadedData, recipe: Recipe) -> Dataset:
    """The images that trials may know: of those that will train, some thousand."""
    part = loaded.dataset.take(rows_to_try(loaded, recipe).tolist())
    # What travels to other machines has nothing that trials do not need.
    return dataclasses.replace(
        part,
        folder=part.folder.absolute(),
        files=tuple(absolute_file(file) for file in part.files),
        test_ids=(),
        test_files=(),
        problems=(),
    )


def rows_to_try(loaded: LoadedData, recipe: Recipe) -> np.ndarray:
    """Their rows, `(N,)` int64, sorted; those that will validate the run are not among them."""
    if recipe.folds:
        rows = np.arange(len(loaded.dataset.ids))
    else:
        dataset = loaded.dataset
        rows, _ = split_rows(dataset.labels, recipe, MemberKey(recipe.seeds[0]), dataset.groups)
    if len(rows) <= MAX_ROWS:
        return np.sort(rows)
    labels, rng = loaded.dataset.labels[rows], np.random.default_rng(0)
    drawn = []
    for label in np.unique(labels):
        own = rng.permutation(rows[labels == label])
        # Of a rare class, more than its share: each fold must have some.
        drawn.append(own[: max(MIN_ROWS_PER_CLASS, round(MAX_ROWS * len(own) / len(rows)))])
    return np.sort(np.concatenate(drawn))
