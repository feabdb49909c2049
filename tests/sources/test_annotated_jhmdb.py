"""JHMDB: joints and masks of .mat files meet frames by number; files that are no .mat cost their windows, no more."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotated_support import (
    HEIGHT,
    SIDE,
    WIDTH,
    colour_on,
    config,
    ingest,
    numbers,
    object_mask,
    read,
    reasons,
    scene,
    write_picture,
)
from numpy.typing import NDArray
from scipy.io import savemat

from uvd.renderers.skeletons import OPENPOSE_BODY
from uvd.sequences import Example, Reject, Seeds
from uvd.sequences.reject import RejectedInput
from uvd.sources.annotated_video import mat
from uvd.sources.annotated_video.jhmdb import OPENPOSE_OF_JHMDB
from uvd.sources.annotated_video.mat import read_variable
from uvd.sources.annotated_video.source import AnnotatedVideoSource
from uvd.sources.base import SourceError

NAMES = (
    *("neck", "belly", "face", "right_shoulder", "left_shoulder", "right_hip", "left_hip", "right_elbow"),
    *("left_elbow", "right_knee", "left_knee", "right_wrist", "left_wrist", "right_ankle", "left_ankle"),
)
"""JHMDB's 15 joints in its order."""
OPENPOSE = (
    *("face", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist"),
    *("right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle"),
)
"""OpenPose's first 14, by what JHMDB calls them."""
BODY = {
    "neck": (0, 14), "belly": (0, 30), "face": (0, 0), "right_shoulder": (-12, 14), "left_shoulder": (12, 14),
    "right_hip": (-8, 44), "left_hip": (8, 44), "right_elbow": (-22, 28), "left_elbow": (22, 28),
    "right_knee": (-10, 66), "left_knee": (10, 66), "right_wrist": (-32, 42), "left_wrist": (32, 42),
    "right_ankle": (-12, 88), "left_ankle": (12, 88),
}  # fmt: skip
"""Offsets of a person who faces us, so that the right side is on the left."""


def positions(number: int) -> NDArray[np.float64]:
    """`(15, 2)` centres of pixels, counted from 1; the person walks to the right."""
    return np.add([BODY[name] for name in NAMES], (60.0 + 6 * number, 31.0))


def write_clip(root: Path, clip: str, frames: range, columns: int, *, compress: bool = True, **more: Any) -> None:
    """Frames of `scene`; joints as JHMDB has them; the mask of track 0."""
    for number in frames:
        write_picture(root / "Rename_Images" / clip / f"{number:05d}.png", scene(number))
    joints = np.stack([positions(number).T for number in range(1, columns + 1)], axis=2)
    content = {"pos_img": joints, "pos_world": joints / 10, "scale": np.ones((1, columns)), "viewpoint": "S"} | more
    save(root, clip, "joint_positions", content, compress)
    masks = np.stack([object_mask(number, 0) for number in range(1, columns + 1)], axis=2)
    save(root, clip, "puppet_mask", {"part_mask": masks.astype(np.uint8)}, compress)


def save(root: Path, clip: str, kind: str, content: dict[str, Any], compress: bool = True) -> Path:
    path = root / ("joint_positions" if kind == "joint_positions" else "puppet_mask") / clip / f"{kind}.mat"
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, content, do_compression=compress)
    return path


def test_joints_are_mapped_by_name():
    """The belly has no place in OpenPose; the face is taken for the nose."""
    for joint, name in enumerate(NAMES):
        expected = OPENPOSE.index(name) if name in OPENPOSE else -1
        assert OPENPOSE_OF_JHMDB[joint] == expected, name


