"""Image files that are cut, overwritten, mixed up or made to harm."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from pose_models.decode import FORMATS, orientation_of, read_image

# Pillow's, about damaged metadata; commands do not show them.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
KINDS = [
    (format, mode)
    for format, modes in {
        "JPEG": ("RGB", "L", "CMYK", "progressive", "exif"),
        "PNG": ("RGB", "L", "P", "RGBA", "I;16", "1", "exif"),
        "WEBP": ("RGB", "RGBA", "lossless", "animated"),
        "BMP": ("RGB", "L", "P", "1"),
        "GIF": ("P", "L", "animated"),
        "TIFF": ("RGB", "L", "lzw", "jpeg", "I;16", "deflate"),
        "AVIF": ("RGB", "RGBA", "exif") if features.check("avif") else (),
    }.items()
    for mode in modes
]
IDS = ["-".join(kind) for kind in KINDS]


def encoded(format: str, kind: str) -> bytes:
    """A noisy picture of 60 by 44 pixels."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (44, 60, 3), dtype=np.uint8))
    options = {}
    if kind == "exif":
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6
    elif kind == "animated":
        options |= {"save_all": True, "append_images": [image.rotate(90)]}
    elif kind in ("progressive", "lossless"):
        options[kind] = True
    elif kind in ("lzw", "jpeg", "deflate"):
        options["compression"] = {"lzw": "tiff_lzw", "deflate": "tiff_deflate"}.get(kind, kind)
    elif kind == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, (44, 60), dtype=np.uint16))
    elif kind != "RGB":
        image = image.convert(kind)
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def read(data: bytes) -> np.ndarray:
    orientation_of(data)
    return read_image(data, 32)


def is_image(pixels: np.ndarray) -> bool:
    return pixels.shape == (3, 32, 32) and pixels.dtype == np.uint8


@pytest.mark.parametrize(("format", "kind"), KINDS, ids=IDS)
def test_whole_files_are_read(judge, format, kind):
    assert judge(lambda: read(encoded(format, kind)), is_image) == ""


@pytest.mark.parametrize("part", [0, 0.02, 0.1, 0.3, 0.5, 0.7])
@pytest.mark.parametrize(("format", "kind"), KINDS, ids=IDS)
def test_files_that_are_cut_are_named(judge, format, kind, part):
    data = encoded(format, kind)
    data = data[: int(part * len(data))]
    # Of an animation the first frame may be whole.
    judge(lambda: read(data), is_image if kind == "animated" else None)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("format", "kind"), KINDS, ids=IDS)
def test_files_with_other_bytes_in_them_are_read_or_named(judge, format, kind, seed):
    rng = np.random.default_rng(seed)
    data = bytearray(encoded(format, kind))
    if seed < 4:
        # Bits, half of them where the header is.
        for place in rng.integers(0, min(len(data), 60 if seed % 2 else len(data)), 5):
            data[place] ^= 1 << rng.integers(8)
    else:
        # A sector of zeros, ones or noise, as disks and downloads make them.
        start = int(rng.integers(0, len(data)))
        sector = data[start : start + 512]
        data[start : start + 512] = {
            4: bytes(len(sector)),
            5: b"\xff" * len(sector),
            6: rng.bytes(len(sector)),
            7: b"",
        }[seed]
    judge(lambda: read(bytes(data)), is_image)


