"""Members' probabilities become one: the same for files, records and the registered model."""

import torch
from torch import Tensor

from pose_models.combination import RULES, SOFT, UNFITTED, Combination

__all__ = ["RULES", "SOFT", "UNFITTED", "Combination", "combine"]

# Probabilities below it are taken for it, where their logarithms are.
MIN_PROB = 1e-12


def combine(probs: Tensor, how: Combination = SOFT) -> Tensor:
    """The ensemble's probabilities `(N, C)`; its prediction is their argmax.

    In a hard vote, among classes with equally many votes the one with the higher mean probability
    wins, and the first if those are equal too. So it is among classes of equal mean rank.

    Args:
        probs: `(M, N, C)` of M members, N images, C classes, rows sum to 1.

    Returns:
        float64; float32 on devices that have no other (MPS).
    """
    exact = probs if probs.device.type == "mps" else probs.double()
    if how.rule == "soft":
        combined = exact.mean(dim=0)
    elif how.rule == "hard":
        combined = _hard(exact)
    elif how.rule == "rank":
        combined = _rank(exact)
    elif how.rule == "stacking":
        combined = _stack(_group_means(exact, how.groups), how)
    else:
        weights = exact.new_tensor(how.weights)
        combined = torch.einsum("g,gnc->nc", weights, _group_means(exact, how.groups))
    # Older pickles of `Combination` lack what came later; its class has the values for them.
    if not how.is_calibrated and not how.offsets:
        return combined
    scaled = _log(combined) / how.temperature
    if how.scales:
        scaled = scaled * scaled.new_tensor(how.scales) + scaled.new_tensor(how.biases)
    if how.offsets:
        scaled = scaled + scaled.new_tensor(how.offsets)
    return scaled.softmax(dim=1)


def _hard(probs: Tensor) -> Tensor:
    num_members, _, num_classes = probs.shape
    votes = torch.nn.functional.one_hot(probs.argmax(dim=2), num_classes)
    shares = votes.to(probs.dtype).mean(dim=0)
    # Too small to overturn a vote (each is worth 1 / num_members), but enough to break a tie.
    shares = shares + probs.mean(dim=0) / (2 * num_members)
    return shares / shares.sum(dim=1, keepdim=True)


def _rank(probs: Tensor) -> Tensor:
    num_members, _, num_classes = probs.shape
    # 0 for a member's least probable class. Of equals the first stands higher, as in argmax.
    ranks = probs.flip(2).argsort(dim=2, stable=True).argsort(dim=2).flip(2).to(probs.dtype)
    shares = ranks.mean(dim=0) + probs.mean(dim=0) / (2 * num_members)
    return shares / shares.sum(dim=1, keepdim=True)


def _stack(groups: Tensor, how: Combination) -> Tensor:
    features = _log(groups).permute(1, 0, 2).flatten(1)  # (N, G * C)
    coefficients = features.new_tensor(how.coefficients)
    return (features @ coefficients.T + features.new_tensor(how.intercepts)).softmax(dim=1)


def _group_means(probs: Tensor, groups: tuple[int, ...]) -> Tensor:
    """The mean of each group's members, `(G, N, C)`."""
    if not groups:
        return probs
    places = torch.tensor(groups, device=probs.device)
    return torch.stack([probs[places == group].mean(dim=0) for group in range(max(groups) + 1)])


def _log(probs: Tensor) -> Tensor:
    return probs.clamp_min(MIN_PROB).log()
