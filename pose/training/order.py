"""The order in which an epoch's rows train."""

import torch
from torch import Tensor

from pose.data.tensors import TrainingData

# Rows that wait to be picked from. Of images of 20 KB, 80 MB are read ahead of training.
NUM_WAITING = 4096


def epoch_order(
    data: TrainingData, generator: torch.Generator, *, num_waiting: int = NUM_WAITING
) -> Tensor:
    """The training rows in a random order, `(num_train,)` int64.

    With shards, they come in a random order, one after the other, each from its start to its end,
    and the next row is picked out of `num_waiting` that have come. So files are read nearly as they
    lie. Rows of one shard stay near each other: what lies together in it should be mixed already.
    """
    if not data.shards:
        return data.train_rows[torch.randperm(len(data.train_rows), generator=generator)]
    trains = torch.zeros(len(data.images), dtype=torch.bool)
    trains[data.train_rows] = True
    shards = torch.randperm(len(data.shards), generator=generator).tolist()
    coming = torch.cat([data.shards[number][trains[data.shards[number]]] for number in shards])
    return coming[_picked(len(coming), num_waiting, generator)]


def _picked(num_rows: int, num_waiting: int, generator: torch.Generator) -> Tensor:
    """Places `(num_rows,)` int64 in the order in which they are picked, each once."""
    waiting = list(range(min(num_waiting, num_rows)))
    picked = []
    draws = torch.rand(num_rows, generator=generator, dtype=torch.float64)
    for place, draw in zip(range(len(waiting), num_rows), draws.tolist(), strict=False):
        own = int(draw * len(waiting))
        picked.append(waiting[own])
        waiting[own] = place
    rest = torch.tensor(waiting)[torch.randperm(len(waiting), generator=generator)]
    return torch.cat([torch.tensor(picked, dtype=torch.int64), rest])
