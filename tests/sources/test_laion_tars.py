"""Tars as img2dataset writes them: every sample is a picture or a reject, captions stay where they are."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from tests_support import dataset_bytes, smooth_photo

from uvd.manifests import Dataset
from uvd.manifests.verify import verify
from uvd.pipeline.config import config_entry
from uvd.pipeline.ingest import make_shard, plan
from uvd.sequences import Example, Reject, Seeds
from uvd.sources.base import SourceError
from uvd.sources.laion import LaionConfig, LaionSource

CAPTION = "a caption that nobody may ever read again"


def jpeg(seed: int) -> bytes:
    return cv2.imencode(".jpg", smooth_photo(seed, 120, 160))[1].tobytes()


def sample(key: int, image: bytes | None = None, **described: Any) -> list[tuple[str, bytes]]:
    """The members of one sample, in webdataset's order."""
    description = {"url": f"http://e.org/{key}.jpg", "caption": CAPTION, "status": "success", "key": f"{key:09d}"}
    return [
        (f"{key:09d}.jpg", jpeg(key) if image is None else image),
        (f"{key:09d}.json", json.dumps(description | described).encode()),
        (f"{key:09d}.txt", CAPTION.encode()),
    ]


def write_tar(path: Path, members: list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mtime = 1.5  # type: ignore[assignment] # gives every member a PAX header, as webdataset's writer does
            if form != tarfile.PAX_FORMAT:
                info.mtime = 1
            tar.addfile(info, io.BytesIO(data))
    return path


def source(place: Path, **settings: Any) -> LaionSource:
    return LaionSource(LaionConfig.model_validate({"dataset": "d", "input": place} | settings))


def outcomes(source: LaionSource) -> list[tuple[str, str]]:
    """(origin, reason, or the split of what is used) of every planned input."""
    found = []
    for unit in source.plan():
        items = list(source.read(unit, Seeds(0)))
        assert [i.inputs[0] if isinstance(i, Example) else i.input for i in items] == list(range(unit.num_inputs))
        found += [
            (item.pictures[0].origin, item.split) if isinstance(item, Example) else (item.origin, str(item.reason))
            for item in items
        ]
    return found


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("shard_size", [1, 3, 4, 100])
def test_every_sample_is_used_whatever_the_format_and_the_size_of_shards(tmp_path, form, shard_size):
    for name, keys in (("00000", range(4)), ("00001", range(4, 7))):
        write_tar(tmp_path / "in" / f"{name}.tar", [member for key in keys for member in sample(key)], form)
        (tmp_path / "in" / f"{name}.parquet").write_bytes(b"what img2dataset writes beside; not looked at")
        (tmp_path / "in" / f"{name}_stats.json").write_text("{}")
    tars = source(tmp_path / "in", shard_size=shard_size)
    assert outcomes(tars) == [(f"http://e.org/{key}.jpg", "train") for key in range(7)]
    for unit in tars.plan():
        for item in tars.read(unit, Seeds(0)):
            assert isinstance(item, Example)
            (picture,) = item.pictures
            seed = int(picture.origin.rpartition("/")[2].removesuffix(".jpg"))
            expected = smooth_photo(seed, 120, 160)[:, 20:140, ::-1].mean((0, 1))
            assert np.abs(picture.pixels.mean((0, 1)) - expected).max() < 2
            assert picture.size == (160, 120)


def test_no_caption_in_the_dataset_and_twice_the_same_bytes(tmp_path):
    members = [member for key in range(5) for member in sample(key)]
    write_tar(tmp_path / "in/00000.tar", [*members, *sample(5, b"<html>"), *sample(6, jpeg(1))])
    config = LaionConfig(dataset="d", input=str(tmp_path / "in"), shard_size=4)
    for name in ("one", "two"):
        dataset, entry = Dataset(str(tmp_path / name)), config_entry(config)
        dataset.declare("sequences", "laion", entry)
        for job in plan(dataset, config, entry["fingerprint"]):
            counts = make_shard(job).counts
            assert counts["inputs"] == counts["used"] + counts["rejected"] == job.unit.num_inputs
        assert verify(dataset, deep=True).problems == []
    assert dataset_bytes(tmp_path / "one") == dataset_bytes(tmp_path / "two")
    rows = [str(dataset.manifest(shard).to_pylist()) for shard in dataset.shards("sequences/laion")]
    for data in [*dataset_bytes(tmp_path / "one").values(), *(row.encode() for row in rows)]:
        assert b"caption" not in data.lower()
        assert b"nobody" not in data


def test_what_samples_may_be_like(tmp_path):
    """Duplicates only count within a shard, and all of these are in one."""
    huge = json.dumps({"url": "x", "filler": "y" * (2 << 20)}).encode()
    members = [
        *sample(0),
        *sample(1, b"<html>"),
        *sample(2, jpeg(0)),
        *sample(3, jpeg(3)[:2000]),
        *sample(4, bytes(30_000)),
        *sample(5)[1:],
        *sample(6)[:1],
        ("000000007.jpg", jpeg(7)),
        ("000000007.json", b"{not json"),
        ("000000008.jpg", jpeg(8)),
        ("000000008.json", b'["a", "list"]'),
        ("000000009.jpg", jpeg(9)),
        ("000000009.json", huge),
        *sample(10, url=None),
        *sample(11, url=["x"]),
        ("folder/000000012.png", cv2.imencode(".png", smooth_photo(12, 120, 160))[1].tobytes()),
        ("../../000000013.jpg", jpeg(13)),
        ("000000014.jpg", cv2.imencode(".jpg", np.full((90, 90, 3), 9, np.uint8))[1].tobytes()),
    ]
    write_tar(tmp_path / "a.tar", members)
    assert outcomes(source(tmp_path / "a.tar", fetch={"max_bytes": 20_000})) == [
        ("http://e.org/0.jpg", "train"),
        ("http://e.org/1.jpg", "not_image"),
        ("http://e.org/2.jpg", "duplicate"),
        ("http://e.org/3.jpg", "truncated"),
        ("http://e.org/4.jpg", "too_large"),
        ("http://e.org/5.jpg", "missing"),
        ("a.tar/000000006", "train"),
        ("a.tar/000000007", "train"),
        ("a.tar/000000008", "train"),
        ("a.tar/000000009", "train"),
        ("a.tar/000000010", "train"),
        ("a.tar/000000011", "train"),
        ("a.tar/folder/000000012", "too_large"),
        ("a.tar/../../000000013", "train"),
        ("a.tar/000000014", "filtered_constant"),
    ]


def test_what_is_no_plain_file_is_passed_over(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo("evil.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        for name, data in sample(0):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert outcomes(source(tmp_path / "a.tar")) == [("http://e.org/0.jpg", "train")]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("shard_size", [2, 100])
def test_a_torn_tar_gives_what_is_whole_and_one_reject(tmp_path, form, shard_size):
    """Cut anywhere, also between members: images before the cut are used, the rest is one input."""
    members = [member for key in range(3) for member in sample(key)]
    whole = write_tar(tmp_path / "whole.tar", members, form).read_bytes()
    write_tar(tmp_path / "in/b.tar", sample(9), form)
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for cut in (700, len(whole) // 3, len(whole) // 2, end - 700, end - 512, end - 3, end):
        (tmp_path / "in/a.tar").write_bytes(whole[:cut])
        found = outcomes(source(tmp_path / "in", shard_size=shard_size))
        assert found[-1] == ("http://e.org/9.jpg", "train")
        assert found[-2] == ("a.tar", "unreadable")
        used = [origin for origin, reason in found[:-2] if reason == "train"]
        names = [f"http://e.org/{key}.jpg" for key in range(3)] + [f"a.tar/{key:09d}" for key in range(3)]
        assert len(used) == len(found) - 2
        assert set(used) <= set(names)
        assert len(used) == sum(jpeg(key) in whole[:cut] for key in range(3))


@pytest.mark.parametrize("damage", ["header", "size", "pax", "zeros"])
def test_a_damaged_header_ends_the_tar(tmp_path, damage):
    members = [member for key in range(4) for member in sample(key)]
    place = write_tar(tmp_path / "in/a.tar", members)
    data = bytearray(place.read_bytes())
    third = data.find(b"000000002.jpg")
    pax = data.rfind(b"ustar", 0, third) - 257  # the PAX header of that member
    if damage == "header":
        data[third : third + 5] = b"XXXXX"
    if damage == "size":
        data[third + 124 : third + 135] = b"77777777777"
    if damage == "pax":
        data[pax + 512 : pax + 530] = b"9999999999 mtime=1"
    if damage == "zeros":
        data[pax : pax + 2000] = bytes(2000)
    place.write_bytes(data)
    found = outcomes(source(tmp_path / "in"))
    assert [reason for _, reason in found[:2]] == ["train", "train"]
    # Two blocks of zeros are the regular end of a tar, so nothing tells of what lies behind.
    assert found[2:] == ([] if damage == "zeros" else [("a.tar", "unreadable")])


def test_a_pax_header_of_a_gigabyte_is_not_read(tmp_path):
    info = tarfile.TarInfo("PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 1 << 30
    good = write_tar(tmp_path / "in/b.tar", sample(1)).read_bytes()
    (tmp_path / "in/a.tar").write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + good)
    assert outcomes(source(tmp_path / "in")) == [("a.tar", "unreadable"), ("http://e.org/1.jpg", "train")]


def test_nothing_but_damaged_tars_is_an_error(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no tar" * 500)
    (tmp_path / "b.tar").write_bytes(b"")
    with pytest.raises(SourceError, match=r"no tar at .* holds samples"):
        list(source(tmp_path).plan())


def test_settings_for_lists_are_refused_for_tars(tmp_path):
    write_tar(tmp_path / "a.tar", sample(0))
    for settings in ({"filters": {"max_punsafe": 0.5}}, {"checks": {"verify_hash": True}}):
        with pytest.raises(SourceError, match="format: urls"):
            list(source(tmp_path, **settings).plan())
    (tmp_path / "list.csv").write_text("url\nftp://a\n")
    assert outcomes(source(tmp_path, format="urls")) == [("ftp://a", "bad_url")]
    assert outcomes(source(tmp_path, format="img2dataset")) == [("http://e.org/0.jpg", "train")]


def test_a_tar_that_loses_samples_after_planning_loses_no_input(tmp_path):
    place = write_tar(tmp_path / "a.tar", [member for key in range(3) for member in sample(key)])
    tars = source(tmp_path)
    (unit,) = tars.plan()
    data = bytearray(place.read_bytes())
    second = data.find(b"000000001.jpg")
    data[second : second + 5] = b"XXXXX"
    place.write_bytes(data)
    items = list(tars.read(unit, Seeds(0)))
    assert [isinstance(item, Reject) for item in items] == [False, True, True]


@pytest.mark.parametrize("shard_size", [2, 100])
def test_object_stores_are_read_as_streams(tmp_path, monkeypatch, shard_size):
    """With the disk in the place of the store: listing and reading go the way that needs no seeking."""
    members = [member for key in range(5) for member in sample(key)]
    whole = write_tar(tmp_path / "in/a.tar", members).read_bytes()
    write_tar(tmp_path / "in/deep/b.tar", sample(9))
    (tmp_path / "in/c.tar").write_bytes(whole[:30_000])
    local = source(tmp_path / "in", shard_size=shard_size)
    remote = source(tmp_path / "in", shard_size=shard_size)
    monkeypatch.setattr(remote._place, "local", False)
    assert list(local.plan()) == list(remote.plan())
    assert outcomes(local) == outcomes(remote)
    (tmp_path / "lists/deep").mkdir(parents=True)
    (tmp_path / "lists/deep/a.csv").write_text("url\nftp://a\n")
    lists = source(tmp_path / "lists")
    monkeypatch.setattr(lists._place, "local", False)
    assert outcomes(lists) == [("ftp://a", "bad_url")]
