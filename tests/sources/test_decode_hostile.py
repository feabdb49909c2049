"""Files made to cost more than a picture: each is refused, or what is costly in it never reaches a decoder.

Costs are counted, not timed: bytes that go on to the decoder, blocks walked, memory of the pixels.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from tests_support import smooth_photo

from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput
from uvd.sources import colour, decode, image_chunks, image_headers
from uvd.sources.decode import decode_image
from uvd.sources.image_headers import read_header

PHOTO = smooth_photo(1, 60, 90)


def encoded(image: Image.Image | np.ndarray, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, form, **options)
    return buffer.getvalue()


def refusal(data: bytes, **options: int) -> tuple[Reason, str]:
    with pytest.raises(RejectedInput) as refused:
        decode_image(data, **options)
    return refused.value.reason, refused.value.detail


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(*more: bytes, size: tuple[int, int] = (32, 32), after: bytes = b"", colour_type: int = 2) -> bytes:
    """A black PNG with further chunks before and after its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, colour_type, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(32 * (32 * 3 + 1))))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + pixels + after + chunk(b"IEND")


def deflated_zeros(megabytes: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(megabytes)) + packer.flush()


ZEROS = deflated_zeros(80)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(png(chunk(b"zTXt", b"a\0\0" + ZEROS)), id="compressed-text"),
        pytest.param(png(chunk(b"iTXt", b"a\0\1\0\0\0" + ZEROS)), id="international-text"),
        pytest.param(png(after=chunk(b"zTXt", b"a\0\0" + ZEROS)), id="text-after-the-pixels"),
        pytest.param(png(chunk(b"tEXt", b"a\0" + bytes(1 << 20))), id="plain-text"),
        pytest.param(png(chunk(b"iCCP", b"a\0\0" + ZEROS)), id="profile"),
        pytest.param(png(chunk(b"acTL", bytes(8)), chunk(b"fcTL", bytes(26))), id="animation"),
        pytest.param(png(chunk(b"abCd", bytes(1 << 20))), id="unknown"),
    ],
)
def test_a_png_reaches_the_decoder_without_its_ballast(data):
    header = read_header(data)
    assert header.data == png()
    assert header.profile == b""
    assert decode_image(data)[0].shape == (32, 32, 3)


def test_pixels_beyond_a_pngs_end_are_never_unpacked():
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 32, 8, 0, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", ZEROS) + chunk(b"IEND")
    assert not decode_image(data)[0].any()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(png(*[chunk(b"tEXt")] * (1 << 16)), Reason.BOMB, id="chunks"),
        pytest.param(png(size=(50_000, 50_000)), Reason.BOMB, id="size"),
        pytest.param(png(size=(0, 32)), Reason.NOT_IMAGE, id="no-width"),
        pytest.param(png(colour_type=3), Reason.NOT_IMAGE, id="no-palette"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + chunk(b"tEXt") + png()[8:], Reason.NOT_IMAGE, id="late-header"),
        pytest.param(png()[:60], Reason.TRUNCATED, id="cut"),
    ],
)
def test_pngs_that_are_refused(data, reason):
    assert refusal(data)[0] == reason


def test_a_second_header_does_not_change_a_pngs_size():
    other = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    assert decode_image(png(other))[1] == (32, 32)


def progressive(scans: int, side: int = 64) -> bytes:
    """A progressive JPEG whose last scan comes as often as it takes."""
    data = encoded(Image.new("RGB", (side, side), "red"), "JPEG", progressive=True)
    there = data.count(b"\xff\xda")
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * (scans - there) + data[-2:]


def test_scans_are_capped():
    assert decode_image(progressive(image_headers.MAX_SCANS))[0].shape == (64, 64, 3)
    reason, detail = refusal(progressive(image_headers.MAX_SCANS + 1))
    assert (reason, detail) == (Reason.BOMB, "JPEG with over 100 scans")


def test_fewer_scans_are_allowed_for_more_pixels(monkeypatch):
    monkeypatch.setattr(image_headers, "MAX_SCAN_PIXELS", 64 * 64 * 20)
    assert decode_image(progressive(20))[0].shape == (64, 64, 3)
    assert refusal(progressive(21)) == (Reason.BOMB, "JPEG with over 20 scans")


