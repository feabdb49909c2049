"""Hand14K: flat folders in which names say clip and frame number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from annotated_support import HEIGHT, WIDTH, colour_on, config, ingest, numbers, object_mask, read, reasons, scene
from annotated_support import write_picture as write

from uvd.renderers.palette import PALETTE
from uvd.sources.annotated_video.hand14k import clip_and_number
from uvd.sources.annotated_video.source import AnnotatedVideoSource
from uvd.sources.base import SourceError

WHITE = (255, 255, 255)


def write_hands(
    root: Path, clip: str, frames: tuple[int, ...], ids: tuple[int, ...] = (255,), form: str = "_{}"
) -> None:
    """Track k has id `ids[k]`."""
    for number in frames:
        name = clip + form.format(number)
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        for track, identity in enumerate(ids):
            mask[object_mask(number, track)] = identity
        write(root / "Images" / f"{name}.jpg", scene(number, tuple(range(len(ids)))))
        write(root / "Masks" / f"{name}.png", mask)


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("OP01-R01-PastaSalad_000123", ("OP01-R01-PastaSalad", 123)),
        ("OP01-R01-PastaSalad-F002340", ("OP01-R01-PastaSalad", 2340)),
        ("P7_9", ("P7", 9)),
        ("clip000", ("clip", 0)),
        ("42", ("", 42)),
        ("a_4294967296", None),
        ("OP01-R01-PastaSalad", None),
        ("a_12b", None),
        ("a_٣", None),
    ],
)
def test_names_say_clip_and_number(stem, expected):
    assert clip_and_number(stem) == expected


def test_frames_go_by_number_and_gaps_end_no_clip(tmp_path):
    write_hands(tmp_path, "b", (2, 10, 100))
    write_hands(tmp_path, "a", (7, 8, 9, 10, 11, 12, 300, 4000, 20000, 100000))
    examples, rejects = read(config(tmp_path, kind="hand14k"))
    assert rejects == []
    assert [(example.group, numbers(example)) for example in examples] == [
        ("a", [7, 8, 9, 10, 11, 12, 300, 4000]),
        ("a", [20000, 100000]),
        ("b", [2, 10, 100]),
    ]
    assert examples[2].pictures[1].origin == "Masks/b_2.png"


@pytest.mark.parametrize("value", [1, 255])
@pytest.mark.parametrize("layout", ["interleaved", "grouped"])
def test_binary_masks_are_white_on_black_in_both_layouts(tmp_path, value, layout):
    write_hands(tmp_path / "in", "a", tuple(range(1, 9)), (value,))
    counts, refused, (stored,) = ingest(config(tmp_path / "in", kind="hand14k", layouts={layout: 1}), tmp_path / "d")
    assert (counts["used"], refused) == (1, {})
    names = ["frame", "mask"] * 8
    assert stored.row["roles"] == (names if layout == "interleaved" else sorted(names))
    pictures = stored.pictures()
    frames, masks = (pictures[::2], pictures[1::2]) if layout == "interleaved" else (pictures[:8], pictures[8:])
    for frame, mask in zip(frames, masks, strict=True):
        assert colour_on(frame, mask, 0) == WHITE
        assert set(map(tuple, mask.reshape(-1, 3).tolist())) == {WHITE, (0, 0, 0)}


def test_left_and_right_hand_have_their_colours(tmp_path):
    write_hands(tmp_path, "a", (1, 2), (1, 2))
    write_hands(tmp_path, "b", (1, 2), (1,))
    examples, rejects = read(config(tmp_path, kind="hand14k", hands="palette"))
    assert rejects == []
    for example in examples:
        frame, mask = example.pictures[:2]
        assert colour_on(frame.pixels, mask.pixels, 0) == tuple(PALETTE[1])
    both = examples[0].pictures
    assert colour_on(both[0].pixels, both[1].pixels, 1) == tuple(PALETTE[2])


def test_ids_of_hands_are_not_drawn_white_by_mistake(tmp_path):
    write_hands(tmp_path, "a", (1, 2), (1, 2))
    examples, (reject,) = read(config(tmp_path, kind="hand14k"))
    assert (examples, reject.origin, reject.reason) == ([], "Images/a_1.jpg", "bad_annotation")
    assert "hands=palette" in reject.detail
    assert "0, 1, 2" in reject.detail


def test_whatever_has_no_partner_or_number_is_named(tmp_path):
    write_hands(tmp_path, "a", (1, 2, 3, 4))
    (tmp_path / "Masks" / "a_2.png").unlink()
    (tmp_path / "Images" / "a_3.jpg").unlink()
    write_hands(tmp_path, "still", (1,), form="")
    (tmp_path / "Images" / "a_4.png").write_bytes((tmp_path / "Images" / "a_4.jpg").read_bytes())
    (example,), rejects = read(config(tmp_path, kind="hand14k"))
    assert numbers(example) == [1, 4]
    assert reasons(rejects) == {
        "Images/a_2.jpg": "no_annotation",
        "Masks/a_3.png": "missing",
        "Images/still.jpg": "bad_annotation",
        "Images/a_4.png": "no_annotation",
    }


def test_masks_that_are_none(tmp_path):
    for clip in "abcd":
        write_hands(tmp_path, clip, (1, 2))
    (tmp_path / "Masks" / "a_1.png").write_bytes(b"")
    write(tmp_path / "Masks" / "b_1.png", np.zeros((HEIGHT, HEIGHT), np.uint8))
    write(tmp_path / "Masks" / "c_1.png", scene(1))
    examples, rejects = read(config(tmp_path, kind="hand14k"))
    assert [example.group for example in examples] == ["d"]
    assert reasons(rejects) == {
        "Images/a_1.jpg": "not_image",
        "Images/b_1.jpg": "bad_annotation",
        "Images/c_1.jpg": "bad_annotation",
    }


def test_empty_folders_are_an_error(tmp_path):
    (tmp_path / "Images").mkdir()
    (tmp_path / "Masks").mkdir()
    with pytest.raises(SourceError, match="no images"):
        list(AnnotatedVideoSource(config(tmp_path, kind="hand14k")).plan())
