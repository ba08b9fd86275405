"""Whether the members that were found are those that their runs promised."""

import dataclasses
from collections.abc import Mapping, Sequence

from pose.ensembling.members import Member, MemberState, RegisteredMember
from pose.errors import InputError, first_few

_COLUMNS = ("member", "expected", "found")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the comparison of what was expected with what was found.

    Attributes:
        voter: the version that votes if the entry is accepted as it is; None: none does.
    """

    member: str
    expected: str
    found: str
    is_right: bool
    voter: RegisteredMember | None = None

    def __str__(self) -> str:
        """`tiny seed 1: no version, its run is failed (diverged)`."""
        return f"{self.member}: {self.found}"


def compare_promises(states_of_runs: Mapping[str, Sequence[MemberState]]) -> list[Entry]:
    """Expected and found for each member of each run, by the records alone.

    Each promised member is expected once, finished, and trained on the data of the first one.
    """
    entries: list[Entry] = []
    digest = ""
    for run, states in states_of_runs.items():
        for state in states:
            voter = state.versions[-1] if state.versions else None
            faults = _faults(state)
            if voter is not None:
                digest = digest or voter.dataset_digest
                if voter.dataset_digest != digest:
                    faults.append(f"trained on other data ({voter.dataset_digest}, not {digest})")
            uris = ", ".join(version.uri for version in state.versions)
            entries.append(
                Entry(
                    member=f"{run} {state.key}",
                    expected="one version, finished" if state.is_promised else "no such member",
                    found=", ".join((uris or "no version", *faults)),
                    is_right=voter is not None and not faults,
                    voter=voter,
                )
            )
    return entries


def _faults(state: MemberState) -> list[str]:
    faults = []
    if state.state != "finished":
        faults.append(f"its run is {state.state}")
    if len(state.versions) > 1:
        faults.append(f"{len(state.versions)} versions")
    if not state.is_promised:
        faults.append("its run did not promise it")
    return faults


def compare_weights(members: Sequence[Member]) -> list[Entry]:
    """Expected and found for each member, by its weights: those of no other are expected."""
    first_with: dict[str, str] = {}
    entries = []
    for member in members:
        first = first_with.setdefault(member.weights_sha256, member.name)
        is_first = first == member.name
        entries.append(
            Entry(
                member=member.name,
                expected="weights of its own",
                found=f"sha256 {member.weights_sha256[:12]}"
                + ("" if is_first else f", the weights of {first}"),
                is_right=is_first,
                voter=member.registered if is_first else None,
            )
        )
    return entries


def table_of(entries: Sequence[Entry]) -> str:
    """The entries as aligned text; a cross marks what is not as expected."""
    rows = [_COLUMNS, *((entry.member, entry.expected, entry.found) for entry in entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    marks = [" ", *(" " if entry.is_right else "x" for entry in entries)]
    return "\n".join(
        f"{mark} {row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]}"
        for mark, row in zip(marks, rows, strict=True)
    )


def refuse_wrong(entries: Sequence[Entry]) -> None:
    """Refuse a vote whose members are not those that were promised.

    Raises:
        InputError: entries are not right; the message names them.
    """
    wrong = [entry for entry in entries if not entry.is_right]
    if wrong:
        raise InputError(
            f"members must be those that their runs promised, found {len(wrong)} of "
            f"{len(entries)} that are not: {first_few(wrong)}; finish the run with its train "
            "command, or vote all the same with --allow-missing"
        )
