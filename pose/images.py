"""The bytes of one image file to one RGB tensor."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # torchvision 0.29 announces that it will go; Pillow then does all the work
    decode_jpeg = None

JPEG_START = b"\xff\xd8\xff"
# JPGs of more bytes a pixel wanted than this are much larger than what is wanted.
BYTES_PER_PIXEL_AT_MOST = 8
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class BadImageError(Exception):
    """A file that is no image, or is cut short. The message says why, in a few words."""


def read_image(data: bytes, size: int) -> Tensor:
    """The image in the bytes of a file as `(3, size, size)` uint8, its aspect ratio not kept.

    Resizing is bilinear over the whole footprint of a pixel (antialiased), as in torchvision's
    `Resize` on Pillow images. Metadata that asks for rotation is not obeyed.

    Raises:
        BadImageError: the bytes are no image, or are cut short.
    """
    if not data:
        raise BadImageError("an empty file")
    image = _decode_small_jpeg(data, size)
    if image is None:
        image = _decode_by_pillow(data, size)
    if image.shape[1:] == (size, size):
        return image
    # Channels-last memory order is what torch has a fast kernel for.
    batch = image[None].contiguous(memory_format=torch.channels_last)
    return F.interpolate(batch, (size, size), mode="bilinear", antialias=True)[0]


def _decode_small_jpeg(data: bytes, size: int) -> Tensor | None:
    """By torchvision's decoder, which gives Pillow's bits in less time; None if it cannot.

    Files much larger than `size` are left to Pillow, which decodes them at a fraction of their
    size; so is everything that the decoder refuses, for Pillow's word on it.
    """
    if decode_jpeg is None or not data.startswith(JPEG_START):
        return None
    if len(data) > BYTES_PER_PIXEL_AT_MOST * size * size:
        return None
    try:
        return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    except RuntimeError:
        return None


def _decode_by_pillow(data: bytes, size: int) -> Tensor:
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.draft("RGB", (2 * size, 2 * size))
            if image.mode.startswith("I;16"):
                # Pillow cuts 16-bit grey off at 255 when it converts: nearly all would be white.
                return torch.from_numpy((np.asarray(image) >> 8).astype(np.uint8)).expand(3, -1, -1)
            if image.mode == "P":
                # Straight to RGB, Pillow warns of the transparency that is dropped.
                image = image.convert("RGBA")
            rgb = np.array(image.convert("RGB"))
    except UnidentifiedImageError:
        raise BadImageError("not an image") from None
    # Pillow's decoders raise any of these on damaged bytes.
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise BadImageError(str(error).split("\n")[0] or type(error).__name__) from None
    return torch.from_numpy(rgb).permute(2, 0, 1)


def list_images(folder: Path) -> dict[str, list[Path]]:
    """The image files directly in `folder`, by stem; more than one where stems collide."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            found.setdefault(path.stem, []).append(path)
    return found
