"""Image files as the world delivers them: every orientation and mode comes out upright RGB, every bad file is refused.

References are computed from the definition of each format (EXIF 2.32 orientation table, alpha over white), not by the
decoder under test.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image
from tests_support import smooth_photo, write_photo

from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput
from uvd.sources.decode import IMAGE_SUFFIXES, decode_image, decode_labels, list_files, read_bytes


def encoded(image: Image.Image | NDArray, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds next to nothing: a decompression bomb."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


def refusal(data: bytes, decode=decode_image, **options: int) -> Reason:
    with pytest.raises(RejectedInput) as refused:
        decode(data, **options)
    return refused.value.reason


PHOTO = smooth_photo(1, 60, 90)
JPEG = encoded(PHOTO, "JPEG", quality=95)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(JPEG[: len(JPEG) // 2], Reason.TRUNCATED, id="truncated-jpeg"),
        pytest.param(encoded(PHOTO)[:-2000], Reason.TRUNCATED, id="truncated-png"),
        pytest.param(encoded(PHOTO, "WEBP")[:-100], Reason.TRUNCATED, id="truncated-webp"),
        pytest.param(png_header(50_000, 50_000), Reason.BOMB, id="bomb"),
        pytest.param(png_header(10_000, 10_000), Reason.BOMB, id="small-bomb"),
        pytest.param(b"<html><body>404</body></html>", Reason.NOT_IMAGE, id="html"),
        pytest.param(b"", Reason.NOT_IMAGE, id="empty"),
        pytest.param(b"\xff\xd8\xff", Reason.NOT_IMAGE, id="jpeg-signature-only"),
        pytest.param(encoded(PHOTO[:1, :1]), Reason.TOO_SMALL, id="one-pixel"),
        pytest.param(encoded(PHOTO[:15]), Reason.TOO_SMALL, id="narrow"),
        pytest.param(encoded(PHOTO, "ICO"), Reason.NOT_IMAGE, id="format-not-listed"),
        pytest.param(encoded(PHOTO, "EPS"), Reason.NOT_IMAGE, id="postscript"),
    ],
)
def test_bad_files_are_refused(data, reason):
    assert refusal(data) == reason


def test_pixels_are_capped_by_the_header():
    assert refusal(encoded(PHOTO), max_pixels=60 * 90 - 1) == Reason.BOMB
    assert decode_image(encoded(PHOTO), max_pixels=60 * 90)[1] == (90, 60)


def stored_with_orientation(upright: NDArray, orientation: int) -> NDArray:
    """The stored rows and columns that the EXIF orientation turns into `upright` (EXIF 2.32, tag 0x0112)."""
    stored = {
        1: upright,  # row 0 is the top, column 0 the left
        2: upright[:, ::-1],  # top, right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: upright.transpose(1, 0, 2),  # left, top
        6: upright.transpose(1, 0, 2)[::-1],  # right, top: row 0 of the file is the right-hand side
        7: upright.transpose(1, 0, 2)[::-1, ::-1],  # right, bottom
        8: upright.transpose(1, 0, 2)[:, ::-1],  # left, bottom
    }[orientation]
    return np.ascontiguousarray(stored)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_the_size_is_upright(form, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"quality": 100, "subsampling": 0} if form == "JPEG" else {}
    data = encoded(stored_with_orientation(PHOTO, orientation), form, exif=exif, **options)
    pixels, size = decode_image(data)
    assert pixels.shape == PHOTO.shape
    assert size == (90, 60)
    assert np.abs(pixels.astype(int) - PHOTO).max() <= (0 if form == "PNG" else 12)


def test_an_orientation_that_does_not_exist_changes_nothing():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 99
    assert np.array_equal(decode_image(encoded(PHOTO, exif=exif))[0], PHOTO)


def with_exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """The JPEG with an EXIF block of these (tag, type, count, value) entries."""
    tiff = b"II*\0" + struct.pack("<IH", 8, len(entries))
    tiff += b"".join(struct.pack("<HHI4s", *entry) for entry in sorted(entries)) + bytes(4)
    block = b"Exif\0\0" + tiff
    return JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + JPEG[2:]


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param((0x0100, 2, 4, b"abc\0"), id="width-is-text"),
        pytest.param((0x0100, 9, 1, b"\xff" * 4), id="width-is-negative"),
        pytest.param((0x0213, 7, 4, b"abcd"), id="positioning-is-bytes"),
        pytest.param((0x011A, 2, 4, b"abc\0"), id="resolution-is-text"),
        pytest.param((0x011A, 11, 1, struct.pack("<f", float("nan"))), id="resolution-is-nan"),
        pytest.param((0x8769, 2, 4, b"abc\0"), id="directory-is-text"),
    ],
)
def test_other_exif_tags_do_not_cost_the_photo(entry):
    """Cameras and editors write odd values; only the orientation matters, and the pixels are whole."""
    pixels, size = decode_image(with_exif((0x0112, 3, 1, b"\x06\0\0\0"), entry))
    assert size == (60, 90)
    assert np.abs(pixels.astype(int) - np.rot90(PHOTO, -1)).mean() < 5


def test_an_orientation_that_is_no_number_changes_nothing():
    pixels, size = decode_image(with_exif((0x0112, 2, 4, b"abc\0")))
    assert size == (90, 60)
    assert np.abs(pixels.astype(int) - PHOTO).mean() < 5


def test_large_jpegs_are_decoded_smaller_and_report_their_full_size():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    photo = smooth_photo(2, 1200, 2400)
    pixels, size = decode_image(encoded(photo, "JPEG", exif=exif), scale_to=256)
    assert size == (1200, 2400)
    assert pixels.shape == (600, 300, 3)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (32, 24), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50)
    pixels, size = decode_image(data)
    assert size == (32, 24)
    assert (pixels == (255, 0, 0)).all()


def test_cmyk_becomes_rgb():
    pixels, _ = decode_image(encoded(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG", quality=95))
    assert np.abs(pixels.astype(int) - (255, 0, 0)).max() <= 6


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    pixels, _ = decode_image(encoded(values))
    assert pixels.shape == (32, 32, 3)
    assert np.abs(pixels[..., 0] - values / 257).max() <= 0.5
    assert (pixels == pixels[..., :1]).all()


def test_alpha_is_laid_over_white():
    rgba = np.zeros((32, 32, 4), np.uint8)
    rgba[:16] = (200, 100, 0, 255)
    rgba[16:] = (0, 0, 0, 128)
    pixels, _ = decode_image(encoded(rgba))
    assert (pixels[:16] == (200, 100, 0)).all()
    assert np.abs(pixels[16:].astype(int) - 127).max() <= 1


def test_palettes_give_their_colours_and_a_transparent_entry_gives_white():
    image = Image.fromarray((np.arange(1024) % 2).astype(np.uint8).reshape(32, 32), "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    assert set(map(tuple, decode_image(encoded(image))[0].reshape(-1, 3).tolist())) == {(10, 20, 30), (40, 50, 60)}
    pixels, _ = decode_image(encoded(image, transparency=0))
    assert set(map(tuple, pixels.reshape(-1, 3).tolist())) == {(255, 255, 255), (40, 50, 60)}


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [("1", 1, 255), ("L", 77, 77), ("LA", (50, 255), 50)],
    ids=["bits", "grey", "grey-alpha"],
)
def test_grey_modes_become_rgb(mode, value, expected):
    pixels, _ = decode_image(encoded(Image.new(mode, (32, 32), value)))
    assert pixels.shape == (32, 32, 3)
    assert (pixels == expected).all()


MUTATED = [
    *((form, encoded(PHOTO, form)) for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM")),
    ("EXIF", encoded(PHOTO, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0")),
    ("PALETTE", encoded(Image.fromarray(PHOTO).convert("P"))),
]


@pytest.mark.parametrize("data", [data for _, data in MUTATED], ids=[name for name, _ in MUTATED])
def test_whatever_is_damaged_only_a_rejection_comes_out(data):
    """Bytes changed at random, more often near the front where the headers are."""
    rng = random.Random(1)
    for _ in range(200):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 5, 20))):
            damaged[int(len(damaged) * rng.random() ** 3)] = rng.choice((0, 255, rng.randrange(256)))
        for decode in (decode_image, decode_labels):
            try:
                decode(bytes(damaged))
            except RejectedInput:
                continue


def test_links_that_lead_out_of_the_folder_are_not_listed(tmp_path):
    root, outside = tmp_path / "in", tmp_path / "outside"
    write_photo(root / "a.jpg", 1)
    write_photo(root / "deep" / "B.JPG", 2)
    write_photo(outside / "secret.jpg", 3)
    (root / "link.jpg").symlink_to(outside / "secret.jpg")
    (root / "folder").symlink_to(outside)
    (root / "dangling.jpg").symlink_to(tmp_path / "nothing.jpg")
    (root / "loop.jpg").symlink_to(root / "loop.jpg")
    (root / "within.jpg").symlink_to(root / "a.jpg")
    (root / "folder.jpg").mkdir()
    (root / "notes.txt").write_text("no")
    listed = list_files(root, IMAGE_SUFFIXES)
    assert [name for name, _ in listed] == ["a.jpg", "deep/B.JPG", "within.jpg"]
    assert listed[0][1] == (root / "a.jpg").stat().st_size


def test_files_that_cannot_be_read_say_why(tmp_path: Path):
    write_photo(tmp_path / "a.jpg", 1)
    for path, limit, reason in (
        (tmp_path / "none.jpg", 10, Reason.MISSING),
        (tmp_path, 10, Reason.MISSING),
        (tmp_path / "a.jpg", 10, Reason.TOO_LARGE),
        (tmp_path / ("x" * 300), 10, Reason.UNREADABLE),
    ):
        with pytest.raises(RejectedInput) as refused:
            read_bytes(path, limit)
        assert refused.value.reason == reason
        assert str(tmp_path) not in refused.value.detail


@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
def test_labels_are_ids_never_colours(mode):
    top = 40_000 if mode == "I;16" else 200
    ids = np.zeros((20, 30), np.uint16 if mode == "I;16" else np.uint8)
    ids[5:9, 3:8], ids[10:, 20:] = 3, top
    image = Image.fromarray(ids)
    if mode == "P":
        image = Image.fromarray(ids, "P")
        image.putpalette(np.random.default_rng(1).integers(0, 256, 768).tolist())
    labels = decode_labels(encoded(image))
    assert labels.dtype == np.int32
    assert np.array_equal(labels, ids)


def test_bits_are_labels_zero_and_one():
    bits = np.zeros((20, 30), bool)
    bits[4:8] = True
    assert np.array_equal(decode_labels(encoded(bits)), bits.astype(int))


def test_labels_refuse_colours_bombs_and_damage():
    whole = encoded(np.random.default_rng(2).integers(0, 9, (90, 90)).astype(np.uint8))
    assert refusal(encoded(PHOTO), decode_labels) == Reason.BAD_ANNOTATION
    assert refusal(encoded(Image.new("RGBA", (32, 32))), decode_labels) == Reason.BAD_ANNOTATION
    assert refusal(encoded(Image.new("LA", (32, 32))), decode_labels) == Reason.BAD_ANNOTATION
    assert refusal(png_header(50_000, 50_000), decode_labels) == Reason.BOMB
    assert refusal(whole[: len(whole) // 2], decode_labels) == Reason.TRUNCATED
    assert refusal(b"GIF", decode_labels) == Reason.NOT_IMAGE
