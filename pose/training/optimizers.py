"""torch's Adam and AdamW as they are, without waiting for torch.compile to be imported.

torch marks the methods of its optimizers for the compiler, and the marks import all of it when
they are first called: a third of the CPU seconds from the command to the first epoch. Nothing is
compiled here, so the methods are taken from under their marks; without any they are what they are.
"""

import inspect

import torch
from torch.optim import Optimizer


class _Unmarked(Optimizer):
    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)


class Adam(_Unmarked, torch.optim.Adam):
    """`torch.optim.Adam`."""

    # What the mark on `step` does besides.
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


class AdamW(_Unmarked, torch.optim.AdamW):
    """`torch.optim.AdamW`."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
