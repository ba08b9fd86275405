"""From the bytes of one image file to one RGB array.

Only the formats listed here are ever opened: Pillow knows some that start other programs (an EPS
file starts Ghostscript, whatever its name).
"""

import contextlib
import io
import struct
import threading
from collections.abc import Iterator

import numpy as np
import torch
from PIL import ExifTags, Image

from pose_models.framing import Framing, as_framing

try:
    import simplejpeg
except ImportError:  # where only the training core is wanted; Pillow then does all the work
    simplejpeg = None

JPEG_START = b"\xff\xd8\xff"
# What libjpeg says when pixels are lost. Pillow hears it too, and returns a half-grey picture.
JPEG_DAMAGE = ("premature end", "bad huffman", "instead of rst")
# Pillow's names for the formats that are opened.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
SUFFIXES = (
    ".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif",
)  # fmt: skip
# Photographs that are not read: Pillow alone cannot read them.
HEIC_SUFFIXES = (".heic", ".heif", ".hif")
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis")
HEIC_MESSAGE = "HEIC is not read: convert it to JPG"

# The largest phone photographs have 200 megapixels. What a header claims beyond that is
# damage or malice, and decoding it would take more than 2 GB.
MAX_PIXELS = 201_000_000
# Larger images are decoded one at a time and made smaller before anything copies them: otherwise
# a few threads with one each would take all the memory.
LARGE_PIXELS = 25_000_000
# A black JPG has 500 pixels per byte at most; a file of fewer bytes has lost its end.
JPEG_PIXELS_PER_BYTE = 1000
_one_large_at_a_time = threading.Lock()

# EXIF orientation to (transpose, flip rows, flip columns), in this order.
_TURNS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


class BadImageError(Exception):
    """A file that is not an image, or is cut short. The message says why, in a few words."""


def read_image(data: bytes, size: int | Framing, obey_exif: bool = True) -> np.ndarray:
    """The image in the bytes of a file, framed, as `(3, canvas, canvas)` uint8.

    A size alone stretches it to that height and width: its aspect ratio is not kept.

    The array is a view in whatever memory order the decoder has: copy it to where it belongs.

    Resizing is bilinear over the whole footprint of a pixel (antialiased), as in torchvision's
    `Resize` on Pillow images; JPGs larger than the canvas are decoded at the smallest fraction of
    their size (in eighths) that is not below it. Of several frames or pages, the first is read.

    Args:
        obey_exif: turn and mirror the image as its metadata (EXIF orientation) asks. TIFF
            files are turned in any case, as Pillow does it while it reads them.

    Raises:
        BadImageError: the bytes are not an image, are cut short, or claim more than `MAX_PIXELS`.
    """
    if not data:
        raise BadImageError("an empty file")
    framing = as_framing(size)
    with _words_of_decoders():
        pixels, orientation = _decode_jpeg(data, framing.canvas), 1
        if pixels is not None:
            orientation = _jpeg_orientation(data) if obey_exif else 1
        else:
            pixels, orientation = _decode_by_pillow(data, framing.canvas)
        return _turn(frame_image(pixels, framing), orientation if obey_exif else 1)


def read_pillow(image: Image.Image, size: int | Framing, obey_exif: bool = True) -> np.ndarray:
    """An image that Pillow has opened, as `read_image` gives the bytes of a file.

    Raises:
        BadImageError: its pixels cannot be read, or are of unknown range.
    """
    framing = as_framing(size)
    with _words_of_decoders():
        pixels = frame_image(_rgb_array(image, framing.canvas), framing)
        return _turn(pixels, _orientation(image) if obey_exif else 1)


def orientation_of(data: bytes) -> int:
    """The EXIF orientation that an image's metadata asks for, 1 (as it is) to 8.

    Raises:
        BadImageError: the bytes are not an image.
    """
    with _words_of_decoders():
        return _jpeg_orientation(data) if data.startswith(JPEG_START) else _orientation(_open(data))


