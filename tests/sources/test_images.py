"""The `images` source: a folder with everything in it gives one picture a photo and one reject a bad file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from tests_support import dataset_bytes, smooth_photo, write_photo

from uvd.manifests import Dataset, read_image_shard
from uvd.manifests.verify import verify
from uvd.pipeline.config import config_entry
from uvd.pipeline.ingest import make_shard, plan
from uvd.renderers.derived import Derived
from uvd.sequences import Example, Reason, Seeds
from uvd.sources.base import SourceError
from uvd.sources.images import ImagesConfig, ImagesSource


def ingest(config: ImagesConfig, out: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Makes all shards in this process: the manifests' rows, and each reject's reason by its origin."""
    dataset, entry = Dataset(str(out)), config_entry(config)
    dataset.declare("sequences", config.folder, entry)
    for job in plan(dataset, config, entry["fingerprint"]):
        counts = make_shard(job).counts
        assert counts["inputs"] == counts["used"] + counts["rejected"] == job.unit.num_inputs
    shards = dataset.shards(f"sequences/{config.folder}")
    rejects = [row for shard in shards for row in dataset.rejects(shard).to_pylist()]
    assert len({(row["shard"], row["input"]) for row in rejects}) == len(rejects)
    assert verify(dataset, deep=True).problems == []
    return (
        [row for shard in shards for row in dataset.manifest(shard).to_pylist()],
        {row["origin"]: row["reason"] for row in rejects},
    )


def test_bad_files_are_rejected_one_by_one_and_the_others_used(photo_folder, tmp_path):
    Image.new("RGB", (1, 1)).save(photo_folder / "pixel.png")
    Image.new("RGB", (100, 63)).save(photo_folder / "flat.png")
    Image.new("RGB", (2000, 2000)).save(photo_folder / "vast.png")
    (photo_folder / "heavy.jpg").write_bytes((photo_folder / "photo-00.jpg").read_bytes() + bytes(1 << 20))
    config = ImagesConfig(dataset="d", input=photo_folder, shard_size=5, max_pixels=2_000_000, max_bytes=1 << 20)
    rows, rejects = ingest(config, tmp_path / "d")
    assert [row["origins"] for row in rows] == [[f"photo-{number:02d}.jpg"] for number in range(12)]
    assert {(*row["widths"], *row["heights"]) for row in rows} == {(400, 300)}
    assert rejects == {
        "truncated.jpg": "truncated",
        "page.jpg": "not_image",
        "empty.jpg": "not_image",
        "pixel.png": "too_small",
        "flat.png": "too_small",
        "vast.png": "bomb",
        "heavy.jpg": "too_large",
    }


def test_a_file_that_goes_away_after_planning_is_rejected_as_missing(photo_folder):
    source = ImagesSource(ImagesConfig(dataset="d", input=photo_folder))
    (unit,) = source.plan()
    (photo_folder / "photo-03.jpg").unlink()
    (photo_folder / "photo-04.jpg").unlink()
    (photo_folder / "photo-04.jpg").mkdir()
    rejects = {item.origin: item.reason for item in source.read(unit, Seeds(0)) if not isinstance(item, Example)}
    assert rejects["photo-03.jpg"] == rejects["photo-04.jpg"] == Reason.MISSING
    assert len(rejects) == 5


def test_a_name_that_is_not_utf8_stops_nothing(tmp_path):
    """Linux allows any bytes in a file name; archives made elsewhere bring such names."""
    write_photo(tmp_path / "in" / "a.jpg", 1)
    os.link(tmp_path / "in" / "a.jpg", os.fsencode(tmp_path / "in") + b"/caf\xe9.jpg")
    dataset = Dataset(str(tmp_path / "d"))
    config = ImagesConfig(dataset="d", input=tmp_path / "in")
    dataset.declare("sequences", "images", config_entry(config))
    (job,) = plan(dataset, config, "f")
    counts = make_shard(job).counts
    assert counts["inputs"] == 2
    assert counts["used"] >= 1
    assert counts["used"] + counts["rejected"] == 2


def test_the_crop_is_the_centre(tmp_path):
    photo = np.zeros((300, 500, 3), np.uint8)
    photo[:, 100:400] = (0, 255, 0)
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "a.png"), photo)
    source = ImagesSource(ImagesConfig(dataset="d", input=tmp_path / "in"))
    (unit,) = source.plan()
    (example,) = source.read(unit, Seeds(0))
    assert isinstance(example, Example)
    assert (example.pictures[0].pixels == (0, 255, 0)).all()
    assert example.pictures[0].size == (500, 300)


def test_derived_pictures_belong_to_their_photo(tmp_path):
    write_photo(tmp_path / "in" / "a.jpg", 1)
    write_photo(tmp_path / "in" / "b.jpg", 2)
    config = ImagesConfig(
        dataset="d", input=tmp_path / "in", derive=("grey", "masked"), layouts={"pairs": 1}, image_codec="lossless"
    )
    rows, rejects = ingest(config, tmp_path / "d")
    assert rejects == {}
    assert sorted(row["roles"] for row in rows) == [["grey", "image"] * 2, ["masked", "image"] * 2]
    dataset = Dataset(str(tmp_path / "d"))
    for stored in read_image_shard(dataset, dataset.shards("sequences/images")[0]):
        for derived, photo in zip(stored.pictures()[::2], stored.pictures()[1::2], strict=True):
            if stored.row["roles"][0] == "grey":
                grey = np.asarray(Image.fromarray(photo).convert("L"))
                assert np.abs(derived.astype(int) - grey[..., None]).max() <= 1
            else:
                hidden = (derived != photo).any(axis=2)
                assert 0.01 < hidden.mean() < 0.9
                assert (derived[hidden] == derived[hidden][0]).all()