def test_what_only_looks_like_scans_is_not_counted():
    """A phone appends a film to its photos; by chance FF DA is in it."""
    photo = encoded(PHOTO, "JPEG", progressive=True)
    assert decode_image(photo + b"\xff\xda" * 5000)[0].shape == PHOTO.shape


def test_a_sequential_jpeg_of_several_scans_is_counted_too():
    """One component a scan is allowed without progression, and such a scan may come again and again."""
    data = encoded(Image.new("L", (64, 64)), "JPEG")
    frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    three = struct.pack(">HBHHB", 17, 8, 64, 64, 3) + b"\1\x11\0\2\x11\0\3\x11\0"
    start = data[:frame] + b"\xff\xc0" + three + data[frame + 2 + 11 : scan]
    assert refusal(start + data[scan:-2] * 200 + b"\xff\xd9")[0] == Reason.BOMB


def test_scans_hidden_behind_a_segment_with_an_end_marker_are_counted():
    comment = b"\xff\xfe\x00\x06\xff\xd9\xff\xd9"
    data = progressive(200)
    first = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    assert refusal(data[:first] + comment + data[first:])[0] == Reason.BOMB


def segment(marker: int, body: bytes = b"") -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def test_a_jpeg_reaches_the_decoder_without_its_metadata():
    plain = encoded(PHOTO, "JPEG")
    ballast = b"".join(segment(marker, bytes(60_000)) for marker in (0xE1, 0xE2, 0xE5, 0xED, 0xFE))
    assert read_header(plain[:2] + ballast + plain[2:]).data == plain


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"\xff\xd8" + segment(0xE5) * 4097, Reason.BOMB, id="segments"),
        pytest.param(b"\xff\xd8" + b"\xff" * (3 << 20), Reason.NOT_IMAGE, id="fill-bytes"),
        pytest.param(b"\xff\xd8\xff\xe0" + bytes(3 << 20), Reason.NOT_IMAGE, id="zeros"),
        pytest.param(b"\xff\xd8" + segment(0xDA), Reason.NOT_IMAGE, id="scan-without-frame"),
        pytest.param(b"\xff\xd8\xff\xd9", Reason.NOT_IMAGE, id="empty"),
        pytest.param(b"\xff\xd8" + segment(0xC9, bytes(15)), Reason.NOT_IMAGE, id="arithmetic"),
        pytest.param(b"\xff\xd8" + segment(0xC3, bytes(15)), Reason.NOT_IMAGE, id="lossless"),
        pytest.param(
            b"\xff\xd8" + segment(0xC0, struct.pack(">BHHB", 12, 64, 64, 3)) + segment(0xDA),
            Reason.NOT_IMAGE,
            id="12-bit",
        ),
        pytest.param(
            b"\xff\xd8" + segment(0xC0, struct.pack(">BHHB", 8, 65000, 65000, 3)) + segment(0xDA, b"\3"),
            Reason.BOMB,
            id="size",
        ),
    ],
)
def test_jpegs_that_are_refused(data, reason):
    assert refusal(data)[0] == reason


def test_a_jpeg_that_browsers_would_show_is_shown():
    """Stray bytes before a marker: libjpeg warns and goes on."""
    data = encoded(PHOTO, "JPEG", quality=95)
    table = data.index(b"\xff\xdb")
    pixels, _ = decode_image(data[:table] + b"\0\0\0" + data[table:])
    assert np.abs(pixels.astype(int) - PHOTO).mean() < 5
    pixels, _ = decode_image(data[:-2] + bytes(50) + data[-2:])
    assert np.abs(pixels.astype(int) - PHOTO).mean() < 5


def gif(canvas: tuple[int, int], before: bytes = b"", frame: tuple[int, int] = (32, 32)) -> bytes:
    data = encoded(Image.new("P", frame), "GIF")
    screen = 13 + (3 << (data[10] & 7) + 1)
    return data[:6] + struct.pack("<HH", *canvas) + data[10:screen] + before + data[data.index(b"\x2c", screen) :]


