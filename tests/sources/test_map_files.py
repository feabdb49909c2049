"""Map files of every format give the numbers that were written, and damaged or hostile ones a reject."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections import Counter

import cv2
import numpy as np
import pytest
from map_file_support import exr, pfm
from numpy.typing import NDArray
from PIL import Image

from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput
from uvd.sources.annotated.exr import ENVIRONMENT, ExrReader, read_exr_header
from uvd.sources.annotated.map_files import (
    EXR_MAGIC,
    MAX_NPY_HEADER,
    decode_exact_colours,
    decode_ids,
    decode_values,
    one_channel,
    values_of,
)

HEIGHT, WIDTH = 20, 30
PLAIN = "{'descr': '<f4', 'fortran_order': False, 'shape': (20, 30), }"


def numbers(*more: int) -> NDArray[np.float32]:
    return np.random.default_rng(3).normal(size=(HEIGHT, WIDTH, *more)).astype(np.float32)


def npy(array: NDArray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def npy_with(header: str, body: bytes = b"\0" * 4 * HEIGHT * WIDTH) -> bytes:
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode() + body


def image(array: NDArray, suffix: str = ".png") -> bytes:
    """RGB or one channel."""
    ok, data = cv2.imencode(suffix, array[..., ::-1] if array.ndim == 3 else array)
    assert ok
    return data.tobytes()


def verdict(function, *arguments) -> Reason:
    with pytest.raises(RejectedInput) as caught:
        function(*arguments)
    return caught.value.reason


@pytest.fixture
def exr_reader(tmp_path):
    reader = ExrReader()

    def read(data: bytes, max_pixels: int = 10_000) -> NDArray:
        (tmp_path / "a.exr").write_bytes(data)
        return reader.read(tmp_path / "a.exr", data, 1 << 20, max_pixels)

    yield read
    reader.close()


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "u1", "u2", "i4", "i8", ">f4", ">u2", "?"])
def test_npy_of_every_type(dtype):
    array = (numbers() * 40).astype(dtype)
    for stored in (array, np.asfortranarray(array), array[None], array[..., None]):
        values = decode_values(npy(stored))
        assert np.array_equal(values.array, array)
        assert values.array.dtype.isnative
    assert values.peak == (None if array.dtype.kind == "f" else 255 if dtype == "?" else np.iinfo(array.dtype).max)


def test_npy_of_vectors():
    assert np.array_equal(decode_values(npy(numbers(3))).array, numbers(3))


@pytest.mark.parametrize(
    "array",
    [
        np.array([[{"a": 1}]], object),
        np.zeros((4, 4), "c8"),
        np.zeros((4, 4), "S3"),
        np.zeros((4, 4), "M8[s]"),
        np.zeros((4, 4), [("x", "f4")]),
        np.zeros(16),
        np.zeros((2, 2, 2, 2)),
        np.zeros((4, 4, 5)),
        np.zeros((0, 4)),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_npy_of_something_else(array):
    assert verdict(decode_values, npy(array)) is Reason.BAD_ANNOTATION


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (npy(numbers())[:-1], Reason.TRUNCATED),
        (npy(numbers())[:9], Reason.TRUNCATED),
        (npy(numbers())[:40], Reason.BAD_ANNOTATION),
        (b"\x93NUMPY\3\0" + npy(numbers())[8:], Reason.BAD_ANNOTATION),
        (npy_with("__import__('os').system('true')"), Reason.BAD_ANNOTATION),
        (npy_with("(" * 3000), Reason.BAD_ANNOTATION),
        (npy_with(PLAIN[:-1] + " " * MAX_NPY_HEADER + "}"), Reason.BAD_ANNOTATION),
        (npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': (-20, 30), }"), Reason.BAD_ANNOTATION),
        (npy_with("{'descr': '<f3', 'fortran_order': False, 'shape': (20, 30), }"), Reason.BAD_ANNOTATION),
        (npy_with("{'descr': '<f1', 'fortran_order': False, 'shape': (20, 30), }"), Reason.BAD_ANNOTATION),
        (npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': (999999999, 999999999), }"), Reason.BOMB),
        (npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 99999, 99999), }"), Reason.BOMB),
        (npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': (99999, 99999, 0), }"), Reason.BAD_ANNOTATION),
    ],
)
def test_damaged_npy(data, reason):
    assert verdict(decode_values, data) is reason


def test_npy_of_other_writers():
    """Without padding, and with the long integers of Python 2."""
    for header in (PLAIN, PLAIN.replace("20, 30", "20L, 30L")):
        assert decode_values(npy_with(header)).array.shape == (20, 30)


@pytest.mark.parametrize("order", "<>")
def test_pfm(order):
    assert np.array_equal(decode_values(pfm(numbers(), order)).array, numbers())
    assert np.array_equal(decode_values(pfm(numbers(3), order)).array, numbers(3))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (pfm(numbers())[:-1], Reason.TRUNCATED),
        (b"Pf\n999999999 999999999\n-1.0\n", Reason.BOMB),
        (b"Pf\n0 4\n-1.0\n", Reason.BAD_ANNOTATION),
        (b"Pf\n1 1\n1.2.3\n\0\0\0\0", Reason.BAD_ANNOTATION),
        (b"Pf\n-4 4\n-1.0\n" + b"\0" * 64, Reason.NOT_IMAGE),
        (b"Pf\n4", Reason.NOT_IMAGE),
    ],
)
def test_damaged_pfm(data, reason):
    assert verdict(decode_values, data) is reason


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_png_keeps_all_its_bits(dtype, channels):
    array = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (HEIGHT, WIDTH, *channels), dtype, endpoint=True)
    values = decode_values(image(array))
    assert np.array_equal(values.array, array)
    assert values.peak == np.iinfo(dtype).max


def test_tiff_of_floats_and_deep_pgm():
    stream = io.BytesIO()
    Image.fromarray(numbers()).save(stream, "TIFF")
    values = decode_values(stream.getvalue())
    assert np.array_equal(values.array, numbers())
    assert values.peak is None
    deep = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 100
    assert np.array_equal(decode_values(image(deep, ".pgm")).array, deep)


def test_grey_in_three_channels_is_one_channel():
    grey = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH)
    assert np.array_equal(one_channel(decode_values(image(np.stack([grey] * 3, axis=-1)))), grey)
    with_nan = np.stack([np.where(grey == 3, np.nan, grey)] * 3, axis=-1)
    assert one_channel(values_of(with_nan)).shape == (HEIGHT, WIDTH)
    colours = np.stack([grey, grey, grey + 1], axis=-1)
    assert verdict(one_channel, values_of(colours)) is Reason.BAD_ANNOTATION


@pytest.mark.parametrize("deep", [False, True])
def test_images_cut_off_or_too_large(deep):
    array = np.random.default_rng(0).integers(0, 60_000, (HEIGHT, WIDTH, 3)).astype(np.uint16 if deep else np.uint8)
    data = image(array)
    assert verdict(decode_values, data[:-600]) is Reason.TRUNCATED
    assert verdict(decode_values, data, HEIGHT * WIDTH - 1) is Reason.BOMB
    # The header is whole, the pixels are not.
    start = data.index(b"IDAT") - 4
    body = zlib.compress(b"\0" * 50)
    short = struct.pack(">I", len(body)) + b"IDAT" + body + struct.pack(">I", zlib.crc32(b"IDAT" + body))
    cut = data[:start] + short + b"\0\0\0\0IEND\xaeB`\x82"
    assert verdict(decode_values, cut) is Reason.TRUNCATED


def test_ids_of_every_container():
    ids = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH)
    for data in (image(ids), npy(ids), npy(ids.astype(np.int64))):
        assert np.array_equal(decode_ids(data), ids)
    palette = Image.fromarray((ids % 200).astype(np.uint8), "L").convert("P")
    palette.putpalette([7, 7, 7] * 256)
    stream = io.BytesIO()
    palette.save(stream, "PNG")
    assert np.array_equal(decode_ids(stream.getvalue()), ids % 200)


@pytest.mark.parametrize(
    "data",
    [
        npy(numbers()),
        npy(np.full((4, 4), 1 << 40)),
        image(np.full((20, 20), 3, np.uint8), ".jpg"),
        image(np.full((20, 20, 3), 3, np.uint8)),
    ],
    ids=["floats", "huge", "jpeg", "colours"],
)
def test_what_holds_no_ids(data):
    assert verdict(decode_ids, data) is Reason.BAD_ANNOTATION


def test_label_colours_pass_no_colour_profile(tmp_path):
    from PIL import ImageCms

    colours = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    stream = io.BytesIO()
    Image.fromarray(colours).save(stream, "PNG", icc_profile=profile)
    assert np.array_equal(decode_exact_colours(stream.getvalue()), colours)
    assert verdict(decode_exact_colours, image(numbers().astype(np.uint16))) is Reason.BAD_ANNOTATION


@pytest.mark.parametrize("names", ["Y", "R", "RGB", "RGBA"])
def test_exr(exr_reader, names):
    planes = {name: numbers() + place for place, name in enumerate(names)}
    planes[names[0]][0, 0] = np.inf
    values = exr_reader(exr(planes))
    if len(names) == 1:
        assert np.array_equal(values, planes[names])
    else:
        assert np.array_equal(values, np.stack([planes[name] for name in "RGB"], axis=-1))


def test_exr_that_opencv_wrote(exr_reader, tmp_path):
    np.save(tmp_path / "a.npy", numbers(3))
    code = "import cv2, numpy as np; cv2.imwrite('b.exr', np.load('a.npy')[..., ::-1])"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT, check=True)
    assert np.array_equal(exr_reader((tmp_path / "b.exr").read_bytes()), numbers(3))


def test_damaged_exr(exr_reader):
    good = exr({"Y": numbers()})
    with pytest.raises(RejectedInput, match="channels 'Z'"):
        exr_reader(exr({"Z": numbers()}))
    assert verdict(exr_reader, exr({"Y": numbers()}, (100_000, 100_000))) is Reason.BOMB
    assert verdict(exr_reader, exr({"Y": numbers()}, (-5, 20))) is Reason.BAD_ANNOTATION
    assert verdict(exr_reader, exr({"Y": numbers()}, version=0x1002)) is Reason.BAD_ANNOTATION
    assert verdict(exr_reader, good[: good.index(b"lineOrder")] + b"\xff" * 40) is Reason.BAD_ANNOTATION
    for cut in (5, 12, 30, 100, 250):
        assert verdict(read_exr_header, good[:cut]) is Reason.BAD_ANNOTATION
    # A child that breaks is replaced.
    assert np.array_equal(exr_reader(good), numbers())


@pytest.mark.slow
def test_flipped_bytes_in_an_exr_cost_one_reject(exr_reader):
    good = bytearray(exr({"Y": numbers()}))
    rng = np.random.default_rng(0)
    verdicts: Counter[str] = Counter()
    for _ in range(200):
        bad = bytearray(good)
        for place in rng.integers(4, 700, 4).tolist():
            bad[place] = int(rng.integers(256))
        try:
            verdicts[str(exr_reader(bytes(bad)).shape)] += 1
        except RejectedInput as rejected:
            verdicts[str(rejected.reason)] += 1
    assert set(verdicts) <= {"(20, 30)", "bad_annotation", "bomb", "crashed"}
    assert verdicts["bad_annotation"] > 0
    assert np.array_equal(exr_reader(bytes(good)), numbers())


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_flipped_bytes_never_raise_anything_else():
    stream = io.BytesIO()
    Image.fromarray(numbers()).save(stream, "TIFF")
    colours = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, 3)).astype(np.uint16)
    rng = np.random.default_rng(1)
    for good in (npy(numbers()), pfm(numbers()), stream.getvalue(), image(colours), exr({"Y": numbers()})):
        read = read_exr_header if good.startswith(EXR_MAGIC) else decode_values
        refused = 0
        for _ in range(150):
            bad = bytearray(good)
            for place in rng.integers(0, min(len(bad), 200), 3).tolist():
                bad[place] = int(rng.integers(256))
            try:
                read(bytes(bad))
            except RejectedInput:
                refused += 1
        assert refused > 0