def test_every_kind_of_degraded_picture_comes_before_its_own_photo(tmp_path):
    for seed in range(9):
        write_photo(tmp_path / "in" / f"{seed}.jpg", seed)
    kinds = get_args(Derived)
    config = ImagesConfig(
        dataset="d", input=tmp_path / "in", derive=kinds, layouts={"pairs": 1}, image_codec="lossless"
    )
    rows, rejects = ingest(config, tmp_path / "d")
    assert rejects == {}
    assert [row["roles"] for row in rows] == [[kind, "image"] * count for count in (8, 1) for kind in kinds]
    dataset = Dataset(str(tmp_path / "d"))
    (shard,) = dataset.shards("sequences/images")
    pictures: dict[str, list[Any]] = {kind: [] for kind in kinds}
    for stored in read_image_shard(dataset, shard):
        pictures[stored.row["roles"][0]] += [picture[::2, ::2].astype(float) for picture in stored.pictures()]
    for kind, listed in pictures.items():
        derived, photos = listed[::2], listed[1::2]
        assert len({picture.tobytes() for picture in derived}) == 9
        for number in range(9):
            if kind == "masked":
                shown = derived[number].any(axis=-1, keepdims=True)
                assert np.array_equal(derived[number], np.where(shown, photos[number], 0))
                continue
            alike = [np.corrcoef(derived[number].ravel(), photo.ravel())[0, 1] for photo in photos]
            assert np.argmax(alike) == number
            assert 0.3 < alike[number] < 1


def test_degraded_pictures_follow_the_settings_and_the_seed(tmp_path):
    write_photo(tmp_path / "in" / "a.jpg", 1)
    settings = {
        "dataset": "d",
        "input": tmp_path / "in",
        "derive": ("noise", "blur"),
        "layouts": {"tuples": 1},
        "derive_settings": {"noise": {"kinds": ["gaussian"], "std": [2, 2]}},
    }

    def pictures(seed: int, **more: Any) -> dict[str, bytes]:
        source = ImagesSource(ImagesConfig.model_validate(settings | more))
        (unit,) = source.plan()
        (example,) = source.read(unit, Seeds(seed))
        assert isinstance(example, Example)
        return {picture.role: picture.pixels.tobytes() for picture in example.pictures}

    first, other = pictures(0), pictures(1)
    assert first == pictures(0)
    assert first["image"] == other["image"]
    assert first["noise"] != other["noise"]
    alone = pictures(0, derive=("blur",))
    assert alone["blur"] == first["blur"]
    noise = np.frombuffer(first["noise"], np.uint8).astype(int) - np.frombuffer(first["image"], np.uint8)
    assert noise.std() == pytest.approx(2, abs=0.1)
    with pytest.raises(ValidationError, match="ascending"):
        pictures(0, derive_settings={"blur": {"radius": [5, 2]}})


def test_the_layout_whole_keeps_photo_and_pictures_together(tmp_path):
    for seed in range(3):
        write_photo(tmp_path / "in" / f"{seed}.jpg", seed)
    kinds = ("rain", "grey", "jpeg")
    config = ImagesConfig(dataset="d", input=tmp_path / "in", derive=kinds, layouts={"whole": 1})
    rows, _ = ingest(config, tmp_path / "d")
    assert [(row["layout"], row["roles"], set(row["origins"])) for row in rows] == [
        ("whole", ["image", *kinds], {f"{seed}.jpg"}) for seed in range(3)
    ]


def test_twice_the_same_bytes_and_another_seed_others(photo_folder, tmp_path):
    config = ImagesConfig(dataset="d", input=photo_folder, resize="random_crop", shard_size=6)
    ingest(config, tmp_path / "one")
    ingest(config, tmp_path / "two")
    ingest(config.model_copy(update={"seed": 1}), tmp_path / "three")
    tars = [
        {name: data for name, data in dataset_bytes(tmp_path / name).items() if name.endswith(".tar")}
        for name in ("one", "two", "three")
    ]
    assert tars[0] == tars[1]
    assert all(tars[0][name] != tars[2][name] for name in tars[0] if len(tars[0][name]) > 1024)
    assert dataset_bytes(tmp_path / "one") == dataset_bytes(tmp_path / "two")


def test_the_limit_and_the_split_follow_the_files(photo_folder, tmp_path):
    config = ImagesConfig(dataset="d", input=photo_folder, limit=7, shard_size=3, holdout={"val": 0.5})
    source = ImagesSource(config)
    units = list(source.plan())
    assert [unit.num_inputs for unit in units] == [3, 3, 1]
    splits = {
        example.pictures[0].origin: example.split
        for unit in units
        for example in source.read(unit, Seeds(0))
        if isinstance(example, Example)
    }
    other = ImagesSource(config.model_copy(update={"seed": 9, "shard_size": 100, "limit": None}))
    (unit,) = other.plan()
    for example in other.read(unit, Seeds(9)):
        if isinstance(example, Example) and example.pictures[0].origin in splits:
            assert example.split == splits[example.pictures[0].origin]
    assert set(splits.values()) == {"train", "val"}


@pytest.mark.parametrize("kind", ["nothing", "file", "empty"])
def test_an_input_without_images_is_an_error_that_names_it(tmp_path, kind):
    place = tmp_path / kind
    if kind == "file":
        cv2.imwrite(str(tmp_path / "file.png"), smooth_photo(1))
        place = tmp_path / "file.png"
    if kind == "empty":
        place.mkdir()
        (place / "notes.txt").write_text("no")
    with pytest.raises(SourceError, match=str(place)):
        list(ImagesSource(ImagesConfig(dataset="d", input=place)).plan())
