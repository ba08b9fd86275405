"""The values that a sweep tries: `learning_rate:1e-3..1e-2:log,label_smoothing:0|0.1`."""

import dataclasses
import math
import types
import typing
from typing import Any

from pose.config import Recipe
from pose.errors import InputError, known

EXAMPLE = "learning_rate:1e-3..1e-2:log,label_smoothing:0|0.1"
# What decides who is compared, not how: these belong to the whole sweep.
_NOT_SWEPT = ("seeds", "budget", "split_seed", "val_fraction")
_BOOLEANS = {"true": True, "false": False}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dimension:
    """The values of one setting: a range, or choices.

    Attributes:
        low, high: of a range, both included; integers where the setting is one.
        is_log: whether equal factors, not equal steps, are equally likely.
        choices: the values where it is no range.
    """

    name: str
    low: float = 0
    high: float = 0
    is_log: bool = False
    choices: tuple[Any, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether the range has whole numbers only."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def holds(self, value: Any) -> bool:
        """Whether `value` is one that this dimension may try."""
        if self.choices:
            return value in self.choices
        return bool(self.low <= value <= self.high)


def parse_space(text: str) -> tuple[Dimension, ...]:
    """The dimensions in `text`, joined by commas: `name:low..high`, with `:log`, or `name:a|b|c`.

    Raises:
        InputError: no setting of a recipe, or values that it cannot have.
    """
    dimensions = tuple(_parse(part.strip()) for part in text.split(","))
    names = [dimension.name for dimension in dimensions]
    if len(set(names)) != len(names):
        raise InputError(f"space must name each setting once, got {', '.join(names)}")
    return dimensions


def _parse(part: str) -> Dimension:
    name, _, values = part.partition(":")
    fields = {field.name for field in dataclasses.fields(Recipe)} - set(_NOT_SWEPT)
    if name not in fields:
        raise InputError(f"space must name settings of a recipe ({known(fields)}), got {name!r}")
    values, _, scale = values.partition(":")
    if not values or scale not in ("", "log"):
        raise InputError(f"space must look like {EXAMPLE}, got {part!r}")
    if ".." not in values:
        if scale:
            raise InputError(f"space must have :log behind a range only, got {part!r}")
        choices = tuple(_value(name, choice) for choice in values.split("|"))
        for choice in choices:
            _check(name, choice)
        return Dimension(name=name, choices=choices)
    low, high = (_value(name, end) for end in values.split("..", 1))
    if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high)):
        raise InputError(f"space must have choices for {name}, such as a|b, got {part!r}")
    if not low < high or (scale and low <= 0):
        expected = "from a positive number upwards" if scale else "from low to high"
        raise InputError(f"space must have ranges {expected}, got {part!r}")
    for end in (low, high):
        _check(name, end)
    return Dimension(name=name, low=low, high=high, is_log=bool(scale))


def _value(name: str, text: str) -> Any:
    """`text` as a value of the setting's type."""
    annotation = typing.get_type_hints(Recipe)[name]
    if isinstance(annotation, types.UnionType):
        (annotation,) = (a for a in typing.get_args(annotation) if a is not types.NoneType)
    try:
        if annotation is bool:
            return _BOOLEANS[text.lower()]
        value = annotation(text)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError
        return value
    except (ValueError, KeyError):
        raise InputError(
            f"space must have values of type {annotation.__name__} for {name}, got {text!r}"
        ) from None


def _check(name: str, value: Any) -> None:
    """Refuse what the recipe refuses, before hours have been spent on other values."""
    Recipe(**{name: value})
