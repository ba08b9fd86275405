"""The bytes of one image file to one RGB array."""

import io

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch.nn import functional as F

try:
    import simplejpeg
except ImportError:  # where only the training core is wanted; Pillow then does all the work
    simplejpeg = None

JPEG_START = b"\xff\xd8\xff"
# What libjpeg says of lost pixels. Pillow hears it too, and returns a half-grey picture.
JPEG_DAMAGE = ("premature end", "bad huffman", "instead of rst")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class BadImageError(Exception):
    """A file that is no image, or is cut short. The message says why, in a few words."""


def read_image(data: bytes, size: int) -> np.ndarray:
    """The image in the bytes of a file as `(3, size, size)` uint8, its aspect ratio not kept.

    The array is a view in whatever memory order the decoder has: copy it to where it belongs.

    Resizing is bilinear over the whole footprint of a pixel (antialiased), as in torchvision's
    `Resize` on Pillow images; JPGs of more than `size` are decoded at the smallest fraction of
    their size (in eighths) that is not below it. Metadata that asks for rotation is not obeyed.

    Raises:
        BadImageError: the bytes are no image, or are cut short.
    """
    if not data:
        raise BadImageError("an empty file")
    pixels = _decode_jpeg(data, size)
    if pixels is None:
        pixels = _decode_by_pillow(data, size)
    if pixels.shape[:2] == (size, size):
        return pixels.transpose(2, 0, 1)
    # Channels-last memory order is what torch has a fast kernel for.
    batch = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    batch = batch.contiguous(memory_format=torch.channels_last)
    return F.interpolate(batch, (size, size), mode="bilinear", antialias=True)[0].numpy()


def _decode_jpeg(data: bytes, size: int) -> np.ndarray | None:
    """`(H, W, 3)` by libjpeg-turbo, in two thirds of Pillow's time; None if it cannot.

    Raises:
        BadImageError: pixels are lost.
    """
    if simplejpeg is None or not data.startswith(JPEG_START):
        return None
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(
            data, min_height=size, min_width=size, min_factor=1
        )
        return pixels
    except ValueError as error:
        if any(damage in str(error).lower() for damage in JPEG_DAMAGE):
            raise BadImageError(str(error)) from None
        # CMYK, or a flaw that costs no pixel: Pillow's word on it counts.
        return None


def _decode_by_pillow(data: bytes, size: int) -> np.ndarray:
    """`(H, W, 3)`, writable."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.draft("RGB", (2 * size, 2 * size))
            if image.mode.startswith("I;16"):
                # Pillow cuts 16-bit grey off at 255 when it converts: nearly all would be white.
                gray = (np.asarray(image) >> 8).astype(np.uint8)
                return np.repeat(gray[:, :, None], 3, axis=2)
            if image.mode == "P":
                # Straight to RGB, Pillow warns of the transparency that is dropped.
                return np.array(image.convert("RGBA").convert("RGB"))
            return np.array(image.convert("RGB"))
    except UnidentifiedImageError:
        raise BadImageError("not an image") from None
    # Pillow's decoders raise any of these on damaged bytes.
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise BadImageError(str(error).split("\n")[0] or type(error).__name__) from None
