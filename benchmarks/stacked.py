"""Several seeds of `simple_cnn` trained as one network of grouped convolutions."""

import copy
import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pose.training.optimization import build_optimizer
from pose.training.step import Step
from pose_models import ImageClassifier


class StackedCNN(nn.Module):
    """Several `simple_cnn` as one network of grouped convolutions, with their weights.

    What `torch.func.vmap` makes of a convolution with a weight per member, without its overhead.
    """

    def __init__(self, members: Sequence[ImageClassifier]) -> None:
        super().__init__()
        self.num_members = len(members)
        self.preprocess = copy.deepcopy(members[0].preprocess)
        layers: list[nn.Module] = []
        for blocks in zip(*(member.network.features for member in members), strict=True):
            layers += [*self._stack_block(blocks), nn.MaxPool2d(2), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        heads = [member.network.classifier for member in members]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for layer in (0, 3):
            self.weights.append(torch.stack([head[layer].weight.detach().T for head in heads]))
            self.biases.append(torch.stack([head[layer].bias.detach()[None] for head in heads]))
        self.dropout = copy.deepcopy(heads[0][2])

    def _stack_block(self, blocks: Sequence[nn.Sequential]) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
        first, m = blocks[0][0], self.num_members
        conv = nn.Conv2d(
            m * first.in_channels, m * first.out_channels, 3, padding=1, groups=m,
            bias=first.bias is not None,
        )  # fmt: skip
        norm = nn.BatchNorm2d(m * first.out_channels)
        for position, stacked in ((0, conv), (1, norm)):
            states = [block[position].state_dict() for block in blocks]
            stacked.load_state_dict(
                {
                    key: value if value.ndim == 0 else torch.cat([state[key] for state in states])
                    for key, value in states[0].items()
                }
            )
        return conv, norm

    def forward(self, images: Tensor) -> Tensor:
        """`(M, N, 3, H, W)`, a batch per member, to logits `(M, N, num_classes)` float32."""
        m, n = images.shape[:2]
        channels = self.preprocess(images.flatten(0, 1)).view(m, n, 3, *images.shape[-2:])
        channels = channels.transpose(0, 1).flatten(1, 2)  # (N, M * 3, H, W)
        pooled = self.features(channels).mean(dim=(2, 3)).view(n, m, -1).transpose(0, 1)
        hidden = self.dropout(F.relu(torch.baddbmm(self.biases[0], pooled, self.weights[0])))
        return torch.baddbmm(self.biases[1], hidden, self.weights[1]).float()


class StackedStep(Step):
    """The step of several seeds at once in a `StackedCNN`; each has its own images and draws.

    Called with rows `(M, n)`; its loss is the sum of the members'.
    """

    def __init__(self, members: Sequence[Step]) -> None:
        first = members[0]
        model = StackedCNN([member.state.model for member in members])
        model = model.to(first.state.device, memory_format=torch.channels_last).train()
        state = dataclasses.replace(
            first.state, model=model, optimizer=build_optimizer(model, first.recipe)
        )
        super().__init__(state, first.data, first.recipe, first.precision)
        self.members = members

    @property
    def generators(self) -> list[torch.Generator]:
        """The generators of all members."""
        return [member.state.augment_generator for member in self.members]

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each member's batch, stacked."""
        batches = [member.batch(own) for member, own in zip(self.members, rows, strict=True)]
        return tuple(map(torch.stack, zip(*batches, strict=True)))

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The members' summed loss, of logits `(M, n, num_classes)` and labels `(M, n)`."""
        pairs = zip(logits, targets, strict=True)
        return torch.stack([super(StackedStep, self).loss(*pair) for pair in pairs]).sum()


def compare_with_alone(
    members: Sequence[Step], alone: Sequence[Step], again: Sequence[Step], batches: Tensor
) -> str:
    """How far the losses of seeds trained together are from those of seeds trained alone.

    Without dropout, whose masks come from the one generator that all share.

    Args:
        members, alone, again: new steps of the same seeds.
        batches: rows `(num_steps, M, n)`.
    """
    for step in (*members, *alone, *again):
        _drop_nothing(step.state.model)
    together = StackedStep(members)
    apart, noise = 0.0, 0.0
    for rows in batches:
        total = float(together(rows)[0])
        first, second = (
            sum(float(step(own)[0]) for step, own in zip(steps, rows, strict=True))
            for steps in (alone, again)
        )
        apart, noise = max(apart, abs(total - first)), max(noise, abs(second - first))
    return (
        f"Stacked members without dropout, {len(members)} seeds, {len(batches)} steps: the sum of "
        f"their losses differs from that of the seeds alone by at most {apart:.2g}; the same "
        f"seeds alone, twice: {noise:.2g}."
    )


def _drop_nothing(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
