"""How far members agree, as pure functions on NumPy arrays.

Members are the first axis: `probs` is `(M, N, C)`, M members, N images, C classes, rows sum to 1.
"""

import numpy as np


def agreement(probs: np.ndarray, combined: np.ndarray) -> np.ndarray:
    """Part of the images `(M,)` on which each member predicts what `combined` `(N, C)` does."""
    shares: np.ndarray = (probs.argmax(axis=2) == combined.argmax(axis=1)).mean(axis=1)
    return shares


def unanimity(probs: np.ndarray) -> float:
    """Part of the images on which all members predict the same class."""
    preds = probs.argmax(axis=2)
    return float((preds == preds[0]).all(axis=0).mean())


def disagreement(probs: np.ndarray) -> float:
    """Mean over pairs of members of the part of images that they predict differently.

    0 for a single member; the disagreement measure of Kuncheva and Whitaker (2003).
    """
    pairs = pairwise_disagreement(probs)[np.tril_indices(len(probs), k=-1)]
    return float(pairs.mean()) if len(pairs) else 0.0


def pairwise_disagreement(probs: np.ndarray) -> np.ndarray:
    """Part of the images that each pair of members predicts differently, `(M, M)`."""
    preds = probs.argmax(axis=2)
    return np.array([[(one != other).mean() for other in preds] for one in preds])


def vote_disagreement(probs: np.ndarray) -> np.ndarray:
    """Mean disagreement over pairs of members for each image, `(N,)`; 0 for a single member."""
    num_members, _, num_classes = probs.shape
    if num_members == 1:
        return np.zeros(probs.shape[1])
    counts = np.eye(num_classes)[probs.argmax(axis=2)].sum(axis=0)
    agreeing = (counts * (counts - 1)).sum(axis=1)
    different: np.ndarray = 1 - agreeing / (num_members * (num_members - 1))
    return different
