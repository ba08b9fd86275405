"""A model's logits for many images, and their scores."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pose import metrics
from pose.data.streamed import Images, decoding_ahead
from pose.display import BatchProgress
from pose.history import Row
from pose.training.augment import gather


@torch.inference_mode()
def predict_logits(
    model: nn.Module,
    images: Images,
    rows: Tensor,
    precision: torch.dtype,
    *,
    batch_size: int = 128,
    progress: BatchProgress = lambda done, total: None,
) -> Tensor:
    """Logits for the images at `rows`, in their order.

    Args:
        images: `(N, 3, S, S)` uint8.
        rows: `(n,)` int64.

    Returns:
        `(n, num_classes)` float32 on the model's device.
    """
    model.eval()
    device = next(model.parameters()).device
    # Copied once, not in every batch.
    batches = rows.to(images.device).split(batch_size)
    logits = []
    for done, batch_rows in enumerate(decoding_ahead(images, batches), start=1):
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
            logits.append(model(gather(images, batch_rows, device)))
        progress(done, len(batches))
    return torch.cat(logits)


def score_logits(logits: Tensor, labels: Tensor, split: str) -> Row:
    """`<split>_loss`, `<split>_acc` and `<split>_f1` of logits `(n, C)` and labels `(n,)`."""
    num_classes = logits.shape[1]
    loss = float(F.cross_entropy(logits, labels))
    confusion = metrics.confusion_matrix(
        labels.cpu().numpy(), logits.argmax(dim=1).cpu().numpy(), num_classes
    )
    return {
        f"{split}_loss": loss,
        f"{split}_acc": metrics.accuracy(confusion),
        f"{split}_f1": metrics.macro_f1(confusion),
    }


def batches_of_images(
    images: Images, rows: Tensor, device: torch.device, batch_size: int = 256
) -> Iterator[Tensor]:
    """The images at `rows` in batches on `device`, `(n, 3, S, S)` uint8."""
    for batch_rows in decoding_ahead(images, rows.split(batch_size)):
        yield gather(images, batch_rows, device)


def probs_of(logits: Tensor) -> np.ndarray:
    """Softmax of logits `(n, C)` as a float32 array."""
    return logits.softmax(dim=1).cpu().numpy()