def size_of(data: bytes) -> tuple[int, int]:
    """Width and height of the image in the bytes of a file, as stored, by its header.

    Raises:
        BadImageError: the bytes are not an image, or claim more than `MAX_PIXELS`.
    """
    with _words_of_decoders(), _open(data) as image:
        return image.size


@contextlib.contextmanager
def _words_of_decoders() -> Iterator[None]:
    """Whatever a decoder raises becomes a `BadImageError`."""
    try:
        yield
    except BadImageError:
        raise
    # Pillow has many decoders, and on damaged bytes each raises what it stumbles over: besides
    # OSError, SyntaxError and ValueError, IndexError (PNG), RuntimeError (AVIF), KeyError,
    # struct.error and more. None of it is about our code: it only passes bytes on.
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        if not isinstance(error, (OSError, ValueError, SyntaxError, EOFError)) or not reason:
            reason = f"damaged ({type(error).__name__}: {reason})"
        raise BadImageError(reason) from None


def frame_image(pixels: np.ndarray, size: int | Framing) -> np.ndarray:
    """`(H, W, 3)` uint8 to `(3, canvas, canvas)`: how every image is framed, served or scored."""
    framing = as_framing(size)
    if pixels.shape[:2] == (framing.canvas, framing.canvas):
        return pixels.transpose(2, 0, 1)
    # Channels-last memory order is what torch has a fast kernel for.
    batch = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    return framing.frame(batch.contiguous(memory_format=torch.channels_last))[0].numpy()


def _turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """A view of the square `(3, S, S)`, turned as its orientation asks."""
    transpose, flip_rows, flip_columns = _TURNS.get(orientation, (False, False, False))
    if transpose:
        image = image.transpose(0, 2, 1)
    return image[:, :: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadImageError(
            f"{width} x {height} pixels are claimed, more than {MAX_PIXELS // 1_000_000} million"
        )
    if width < 1 or height < 1:
        raise BadImageError(f"{width} x {height} pixels")


def _taking_turns(num_pixels: int) -> contextlib.AbstractContextManager[object]:
    return _one_large_at_a_time if num_pixels > LARGE_PIXELS else contextlib.nullcontext()


def _decode_jpeg(data: bytes, size: int) -> np.ndarray | None:
    """`(H, W, 3)` by libjpeg-turbo, in two thirds of Pillow's time; None if it cannot.

    Raises:
        BadImageError: pixels are lost, or too many are claimed.
    """
    if simplejpeg is None or not data.startswith(JPEG_START):
        return None
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data, strict=False)
        _check_jpeg_size(width, height, len(data))
        with _taking_turns(width * height):
            pixels: np.ndarray = simplejpeg.decode_jpeg(
                data, min_height=size, min_width=size, min_factor=1
            )
        return pixels
    # KeyError: a header that ends early.
    except (ValueError, KeyError) as error:
        if any(damage in str(error).lower() for damage in JPEG_DAMAGE):
            raise BadImageError(str(error)) from None
        # CMYK, or a flaw that costs no pixel: Pillow's word on it counts.
        return None


def _check_jpeg_size(width: int, height: int, num_bytes: int) -> None:
    """Refuses, before any memory is taken, what no JPG of so many bytes can hold."""
    _check_size(width, height)
    num_pixels = width * height
    if num_pixels > LARGE_PIXELS and num_pixels > JPEG_PIXELS_PER_BYTE * num_bytes:
        raise BadImageError(f"{width} x {height} pixels in {num_bytes} bytes: cut short")


def _jpeg_orientation(data: bytes) -> int:
    # Metadata stands in front of the pixels; most images of a data set have none to parse.
    start = data[: 1 << 18]
    if b"Exif\0\0" not in start and b"tiff:Orientation" not in start:
        return 1
    return _orientation(_open(data))


