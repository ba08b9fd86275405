"""Named runs: recipes that keep their name for ever, with what they reached.

The first five reproduce the original competition entry; their settings are facts and never
change. A recipe that should change gets a new name.
"""

import dataclasses
import re
from typing import Any

from pose.config import Recipe
from pose.errors import InputError, known

# A folder's name may have 255 bytes, and its name is put into those of models and pages as well.
MAX_NAME = 150

# What the five frozen runs share. Spelled out in full, so that a new default for new runs
# cannot reach them.
ORIGINAL = Recipe(
    model="simple_cnn",
    pretrained=False,
    layer_decay=1.0,
    dropout=None,
    drop_path=None,
    checkpointing=False,
    augmentation="baseline",
    seeds=(105,),
    image_size=128,
    exif="ignore",
    keep_groups=False,
    group_near_twins=False,
    batch_size=64,
    accumulate=1,
    num_epochs=300,
    shuffle="all",
    patience=20,
    optimizer="adam",
    learning_rate=1e-3,
    weight_decay=0.0,
    schedule="constant",
    warmup_fraction=0.0,
    label_smoothing=0.0,
    ema_decay=0.0,
    clip_grad_norm=0.0,
    mixup_alpha=0.0,
    cutmix_alpha=0.0,
    random_erasing=0.0,
    class_weighting="none",
    val_fraction=0.2,
    split_seed=None,  # each member validated on its own split
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NamedRun:
    """A recipe with its name's promise and its record.

    Attributes:
        about: one line for `--list`.
        val_f1: best validation macro-F1 per seed that the original reached, where known.
        leaderboard: the original's F1 on the competition's hidden test images, in words.
    """

    recipe: Recipe
    about: str
    val_f1: dict[int, float] = dataclasses.field(default_factory=dict)
    leaderboard: str = ""


NAMED_RUNS: dict[str, NamedRun] = {
    "simple_cnn_seed_105": NamedRun(
        recipe=ORIGINAL,
        about="the original's single network",
    ),
    "ensemble_1": NamedRun(
        recipe=dataclasses.replace(
            ORIGINAL, augmentation="ensemble_1", seeds=(76, 100, 123), patience=15
        ),
        about="the original's first ensemble",
        val_f1={76: 0.921257, 100: 0.914943, 123: 0.921880},
        leaderboard="soft 0.93749, hard 0.93358",
    ),
    "ensemble_2": NamedRun(
        recipe=dataclasses.replace(
            ORIGINAL, augmentation="ensemble_2", seeds=(76, 100, 123), patience=50
        ),
        about="the same with stronger augmentation",
        val_f1={76: 0.937592, 100: 0.938555, 123: 0.942760},
        leaderboard="soft 0.95197, hard 0.95038; seed 123 alone 0.94360",
    ),
    "ensemble_3": NamedRun(
        recipe=dataclasses.replace(
            ORIGINAL,
            augmentation="ensemble_2",
            seeds=(76, 100, 101, 102, 103, 123),
            patience=50,
        ),
        about="ensemble_2 with three more seeds",
        val_f1={76: 0.937592, 100: 0.938555, 101: 0.928942, 102: 0.933440, 123: 0.942760},
    ),
    "simple_cnn_v2": NamedRun(
        recipe=dataclasses.replace(
            ORIGINAL,
            model="simple_cnn_v2",
            augmentation="ensemble_2",
            seeds=(100, 101, 102, 103, 104),
            patience=50,
        ),
        about="with a high-pass channel, the original's best",
        val_f1={100: 0.952854, 101: 0.951362, 102: 0.957075, 103: 0.953491, 104: 0.958306},
    ),
    "demo": NamedRun(
        recipe=Recipe(
            augmentation="pose_unflipped",
            num_epochs=12,
            learning_rate=4e-3,
            warmup_fraction=0.1,
        ),
        about="three seeds on the drawn poses in a few minutes",
    ),
    "champion": NamedRun(
        recipe=Recipe(num_epochs=20),
        about="the strongest recipe for any data folder",
    ),
    "finetune": NamedRun(
        recipe=Recipe(
            pretrained=True,
            freeze_epochs=1,
            layer_decay=0.75,
            augmentation="photo_light",
            image_size=0,
            num_epochs=10,
            optimizer="adamw",
            learning_rate=1e-3,
            warmup_fraction=0.1,
            clip_grad_norm=1.0,
        ),
        about="from pretrained weights: add model=timm/<name> or torchvision/<name>, or weights",
    ),
}


# The run whose recipe is planned from the data, and the one that its candidates are changes of.
AUTO, AUTO_BASE = "auto", "champion"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedRun:
    """What a command line asks for.

    Attributes:
        name: of the run, its folder and its tag `run`.
        base: the named run that it follows, or None for a free run.
        changes: the settings in which `recipe` differs from the named run.
    """

    name: str
    base: str | None
    recipe: Recipe
    changes: dict[str, object]

    def title(self) -> str:
        """`ensemble_1`, or `ensemble_1 with num_epochs=3` where it was changed."""
        base = self.base or f"free run of {self.recipe.model}"
        if not (self.base and self.changes):
            return base
        return f"{base} with " + " ".join(f"{k}={v}" for k, v in self.changes.items())


def resolve_auto(run_name: str | None, overrides: dict[str, Any]) -> ResolvedRun:
    """What `run=auto` starts from: another named run, with the settings that were given.

    Raises:
        InputError: a name that cannot be a folder's, or a value out of range.
    """
    return resolve_run(AUTO_BASE, run_name or AUTO, overrides)


def check_run_name(name: str) -> None:
    """Refuse a name that cannot be a folder's, or would be too long with what is put beside it.

    Raises:
        InputError: it is one.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise InputError(f"run_name must match [A-Za-z0-9_-]+, got {name[:200]!r}")
    if len(name) > MAX_NAME:
        raise InputError(f"run_name must have at most {MAX_NAME} characters, got {len(name)}")


def resolve_run(run: str | None, run_name: str | None, overrides: dict[str, Any]) -> ResolvedRun:
    """The recipe of the named run `run` (None: of new runs) under `overrides`.

    Raises:
        InputError: an unknown run, a name that cannot be a folder's, or a value out of range.
    """
    if run is not None and run not in NAMED_RUNS:
        if run == AUTO:
            raise InputError("run must have a recipe of its own here, got auto: give champion")
        raise InputError(
            f"run must be one of {known((*NAMED_RUNS, AUTO))}, got {run!r}; leave it out for a "
            "free run"
        )
    base = NAMED_RUNS[run].recipe if run else Recipe()
    if base.pretrained and overrides.get("weights") is not None:
        # They stand in for those that the named run starts from.
        overrides = {"pretrained": False, **overrides}
    recipe = dataclasses.replace(base, **overrides)
    name = run_name or run or re.sub(r"[^A-Za-z0-9_-]", "_", recipe.model)
    check_run_name(name)
    changes = {
        key: ",".join(map(str, value)) if isinstance(value, tuple) else value
        for key, value in overrides.items()
        if run and getattr(base, key) != getattr(recipe, key)
    }
    return ResolvedRun(name=name, base=run, recipe=recipe, changes=changes)
