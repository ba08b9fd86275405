"""Every kind of image file gives RGB of the wanted size, and no damaged one gives anything."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from pose_models.decode import FORMATS, MAX_PIXELS, BadImageError, orientation_of, read_image


def encode(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def gradient(height: int, width: int) -> np.ndarray:
    """Smooth, and different in every channel and direction."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    return np.stack([255 * x, 255 * y, 255 * (1 - x)], axis=-1).astype(np.uint8)


def pixels_of(image: Image.Image) -> np.ndarray:
    return np.array(image).transpose(2, 0, 1)


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_lossless_rgb_is_returned_as_it_is(format):
    image = Image.fromarray(gradient(24, 24))
    read = read_image(encode(image, format, lossless=True), 24)
    assert read.dtype == np.uint8
    assert np.array_equal(read, pixels_of(image))


@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_has_the_pixels_that_pillow_sees(subsampling, progressive):
    data = encode(
        Image.fromarray(gradient(24, 24)), "JPEG", subsampling=subsampling, progressive=progressive
    )
    assert np.array_equal(read_image(data, 24), pixels_of(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_grayscale_becomes_three_equal_channels(format):
    gray = Image.fromarray(gradient(24, 24)[..., 0])
    data = encode(gray, format)
    read = read_image(data, 24)
    expected = np.array(Image.open(io.BytesIO(data)))
    assert np.array_equal(read, np.stack([expected] * 3))


def test_sixteen_bit_grayscale_keeps_its_range():
    levels = np.linspace(0, 65535, 24 * 24).reshape(24, 24).astype(np.uint16)
    read = read_image(encode(Image.fromarray(levels), "PNG"), 24)
    assert np.array_equal(read, np.stack([levels // 256] * 3))


def test_transparent_pixels_keep_their_colour():
    rgb = gradient(24, 24)
    alpha = np.full((24, 24, 1), 100, dtype=np.uint8)
    rgba = Image.fromarray(np.concatenate([rgb, alpha], axis=-1))
    assert np.array_equal(read_image(encode(rgba, "PNG"), 24), pixels_of(Image.fromarray(rgb)))


@pytest.mark.parametrize("options", [{}, {"transparency": 3}, {"transparency": bytes(range(16))}])
def test_palette_is_looked_up(options):
    palette = Image.fromarray(gradient(24, 24)).quantize(16)
    read = read_image(encode(palette, "PNG", **options), 24)
    assert np.array_equal(read, pixels_of(palette.convert("RGB")))


def test_black_and_white_has_full_contrast():
    bits = np.zeros((24, 24), dtype=bool)
    bits[:, 12:] = True
    read = read_image(encode(Image.fromarray(bits), "PNG"), 24)
    assert np.array_equal(read[0], bits * 255)


def test_cmyk_jpeg_has_the_colours_that_pillow_sees():
    image = Image.fromarray(gradient(24, 24)).convert("CMYK")
    data = encode(image, "JPEG", quality=95)
    expected = pixels_of(Image.open(io.BytesIO(data)).convert("RGB"))
    difference = np.abs(read_image(data, 24).astype(int) - expected)
    assert difference.max() <= 2


def test_single_pixel_fills_the_image():
    pixel = Image.new("RGB", (1, 1), (10, 200, 30))
    read = read_image(encode(pixel, "PNG"), 16)
    assert read.shape == (3, 16, 16)
    assert (read.reshape(3, -1).T == (10, 200, 30)).all()


def oriented(format: str, orientation: int) -> tuple[bytes, Image.Image]:
    """A file that asks for an orientation, and the picture as it should be seen."""
    image = Image.fromarray(gradient(24, 24))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    data = encode(image, format, exif=exif, **options.get(format, {}))
    return data, ImageOps.exif_transpose(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_orientation_is_obeyed_unless_it_is_to_be_ignored(format, orientation):
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    data, seen = oriented(format, orientation)
    assert np.array_equal(read_image(data, 24), pixels_of(seen.convert("RGB")))
    as_stored = pixels_of(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(read_image(data, 24, obey_exif=False), as_stored)
    assert orientation_of(data) == orientation
    assert (orientation == 1) == np.array_equal(as_stored, read_image(data, 24))


def test_orientation_is_obeyed_at_another_size_than_the_file_has():
    image = Image.fromarray(gradient(90, 60))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(image, "JPEG", exif=exif, quality=95)
    turned = encode(image.transpose(Image.Transpose.ROTATE_270), "JPEG", quality=95)
    difference = np.abs(read_image(data, 24).astype(int) - read_image(turned, 24))
    assert difference.max() <= 4


@pytest.mark.parametrize("exif", [b"Exif\0\0MM\0*\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_damaged_metadata_costs_no_pixel(exif):
    image = Image.fromarray(gradient(24, 24))
    data = encode(image, "JPEG", exif=exif)
    with warnings.catch_warnings():
        # Pillow's word on it; commands do not show it.
        warnings.filterwarnings("ignore", message="Corrupt EXIF data")
        assert orientation_of(data) == 1
        assert np.array_equal(read_image(data, 24), read_image(encode(image, "JPEG"), 24))


@pytest.mark.parametrize("shape", [(60, 90), (97, 33), (16, 16), (40, 20)])
def test_resizing_is_that_of_pillow(shape):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    expected = pixels_of(image.resize((32, 32), Image.Resampling.BILINEAR))
    difference = np.abs(read_image(encode(image, "PNG"), 32).astype(int) - expected)
    # Both compute in integers and round a little differently.
    assert difference.max() <= 1


@pytest.mark.parametrize("shape", [(1600, 1200), (700, 900)])
def test_much_larger_jpeg_is_read_at_a_fraction_of_its_size(shape):
    data = encode(Image.fromarray(gradient(*shape)), "JPEG", quality=95)
    expected = pixels_of(Image.open(io.BytesIO(data)).resize((32, 32), Image.Resampling.BILINEAR))
    difference = np.abs(read_image(data, 32).astype(int) - expected)
    assert difference.max() <= 4


@pytest.mark.parametrize(("format", "size"), [("JPEG", 32), ("JPEG", 8), ("PNG", 32), ("WEBP", 32)])
def test_image_that_is_cut_short_anywhere_is_refused(format, size):
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), format)
    # PNG's last 12 bytes and JPEG's last 2 end the file and hold no pixel.
    last = len(data) - 40
    lengths = [1, 2, 3, 10, 20, 100, *range(200, last, last // 12), last]
    read = []
    for length in lengths:
        try:
            read_image(data[:length], size)
        except BadImageError as error:
            assert str(error) and "\n" not in str(error)
        else:
            read.append(length)
    assert read == []
    assert read_image(data, size).shape == (3, size, size)


def noisy_jpeg() -> bytes:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return encode(Image.fromarray(noise), "JPEG")


@pytest.mark.parametrize("size", [64, 16])
@pytest.mark.parametrize("lost", [200, 1000])
def test_jpeg_that_lost_its_middle_is_refused(lost, size):
    data = noisy_jpeg()
    start = len(data) // 2
    with pytest.raises(BadImageError, match="premature end of data segment"):
        read_image(data[:start] + data[start + lost :], size)


def test_jpeg_cut_short_and_closed_again_is_refused():
    data = noisy_jpeg()
    with pytest.raises(BadImageError, match="premature end of data segment"):
        read_image(data[: len(data) // 2] + b"\xff\xd9", 64)


def test_jpeg_with_extraneous_bytes_loses_nothing():
    data = noisy_jpeg()
    assert np.array_equal(read_image(data[:-2] + b"\0\0" + data[-2:], 64), read_image(data, 64))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "an empty file"),
        (b"<html><body>403</body></html>", "not an image"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "not an image"),
        (b"\xff\xd8\xff", "not an image"),
        (b"\0" * 1000, "not an image"),
    ],
)
def test_what_is_no_image_is_refused(data, message):
    with pytest.raises(BadImageError, match=message):
        read_image(data, 32)


# What is opened, and what is not


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_read(format):
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    image = Image.fromarray(gradient(24, 24))
    read = read_image(encode(image, format), 24).astype(int)
    assert np.abs(read - pixels_of(image)).mean() < 8


def test_of_an_animation_the_first_frame_is_read():
    frames = [Image.new("RGB", (24, 24), color) for color in ("red", "blue")]
    for format in ("GIF", "WEBP", "TIFF", "PNG"):
        data = encode(frames[0], format, save_all=True, append_images=frames[1:])
        assert read_image(data, 24)[:, 5, 5].tolist()[0] > 240


@pytest.mark.parametrize(
    ("start", "why"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (b"P6\n2 2\n255\n" + b"\0" * 12, "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC is not read: convert it to JPG"),
    ],
)
def test_other_formats_are_not_opened_whatever_their_name(start, why, tmp_path, monkeypatch):
    # A program of this name on PATH would tell that it was started.
    told = tmp_path / "told"
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {told}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadImageError, match=why):
        read_image(start, 32)
    assert not told.exists()


@pytest.mark.parametrize("progressive", [False, True])
def test_claim_of_too_many_pixels_is_refused_from_the_header(progressive):
    data = bytearray(encode(Image.fromarray(gradient(24, 24)), "JPEG", progressive=progressive))
    frame = data.index(b"\xff\xc2" if progressive else b"\xff\xc0")
    data[frame + 5 : frame + 9] = (30000).to_bytes(2) * 2
    with pytest.raises(BadImageError, match="30000 x 30000 pixels are claimed"):
        read_image(bytes(data), 32)
    data[frame + 5 : frame + 9] = (10000).to_bytes(2) * 2
    with pytest.raises(BadImageError, match="10000 x 10000 pixels in .* bytes: cut short"):
        read_image(bytes(data), 32)


def test_large_image_is_read_without_copies_of_its_size():
    side = 6000
    assert side * side < MAX_PIXELS
    for mode, color in (("L", 77), ("RGB", (200, 10, 77)), ("RGBA", (200, 10, 77, 0)), ("P", 3)):
        image = Image.new(mode, (side, side), color)
        data = encode(image, "PNG", compress_level=1)
        corner = image.crop((0, 0, 8, 8)).convert("RGBA").convert("RGB").getpixel((1, 1))
        assert read_image(data, 32)[:, 3, 3].tolist() == list(corner)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_unknown_range_are_refused(mode):
    data = encode(Image.fromarray(np.full((9, 9), 0.5)).convert(mode), "TIFF")
    with pytest.raises(BadImageError, match="32 bits"):
        read_image(data, 32)


def test_sixteen_bit_tiff_keeps_its_range():
    levels = np.linspace(0, 65535, 24 * 24).reshape(24, 24).astype(np.uint16)
    read = read_image(encode(Image.fromarray(levels), "TIFF"), 24)
    assert np.array_equal(read, np.stack([levels // 256] * 3))
