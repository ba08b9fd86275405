"""Successive halving: many candidates get little time, the best of them more.

Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization",
2016 (arXiv:1502.07943). There each round has the same time for all together, and so it is here. A
round goes on where the last one ended, so looking in between costs little: the last two are
compared twice, and whoever is far behind goes no further.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from pose.seeds.engines import num_turns

# Candidates of a round that go on to the next one.
KEPT = 1 / 3
# The last round compares so many, in so many parts.
FINALISTS = 2
PARTS = 2
# A score is the area under the ROC curve and what F1 gains, so from 0 to 2. On the few hundred rows
# that validate a trial, a lead of so much is many times what chance makes of equals.
CLEAR_LEAD = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
    """A round: how many candidates at most, and the seconds of each trial."""

    num_candidates: int
    seconds: float


def plan_rounds(num_candidates: int, seconds: float) -> tuple[Round, ...]:
    """The rounds that fill a time, which is for all of them together."""
    sizes = [num_candidates]
    while sizes[-1] > FINALISTS:
        sizes.append(max(FINALISTS, round(KEPT * sizes[-1])))
    if sizes[-1] < 2:
        return ()
    share = seconds / len(sizes)
    *before, last = (Round(num_candidates=size, seconds=share / size) for size in sizes)
    part = dataclasses.replace(last, seconds=last.seconds / PARTS)
    return (*before, *[part] * PARTS)


def seconds_of_each(seconds: float, num_trials: int, at_once: int) -> float:
    """Of each trial of a round, which lasts as long as if one by one had `seconds`."""
    return seconds * num_trials / num_turns(num_trials, at_once)


def survivors(scores: Mapping[int, float], number: int) -> Sequence[int]:
    """The candidates with the highest scores, the best first; of equals the plainest.

    Those that are far behind the best are not among them: its members need the time more.
    """
    ranked = sorted(scores, key=lambda index: (-scores[index], index))[:number]
    return [index for index in ranked if scores[ranked[0]] - scores[index] <= CLEAR_LEAD]
