"""Maps of every form become the pictures that they should, at any size that fits, and bad ones are refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from annotated_support import write_picture
from map_file_support import CROP, HEIGHT, WIDTH, config, exr, ids, pfm, ramp, read, reasons
from numpy.typing import NDArray
from PIL import Image
from tests_support import smooth_photo

from uvd.renderers.palette import PALETTE
from uvd.sequences import Example, Reject, Seeds, fit
from uvd.sequences.reject import RejectedInput
from uvd.sources.annotated.config import AnnotatedConfig
from uvd.sources.annotated.drawn_maps import check_fit, fitted
from uvd.sources.annotated.source import AnnotatedSource


def form(root: Path, **settings: Any) -> AnnotatedConfig:
    """Photos in `img`, maps of one role, `map`, in `maps`."""
    return config(root, images="img/*.*", maps={"map": {"files": "maps/*.*", **settings}})


def drawn(root: Path, stored: NDArray | bytes, suffix: str = ".png", **settings: Any) -> NDArray[np.uint8]:
    """The picture of one map beside a photo of 320x256."""
    write_picture(root / "img/a.png", smooth_photo(1, HEIGHT, WIDTH))
    write_map(root / f"maps/a{suffix}", stored)
    settings_of = config(root, images="img/*.png", maps={"map": {"files": f"maps/*{suffix}", **settings}})
    (example,), rejects = read(settings_of)
    assert rejects == []
    photo, picture = example.pictures
    assert (photo.role, picture.role) == ("image", "map")
    assert picture.drawn == (settings["form"] != "picture")
    return picture.pixels


def refusal(root: Path, stored: NDArray | bytes, suffix: str = ".png", **settings: Any) -> Reject:
    """The one reject of one map beside a photo of 320x256."""
    write_picture(root / "img/a.png", smooth_photo(1, HEIGHT, WIDTH))
    write_map(root / f"maps/a{suffix}", stored)
    maps = {"map": {"files": f"maps/*{suffix}", **settings}}
    examples, (reject,) = read(config(root, images="img/*.png", maps=maps))
    assert examples == []
    assert reject.origin == "img/a.png"
    assert f"maps/a{suffix}" in reject.detail
    return reject


def write_map(path: Path, stored: NDArray | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(stored, bytes):
        path.write_bytes(stored)
    elif path.suffix == ".npy":
        np.save(path, stored)
    else:
        write_picture(path, stored)


def names_of(pictures: NDArray[np.uint8]) -> set[tuple[int, ...]]:
    return set(map(tuple, pictures.reshape(-1, 3).tolist()))


# Labels


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_ids_are_places_in_the_palette(tmp_path, dtype):
    picture = drawn(tmp_path, ids().astype(dtype), form="labels", void=[255])
    expected = np.where(ids() == 255, 0, ids())[CROP]
    assert np.array_equal(picture, PALETTE[expected])


def test_void_first_then_added(tmp_path):
    picture = drawn(tmp_path, ids(), form="labels", void=[255, 3], add=1)
    expected = np.where(np.isin(ids(), (255, 3)), 0, ids() + 1)[CROP]
    assert np.array_equal(picture, PALETTE[expected])


@pytest.mark.parametrize("encoding", ["rgb24", "ade20k"])
def test_ids_in_colours(tmp_path, encoding):
    label = ids().astype(np.int64) * 7
    planes = (label % 256, label // 256, label * 0) if encoding == "rgb24" else (label // 256 * 10, label % 256, label)
    stored = np.stack(planes, axis=-1).astype(np.uint8)
    assert np.array_equal(drawn(tmp_path, stored, form="labels", encoding=encoding), PALETTE[label[CROP]])


@pytest.mark.parametrize(("value", "add"), [(2048, 0), (2047, 1), (65_535, 0)])
def test_ids_beyond_the_palette_even_outside_the_crop(tmp_path, value, add):
    stored = np.ones((HEIGHT, WIDTH), np.uint16)
    stored[0, 0] = value
    reject = refusal(tmp_path, stored, form="labels", add=add)
    assert reject.reason == "bad_annotation"
    assert str(value) in reject.detail


def test_negative_ids(tmp_path):
    stored = np.ones((HEIGHT, WIDTH), np.int32)
    stored[0, 0] = -1
    assert "label id -1" in refusal(tmp_path, stored, ".npy", form="labels").detail
    assert drawn(tmp_path, stored, ".npy", form="labels", void=[-1]).any()


def test_each_class_alone(tmp_path):
    write_picture(tmp_path / "img/a.png", smooth_photo(1, HEIGHT, WIDTH))
    stored = ids() % 3
    write_picture(tmp_path / "maps/a.png", np.where(ids() == 255, 255, stored).astype(np.uint8))
    examples, rejects = read(form(tmp_path, form="labels", void=[255], foreground=True))
    assert rejects == []
    assert [example.group for example in examples] == ["1", "2"]
    for place, example in enumerate(examples, start=1):
        white = (ids() != 255) & (stored == place)
        assert np.array_equal(example.pictures[1].pixels, np.repeat(white[CROP][..., None] * np.uint8(255), 3, axis=2))


def test_a_map_of_void_alone_is_refused(tmp_path):
    write_picture(tmp_path / "img/a.png", smooth_photo(1, HEIGHT, WIDTH))
    write_picture(tmp_path / "maps/a.png", np.full((HEIGHT, WIDTH), 255, np.uint8))
    _, rejects = read(form(tmp_path, form="labels", void=[255]))
    assert reasons(rejects) == {"img/a.png": "no_annotation"}


@pytest.mark.parametrize("factor", [0.5, 2])
def test_labels_of_another_size_are_never_blended(tmp_path, factor):
    stored = cv2.resize(ids().astype(np.uint8), None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
    picture = drawn(tmp_path, stored, form="labels", void=[255])
    assert names_of(picture) == set(map(tuple, PALETTE[:10].tolist()))
    expected = PALETTE[np.where(ids() == 255, 0, ids())[CROP]]
    assert (picture != expected).any(axis=-1).mean() < 0.05


# Colours, pictures, edges


def test_colours_are_taken_as_they_are(tmp_path):
    stored = np.stack([ids(), ids() * 3 % 256, ids() * 5 % 256], axis=-1).astype(np.uint8)
    assert np.array_equal(drawn(tmp_path, stored, form="colours"), stored[CROP])


def test_pictures_are_resized_as_photos(tmp_path):
    larger = smooth_photo(2, HEIGHT * 4, WIDTH * 4)
    picture = drawn(tmp_path, larger, form="picture")
    expected = cv2.resize(larger[:, 128:1152], (256, 256), interpolation=cv2.INTER_AREA)
    assert np.array_equal(picture, expected)


def test_edges_in_both_polarities(tmp_path):
    stored = np.full((HEIGHT, WIDTH), 255, np.uint8)
    stored[100:110] = 0
    picture = drawn(tmp_path, stored, form="edges", invert=True)
    assert (picture[100:110] == 255).all()
    assert not picture[:100].any()
    assert np.array_equal(drawn(tmp_path, 255 - stored, form="edges"), picture)
    assert "colours" in refusal(tmp_path, smooth_photo(1, HEIGHT, WIDTH), form="edges").detail


# Depth and disparity


def check_ramp(picture: NDArray[np.uint8]) -> None:
    inverse = 1 / ramp()[0, 32:288]
    expected = 1 + (inverse - inverse.min()) / (inverse.max() - inverse.min()) * 254
    assert np.abs(picture[..., 0] - expected).max() <= 1.3
    assert (picture[:, 0] == 255).all()
    assert (picture[:, -1] == 1).all()


@pytest.mark.parametrize("scale", [256, 1000, 5000])
def test_depth_in_the_scales_of_data_sets(tmp_path, scale):
    check_ramp(drawn(tmp_path, np.rint(ramp() * scale).astype(np.uint16), form="depth", scale=scale))


@pytest.mark.parametrize("suffix", [".npy", ".pfm", ".tif", ".exr"])
def test_depth_as_floats(tmp_path, suffix):
    stored = ramp().astype(np.float32)
    stream = io.BytesIO()
    Image.fromarray(stored).save(stream, "TIFF")
    files: dict[str, Any] = {".npy": stored, ".pfm": pfm(stored), ".tif": stream.getvalue(), ".exr": exr({"Y": stored})}
    check_ramp(drawn(tmp_path, files[suffix], suffix, form="depth"))


def test_near_and_far(tmp_path):
    stored = np.rint(ramp() * 1000).astype(np.uint16)
    stored[:128] = 65_535
    picture = drawn(tmp_path, stored, form="depth", scale=1000, near=2, far=4)
    assert (picture[:128] == 1).all()
    assert (picture[128:, :64] == 255).all()
    assert (picture[128:, 192:] == 1).all()


@pytest.mark.parametrize(
    ("bad", "dtype", "settings"),
    [
        (0, np.uint16, {}),
        (60_000, np.uint16, {"invalid": [60_000]}),
        (0, np.float32, {}),
        (np.nan, np.float32, {}),
        (np.inf, np.float32, {}),
        (-99.99, np.float32, {"invalid": [-99.99]}),
        (99.99, np.float32, {"invalid": [99.99]}),
    ],
)
def test_unknown_depth_is_black_and_stretches_nothing(tmp_path, bad, dtype, settings):
    scale = 1000 if dtype is np.uint16 else 1
    stored = (ramp() * scale).round(3).astype(dtype)
    stored[:100] = bad
    picture = drawn(tmp_path, stored, ".npy", form="depth", scale=scale, **settings)
    assert not picture[:100].any()
    assert picture[100:].all()
    assert (picture[100:, 0] == 255).all()
    assert (picture[100:, -1] == 1).all()


def test_min_and_max_are_those_of_the_crop(tmp_path):
    stored = ramp().astype(np.float32)
    stored[:, :32], stored[:, 288:] = 0.01, 1000
    check_ramp(drawn(tmp_path, stored, ".npy", form="depth"))


def test_disparity_is_inverse_depth_already(tmp_path):
    stored = np.rint(1000 / ramp()).astype(np.uint16)
    stored[:50] = 0
    picture = drawn(tmp_path, stored, form="disparity")
    assert not picture[:50].any()
    check_ramp(picture[50:])


# Normals


@pytest.mark.parametrize(
    ("convention", "vector"), [("opengl", (0, 0.6, 0.8)), ("directx", (0, -0.6, 0.8)), ("opencv", (0, -0.6, -0.8))]
)
@pytest.mark.parametrize("stored_as", [np.uint8, np.uint16, np.float32])
def test_normals_of_all_conventions(tmp_path, convention, vector, stored_as):
    stored = np.broadcast_to(np.array(vector), (HEIGHT, WIDTH, 3)).copy()
    if stored_as is not np.float32:
        stored = np.rint((stored + 1) / 2 * np.iinfo(stored_as).max)
    stored[:100] = 0
    suffix = ".npy" if stored_as is np.float32 else ".png"
    picture = drawn(tmp_path, stored.astype(stored_as), suffix, form="normals", convention=convention)
    assert not picture[:100].any()
    assert np.abs(picture[100:].astype(int) - (128, 204, 230)).max() <= 1


def test_grey_is_no_normal(tmp_path):
    stored = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    stored[100:] = (128, 128, 255)
    picture = drawn(tmp_path, stored, form="normals")
    assert not picture[:100].any()
    assert (picture[100:, :, 2] == 255).all()
    assert "shape" in refusal(tmp_path, stored[..., 0], form="normals").detail


# Sizes


@pytest.mark.parametrize(
    ("photo", "size", "fits"),
    [
        ((480, 640), (480, 640), True),
        ((480, 640), (240, 320), True),
        ((643, 960), (321, 480), True),
        ((75, 100), (302, 403), True),
        ((480, 640), (640, 480), False),
        ((480, 640), (480, 320), False),
        ((480, 640), (476, 640), False),
        ((480, 640), (12, 16), False),
        ((1000, 1000), (996, 1000), False),
    ],
)
def test_the_rule_of_sizes(photo, size, fits):
    if fits:
        check_fit(photo, size)
        return
    with pytest.raises(RejectedInput, match=f"{size[1]}x{size[0]} pixels"):
        check_fit(photo, size)


@pytest.mark.parametrize("resize", ["center_crop", "stretch", "random_crop"])
def test_a_map_of_another_size_keeps_its_place(resize):
    rng = np.random.default_rng(0)
    for photo, size in (((643, 960), (321, 480)), ((75, 100), (302, 403)), ((4000, 16), (8000, 32))):
        for _ in range(20):
            transform = fit(photo[1], photo[0], resize, rng)
            rows = np.repeat(np.arange(size[0], dtype=np.float64)[:, None] / size[0], size[1], axis=1)
            found = fitted(transform, photo, size).labels(rows)
            assert found.shape == (256, 256)
            wanted = (transform.y + (np.arange(256) + 0.5) / 256 * transform.height) / photo[0]
            assert np.abs(found[:, 0] - wanted).max() < 2 / min(photo[0], size[0])


def test_a_photo_that_is_turned_upright(tmp_path):
    upright = smooth_photo(1, 300, 200)
    stored = Image.fromarray(np.rot90(upright).copy())
    exif = stored.getexif()
    exif[0x0112] = 6
    (tmp_path / "img").mkdir()
    for name in ("upright", "raw"):
        stored.save(tmp_path / f"img/{name}.jpg", exif=exif, quality=95)
    label = np.ones((300, 200), np.uint8)
    label[:150] = 2
    write_picture(tmp_path / "maps/upright.png", label)
    write_picture(tmp_path / "maps/raw.png", np.rot90(label).copy())
    settings = config(tmp_path, images="img/*.jpg", maps={"map": {"files": "maps/*.png", "form": "labels"}})
    (example,), (reject,) = read(settings)
    assert example.pictures[0].size == (200, 300)
    assert names_of(example.pictures[1].pixels[:120]) == {tuple(PALETTE[2])}
    assert (reject.origin, reject.reason) == ("img/raw.jpg", "bad_annotation")
    assert "before it is turned upright" in reject.detail


# Bad files


@pytest.mark.parametrize("kind", ["labels", "colours", "depth", "disparity", "normals", "edges", "picture"])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [("text", "not_image"), ("cut", "truncated"), ("size", "bad_annotation"), ("gone", "missing"), ("large", "bomb")],
)
def test_a_bad_map_costs_its_photo_only(tmp_path, kind, damage, reason):
    stored = np.repeat(ids()[..., None].astype(np.uint8), 3, axis=2) if kind != "labels" else ids()
    if kind == "normals":
        stored[..., 2] = 255
    for name in "ab":
        write_picture(tmp_path / f"img/{name}.png", smooth_photo(1, HEIGHT, WIDTH))
        write_picture(tmp_path / f"maps/{name}.png", stored.astype(np.uint8))
    bad = tmp_path / "maps/b.png"
    settings = form(tmp_path, form=kind).model_copy(update={"max_pixels": 100_000})
    if damage == "text":
        bad.write_text("no map of anything")
    elif damage == "cut":
        bad.write_bytes(bad.read_bytes()[: bad.stat().st_size // 2])
    elif damage == "size":
        write_picture(bad, stored[:200].astype(np.uint8))
    elif damage == "large":
        write_picture(bad, np.zeros((HEIGHT * 2, WIDTH * 2), np.uint8))
    (unit,) = AnnotatedSource(settings).plan()
    if damage == "gone":
        bad.unlink()
    outcomes = list(AnnotatedSource(settings).read(unit, Seeds(0)))
    (reject,) = (outcome for outcome in outcomes if isinstance(outcome, Reject))
    assert (reject.origin, str(reject.reason)) == ("img/b.png", reason)
    assert "maps/b.png" in reject.detail
    assert {outcome.pictures[0].origin for outcome in outcomes if isinstance(outcome, Example)} == {"img/a.png"}