@pytest.mark.parametrize("compress", [True, False])
def test_windows_of_both_annotations(tmp_path, compress):
    write_clip(tmp_path, "walk/a", range(1, 13), 12, compress=compress)
    examples, rejects = read(config(tmp_path, kind="jhmdb"))
    assert rejects == []
    found = [(example.pictures[1].role, numbers(example)) for example in examples]
    first, second = [*range(1, 9)], [*range(9, 13)]
    assert found == [("pose", first), ("pose", second), ("mask", first), ("mask", second)]
    assert [example.pictures[1].role for example in read(config(tmp_path, kind="jhmdb", render=["mask"]))[0]] == [
        "mask",
        "mask",
    ]


def test_skeletons_lie_on_their_people(tmp_path):
    """Joint circles have OpenPose's colours at the place that the file says, scaled with the frame."""
    write_clip(tmp_path, "walk/a", range(1, 5), 4)
    (example,), _ = read(config(tmp_path, kind="jhmdb", render=["pose"]))
    crop, scale = (WIDTH - HEIGHT) // 2, 256 / HEIGHT
    for drawn in example.pictures[1::2]:
        xy = (positions(drawn.index or 0) - 0.5 - (crop, 0)) * scale
        for place, name in enumerate(OPENPOSE):
            x, y = xy[NAMES.index(name)]
            assert tuple(drawn.pixels[int(y), int(x)]) == OPENPOSE_BODY.joint_colours[place], name
        assert not drawn.pixels[:20].any()


def test_masks_lie_on_their_objects(tmp_path):
    write_clip(tmp_path, "walk/a", range(1, 5), 4)
    (example,), _ = read(config(tmp_path, kind="jhmdb", render=["mask"]))
    for frame, mask in zip(example.pictures[::2], example.pictures[1::2], strict=True):
        assert colour_on(frame.pixels, mask.pixels, 0) == (255, 255, 255)
        assert abs(int(mask.pixels[..., 0].astype(bool).sum()) - (SIDE * 256 / HEIGHT) ** 2) < 300


@pytest.mark.parametrize("layout", ["interleaved", "grouped"])
def test_both_layouts_end_to_end_and_no_class_name_but_in_origins(tmp_path, layout):
    write_clip(tmp_path / "in", "pour/a", range(1, 9), 8)
    counts, refused, stored = ingest(config(tmp_path / "in", kind="jhmdb", layouts={layout: 1}), tmp_path / "d")
    assert (counts["inputs"], counts["used"], refused, len(stored)) == (2, 2, {}, 2)
    for sequence, role in zip(stored, ("pose", "mask"), strict=True):
        names = ["frame", role] * 8
        assert sequence.row["roles"] == (names if layout == "interleaved" else ["frame"] * 8 + [role] * 8)
        each = [*range(1, 9)]
        pairs = [number for number in each for _ in range(2)]
        assert sequence.row["indices"] == (pairs if layout == "interleaved" else each * 2)
        assert not any("pour" in str(sequence.row[name]) for name in sequence.row if name != "origins")
        assert not any("pour" in member.name for member in sequence.members)


def test_joints_outside_the_frame_are_not_drawn(tmp_path):
    joints = np.stack([positions(n).T for n in (1, 2)], axis=2)
    joints[:, NAMES.index("right_wrist")] = -3
    joints[0, NAMES.index("left_wrist")] = WIDTH + 1
    joints[:, NAMES.index("face"), 1] = np.nan
    write_clip(tmp_path, "walk/a", range(1, 3), 2, pos_img=joints)
    (example,), _ = read(config(tmp_path, kind="jhmdb", render=["pose"]))
    pixels = example.pictures[1].pixels.reshape(-1, 3).tolist()
    assert list(OPENPOSE_BODY.joint_colours[OPENPOSE.index("right_wrist")]) not in pixels
    assert list(OPENPOSE_BODY.joint_colours[OPENPOSE.index("right_elbow")]) in pixels


