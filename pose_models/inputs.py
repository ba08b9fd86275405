"""Whatever people call an image, to the pixels that a member sees.

A file is read as the decoded cache of training and voting reads it, so what is served is what was
scored. Everything else becomes 8-bit RGB first and is then resized in the same way.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pose_models.decode import BadImageError, frame_image, read_image, read_pillow
from pose_models.framing import Framing

# `data:image/png;base64,`, as browsers write it.
_DATA_URL = re.compile(r"data:[\w/+.-]*(;[\w=-]+)*;base64,", re.ASCII)
# No system has longer paths; longer texts are not even looked for.
_MAX_PATH = 4096
EXPECTED = "a path, the bytes of a file, base64 text, a Pillow image or an array (H, W, 3)"

# The bytes of a file, an image that Pillow has opened, or `(H, W, 3)` uint8.
Source = bytes | Image.Image | np.ndarray


def to_source(image: Any, *, allow_paths: bool = True) -> Source:
    """What `read_source` reads.

    Args:
        image: a path; the bytes of a file, or their base64 text, also as a data URL or as
            `{"b64": text}`; a Pillow image; an array, tensor or nested list `(H, W, C)` or
            `(C, H, W)` with 1, 3 or 4 channels, or `(H, W)`: whole numbers 0..255, or floats 0..1.
            Of four channels the last is left out; `(3, W, 3)` is taken for `(H, W, C)`.
        allow_paths: whether a text may name a file on this machine.

    Raises:
        BadImageError: it is none of these. The message says what was expected and found.
    """
    if isinstance(image, Mapping) and set(image) == {"b64"}:
        image, allow_paths = image["b64"], False
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, Path):
        return _read_file(image)
    if isinstance(image, str):
        return _read_text(image, allow_paths)
    if isinstance(image, list | tuple) or hasattr(image, "__array__"):
        return _to_rgb(image)
    raise BadImageError(f"{EXPECTED} was expected, found {type(image).__name__}")


def read_source(source: Source, framing: Framing, obey_exif: bool) -> np.ndarray:
    """The image as `(3, canvas, canvas)` uint8.

    Raises:
        BadImageError: it cannot be decoded.
    """
    if isinstance(source, bytes):
        return read_image(source, framing, obey_exif)
    if isinstance(source, Image.Image):
        return read_pillow(source, framing, obey_exif)
    return frame_image(source, framing)


def _read_file(path: Path) -> bytes:
    try:
        # Others, a pipe or a device, might never end.
        if not path.is_file() and not path.is_dir() and path.exists():
            raise BadImageError(f"{str(path)[:200]!r}: not a file")
        return path.read_bytes()
    except OSError as error:
        raise BadImageError(f"{str(path)[:200]!r}: {error.strerror or error}") from None


def _read_text(text: str, allow_paths: bool) -> bytes:
    if allow_paths and len(text) <= _MAX_PATH and "\0" not in text:
        path = Path(text)
        if path.is_file():
            return _read_file(path)
    start = _DATA_URL.match(text)
    body = "".join(text[start.end() if start else 0 :].split())
    try:
        if body:
            return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        pass
    expected = "a path or base64 text" if allow_paths else "base64 text"
    raise BadImageError(f"{expected} was expected, found {text[:40]!r}")


def _to_rgb(image: Any) -> np.ndarray:
    """Anything like an array as `(H, W, 3)` uint8."""
    try:
        pixels = np.asarray(image)
    except (ValueError, TypeError, RuntimeError, RecursionError):
        raise BadImageError("rows of equal length were expected, found unequal ones") from None
    pixels = _to_uint8(_channels_last(pixels))
    rgb = pixels if pixels.shape[2] == 3 else pixels.repeat(3, axis=2)
    # Writable, as torch asks for; one that is read-only is copied.
    return np.require(rgb, requirements=["C", "W"])


def _channels_last(pixels: np.ndarray) -> np.ndarray:
    """`(H, W, 3)`, or `(H, W, 1)`."""
    shape = pixels.shape
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    elif pixels.ndim == 3 and shape[2] not in (1, 3, 4) and shape[0] in (1, 3, 4):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or 0 in shape:
        raise BadImageError(f"an array (H, W, 3) or (3, H, W) was expected, found {shape}")
    return pixels[:, :, :3]


def _to_uint8(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    if not (np.issubdtype(pixels.dtype, np.integer) or np.issubdtype(pixels.dtype, np.floating)):
        raise BadImageError(f"an array of numbers was expected, found {pixels.dtype}")
    is_float = np.issubdtype(pixels.dtype, np.floating)
    low, high = pixels.min(), pixels.max()
    # Not `low < 0`: that is false for what is not a number.
    if not (low >= 0 and high <= (1 if is_float else 255)):
        expected = "floats in 0..1" if is_float else "whole numbers in 0..255"
        raise BadImageError(f"{expected} were expected, found {low:.4g} to {high:.4g}")
    return (pixels * 255).round().astype(np.uint8) if is_float else pixels.astype(np.uint8)
