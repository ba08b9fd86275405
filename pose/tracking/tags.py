"""What the tags of runs and versions say, read back.

Whoever looks at a run in MLflow can edit its tags; what cannot be read then is named.
"""

import time
from collections.abc import Callable
from typing import TypeVar

from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from pose.errors import InputError
from pose.member_key import MemberKey

Value = TypeVar("Value")

# On parents: what `begun_of` reads.
BEGUN_TAG = "begun"


def member_key(found: Run | ModelVersion) -> MemberKey:
    """Which member a run or a version is of.

    Raises:
        InputError: its tags do not say.
    """
    tag = "fold" if _is_number(found, "seed") else "seed"
    return _read(found, tag, lambda tags: MemberKey.from_tags(tags), "a whole number")


def seeds_of(run: Run) -> tuple[int, ...]:
    """The seeds that a run promises; none where it is too old to say.

    Raises:
        InputError: its tag is no list of seeds.
    """
    return _read(
        run,
        "seeds",
        lambda tags: tuple(int(seed) for seed in tags.get("seeds", "").split(",") if seed),
        "whole numbers joined by commas",
    )


def folds_of(run: Run) -> int:
    """How many folds a run has; 0: none.

    Raises:
        InputError: its tag is no number.
    """
    return _read(run, "folds", lambda tags: int(tags.get("folds", 0)), "a whole number")


def silence_of(run: Run) -> float:
    """Seconds since a run was last heard of.

    Raises:
        InputError: its tag is no time.
    """
    heard = _read(
        run,
        "heartbeat",
        lambda tags: float(tags.get("heartbeat", run.info.start_time / 1000)),
        "seconds since 1970",
    )
    # Another machine's clock may be ahead of this one's.
    return max(0.0, time.time() - heard)


def begun_of(run: Run) -> int:
    """When a run was begun, in milliseconds since 1970, by a clock that never goes back.

    A run's own start is the machine's clock, which may have been set back since another began.
    """
    text = run.data.tags.get(BEGUN_TAG, "")
    return int(text) if text.isdecimal() else int(run.info.start_time)


def _tags(found: Run | ModelVersion) -> dict[str, str]:
    return dict(found.data.tags if isinstance(found, Run) else found.tags)


def _is_number(found: Run | ModelVersion, tag: str) -> bool:
    try:
        int(_tags(found)[tag])
    except (KeyError, ValueError):
        return False
    return True


def _read(
    found: Run | ModelVersion,
    tag: str,
    read: Callable[[dict[str, str]], Value],
    expected: str,
) -> Value:
    tags = _tags(found)
    try:
        return read(tags)
    except (KeyError, ValueError):
        value = f"{tags[tag]!r:.80}" if tag in tags else "none"
        raise InputError(
            f"the tag {tag} of {_address(found)} must be {expected}, found {value}: was it edited? "
            "Set it again in mlflow ui, or delete what has it there"
        ) from None


def _address(found: Run | ModelVersion) -> str:
    if isinstance(found, Run):
        return f"run {found.info.run_id}"
    return f"models:/{found.name}/{found.version}"
