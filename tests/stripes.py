"""Images that can be learned at a glance."""

import numpy as np
from PIL import Image


def draw_stripes(class_index: int, num_classes: int, size: int, rng: np.random.Generator):
    """Noisy stripes whose direction is the class: of two, vertical and horizontal."""
    angle = np.pi * class_index / num_classes
    axis = np.arange(size)
    across = np.cos(angle) * axis + np.sin(angle) * axis[:, None]
    wave = np.sin(2 * np.pi * across / 8 + rng.uniform(0, 2 * np.pi))
    color = rng.uniform(30, 90, size=3)
    pixels = 128 + wave[..., None] * color + rng.normal(0, 12, size=(size, size, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
