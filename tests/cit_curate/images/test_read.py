"""Images nobody should trust: cut, huge, disguised, in every mode."""

import hashlib
import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from cit_curate.images.read import (
    ImageRejected,
    OpenedImage,
    check_image,
    image_suffix,
    read_image,
    read_image_bytes,
)


def encoded(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def picture(mode="RGB", size=(24, 16)):
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).convert(mode)


def reason_of(content, **options):
    with pytest.raises(ImageRejected) as rejected:
        read_image(content, **options)
    return rejected.value.reason


def big_png(side):
    """1-bit PNG of side x side zeros: a few KB on disk."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    packer = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


@pytest.mark.faults("I1")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_every_cut_is_rejected(kind):
    whole = encoded(picture(size=(64, 48)), kind)
    read_image(whole)
    sizes = np.linspace(0, len(whole) - 1, 200).astype(int)
    for size in sizes:
        assert reason_of(whole[:size]) in {
            "truncated_image",
            "undecodable_image",
            "format_not_allowed",
        }
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.faults("I2")
@pytest.mark.parametrize("side", [9000, 15200, 20000])
def test_a_bomb_is_refused_from_its_header(side):
    assert reason_of(big_png(side)) == "too_many_pixels"


@pytest.mark.faults("I2")
def test_refusing_a_bomb_takes_little_memory(tmp_path):
    (tmp_path / "bomb.png").write_bytes(big_png(15200))
    code = (
        "import resource, sys, pathlib; from cit_curate.images.read import *\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: read_image(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "except ImageRejected as error: print(error.reason)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "bomb.png")]
    reason, grown = subprocess.run(
        command, check=True, capture_output=True, text=True
    ).stdout.split()
    assert reason == "too_many_pixels"
    assert int(grown) < 20_000


@pytest.fixture
def parsers(monkeypatch):
    """The parsers that are made, by name; `Image.open`, which tries them all, may not be called."""

    def called(*_, **__):
        raise AssertionError("Image.open was called")

    made = []
    start = ImageFile.ImageFile.__init__

    def starting(parser, *args, **options):
        made.append(type(parser).__name__)
        start(parser, *args, **options)

    monkeypatch.setattr(Image, "open", called)
    monkeypatch.setattr(ImageFile.ImageFile, "__init__", starting)
    return made


HEADS = [
    b"8BPS\0\1",
    b"SIMPLE  =",
    b"%!PS-Adobe-3.0 EPSF",
    b"%PDF-1.7",
    b"<svg xmlns",
    b"II*\0",
    b"MM\0*",
]
REFUSED = [
    *(head + bytes(100) for head in HEADS),
    *(encoded(picture(), k) for k in ("TIFF", "EPS")),
]


@pytest.mark.faults("I3")
@pytest.mark.parametrize("content", REFUSED, ids=lambda content: repr(content[:4]))
def test_other_formats_are_refused_whatever_their_name_and_no_parser_runs(content, parsers):
    assert reason_of(content) == "format_not_allowed"
    assert parsers == []


@pytest.mark.faults("I3")
@pytest.mark.parametrize("read", [read_image, check_image])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_only_the_parser_of_the_format_runs(kind, read, parsers):
    content = encoded(picture(), kind)
    parsers.clear()
    read(content)
    assert [name.lower() for name in parsers] == [f"{kind.lower()}imagefile"]


def spread(grey):
    return np.repeat(grey[..., np.newaxis], 3, axis=2)


def golden():
    """By name a small file that loses nothing, and its pixels: uint8 [rows, columns, 3]."""
    rng = np.random.default_rng(7)
    colours, other = rng.integers(0, 256, (2, 6, 9, 3), np.uint8)
    grey, numbers = colours[..., 0], colours[..., 1] % 16
    palette = rng.integers(0, 256, (16, 3), np.uint8)
    deep = rng.integers(0, 65536, (6, 9), np.uint16)
    # Of multiples of 5, a fifth is whole: no rounding is in question.
    fifths = rng.integers(0, 6, (6, 9, 1))
    fives = rng.integers(0, 52, (6, 9, 3)) * 5
    on_white = (fives * fifths + 255 * (5 - fifths)) // 5
    ramp = spread(np.arange(3000).astype(np.uint8)[np.newaxis])
    with_palette = Image.fromarray(numbers, "P")
    with_palette.putpalette(palette.tobytes())

    def layers(values):
        return Image.fromarray(np.concatenate([values, fifths * 51], axis=2).astype(np.uint8))

    pixels, webp = Image.fromarray(colours), {"lossless": True}
    moving = {"save_all": True, "append_images": [Image.fromarray(other)]}
    shown, later = (
        Image.fromarray(palette[each // 16], "RGB").quantize(16) for each in (grey, other[..., 0])
    )
    return {
        "PNG 1": (encoded(Image.fromarray(grey > 99), "PNG"), spread((grey > 99) * 255)),
        "PNG L": (encoded(Image.fromarray(grey), "PNG"), spread(grey)),
        "PNG P": (encoded(with_palette, "PNG"), palette[numbers]),
        "PNG RGB": (encoded(pixels, "PNG"), colours),
        "PNG LA": (encoded(layers(fives[..., :1]), "PNG"), spread(on_white[..., 0])),
        "PNG RGBA": (encoded(layers(fives), "PNG"), on_white),
        "PNG I;16": (encoded(Image.fromarray(deep), "PNG"), spread(deep >> 8)),
        "PNG 1x1": (encoded(Image.fromarray(colours[:1, :1]), "PNG"), colours[:1, :1]),
        "PNG 3000x1": (encoded(Image.fromarray(ramp), "PNG"), ramp),
        "PNG 1x3000": (
            encoded(Image.fromarray(ramp.swapaxes(0, 1)), "PNG"),
            ramp.swapaxes(0, 1),
        ),
        "BMP RGB": (encoded(pixels, "BMP"), colours),
        "GIF P": (encoded(with_palette, "GIF"), palette[numbers]),
        "GIF, animated": (
            encoded(shown, "GIF", save_all=True, append_images=[later]),
            palette[grey // 16],
        ),
        "WebP RGB": (encoded(pixels, "WEBP", **webp), colours),
        "WebP RGBA": (encoded(layers(fives), "WEBP", exact=True, **webp), on_white),
        "WebP, animated": (encoded(pixels, "WEBP", **moving, **webp), colours),
    }


GOLDEN = golden()


def digest(pixels):
    return hashlib.sha256(np.ascontiguousarray(pixels, np.uint8).tobytes()).hexdigest()


@pytest.mark.faults("I4")
@pytest.mark.parametrize("name", GOLDEN)
def test_a_file_that_loses_nothing_gives_exactly_its_pixels(name):
    content, pixels = GOLDEN[name]
    image = read_image(content)
    assert (image.mode, image.size) == ("RGB", (pixels.shape[1], pixels.shape[0]))
    assert digest(image) == digest(pixels)


@pytest.mark.faults("I4")
def test_transparency_is_put_on_white():
    clear = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    clear.putpixel((1, 0), (0, 0, 255, 255))
    for kind in ("PNG", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        image = read_image(encoded(clear, kind, **options))
        assert [image.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 255)]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    for kind in ("PNG", "GIF"):
        image = read_image(encoded(palette, kind, transparency=0))
        assert [image.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 255)]


@pytest.mark.faults("I4")
def test_sixteen_bits_are_scaled_and_cmyk_is_converted():
    deep = Image.fromarray(np.array([[0, 32768, 65535]], np.uint16))
    image = read_image(encoded(deep, "PNG"))
    assert [image.getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]
    assert read_image(encoded(picture("CMYK"), "JPEG")).mode == "RGB"


@pytest.mark.faults("I4")
@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1)])
def test_odd_sizes_are_read(size):
    assert read_image(encoded(Image.new("RGB", size), "PNG")).size == size


CORNERS = {"R": (230, 20, 20), "G": (20, 200, 20), "B": (20, 20, 230), "W": (250, 250, 250)}
# By EXIF 2.3, 4.6.4: where row 0 and column 0 of RG/BW are seen. Here left to right, top to bottom.
UPRIGHT = {
    1: "RGBW",  # row 0 is the top, column 0 the left side
    2: "GRWB",  # top, right
    3: "WBGR",  # bottom, right
    4: "BWRG",  # bottom, left
    5: "RBGW",  # left, top
    6: "BRWG",  # right, top
    7: "WGBR",  # right, bottom
    8: "GWRB",  # left, bottom
}


@pytest.mark.faults("I4")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(orientation, kind):
    stored = Image.new("RGB", (48, 32))
    for corner, colour in zip(((0, 0), (24, 0), (0, 16), (24, 16)), CORNERS.values(), strict=True):
        stored.paste(colour, (*corner, corner[0] + 24, corner[1] + 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = read_image(encoded(stored, kind, exif=exif))
    width, height = image.size
    assert (width, height) == ((48, 32) if orientation < 5 else (32, 48))
    places = [(x, y) for y in (4, height - 5) for x in (4, width - 5)]
    for place, name in zip(places, UPRIGHT[orientation], strict=True):
        np.testing.assert_allclose(image.getpixel(place), CORNERS[name], atol=12)


@pytest.mark.faults("I4")
def test_a_cmyk_jpeg_has_the_colours_of_its_inks():
    inks = [(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0), (0, 102, 0, 51)]
    for ink in inks:
        image = read_image(encoded(Image.new("CMYK", (16, 16), ink), "JPEG", quality=95))
        light = [(255 - each) * (255 - ink[3]) / 255 for each in ink[:3]]
        assert image.mode == "RGB"
        np.testing.assert_allclose(image.getpixel((3, 3)), light, atol=6)


@pytest.mark.faults("I4")
def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True})):
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert read_image(content).getpixel((0, 0)) == (255, 0, 0)


def test_flipped_bytes_never_escape_as_another_error():
    rng = np.random.default_rng(1)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
        whole = encoded(picture(), kind)
        for _ in range(100):
            content = bytearray(whole)
            for place in rng.integers(0, len(whole), 3):
                content[place] = rng.integers(256)
            try:
                assert read_image(bytes(content), max_pixels=1_000_000).mode == "RGB"
            except ImageRejected as rejected:
                assert rejected.reason  # noqa: PT017


JPEGS = {
    "baseline": ("RGB", {}),
    "progressive": ("RGB", {"progressive": True, "subsampling": 0}),
    "restarts": ("RGB", {"restart_marker_rows": 1}),
    "kept as RGB": ("RGB", {"keep_rgb": True}),
    "grey": ("L", {}),
    "CMYK": ("CMYK", {"progressive": True}),
}


def outcome(read, content):
    try:
        read(content, max_pixels=1_000_000)
    except ImageRejected as rejected:
        return rejected.reason
    return "a picture"


@pytest.mark.faults("I1")
@pytest.mark.parametrize("name", JPEGS)
def test_a_check_accepts_and_rejects_the_jpegs_that_reading_does(name):
    mode, options = JPEGS[name]
    whole = encoded(picture(mode, size=(70, 50)), "JPEG", **options)
    rng = np.random.default_rng(3)
    seen = set()
    for turn in range(150):
        content = bytearray(whole)
        if turn % 2:  # cut, with an end put behind it
            content = content[: rng.integers(2, len(whole))] + b"\xff\xd9"
        for place in rng.integers(0, len(content), turn % 4):
            content[place] = rng.integers(256)
        read = outcome(read_image, bytes(content))
        assert outcome(check_image, bytes(content)) == read
        seen.add(read)
    assert outcome(check_image, whole) == "a picture"
    assert {"a picture", "undecodable_image"} <= seen or "truncated_image" in seen


@pytest.mark.faults("I1", "I4")
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP"])
def test_a_check_accepts_and_rejects_what_reading_does(kind):
    for mode in ("RGB", "RGBA", "L", "P", "1"):
        whole = encoded(picture(mode), kind)
        for size in (len(whole), len(whole) - 1, len(whole) // 2):
            assert outcome(check_image, whole[:size]) == outcome(read_image, whole[:size])


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_reduced_jpeg_is_the_picture_in_small(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    ramp = Image.linear_gradient("L").resize((160, 96)).convert("RGB")
    content = encoded(ramp, "JPEG", exif=exif, quality=95)
    size = (160, 96) if orientation == 1 else (96, 160)
    for reduction in (1, 2, 4, 8):
        opened = OpenedImage(content)
        assert opened.size == size
        small = opened.read(reduction=reduction)
        assert small.size == tuple(-(-length // reduction) for length in size)
        whole = read_image(content).resize(small.size, Image.Resampling.BOX)
        difference = np.asarray(small).astype(int) - np.asarray(whole)
        assert np.abs(difference).mean() < 2
    odd = encoded(ramp.resize((161, 90)), "JPEG")
    assert OpenedImage(odd).read(reduction=4).size == (41, 23)
    assert OpenedImage(encoded(ramp, "PNG")).read(reduction=4).size == ramp.size


def test_image_suffix():
    for kind, suffix in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif")):
        assert image_suffix(encoded(picture(), kind)) == suffix
    assert image_suffix(encoded(picture(), "BMP")) == "bmp"


def test_image_bytes_never_leave_the_image_root(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (root / "a.jpg").write_bytes(b"inside")
    (root / "inner").symlink_to(root / "a.jpg")
    (root / "outer").symlink_to(tmp_path / "secret.jpg")
    (root / "folder").mkdir()
    os.mkfifo(root / "pipe")
    assert read_image_bytes(root, "a.jpg") == read_image_bytes(root, "inner") == b"inside"
    for uri, reason in (
        ("outer", "path_escapes"),
        ("../secret.jpg", "path_escapes"),
        (str(tmp_path / "secret.jpg"), "path_escapes"),
        ("gone.jpg", "missing_image"),
        ("folder", "missing_image"),
        ("pipe", "missing_image"),
        ("", "no_image"),
        ("https://x.org/a.jpg", "no_image"),
        ("a\0b", "missing_image"),
    ):
        with pytest.raises(ImageRejected) as rejected:
            read_image_bytes(root, uri)
        assert rejected.value.reason == reason, uri
    with pytest.raises(ImageRejected, match="6 bytes, more than 5"):
        read_image_bytes(root, "a.jpg", max_bytes=5)


@pytest.mark.parametrize(
    "film", [b"", b"\0\0\0\x18ftypmp42", b"\xff\xd8\xff\xda\0\4", b"\xff\xda" * 3]
)
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}])
def test_a_jpeg_with_bytes_behind_its_end_is_read_as_without_them(film, options):
    content = encoded(picture(size=(64, 48)), "JPEG", **options)
    check_image(content + film)
    assert np.array_equal(read_image(content + film), read_image(content))


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_cut_jpeg_is_not_whole_because_of_bytes_behind_it(options):
    content = encoded(picture(size=(64, 48)), "JPEG", **options)
    assert reason_of(content[: len(content) // 2]) == "truncated_image"
    assert reason_of(content[: len(content) // 2] + b"\xff\xda\0\4") == "truncated_image"


def test_a_thumbnail_in_front_of_a_cut_jpeg_is_not_its_end():
    thumbnail = encoded(picture(size=(8, 8)), "JPEG")
    content = encoded(picture(size=(64, 48)), "JPEG")
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    whole = content[:2] + segment + content[2:]
    check_image(whole)
    assert reason_of(whole[:-40]) == "truncated_image"


def test_the_search_for_the_end_of_a_jpeg_is_linear():
    hostile = b"\xff\xd8\xff\xd9"[:2] + b"\xff" * (1 << 22) + b"\xff\xda"
    assert reason_of(hostile) in ("truncated_image", "undecodable_image")