def test_frames_without_columns_and_columns_without_frames(tmp_path):
    """10 frames and 9 columns: the tenth is left out of its window. 3 frames and 5 columns. A number left out."""
    write_clip(tmp_path, "walk/a", range(1, 11), 9)
    write_clip(tmp_path, "walk/b", range(1, 4), 5)
    write_clip(tmp_path, "walk/c", range(1, 5), 4)
    (tmp_path / "Rename_Images/walk/c/00002.png").unlink()
    write_clip(tmp_path, "walk/d", range(9, 11), 4)
    examples, rejects = read(config(tmp_path, kind="jhmdb", render=["pose"]))
    assert [(e.group, numbers(e)) for e in examples] == [
        ("walk/a", [1, 2, 3, 4, 5, 6, 7, 8]),
        ("walk/a", [9]),
        ("walk/b", [1, 2, 3]),
        ("walk/c", [1, 3, 4]),
    ]
    joints = "joint_positions/walk/{}/joint_positions.mat#{}"
    assert reasons(rejects) == {
        joints.format("a", 9): "no_annotation",
        joints.format("b", 1): "missing",
        "Rename_Images/walk/c/00002.png": "missing",
        "Rename_Images/walk/d/00001.png": "missing",
        joints.format("d", 9): "no_annotation",
    }
    assert {reject.origin: reject.detail for reject in rejects}[joints.format("a", 9)].endswith("none for frame 10")


def test_clips_without_partner_and_frames_without_number(tmp_path):
    write_clip(tmp_path, "walk/a", range(1, 3), 2)
    write_clip(tmp_path, "walk/frames", range(1, 3), 2)
    write_clip(tmp_path, "walk/joints", range(1, 3), 2)
    (tmp_path / "joint_positions/walk/frames/joint_positions.mat").unlink()
    for path in (tmp_path / "Rename_Images/walk/joints").iterdir():
        path.unlink()
    (tmp_path / "Rename_Images/walk/joints").rmdir()
    for name in ("cover.png", "1.png", "99999999999.png", "00000.png"):
        write_picture(tmp_path / "Rename_Images/walk/a" / name, scene(1))
    (tmp_path / "Rename_Images/walk/empty").mkdir()
    examples, rejects = read(config(tmp_path, kind="jhmdb", render=["pose"]))
    assert [(e.group, numbers(e)) for e in examples] == [("walk/a", [1, 2])]
    assert reasons(rejects) == {
        **{f"Rename_Images/walk/a/{n}.png": "no_annotation" for n in ("cover", "1", "99999999999", "00000")},
        "Rename_Images/walk/frames": "no_annotation",
        "Rename_Images/walk/empty": "missing",
        "joint_positions/walk/joints/joint_positions.mat": "missing",
    }


def test_a_frame_number_of_a_thousand_million_costs_nothing(tmp_path):
    write_clip(tmp_path, "walk/a", range(1, 3), 2)
    write_picture(tmp_path / "Rename_Images/walk/a/999999999.png", scene(1))
    examples, rejects = read(config(tmp_path, kind="jhmdb", render=["pose"]))
    assert [numbers(example) for example in examples] == [[1, 2]]
    assert len(rejects) == 2


def test_a_missing_kind_of_annotation_is_an_error_that_says_what_to_do(tmp_path):
    write_clip(tmp_path, "walk/a", range(1, 3), 2)
    (tmp_path / "puppet_mask").rename(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match="leave 'mask' out of render"):
        list(AnnotatedVideoSource(config(tmp_path, kind="jhmdb")).plan())


# --- .mat files that are none -----------------------------------------------------------------------------------------


def refusal(content: bytes, name: str = "pos_img") -> RejectedInput:
    with pytest.raises(RejectedInput) as caught:
        read_variable(content, name)
    return caught.value


def saved(content: dict[str, Any], compress: bool = False) -> bytes:
    file = BytesIO()
    savemat(file, content, do_compression=compress)
    return file.getvalue()


def header() -> bytes:
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"


