"""Exported images are in formats that other readers know, and lose nothing on the way."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from cit_curate.config import ImageFormat
from cit_curate.images.decoders import decoders
from cit_curate.images.export_image import export_image
from cit_curate.images.pictures import any_format, image_suffix, read_image
from cit_curate.images.rejected import ImageRejected
from cit_curate.images.shard_image import shard_image

SIZE = (24, 16)
COLOURS = np.random.default_rng(5).integers(0, 256, (SIZE[1], SIZE[0], 4), dtype=np.uint8)
RGBA = Image.fromarray(COLOURS)
RGB = RGBA.convert("RGB")
PALETTE = RGB.quantize(16)
DEEP = np.random.default_rng(6).integers(0, 65_536, (16, 24), dtype=np.uint16)


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def opened(data: bytes) -> Image.Image:
    """What Pillow alone makes of an image, upright."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return ImageOps.exif_transpose(image)


OTHERS = {
    **{f"GIF {mode}": encoded(RGB.convert(mode), "GIF") for mode in ("1", "L", "P")},
    "GIF with a clear colour": encoded(PALETTE, "GIF", transparency=3),
    "GIF of three frames": encoded(PALETTE, "GIF", save_all=True, append_images=[RGB, RGB]),
    **{f"BMP {mode}": encoded(RGB.convert(mode), "BMP") for mode in ("1", "L", "P", "RGB")},
    **{f"TIFF {mode}": encoded(RGB.convert(mode), "TIFF") for mode in ("1", "L", "P", "RGB")},
    **{f"TIFF {mode}": encoded(RGBA.convert(mode), "TIFF") for mode in ("LA", "PA", "RGBA")},
    **{f"TIFF {mode}": encoded(RGB.convert(mode), "TIFF") for mode in ("CMYK", "YCbCr")},
    "TIFF in two pages": encoded(RGB, "TIFF", save_all=True, append_images=[PALETTE]),
    "TIFF on its side": encoded(RGB, "TIFF", exif=turned(), compression="tiff_lzw"),
    "AVIF": encoded(RGB, "AVIF"),
    "AVIF RGBA": encoded(RGBA, "AVIF"),
    "AVIF on its side": encoded(RGB, "AVIF", exif=turned()),
}
READABLE = {
    "JPEG": encoded(RGB, "JPEG", exif=turned()),
    "CMYK": encoded(RGB.convert("CMYK"), "JPEG"),
    "PNG": encoded(PALETTE, "PNG", transparency=3),
    "WEBP": encoded(RGBA, "WEBP"),
}


def same_pixels(new: bytes, old: bytes) -> bool:
    return opened(new).convert("RGBA").tobytes() == opened(old).convert("RGBA").tobytes()


@pytest.mark.parametrize("name", OTHERS)
def test_what_readers_of_shards_do_not_know_becomes_a_png_without_loss(name: str) -> None:
    png = export_image(OTHERS[name])
    assert image_suffix(png) == "png"
    assert same_pixels(png, OTHERS[name])
    assert export_image(OTHERS[name]) == png


@pytest.mark.parametrize("name", READABLE)
def test_what_they_know_keeps_its_bytes(name: str) -> None:
    image = READABLE[name]
    assert export_image(image) == image
    assert export_image(image, side=16) == image
    assert export_image(image, side=7) == shard_image(image, side=7)


@pytest.mark.parametrize("format", ["png", "webp"])
@pytest.mark.parametrize("name", [*OTHERS, *READABLE])
def test_one_format_throughout_loses_nothing_either(name: str, format: ImageFormat) -> None:
    image = (OTHERS | READABLE)[name]
    new = export_image(image, format=format)
    assert image_suffix(new) == format
    assert same_pixels(new, image)


@pytest.mark.parametrize("name", ["GIF with a clear colour", "TIFF CMYK", "AVIF on its side"])
def test_a_new_jpeg_is_upright_and_on_white(name: str) -> None:
    jpeg = opened(export_image(OTHERS[name], format="jpg"))
    original = opened(OTHERS[name]).convert("RGBA")
    white = Image.new("RGBA", original.size, "white")
    expected = Image.alpha_composite(white, original).convert("RGB")
    assert jpeg.mode == "RGB"
    assert np.abs(np.asarray(jpeg).astype(int) - np.asarray(expected)).mean() < 60  # noise


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bits_are_kept_in_a_png(order: str) -> None:
    deep = Image.fromarray(DEEP)
    if order == ">":
        deep = deep.convert("I").convert("I;16B")
    tiff = encoded(deep, "TIFF")
    assert np.array_equal(np.asarray(opened(export_image(tiff))), DEEP)
    shown = np.asarray(opened(export_image(tiff, format="webp")).convert("L"))
    assert np.array_equal(shown, DEEP >> 8)


def test_values_that_no_png_holds_are_those_of_training() -> None:
    floats = encoded(Image.fromarray(DEEP.astype(np.float32) / 256), "TIFF")
    picture = opened(export_image(floats))
    expected = Image.fromarray(DEEP.astype(np.float32) / 256).convert("RGB")
    assert picture.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", ["TIFF RGB", "AVIF"])
def test_training_reads_no_more_formats_than_before(name: str) -> None:
    assert any_format(OTHERS[name]) == name.split()[0].lower()
    for read in (read_image, shard_image, image_suffix):
        with pytest.raises(ImageRejected, match="format_not_allowed"):
            read(OTHERS[name])


@pytest.mark.faults("I1")
@pytest.mark.parametrize("name", ["GIF P", "BMP RGB", "TIFF RGB", "AVIF", "JPEG", "PNG", "WEBP"])
def test_a_cut_image_is_rejected(name: str) -> None:
    whole = (OTHERS | READABLE)[name]
    for cut in (whole[: len(whole) // 2], whole[:12]):
        with pytest.raises(ImageRejected):
            export_image(cut)


@pytest.mark.parametrize(("format", "limit"), [("jpg", 65_500), ("webp", 16_383)])
def test_a_strip_too_long_for_its_format_is_rejected(format: ImageFormat, limit: int) -> None:
    strip = encoded(Image.new("L", (limit + 1, 2)), "PNG")
    with pytest.raises(ImageRejected, match=f"at most {limit:,}"):
        export_image(strip, format=format)


def test_too_many_pixels_are_rejected_before_they_are_decoded() -> None:
    with pytest.raises(ImageRejected, match="too_many_pixels"):
        export_image(OTHERS["TIFF RGB"], max_pixels=100)


@pytest.mark.parametrize("format", ["auto", "jpg", "png", "webp"])
def test_a_process_answers_as_the_function_does(format: ImageFormat) -> None:
    for image in (OTHERS["GIF P"], OTHERS["TIFF RGB"], READABLE["JPEG"], READABLE["PNG"]):
        for side in (0, 8):
            expected = export_image(image, side=side, format=format)
            assert decoders().export_image(image, side=side, format=format) == expected
    with pytest.raises(ImageRejected, match="format_not_allowed"):
        decoders().export_image(b"%PDF-1.7", format=format)
