"""What became of one try."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.report import commit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one try.

    Attributes:
        said: what the user saw of it, in a line.
        problems: what was lost, doubled or left over; none: the try was survived.
        measured: figures of it, by name.
    """

    said: str = ""
    problems: tuple[str, ...] = ()
    measured: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Try:
    """One try of a fault.

    Attributes:
        fault: its row in the report.
        name: distinguishes it from the fault's other tries.
    """

    fault: str
    name: str
    run: Callable[[], Outcome]


class Outcomes:
    """The outcomes so far, kept in a file: the benchmark goes on where it was stopped.

    Args:
        path: JSON lines, one per try.

    Attributes:
        commits: where the tries were made, in their order.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[tuple[str, str], Outcome] = {}
        self._commit = commit()
        self.commits: dict[str, None] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                fields = json.loads(line)
                key = (fields.pop("fault"), fields.pop("name"))
                self.commits[fields.pop("commit", "a commit that was not kept")] = None
                self._found[key] = Outcome(**{**fields, "problems": tuple(fields["problems"])})

    def __contains__(self, one: Try) -> bool:
        return (one.fault, one.name) in self._found

    def add(self, one: Try, outcome: Outcome) -> None:
        """Remember the outcome of a try."""
        self._found[one.fault, one.name] = outcome
        self.commits[self._commit] = None
        named = {"fault": one.fault, "name": one.name, "commit": self._commit}
        fields = {**named, **dataclasses.asdict(outcome)}
        with open(self._path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(fields) + "\n")

    def faults(self) -> list[str]:
        """The faults that were tried, in their order."""
        return list(dict.fromkeys(fault for fault, _ in self._found))

    def of(self, fault: str) -> Sequence[Outcome]:
        """The outcomes of all tries of a fault."""
        return [outcome for (name, _), outcome in self._found.items() if name == fault]
