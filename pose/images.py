"""One image file to one RGB array."""

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class BadImageError(Exception):
    """A file that is no image, or is cut short. The message says why, in a few words."""


def read_image(path: Path, size: int) -> np.ndarray:
    """The image as an RGB array `(size, size, 3)` uint8, its aspect ratio not kept.

    Resizing is Pillow's bilinear filter over the whole footprint of a pixel (antialiased), as in
    torchvision's `Resize` on Pillow images. Metadata that asks for rotation is not obeyed.

    Raises:
        BadImageError: the file is no image, is cut short, or cannot be read.
    """
    try:
        with Image.open(path) as image:
            # JPGs far larger than `size` are decoded at a half, a quarter or an eighth.
            image.draft("RGB", (2 * size, 2 * size))
            rgb = image.convert("RGB")
            if rgb.size != (size, size):
                rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
            return np.asarray(rgb)
    except UnidentifiedImageError:
        empty = path.stat().st_size == 0
        raise BadImageError("an empty file" if empty else "not an image") from None
    # Pillow's decoders raise any of these on damaged bytes.
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise BadImageError(str(error).split("\n")[0] or type(error).__name__) from None


def list_images(folder: Path) -> dict[str, list[Path]]:
    """The image files directly in `folder`, by stem; more than one where stems collide."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            found.setdefault(path.stem, []).append(path)
    return found