COMMENT = b"\x21\xfe"


@pytest.mark.parametrize(
    ("data", "outcome"),
    [
        pytest.param(gif((65535, 65535)), Reason.BOMB, id="canvas"),
        pytest.param(gif((40, 40), frame=(9000, 9000)), Reason.BOMB, id="frame"),
        pytest.param(gif((32, 32), COMMENT + b"\x01a" * (1 << 18) + b"\0"), Reason.BOMB, id="tiny-blocks"),
        pytest.param(gif((32, 32), (COMMENT + b"\0") * (1 << 18)), Reason.BOMB, id="empty-comments"),
        pytest.param(gif((32, 32), COMMENT + b"\xff" * 256 * 40_000 + b"\0"), (32, 32), id="long-comment"),
        pytest.param(gif((20, 20)), (32, 32), id="frame-outside-its-canvas"),
        pytest.param(gif((32, 32))[:12], Reason.NOT_IMAGE, id="cut-in-its-header"),
        pytest.param(gif((32, 32))[:40], Reason.TRUNCATED, id="cut-in-its-frame"),
    ],
)
def test_gifs(data, outcome):
    if isinstance(outcome, Reason):
        assert refusal(data)[0] == outcome
    else:
        assert decode_image(data)[1] == outcome
        assert len(read_header(data).data) < 2000


def test_only_the_first_frame_of_a_gif_reaches_the_decoder():
    frames = [Image.fromarray(smooth_photo(seed, 40, 40)).convert("P") for seed in range(30)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert len(read_header(data).data) < len(data) / 10
    still = encoded(frames[0], "GIF")
    assert np.array_equal(decode_image(data)[0], decode_image(still)[0])


def webp(width: int, height: int, inner: bytes, flags: int = 0) -> bytes:
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes((flags, 0, 0, 0)) + sides + inner
    return b"RIFF" + struct.pack("<I", len(body)) + body


STILL = encoded(PHOTO, "WEBP")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(webp(1 << 24, 1 << 24, STILL[12:]), Reason.BOMB, id="canvas"),
        pytest.param(webp(400, 400, STILL[12:]), Reason.NOT_IMAGE, id="another-size-inside"),
        pytest.param(webp(90, 60, b"JUNK\0\0\0\0" * 5000 + STILL[12:]), Reason.BOMB, id="chunks"),
        pytest.param(STILL[:-40], Reason.TRUNCATED, id="cut"),
        pytest.param(b"RIFF\x04\0\0\0WEBPALPH", Reason.NOT_IMAGE, id="no-image"),
    ],
)
def test_webps_that_are_refused(data, reason):
    assert refusal(data)[0] == reason


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("animated", [False, True])
def test_webps_are_measured_before_they_are_decoded(lossless, animated):
    frames = [Image.fromarray(smooth_photo(seed, 60, 90)) for seed in (1, 2)]
    options = {"save_all": True, "append_images": frames[1:]} if animated else {}
    data = encoded(frames[0], "WEBP", lossless=lossless, quality=95, **options)
    header = read_header(data)
    assert (header.width, header.height) == (90, 60)
    pixels, size = decode_image(data)
    assert size == (90, 60)
    assert np.abs(pixels.astype(int) - PHOTO).mean() < (0.1 if lossless else 6)