@pytest.mark.parametrize("other", FORMATS)
@pytest.mark.parametrize("format", FORMATS)
def test_a_start_with_the_rest_of_another_format_is_read_or_named(judge, format, other):
    kinds = dict(reversed(KINDS))
    if format not in kinds or other not in kinds:
        pytest.skip("this Pillow has no AVIF")
    data = encoded(format, kinds[format])[:40] + encoded(other, kinds[other])[40:]
    judge(lambda: read(data), is_image)


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *(chunk(*c) for c in chunks), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def jpeg_of(width: int, height: int, progressive: bool) -> bytes:
    data = bytearray(encoded("JPEG", "progressive" if progressive else "RGB"))
    frame = data.index(b"\xff\xc2" if progressive else b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def webp_of(width: int, height: int) -> bytes:
    data = bytearray(encoded("WEBP", "animated"))
    data[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


def bmp_of(width: int, height: int) -> bytes:
    data = bytearray(encoded("BMP", "RGB"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def gif_of(width: int, height: int) -> bytes:
    data = bytearray(encoded("GIF", "P"))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


SMALL = zlib.compress(b"\0" * 100_000_000, 9)
HARMFUL = {
    "png of 60000 x 60000": png(60000, 60000, (b"IDAT", SMALL)),
    "png of 14000 x 14000": png(14000, 14000, (b"IDAT", SMALL)),
    "png of 0 x 0": png(0, 0, (b"IDAT", b"")),
    "png of 2**31 x 1": png(2**31 - 1, 1, (b"IDAT", SMALL[:100])),
    "png without pixels": png(60, 44),
    "png with an empty profile": png(60, 44, (b"iCCP", b""), (b"IDAT", SMALL[:100])),
    "png with a huge profile": png(60, 44, (b"iCCP", b"x\0\0" + SMALL), (b"IDAT", SMALL[:100])),
    "png with a huge text": png(60, 44, (b"zTXt", b"x\0\0" + SMALL), (b"IDAT", SMALL[:100])),
    "jpeg of 30000 x 30000": jpeg_of(30000, 30000, False),
    "progressive jpeg of 30000 x 30000": jpeg_of(30000, 30000, True),
    "progressive jpeg of 14000 x 14000": jpeg_of(14000, 14000, True),
    "jpeg of 65535 x 1": jpeg_of(65535, 1, False),
    "jpeg of 0 x 0": jpeg_of(0, 0, False),
    "jpeg of 65500 x 3000": jpeg_of(65500, 3000, True),
    "webp of 16777216 x 16777216": webp_of(1 << 24, 1 << 24),
    "webp of 16383 x 16383": webp_of(16383, 16383),
    "bmp of 60000 x 60000": bmp_of(60000, 60000),
    "bmp of 14000 x 14000": bmp_of(14000, 14000),
    "bmp of -1 x -1": bmp_of(-1, -1),
    "gif of 65535 x 65535": gif_of(65535, 65535),
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    "eps behind a dos header": b"\xc5\xd0\xd3\xc6" + b"\0" * 60,
    "pdf": b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "ppm": b"P6\n60000 60000\n255\n",
    "psd": b"8BPS\0\1" + b"\0" * 40,
    "ico": b"\0\0\1\0\1\0\x10\x10\0\0\1\0\x20\0\0\0\0\0\x16\0\0\0" + b"\0" * 40,
    "jpeg 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0" * 40,
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 40,
    "avif of nothing": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf",
    "pickle": b"cposix\nsystem\n(S'true'\ntR.",
    "html": b"<html><body>403 Forbidden</body></html>",
    "zip": b"PK\3\4" + b"\0" * 60,
    "video": b"\0\0\0\x18ftypmp42\0\0\0\0isommp42" + b"\0" * 40,
    "float tiff": encoded("TIFF", "F"),
    "32-bit tiff": encoded("TIFF", "I"),
    "tiff of a circle": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
    "empty": b"",
    "a byte": b"\xff",
    "zeros": b"\0" * 4096,
}  # fmt: skip


@pytest.mark.parametrize("name", HARMFUL)
def test_harmful_files_are_named(judge, name):
    judge(lambda: read(HARMFUL[name]), None)


@settings(max_examples=600, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    edits=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=12), st.integers(0, 12)),
                   min_size=1, max_size=4),
)  # fmt: skip
def test_fuzzed_bytes_of_each_format_are_read_or_named(judge, kind, edits):
    data = encoded(*kind)
    for position, new, num_lost in edits:
        place = int(position * len(data))
        data = data[:place] + new + data[place + num_lost :]
    judge(lambda: read(data), is_image)