def matrix(name: bytes, dims: tuple[int, ...], values: bytes, values_bytes: int | None = None) -> bytes:
    """A miMATRIX element of doubles; `values_bytes` lies about the length."""
    flags = struct.pack("<IIII", 6, 8, 6, 0)
    shape = struct.pack(f"<II{len(dims)}i", 5, 4 * len(dims), *dims) + b"\0" * (4 * (len(dims) % 2))
    called = struct.pack("<II", 1, len(name)) + name.ljust(-(-len(name) // 8) * 8, b"\0")
    data = struct.pack("<II", 9, len(values) if values_bytes is None else values_bytes) + values
    return struct.pack("<II", 14, len(flags + shape + called + data)) + flags + shape + called + data


def compressed(element: bytes) -> bytes:
    packed = zlib.compress(element)
    return struct.pack("<II", 15, len(packed)) + packed


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8", "?"])
def test_what_scipy_writes_is_read(dtype, compress):
    values = (np.arange(2 * 15 * 7).reshape(2, 15, 7) % 50).astype(dtype)
    content = {"first": "text", "pos_img": values, "x": values[:, :, 0].astype("u1"), "s": {"a": 1}, "z": values[0]}
    data = saved(content, compress)
    for name in ("pos_img", "x", "z"):
        assert np.array_equal(read_variable(data, name), content[name])


def test_both_byte_orders():
    values = np.arange(60.0)
    element = matrix(b"pos_img", (2, 15, 2), values.tobytes())
    for data in (header() + element, header() + compressed(element)):
        assert np.array_equal(read_variable(data, "pos_img"), values.reshape(2, 15, 2, order="F"))
    big = (
        struct.pack(">IIII", 6, 8, 6, 0) + struct.pack(">IIii", 5, 8, 1, 2) + struct.pack(">I", 0x00010001) + b"x\0\0\0"
    )
    big += struct.pack(">IIhh", 3, 4, -5, 7) + b"\0" * 4  # doubles, stored in two bytes each
    data = header()[:124] + b"\x01\x00MI" + struct.pack(">II", 14, len(big)) + big
    assert read_variable(data, "x").tolist() == [[-5, 7]]


def test_only_the_wanted_variable_is_inflated(monkeypatch):
    inflated = []
    monkeypatch.setattr(
        mat, "_inflate", lambda packed, most, real=mat._inflate: inflated.append(most) or real(packed, most)
    )
    bomb = compressed(matrix(b"other", (125_000, 1), b"\0" * 1_000_000))
    wanted = compressed(matrix(b"pos_img", (1, 1), b"\0" * 8))
    assert read_variable(header() + bomb + wanted, "pos_img").shape == (1, 1)
    assert sum(inflated) < 10_000


def test_an_array_without_values():
    assert read_variable(saved({"pos_img": np.zeros((2, 15, 0))}), "pos_img").size == 0


def test_flipped_bytes_never_do_worse_than_a_reject():
    """SciPy's reader dies of some of these."""
    rng = np.random.default_rng(0)
    values = rng.random((2, 15, 9))
    for compress in (True, False):
        data = saved({"pos_img": values, "viewpoint": "SW", "s": {"a": np.zeros(3)}}, compress)
        read, refused = 0, set()
        for _ in range(2000):
            broken = bytearray(data)
            for _ in range(rng.integers(1, 6)):
                broken[rng.integers(116, min(len(data), 400))] = rng.integers(256)
            try:
                read += read_variable(bytes(broken), "pos_img").nbytes <= 1 << 20
            except RejectedInput as rejected:
                refused.add(str(rejected.reason))
        assert refused <= {"bad_annotation", "bomb"}
        assert compress or read > 100


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a MATLAB file"),
        (b"no matrix\n" * 50, "not a MATLAB file"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 500, "not a MATLAB file"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 500, "version 7.3"),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\0" * 500, "version 7.3"),
        (struct.pack("<5i", 0, 1, 1, 0, 8) + b"pos_img\0" + b"\0" * 200, "not a MATLAB file"),
        (header(), "no variable pos_img"),
        (header() + matrix(b"other", (1, 1), b"\0" * 8), "no variable pos_img"),
        (header() + b"\xff" * 64, "damaged"),
        (header() + struct.pack("<II", 15, 40) + b"\xff" * 40, "damaged"),
        (header() + compressed(b"\0" * 1000), "damaged"),
        (header() + matrix(b"pos_img", (2, 15, 1), b"\0" * 100)[:-40], "damaged"),
        (header() + matrix(b"pos_img", (-1, 15, 1), b"\0" * 8), "damaged"),
    ],
)
def test_files_that_are_no_mat(content, words):
    refused = refusal(content)
    assert refused.reason == "bad_annotation"
    assert words in refused.detail


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"pos_img": "text"}, "is a text"),
        ({"pos_img": {"a": np.zeros(3)}}, "is a struct"),
        ({"pos_img": np.array([1, "a"], object)}, "is a cell"),
        ({"pos_img": np.array([1 + 2j])}, "complex"),
    ],
)
def test_variables_that_are_no_numbers(content, words):
    refused = refusal(saved(content))
    assert refused.reason == "bad_annotation"
    assert words in refused.detail