def tiff(**tags: int) -> bytes:
    """An uncompressed TIFF of a photo with some tags added or changed; `t322=…` is tag 322."""
    data = encoded(PHOTO, "TIFF")
    (offset,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, offset)
    entries = {}
    for index in range(count):
        entry = data[offset + 2 + 12 * index : offset + 14 + 12 * index]
        entries[struct.unpack_from("<H", entry)[0]] = entry
    for name, value in tags.items():
        tag = int(name[1:].partition("_")[0])
        entries[tag if name == f"t{tag}" else tag + 0.5] = struct.pack("<HHII", tag, 4, 1, value)
    directory = struct.pack("<H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries)) + bytes(4)
    return data[:4] + struct.pack("<I", len(data)) + data[8:] + directory


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"t322": 20_000, "t323": 20_000}, Reason.BOMB),
        ({"t256": 100_000, "t257": 100_000}, Reason.BOMB),
        ({"t259": 7}, Reason.NOT_IMAGE),
        ({"t259": 50_000}, Reason.NOT_IMAGE),
        ({"t257_again": 100_000}, Reason.NOT_IMAGE),
    ],
    ids=["tiles", "size", "jpeg-inside", "unknown-compression", "tag-twice"],
)
def test_tiffs_that_are_refused(tags, reason):
    assert refusal(tiff(**tags))[0] == reason


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate", "packbits"])
def test_plain_tiffs_are_read(compression):
    assert np.array_equal(decode_image(encoded(PHOTO, "TIFF", compression=compression))[0], PHOTO)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_tiff_is_turned_once(orientation):
    turned = np.ascontiguousarray(np.rot90(PHOTO, {1: 0, 3: 2, 6: 1, 8: -1}[orientation]))
    pixels, size = decode_image(encoded(turned, "TIFF", exif={0x0112: orientation}, tiffinfo={0x0112: orientation}))
    assert size == (90, 60)
    assert np.array_equal(pixels, PHOTO)


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG is not read"),
        (b"<!DOCTYPE html><html></html>", "HTML is not read"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF is not read"),
        (b"\0\0\0\x1cftypheic\0\0\0\0", "HEIF is not read"),
        (b"%PDF-1.7", "PDF is not read"),
        (b"\x1f\x8b\x08\0", "gzip is not read"),
        (b"BM" + bytes(16) + struct.pack("<iiHHI", 9, 9, 1, 8, 1) + bytes(20), "compression"),
        (b"P6 1 " + b"#\n" * 3000 + b"1 255\n", "damaged netpbm header"),
        (b"P6 40 40 100\n" + bytes(4800), "values up to 100"),
        (b"P3 20 20 255\n" + b"1 " * 1200, "no image format"),
        (bytes(5000), "no image format"),
    ],
)
def test_other_things_are_named_or_said_to_be_none(data, detail):
    if data.startswith(b"BM"):
        data = data[:14] + struct.pack("<I", 40) + data[18:]
    reason, said = refusal(data)
    assert reason == Reason.NOT_IMAGE
    assert detail in said


def test_large_pictures_are_converted_in_bands(monkeypatch):
    """Alpha, palette and 16 bits need several copies of what they convert: of a band, not of the picture."""
    rgba = np.dstack([smooth_photo(3, 200, 100), np.tile(np.arange(100, dtype=np.uint8), (200, 1))])
    palette = Image.fromarray(rgba[..., :3]).convert("P")
    deep = Image.fromarray(rgba[..., 0].astype(np.uint16) * 257)
    for image in (Image.fromarray(rgba), palette, deep):
        data = encoded(image, "PNG")
        whole, _ = decode_image(data)
        heights: list[int] = []
        original = colour._band_to_rgb

        def convert(band: Image.Image, profile: bytes, seen=heights, function=original) -> np.ndarray:
            seen.append(band.height)
            return function(band, profile)

        with monkeypatch.context() as patch:
            patch.setattr(colour, "BAND_PIXELS", 1500)
            patch.setattr(colour, "_band_to_rgb", convert)
            assert np.array_equal(decode_image(data)[0], whole)
        assert (max(heights), sum(heights)) == (15, 200)


def test_what_pillow_finds_must_be_what_the_header_said(monkeypatch):
    """Were the two to disagree on a size, the cap would have been applied to the wrong one."""
    honest = read_header(png())
    lying = image_headers.Header("PNG", 16, 64, honest.data)
    monkeypatch.setattr(decode, "read_header", lambda _: lying)
    assert refusal(b"")[0] == Reason.NOT_IMAGE


def test_the_caps_leave_room_for_real_files():
    assert image_chunks.MAX_CHUNKS * 8192 >= decode.MAX_BYTES
    assert image_chunks.MAX_BLOCKS * 256 >= decode.MAX_BYTES
    assert image_headers.MAX_SCAN_PIXELS // decode.MAX_PIXELS >= 30