def _orientation(image: Image.Image) -> int:
    """The orientation; 1 where metadata is damaged, since the pixels may be whole."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    # Damaged EXIF raises what it stumbles over, as damaged images do.
    except Exception:
        return 1
    return orientation if orientation in _TURNS else 1


def _open(data: bytes) -> Image.Image:
    """The image, its header read and its size checked.

    Raises:
        BadImageError: it is in none of the formats that are opened, or too large.
    """
    if data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS:
        raise BadImageError(HEIC_MESSAGE)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        # Pillow takes memory for all of a WebP's canvas when it opens it.
        _check_size(*_webp_canvas(data))
    Image.init()
    for name in FORMATS:
        factory, accepts = Image.OPEN.get(name, (None, None))
        if factory is None or accepts is None or accepts(data[:16]) is not True:
            continue
        # Not `Image.open(formats=...)`: that already warns at half the size that is refused here.
        try:
            image = factory(io.BytesIO(data), "")
        # Pillow's own `open` takes these as a sign of another format.
        except (SyntaxError, IndexError, TypeError, struct.error):
            raise BadImageError("not an image") from None
        _check_size(*image.size)
        if image.format in ("JPEG", "MPO"):
            _check_jpeg_size(*image.size, len(data))
        return image
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        raise BadImageError("AVIF is not read by this Pillow: convert it to JPG")
    raise BadImageError("not an image")


def _webp_canvas(data: bytes) -> tuple[int, int]:
    """Width and height that the header of a WebP claims; (1, 1) where Pillow will refuse it."""
    kind, body = data[12:16], data[20:30]
    if kind == b"VP8X" and len(body) == 10:
        return (
            1 + int.from_bytes(body[4:7], "little"),
            1 + int.from_bytes(body[7:10], "little"),
        )
    if kind == b"VP8L" and len(body) >= 5:
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and len(body) == 10:
        width, height = struct.unpack("<HH", body[6:10])
        return max(1, width & 0x3FFF), max(1, height & 0x3FFF)
    return 1, 1


def _decode_by_pillow(data: bytes, size: int) -> tuple[np.ndarray, int]:
    """`(H, W, 3)`, writable, and the orientation that its metadata asks for."""
    with _open(data) as image, _taking_turns(image.width * image.height):
        image.draft("RGB", (2 * size, 2 * size))
        image.load()
        # After loading: Pillow turns TIFF files while it loads them.
        return _rgb_array(image, size), _orientation(image)


def _rgb_array(image: Image.Image, size: int) -> np.ndarray:
    """`(H, W, 3)`, writable."""
    if image.mode in ("I", "F"):
        # Of unknown range: cut off at 255 it would be white or black.
        raise BadImageError("pixels of 32 bits: convert them to 8 bits")
    if image.mode.startswith("I;16"):
        image = _eight_bits(image)
    elif image.mode in ("P", "PA"):
        # If it went straight to RGB, Pillow would warn that transparency is dropped.
        image = image.convert("RGBA")
    elif image.mode == "1":
        image = image.convert("L")
    return np.array(_smaller(image, size).convert("RGB"))


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey; Pillow cuts off at 255: nearly all would be white."""
    gray = np.empty((image.height, image.width), dtype=np.uint8)
    # In bands, so that memory never holds a large image several times.
    for top in range(0, image.height, 256):
        band = image.crop((0, top, image.width, min(top + 256, image.height)))
        gray[top : top + 256] = np.asarray(band) >> 8
    return Image.fromarray(gray)


def _smaller(image: Image.Image, size: int) -> Image.Image:
    """A large image reduced by the whole factor that leaves at least twice `size`; others as is."""
    factor = min(image.width, image.height) // (2 * size)
    if image.width * image.height <= LARGE_PIXELS or factor < 2:
        return image
    if image.mode in ("RGBA", "LA"):
        # One by one: reduced together, transparent pixels lose their colour.
        channels = [image.getchannel(name).reduce(factor) for name in image.mode[:-1]]
        return channels[0] if len(channels) == 1 else Image.merge("RGB", channels)
    return image.reduce(factor)
