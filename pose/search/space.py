"""The values that a sweep tries: `learning_rate:1e-3..1e-2:log,label_smoothing:0|0.1`."""

import dataclasses
import itertools
import math
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pose.config import Recipe, decimal_number, typed, whole_number
from pose.errors import InputError, known

EXAMPLE = "learning_rate:1e-3..1e-2:log,label_smoothing:0|0.1"
# What decides who is compared, not how: these belong to the whole sweep.
_NOT_SWEPT = ("seeds", "budget", "split_seed", "val_fraction")
# What is brought here from MLflow before the sweep begins, and what it must be then.
_NOT_BROUGHT = ("distil", "distil_sha256", "weights_sha256", "exclude_sha256")
# So many values of a range, and combinations of values, are held against the recipe's rules.
_MAX_CHECKED = 2000
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

    def examples(self) -> tuple[Any, ...]:
        """Its values; of a range the ends, and the first whole numbers where it has these."""
        if self.choices:
            return self.choices
        if not self.is_whole:
            return self.low, self.high
        low, high = int(self.low), int(self.high)
        return (*range(low, min(high, low + _MAX_CHECKED)), high)

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


def check_together(space: Sequence[Dimension], recipe: Recipe) -> None:
    """Refuse values that the recipe refuses, alone or together, before hours are spent on others.

    Raises:
        InputError: there are some; the message names them.
    """
    ends = (dimension.choices or (dimension.low, dimension.high) for dimension in space)
    corners = itertools.islice(itertools.product(*ends), _MAX_CHECKED)
    names = [dimension.name for dimension in space]
    for values in (*one_at_a_time(space), *(dict(zip(names, own, strict=True)) for own in corners)):
        try:
            dataclasses.replace(recipe, **values)
        except InputError as error:
            shown = ", ".join(f"{name}={typed(value)}" for name, value in values.items())
            raise InputError(
                f"space must have values that can be trained, got {shown}: {error}"
            ) from None


def one_at_a_time(space: Sequence[Dimension]) -> Iterator[dict[str, Any]]:
    """Each example of each dimension, with the first of all others."""
    first = {dimension.name: dimension.examples()[0] for dimension in space}
    for dimension in space:
        for value in dimension.examples():
            yield {**first, dimension.name: value}


def _parse(part: str) -> Dimension:
    name, _, values = (word.strip() for word in part.partition(":"))
    part = part[:100]
    left_out = {*_NOT_SWEPT, *_NOT_BROUGHT}
    fields = {field.name for field in dataclasses.fields(Recipe)} - left_out
    if name not in fields:
        raise InputError(
            f"space must name settings of a recipe ({known(fields)}), got {name[:100]!r}"
        )
    values, _, scale = (word.strip() for word in values.partition(":"))
    if not values or scale not in ("", "log"):
        raise InputError(f"space must look like {EXAMPLE}, got {part!r}")
    if ".." not in values:
        if scale:
            raise InputError(f"space must have :log behind a range only, got {part!r}")
        choices = tuple(_value(name, choice) for choice in values.split("|"))
        if len(set(choices)) != len(choices):
            raise InputError(f"space must have each value of {name} once, got {part!r}")
        return Dimension(name=name, choices=choices)
    low, high = (_value(name, end) for end in values.split("..", 1))
    if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high)):
        raise InputError(f"space must have choices for {name}, such as a|b, got {part!r}")
    if not low < high or (scale and low <= 0):
        expected = "from a positive number upwards" if scale else "from low to high"
        raise InputError(f"space must have ranges {expected}, got {part!r}")
    return Dimension(name=name, low=low, high=high, is_log=bool(scale))


_PARSERS: dict[type, Callable[[str], Any]] = {
    bool: lambda text: _BOOLEANS[text.lower()],
    int: whole_number,
    float: decimal_number,
}


def _value(name: str, text: str) -> Any:
    """`text` as a value of the setting's type."""
    annotation = typing.get_type_hints(Recipe)[name]
    if isinstance(annotation, types.UnionType):
        (annotation,) = (a for a in typing.get_args(annotation) if a is not types.NoneType)
    text = text.strip()
    try:
        value = _PARSERS.get(annotation, str)(text)
        if text == "" or isinstance(value, float) and not math.isfinite(value):
            raise ValueError
        return value
    except (ValueError, KeyError):
        raise InputError(
            f"space must have values of type {annotation.__name__} for {name}, got {text[:100]!r}"
        ) from None
