"""A training step of several processes, each of which learns from its part of the batch."""

import torch
from torch import Tensor

from pose.config import Recipe
from pose.data.tensors import TrainingData
from pose.errors import InputError, one_line
from pose.training.group import ProcessGroup
from pose.training.state import TrainState
from pose.training.step import Step, split_batches, training_batch, with_neighbours
from pose.training.whole_batch import Part, WholeBatch


class DataParallelStep(Step):
    """The step of one process of several, called with the same rows in each.

    All have the same weights before and after it: those that one process would have that learns
    from the whole batch, but for the order in which numbers are added.
    """

    def __init__(
        self,
        state: TrainState,
        data: TrainingData,
        recipe: Recipe,
        precision: torch.dtype,
        group: ProcessGroup,
    ) -> None:
        super().__init__(state, data, recipe, precision)
        self.group = group

    def __call__(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Train on this process's part of the images at `rows` `(n,)`.

        Returns:
            as the step of one process: loss, labels and logits of all rows.

        Raises:
            InputError: memory is not enough for its part.
            PeerLostError: another process is gone.
        """
        try:
            return self._train(rows)
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"memory must be enough for the images of each of {self.group.size} processes, "
                f"found: {one_line(error)}: lower batch_size and raise accumulate as much"
            ) from error

    def gathered(self, rows: Tensor) -> Tensor:
        """Those of `rows` whose images a step on them asks for here, in its order."""
        _, own = self._own(rows)
        needed = torch.cat(own)
        if self.recipe.mixup_alpha or self.recipe.cutmix_alpha:
            needed, _ = with_neighbours(needed, len(rows))
        return rows[needed.to(rows.device)]

    def _own(self, rows: Tensor) -> tuple[list[Part], list[Tensor]]:
        """This process's part of each of the batches in `rows`, and its positions in `rows`."""
        batches = [len(batch) for batch in split_batches(rows, self._part_size)]
        parts = [Part.of(self.group, num_images) for num_images in batches]
        starts = torch.tensor([0, *batches]).cumsum(0).tolist()
        return parts, [
            torch.arange(part.positions.start, part.positions.stop) + start
            for part, start in zip(parts, starts, strict=False)
        ]

    def _train(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts, own = self._own(rows)
        images, labels, targets = training_batch(
            self.data, rows, self.recipe, self.state.augment_generator, torch.cat(own)
        )
        # Soft targets count alike.
        total = float(len(rows)) if targets.is_floating_point() else self._weight_of(labels)
        loss = torch.zeros((), device=images.device)
        logits = torch.zeros(len(rows), self.num_classes, device=images.device)
        sizes = [len(positions) for positions in own]
        for part, positions, some, own_targets in zip(
            parts, own, images.split(sizes), targets.split(sizes), strict=True
        ):
            with WholeBatch(self.group, part):
                part_loss, part_logits = self._forward(some, own_targets)
            # Of a mean over these images to its share in the mean over all.
            share = self._weight_of(own_targets) / total if part.counts else 0.0
            part_loss = part_loss * share
            part_loss.backward()
            if part.counts:
                loss += part_loss.detach()
                logits[positions.to(logits.device)] = part_logits.detach().float()
        self._add_up(loss, logits)
        self._apply_gradients()
        return loss, labels, logits

    def _add_up(self, *others: Tensor) -> None:
        """Replace the gradients and `others`, float32, by their sums over all processes."""
        gradients = [p.grad for p in self.state.model.parameters() if p.grad is not None]
        values = [*gradients, *others]
        flat = self.group.add(torch.cat([value.reshape(-1) for value in values]))
        parts = flat.split([value.numel() for value in values])
        for value, part in zip(values, parts, strict=True):
            value.copy_(part.view(value.shape))