def test_bombs():
    """Sizes that are only claimed; 138 MB of zeros in 140 kB; data of 4 GB claimed within an array of 64 bytes."""
    claimed = header() + compressed(matrix(b"pos_img", (2, 15, 70_000_000), b""))
    assert refusal(claimed).reason == "bomb"
    real = saved({"pos_img": np.zeros((2, 15, 4_600_000), np.uint8)}, compress=True)
    assert len(real) < 200_000
    assert refusal(real).reason == "bomb"
    for pack in (bytes, compressed):
        lying = header() + pack(matrix(b"pos_img", (2, 4), b"\0" * 64, 0xFFFFFF00))
        assert "beyond the end" in refusal(lying).detail
    many = header() + matrix(b"a", (1, 1), b"\0" * 8) * 1001
    assert "variables" in refusal(many).detail


def test_a_large_file_is_not_opened(tmp_path):
    write_clip(tmp_path, "walk/a", range(1, 3), 2)
    _, rejects = read(config(tmp_path, kind="jhmdb", render=["pose"], max_bytes=300))
    assert [reject.reason for reject in rejects] == ["too_large"]


@pytest.mark.parametrize("damage", ["text", "shape", "frame size", "gone"])
def test_a_bad_file_costs_its_windows_and_no_more(tmp_path, damage):
    for clip in ("walk/a", "walk/b"):
        write_clip(tmp_path, clip, range(1, 11), 10)
    source = AnnotatedVideoSource(config(tmp_path, kind="jhmdb"))
    path = tmp_path / "puppet_mask/walk/a/puppet_mask.mat"
    reason = "bad_annotation"
    (unit,) = source.plan()
    if damage == "text":
        path.write_text("no mask\n" * 40)
    elif damage == "shape":
        save(tmp_path, "walk/a", "puppet_mask", {"part_mask": np.zeros((2, 2, 2, 2), np.uint8)})
    elif damage == "frame size":
        save(tmp_path, "walk/a", "puppet_mask", {"part_mask": np.zeros((WIDTH, HEIGHT, 10), np.uint8)})
    else:
        path.unlink()
        reason = "missing"

    outcomes = list(source.read(unit, Seeds(0)))
    origin = "puppet_mask/walk/a/puppet_mask.mat#{}"
    rejects = [item for item in outcomes if isinstance(item, Reject)]
    assert reasons(rejects) == {origin.format(1): reason, origin.format(9): reason}
    used = [(item.group, item.pictures[1].role) for item in outcomes if isinstance(item, Example)]
    assert used == [("walk/a", "pose")] * 2 + [("walk/b", "pose")] * 2 + [("walk/b", "mask")] * 2
