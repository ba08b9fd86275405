"""One kind of defect of a data folder, and everything that has it."""

import dataclasses

from pose.errors import first_few, printable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """One kind of defect and everything that has it.

    Attributes:
        what: what they are, in words, plural.
        consequence: what training does about it.
        items: ids or file names, as any terminal can show them.
        is_fatal: whether training refuses to start.
    """

    what: str
    consequence: str
    items: tuple[str, ...]
    is_fatal: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", tuple(printable(item) for item in self.items))

    def line(self) -> str:
        """One line with the number and the first few items."""
        return f"{len(self.items)} {self.what} ({self.consequence}): {first_few(self.items)}"
