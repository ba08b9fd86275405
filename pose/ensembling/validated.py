"""What the members of a run say of the rows that validated them, looked at once for every use."""

import dataclasses
from collections.abc import Mapping

from pose.ensembling.analysis import HeldOut, hold_out, mean_probs
from pose.ensembling.suspects import Suspect, find_suspects
from pose.member_key import MemberKey
from pose.predictions import Predictions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Validated:
    """Members' predictions of the rows that validated them, combined by the plain mean.

    Attributes:
        members: of each member whose predictions are here.
        held_out: the rows that all members share where these are enough, else `every_row`; None
            where labels are unknown or no member's predictions are here.
        every_row: the rows that any member has, each by the members that have it.
        suspects: of `every_row`, the worst first.
    """

    members: Mapping[MemberKey, Predictions]
    held_out: HeldOut | None
    every_row: HeldOut | None
    suspects: list[Suspect]


def look_at(members: Mapping[MemberKey, Predictions]) -> Validated:
    """Combine what members predict, and find the labels that they contradict."""
    predictions = list(members.values())
    every_row = hold_out(predictions, mean_probs, has_all=True)
    return Validated(
        members=members,
        held_out=hold_out(predictions, mean_probs),
        every_row=every_row,
        suspects=[] if every_row is None else find_suspects(every_row),
    )
