"""Kind `shards`: what the layout `whole` wrote comes back pixel for pixel, and damaged shards cost what is damaged."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from tests_support import dataset_bytes, write_photo

from uvd.manifests import Dataset, read_image_shard
from uvd.manifests.image_shard import ImageShardWriter
from uvd.manifests.verify import verify
from uvd.pipeline.config import config_entry
from uvd.pipeline.ingest import make_shard, plan
from uvd.sequences import Example, Picture, Reject, Seeds
from uvd.sequences.layouts import LAYOUTS, assemble
from uvd.sources.annotated.config import AnnotatedConfig
from uvd.sources.annotated.source import AnnotatedSource
from uvd.sources.base import SourceConfig, SourceError
from uvd.sources.images import ImagesConfig

Pixels = NDArray[np.uint8]


def ingest(config: SourceConfig, out: Path) -> list[tuple[dict[str, Any], Pixels]]:
    """All shards, made in this process: (manifest row, pictures) of each sequence."""
    dataset, entry = Dataset(str(out)), config_entry(config)
    dataset.declare("sequences", config.folder, entry)
    for job in plan(dataset, config, entry["fingerprint"]):
        counts = make_shard(job).counts
        assert counts["inputs"] == counts["used"] + counts["rejected"] == job.unit.num_inputs
    assert verify(dataset, deep=True).problems == []
    return [
        (stored.row, stored.pictures())
        for shard in dataset.shards(f"sequences/{config.folder}")
        for stored in read_image_shard(dataset, shard)
    ]


def photos(tmp_path: Path, count: int = 6) -> Path:
    for seed in range(count):
        write_photo(tmp_path / "photos" / f"{seed}.jpg", seed)
    return tmp_path / "photos"


def kept(tmp_path: Path, **more: Any) -> Path:
    """A folder of shards in the layout `whole`: photos with two derived pictures."""
    settings: dict[str, Any] = {
        "dataset": "d",
        "name": "kept",
        "input": photos(tmp_path),
        "derive": ("grey", "noise"),
        "layouts": {"whole": 1},
        "shard_size": 4,
    }
    ingest(ImagesConfig.model_validate(settings | more), tmp_path / "first")
    return tmp_path / "first" / "sequences" / "kept"


def config(folder: Path, **more: Any) -> AnnotatedConfig:
    return AnnotatedConfig.model_validate({"dataset": "d", "kind": "shards", "input": folder} | more)


def read(config: AnnotatedConfig) -> list[Example | Reject]:
    source = AnnotatedSource(config)
    outcomes: list[Example | Reject] = []
    for unit in source.plan():
        found = list(source.read(unit, Seeds(0, (unit.shard,))))
        inputs = [index for one in found for index in (one.inputs if isinstance(one, Example) else (one.input,))]
        assert sorted(inputs) == list(range(unit.num_inputs))
        outcomes += found
    return outcomes


def reasons(outcomes: list[Example | Reject]) -> dict[str, str]:
    return {one.origin: f"{one.reason}: {one.detail}" for one in outcomes if isinstance(one, Reject)}


def drawn_shards(tmp_path: Path, roles: tuple[str, ...] = ("image", "depth", "segmentation"), count: int = 5) -> Path:
    """As an estimating source would write them: photos as JPEG, drawings as PNG, in two splits."""
    rng = np.random.Generator(np.random.Philox(1))
    examples = []
    for index in range(count):
        pictures = [
            Picture(role, rng.integers(0, 256, (256, 256, 3), np.uint8), f"{index}.jpg", (640, 480), drawn=place > 0)
            for place, role in enumerate(roles)
        ]
        examples.append(Example((index,), "d", "val" if index % 2 else "train", tuple(pictures)))
    dataset = Dataset(str(tmp_path / "estimated"))
    dataset.declare("sequences", "estimated", {"fingerprint": "f"})
    with ImageShardWriter(dataset, "estimated", 0) as writer:
        for sequence in assemble(examples, LAYOUTS, {"whole": 1}, Seeds(0)):
            writer.add(sequence)
        writer.commit(count, [], "f")
    return tmp_path / "estimated" / "sequences" / "estimated"


def stored(folder: Path) -> dict[str, Pixels]:
    """Every sequence of a folder of shards, by key."""
    dataset = Dataset(str(folder.parents[1]))
    shards = dataset.shards(f"sequences/{folder.name}")
    return {one.key: one.pictures() for shard in shards for one in read_image_shard(dataset, shard)}


def colours(pixels: Pixels) -> NDArray[np.int64]:
    """`(H, W, 3)` uint8 as one number a pixel."""
    return pixels.astype(np.int64) @ (1 << 16, 1 << 8, 1)


def test_pairs_and_tuples_of_kept_pictures_are_those_of_the_first_dataset(tmp_path):
    folder = kept(tmp_path, image_codec="lossless")
    first = stored(folder)
    assert len(first) == 6
    for layout, per_example in (("pairs", 2), ("tuples", 1)):
        made = ingest(config(folder, layouts={layout: 1}, image_codec="lossless", shard_size=5), tmp_path / layout)
        used: Counter[str] = Counter()
        for row, pictures in made:
            if layout == "pairs":
                assert row["roles"][0] in ("grey", "noise")
                assert set(row["roles"][1::2]) == {"image"}
            for role, origin, pixels in zip(row["roles"], row["origins"], pictures, strict=True):
                assert np.array_equal(pixels, first[origin][["image", "grey", "noise"].index(role)])
            used.update(set(row["origins"]))
        assert used == Counter(dict.fromkeys(first, per_example))


def test_what_was_drawn_comes_back_exactly_with_its_split(tmp_path):
    folder = drawn_shards(tmp_path)
    first = stored(folder)
    outcomes = read(config(folder, holdout={"test": 0.5}, derive=("blur",)))
    assert len(outcomes) == 5
    for number, example in enumerate(outcomes):
        assert isinstance(example, Example)
        assert example.split == ("val" if number % 2 else "train")
        photo, depth, segmentation = example.pictures[:3]
        assert photo.origin == depth.origin == f"estimated-000000-{number:06d}"
        assert [picture.role for picture in example.pictures] == ["image", "depth", "segmentation", "blur"]
        for picture, pixels in zip((photo, depth, segmentation), first[photo.origin], strict=True):
            assert np.array_equal(picture.pixels, pixels)
        assert [picture.drawn for picture in example.pictures] == [False, True, True, False]
        assert [picture.degraded for picture in example.pictures] == [False, False, False, True]
        assert photo.size == (256, 256)


@pytest.mark.parametrize("resample", ["area", "fast", "lanczos"])
@pytest.mark.parametrize("resize", ["center_crop", "stretch"])
def test_no_way_of_resizing_changes_a_pixel(tmp_path, resize, resample):
    folder = drawn_shards(tmp_path, count=1)
    (example,) = read(config(folder, resize=resize, resample=resample))
    assert isinstance(example, Example)
    (pixels,) = stored(folder).values()
    assert np.array_equal(np.stack([picture.pixels for picture in example.pictures]), pixels)


def test_random_crops_cut_all_alike_and_blend_no_drawn_colours(tmp_path):
    folder = drawn_shards(tmp_path)
    first = stored(folder)
    for example in read(config(folder, resize="random_crop")):
        assert isinstance(example, Example)
        before, after = first[example.pictures[0].origin], example.pictures
        for picture, pixels in zip(after[1:], before[1:], strict=True):
            assert not np.array_equal(picture.pixels, pixels)
            assert np.isin(colours(picture.pixels), colours(pixels)).all()


def test_a_drawing_that_the_crop_leaves_nothing_of_is_left_out_and_an_empty_one_stays(tmp_path):
    blank = np.zeros((256, 256, 3), np.uint8)
    corner = blank.copy()
    corner[:2, :2] = 255
    photo = np.full((256, 256, 3), 90, np.uint8)
    pictures = tuple(
        Picture(role, pixels, "a.jpg", (9, 9), drawn=role != "image")
        for role, pixels in (("image", photo), ("edges", blank), ("pose", corner))
    )
    dataset = Dataset(str(tmp_path / "d"))
    dataset.declare("sequences", "e", {"fingerprint": "f"})
    with ImageShardWriter(dataset, "e", 0) as writer:
        for index in range(8):
            (sequence,) = assemble([Example((index,), "d", "train", pictures)], LAYOUTS, {"whole": 1}, Seeds(0))
            writer.add(sequence)
        writer.commit(8, [], "f")
    folder = tmp_path / "d" / "sequences" / "e"
    roles = [[p.role for p in one.pictures] for one in read(config(folder)) if isinstance(one, Example)]
    assert roles == [["image", "edges", "pose"]] * 8
    roles = [[p.role for p in one.pictures] for one in read(config(folder, resize="random_crop", seed=1)) if one]
    assert ["image", "edges"] in roles


def test_made_twice_the_bytes_are_the_same(tmp_path):
    folder = kept(tmp_path)
    for name in ("one", "two"):
        ingest(config(folder, derive=("rain",), layouts={"pairs": 1, "tuples": 1}, shard_size=3), tmp_path / name)
    assert dataset_bytes(tmp_path / "one") == dataset_bytes(tmp_path / "two")


def test_the_plan_names_content_and_no_place(tmp_path):
    folder = kept(tmp_path)
    (unit,) = AnnotatedSource(config(folder)).plan()
    first = unit.payload["items"][0]
    assert first["origin"] == "kept-000000-000000"
    assert (first["tar"], first["split"], first["roles"]) == ("000000.tar", "train", ["image", "grey", "noise"])
    data = (folder / "000000.tar").read_bytes()
    assert first["bytes"] == len(data)
    for offset, size, codec in first["pictures"]:
        assert codec == "jpg"
        assert data[offset : offset + 2] == b"\xff\xd8"
        assert data[offset + size - 2 : offset + size] == b"\xff\xd9"
    assert str(tmp_path) not in json.dumps(unit.payload)


def test_a_shard_that_changes_after_planning_stops_its_reading(tmp_path):
    folder = kept(tmp_path)
    source = AnnotatedSource(config(folder))
    (unit,) = source.plan()
    (folder / "000001.tar").write_bytes((folder / "000001.tar").read_bytes()[:-10240])
    with pytest.raises(SourceError, match=r"000001\.tar was changed"):
        list(source.read(unit, Seeds(0)))


@pytest.mark.parametrize("cut", [0, 100, 5000, 30_000])
def test_a_cut_shard_costs_its_rest(tmp_path, cut):
    folder = kept(tmp_path)
    whole = (folder / "000000.tar").read_bytes()
    (folder / "000000.tar").write_bytes(whole[: len(whole.rstrip(b"\0")) - cut])
    outcomes = read(config(folder))
    lost = reasons(outcomes)
    assert list(lost) == ["000000.tar"]
    assert lost["000000.tar"].startswith("unreadable: the rest of the tar: it ")
    origins = [one.pictures[0].origin for one in outcomes if isinstance(one, Example)]
    assert origins[-2:] == ["kept-000001-000000", "kept-000001-000001"]
    assert origins[:-2] == [f"kept-000000-{number:06d}" for number in range(len(origins) - 2)]
    assert len(origins) - 2 == 4 if cut == 0 else 0 < len(origins) - 2 < 4


def test_a_damaged_picture_costs_its_sequence(tmp_path):
    folder = drawn_shards(tmp_path)
    (unit,) = AnnotatedSource(config(folder)).plan()
    data = bytearray((folder / "000000.tar").read_bytes())
    offset, size, _ = unit.payload["items"][1]["pictures"][2]
    data[offset : offset + 200] = b"<html>" + bytes(194)
    offset, size, _ = unit.payload["items"][3]["pictures"][1]
    data[offset + size // 2 : offset + size] = bytes(size - size // 2)
    (folder / "000000.tar").write_bytes(data)
    outcomes = read(config(folder))
    lost = reasons(outcomes)
    assert lost.keys() == {"estimated-000000-000001", "estimated-000000-000003"}
    assert lost["estimated-000000-000001"].startswith("not_image: picture 02 (segmentation)")
    assert lost["estimated-000000-000003"].startswith("truncated: picture 01 (depth)")
    assert sum(isinstance(one, Example) for one in outcomes) == 3


def png(side: int = 256) -> bytes:
    return cv2.imencode(".png", np.full((side, side, 3), 100, np.uint8))[1].tobytes()


def sequence(key: str, **more: Any) -> list[tuple[str, bytes]]:
    described = {"layout": "whole", "roles": ["image", "depth"], "source": "images", "split": "train"} | more
    return [
        (f"{key}.00.png", png()),
        (f"{key}.01.png", png()),
        (f"{key}.json", json.dumps({name: value for name, value in described.items() if value is not None}).encode()),
    ]


def write_shard(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    path.with_suffix(".parquet").touch()


def test_what_is_no_whole_sequence_is_refused_by_name(tmp_path):
    good, cases = sequence("good"), {}
    members = list(good)
    for key, expected, content in [
        ("pairs", "its layout is 'pairs', only whole", sequence("pairs", layout="pairs")),
        ("nowhere", "its layout is None", sequence("nowhere", layout=None)),
        ("split", "split is 'trial', expected one of train, val, test", sequence("split", split="trial")),
        ("splits", "split is ['train']", sequence("splits", split=["train"])),
        ("fewer", "expected one for each picture", sequence("fewer", roles=["image"])),
        ("text", "expected one for each picture", sequence("text", roles="ab")),
        ("numbers", "expected one for each picture", sequence("numbers", roles=[1, 2])),
        ("frames", "expected image and different ones", sequence("frames", roles=["frame", "masks"])),
        ("twice", "expected image and different ones", sequence("twice", roles=["image", "image"])),
        ("gap", "expected KEY.00", [("gap.00.png", png()), ("gap.02.png", png()), sequence("gap")[2]]),
        ("order", "expected KEY.00", [*reversed(sequence("order")[:2]), sequence("order")[2]]),
        ("tail", "expected KEY.00", sequence("tail")[:2]),
        ("head", "expected KEY.00", [sequence("head")[2], *sequence("head")[:2]]),
        ("npy", "expected KEY.00", [("npy.00.npy", b"x"), *sequence("npy")]),
        ("webp", "expected KEY.00", [("webp.00.webp", b"x"), *sequence("webp")[1:]]),
        ("up/down", "expected KEY.00", sequence("up/down")),
        ("broken", "cannot be parsed", [*sequence("broken")[:2], ("broken.json", b"{")]),
        ("deep", "cannot be parsed", [*sequence("deep")[:2], ("deep.json", b"[" * 60_000)]),
        ("list", "is no object", [*sequence("list")[:2], ("list.json", b"[]")]),
        ("huge", "too_large: its JSON", [*sequence("huge")[:2], ("huge.json", b" " * (1 << 17))]),
        ("small", "picture 01 (depth) is 128x128", [sequence("small")[0], ("small.01.png", png(128)), good[2]]),
        ("bomb", "bomb: picture 01 (depth)", [sequence("bomb")[0], ("bomb.01.png", png(400)), sequence("bomb")[2]]),
    ]:
        members += [(name.replace("good", key), data) for name, data in content]
        cases[key] = expected
    write_shard(tmp_path / "in" / "000000.tar", members)
    outcomes = read(config(tmp_path / "in"))
    assert [one.pictures[0].origin for one in outcomes if isinstance(one, Example)] == ["good"]
    lost = reasons(outcomes)
    assert lost.keys() == cases.keys()
    for key, expected in cases.items():
        assert expected in lost[key], key


def test_seventeen_pictures_are_too_many(tmp_path):
    pictures = [(f"a.{place:02d}.png", png()) for place in range(17)]
    roles = ["image", *(f"r{place}" for place in range(16))]
    write_shard(tmp_path / "in" / "000000.tar", [*sequence("b"), *pictures, sequence("a", roles=roles)[2]])
    assert "expected image and different ones" in reasons(read(config(tmp_path / "in")))["a"]


def test_a_photo_alone_needs_something_beside_it(tmp_path):
    folder = kept(tmp_path, derive=())
    assert set(reasons(read(config(folder))).values()) == {"no_annotation: nothing is annotated in it"}
    examples = read(config(folder, derive=("low_light",)))
    assert all(isinstance(one, Example) and len(one.pictures) == 2 for one in examples)


def test_inputs_that_are_wrong_as_a_whole(tmp_path):
    folder = kept(tmp_path)
    other = tmp_path / "pairs"
    ingest(
        ImagesConfig(dataset="d", input=tmp_path / "photos", derive=("grey",), layouts={"pairs": 1}, name="p"), other
    )
    for settings, message in [
        ({"input": tmp_path / "first"}, "name one folder of it"),
        ({"input": tmp_path / "nowhere"}, "no image shards"),
        ({"input": tmp_path / "photos"}, "no image shards"),
        (
            {"input": other / "sequences" / "p"},
            "no sequence of layout whole in .*p-000000-000000: its layout is 'pairs'",
        ),
        ({"derive": ("noise",)}, "holds noise already"),
    ]:
        with pytest.raises(SourceError, match=message):
            list(AnnotatedSource(config(folder, **settings)).plan())
    (folder / "000001.parquet").unlink()
    with pytest.raises(SourceError, match=r"000001\.tar has no manifest"):
        list(AnnotatedSource(config(folder)).plan())
