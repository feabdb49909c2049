"""The `categories` source: groups of one class, and class names in no byte of the dataset."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests_support import dataset_bytes

from uvd.manifests import Dataset, read_image_shard
from uvd.manifests.verify import verify
from uvd.pipeline.config import config_entry
from uvd.pipeline.ingest import make_shard, plan
from uvd.sequences import Example, Seeds
from uvd.sources.base import SourceError
from uvd.sources.categories import CategoriesConfig, CategoriesSource

CLASSES = {"Zebrafinch": (20, 40, 220), "aardvark-x": (220, 30, 30), "aardvark": (30, 200, 40)}
"""Class → colour of all its images; one name is the beginning of another."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "in"
    for label, colour in CLASSES.items():
        for number in range(21):
            place = root / label / ("deep" if number % 5 == 0 else "") / f"{label}_{number:02d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (70, 60), colour).save(place)
    (root / "aardvark" / "aardvark_broken.jpg").write_bytes(b"\xff\xd8\xff")
    return root


def make(folder: Path, out: Path, **settings: object) -> Dataset:
    config = CategoriesConfig.model_validate({"dataset": "d", "input": folder} | settings)
    dataset, entry = Dataset(str(out)), config_entry(config)
    dataset.declare("sequences", config.folder, entry)
    for job in plan(dataset, config, entry["fingerprint"]):
        counts = make_shard(job).counts
        assert counts["inputs"] == counts["used"] + counts["rejected"] == job.unit.num_inputs
    assert verify(dataset, deep=True).problems == []
    return dataset


def test_class_names_are_in_no_byte_that_is_written(folder, tmp_path):
    dataset = make(folder, tmp_path / "d")
    (shard,) = dataset.shards("sequences/categories")
    content = dataset_bytes(tmp_path / "d")
    content |= {
        "rows": str(dataset.manifest(shard).to_pylist()).encode(),
        "rejects": str(dataset.rejects(shard).to_pylist()).encode(),
        "metadata": str(dataset.metadata(shard)).encode(),
    }
    assert len(content) == 7
    for name, data in content.items():
        for word in (b"aardvark", b"zebrafinch", b"broken"):
            assert word not in data.lower(), name


def test_groups_are_of_one_class_and_fill_sequences(folder, tmp_path):
    dataset = make(folder, tmp_path / "d", image_codec="lossless")
    (shard,) = dataset.shards("sequences/categories")
    seen: Counter[tuple[int, ...]] = Counter()
    origins: list[str] = []
    for stored in read_image_shard(dataset, shard):
        colours = [tuple(picture[128, 128].tolist()) for picture in stored.pictures()]
        runs = [len(run) for run in split_runs(colours)]
        assert all(length % 2 == 0 for length in runs)
        assert 2 <= len(colours) <= 16
        classes = [origin.partition("/")[0] for origin in stored.row["origins"]]
        assert len({*zip(classes, colours, strict=True)}) == len(set(classes)) == len(set(colours))
        seen.update(colours)
        origins += stored.row["origins"]
    rejects = dataset.rejects(shard).to_pylist()
    assert len(origins) == len(set(origins))
    assert set(seen) == set(CLASSES.values())
    assert sorted(row["reason"] for row in rejects) == ["leftover", "leftover", "leftover", "not_image"]
    assert sum(seen.values()) == 60


def split_runs(colours: list[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    runs: list[list[tuple[int, ...]]] = []
    for colour in colours:
        if runs and runs[-1][0] == colour:
            runs[-1].append(colour)
        else:
            runs.append([colour])
    return runs


def test_origins_count_classes_and_files_in_sorted_order(folder):
    source = CategoriesSource(CategoriesConfig(dataset="d", input=folder))
    (unit,) = source.plan()
    examples = [item for item in source.read(unit, Seeds(0)) if isinstance(item, Example)]
    expected = dict(enumerate(sorted(CLASSES, key=lambda label: f"{label}/")))
    for example in examples:
        number, file = example.pictures[0].origin.split("/")
        assert np.array_equal(example.pictures[0].pixels[0, 0], CLASSES[expected[int(number)]])
        assert 0 <= int(Path(file).stem) <= 21


def test_twice_the_same_bytes(folder, tmp_path):
    for name in ("one", "two"):
        make(folder, tmp_path / name, shard_size=25)
    assert dataset_bytes(tmp_path / "one") == dataset_bytes(tmp_path / "two")


def test_an_input_without_classes_is_an_error(tmp_path):
    Image.new("RGB", (70, 60)).save(tmp_path / "a.png")
    for place in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(SourceError, match=str(place)):
            list(CategoriesSource(CategoriesConfig(dataset="d", input=place)).plan())
