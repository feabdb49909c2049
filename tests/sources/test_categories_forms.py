"""Tars and lists of classes: every image meets its class, comes class by class, or is refused by a number."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from tests_support import dataset_bytes

from uvd.manifests import Dataset, read_image_shard
from uvd.manifests.verify import verify
from uvd.pipeline.config import config_entry
from uvd.pipeline.ingest import make_shard, plan
from uvd.sequences import Example, Reject, Seeds
from uvd.sources.base import SourceError
from uvd.sources.categories import CategoriesConfig, CategoriesSource
from uvd.sources.category_classes import places_of

WORD = "secret"
"""Part of every name of a class or file in these inputs; must not get out."""


def picture(label: int, number: int) -> bytes:
    """A PNG whose red level is its class and whose green level is its number."""
    content = io.BytesIO()
    Image.new("RGB", (40, 30), (10 * label, 3 * number, 0)).save(content, "PNG")
    return content.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def tar_of(label: int, number: int, described: bytes | None = None) -> list[tuple[str, bytes]]:
    key = f"{WORD}_{number:06d}"
    text = str(label).encode() if described is None else described
    return [(f"{key}.cls", text), (f"{key}.png", picture(label, number))]


def source(place: Path | str, **more: Any) -> CategoriesSource:
    return CategoriesSource(CategoriesConfig.model_validate({"dataset": "d", "input": place} | more))


def read(place: Path | str, **more: Any) -> tuple[list[tuple[str, int, int]], dict[str, str]]:
    """(origin, class, number) of the pictures in their order, and reason by origin; checks the accounting."""
    found, rejects = [], {}
    opened = source(place, **more)
    for unit in opened.plan():
        outcomes = list(opened.read(unit, Seeds(0)))
        assert [o.inputs[0] if isinstance(o, Example) else o.input for o in outcomes] == list(range(unit.num_inputs))
        for outcome in outcomes:
            if isinstance(outcome, Reject):
                assert outcome.origin not in rejects
                assert WORD not in outcome.origin + outcome.detail
                rejects[outcome.origin] = str(outcome.reason)
                continue
            (shown,) = outcome.pictures
            red, green, _ = shown.pixels[128, 128].tolist()
            assert outcome.group == shown.origin.partition("/")[0]
            found.append((shown.origin, round(red / 10), round(green / 3)))
    return found, rejects


def test_samples_of_tars_come_class_by_class(tmp_path):
    """Classes are mixed over tars, as webdataset is written; each class is one run, its images in the tars' order."""
    numbers = list(range(60))
    for tar in range(3):
        members = [m for number in numbers[tar * 20 : tar * 20 + 20] for m in tar_of(number % 7 + 1, number)]
        write_tar(tmp_path / f"in/{tar:05d}.tar", members)
    found, rejects = read(tmp_path / "in", shard_size=13)
    assert rejects == {}
    assert [number for _, _, number in found] == sorted(numbers, key=lambda number: (number % 7, number))
    assert all(label == number % 7 + 1 for _, label, number in found)
    assert [origin for origin, _, _ in found[:3]] == ["0000/000000.png", "0000/000001.png", "0000/000002.png"]
    assert len({origin for origin, _, _ in found}) == 60
    assert [int(run) for run, _ in groupby(found, key=lambda entry: entry[0].partition("/")[0])] == list(range(7))
    assert read(tmp_path / "in" / "00001.tar")[0][0][2] == 21


@pytest.mark.parametrize("key", ["label", "class", "cls"])
def test_classes_in_json(tmp_path, key):
    members = []
    for number in range(6):
        described = json.dumps({"caption": WORD, key: number % 2 + 1}).encode()
        members += [(f"{number}.png", picture(number % 2 + 1, number)), (f"{number}.json", described)]
    write_tar(tmp_path / "a.tar", members)
    assert [(label, number) for _, label, number in read(tmp_path)[0]] == [
        (1, 0),
        (1, 2),
        (1, 4),
        (2, 1),
        (2, 3),
        (2, 5),
    ]


def test_all_ways_of_writing_one_class_are_one_class(tmp_path):
    ways = [b"7", b"7\n", b" 007 ", b'{"label": 7}', b'{"cls": "7"}', b'"7"', b"\xef\xbb\xbf7"]
    members = [member for number, way in enumerate(ways) for member in tar_of(7, number, way)]
    members += [*tar_of(8, 20, b"10"), *tar_of(9, 21, f"{WORD}-b".encode()), *tar_of(3, 22, b"2")]
    members += [("b.png", picture(7, 30)), ("b.cls", b"7"), ("b.json", b'{"label": 99}')]
    write_tar(tmp_path / "a.tar", members)
    found, rejects = read(tmp_path)
    assert rejects == {}
    by_class = {origin: label for origin, label, _ in found}
    # Numbers go before texts, and by size.
    assert by_class["0000/000000.png"] == 3
    assert sum(origin.startswith("0001/") for origin in by_class) == len(ways) + 1
    assert by_class["0002/000000.png"] == 8
    assert by_class["0003/000000.png"] == 9


def test_samples_without_class_or_image_are_refused_by_number(tmp_path):
    bad = [b"", b"-1", b"x" * 1001, b"\xff\xfe", b'{"label": true}', b'{"label": [1]}', b'{"label": 1.5}', b'{"label"']
    bad += [b"{}", b'{"cls": -3}', b'"', b"7" * (2 << 20), b"[" * 100_000]
    members = [*tar_of(1, 0), *tar_of(1, 1)]
    members += [member for number, text in enumerate(bad, start=2) for member in tar_of(1, number, text)]
    members += [("x.png", picture(1, 50)), ("y.cls", b"1"), ("z.png", picture(1, 51)), ("z.json", b'{"url": "u"}')]
    members += [("w.png", picture(1, 52)), ("w.json", b"[1]"), ("v.png", picture(1, 53)), ("v.json", b"{")]
    write_tar(tmp_path / "a.tar", members)
    write_tar(tmp_path / f"b{WORD}.tar", [*tar_of(1, 60), ("q.png", b"no image"), ("q.cls", b"1")])
    found, rejects = read(tmp_path)
    assert [number for _, _, number in found] == [0, 1, 60]
    assert rejects.pop("0000/000003.png") == "not_image"
    first = len(bad) + 2
    last = {
        f"tar 00000 sample {first + place:06d}": reason
        for place, reason in enumerate(["no_annotation", "missing", "no_annotation", "no_annotation", "bad_annotation"])
    }
    assert rejects == {f"tar 00000 sample {number + 2:06d}": "bad_annotation" for number in range(len(bad))} | last


def test_a_cut_tar_gives_what_is_whole_and_one_reject(tmp_path):
    members = [member for number in range(4) for member in tar_of(1, number)]
    whole = write_tar(tmp_path / "in/a.tar", members).read_bytes()
    write_tar(tmp_path / "in/b.tar", tar_of(2, 9))
    cut = whole.index(picture(1, 2)) + 5
    (tmp_path / "in/a.tar").write_bytes(whole[:cut])
    found, rejects = read(tmp_path / "in")
    assert [number for _, _, number in found] == [0, 1, 9]
    assert rejects == {"tar 00000 sample 000002": "missing", "tar 00000": "unreadable"}


def test_large_images_and_changed_tars(tmp_path):
    write_tar(tmp_path / "in/a.tar", [*tar_of(1, 0), *tar_of(1, 1)])
    large = len(picture(1, 0)) - 1
    assert set(read(tmp_path / "in", max_bytes=large)[1].values()) == {"too_large"}
    opened = source(tmp_path / "in")
    (unit,) = opened.plan()
    write_tar(tmp_path / "in/a.tar", [member for number in range(30) for member in tar_of(1, number)])
    with pytest.raises(SourceError, match="changed or removed"):
        list(opened.read(unit, Seeds(0)))


def test_tars_through_a_uri(tmp_path):
    write_tar(tmp_path / "in/a.tar", tar_of(1, 5))
    assert read(f"file://{tmp_path}/in")[0] == [("0000/000000.png", 1, 5)]
    with pytest.raises(SourceError, match="on disk"):
        read(f"file://{tmp_path}/in", list_file=tmp_path / "l.csv")


def write_images(root: Path, names: dict[str, tuple[int, int]]) -> None:
    for name, (label, number) in names.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(label, number))


IMAGES = {f"{WORD}_{number}.png": (number % 3 + 1, number) for number in range(9)}


def listing(delimiter: str, header: str = "", names: dict[str, tuple[int, int]] = IMAGES) -> str:
    """A list of all images, last first."""
    rows = [f"{name}{delimiter}{WORD}{label}" for name, (label, _) in reversed(names.items())]
    return "\n".join([header, *rows] if header else rows) + "\n"


@pytest.mark.parametrize(
    ("name", "text", "settings"),
    [
        ("l.csv", listing(",", "path,class"), {}),
        ("l.CSV", "\ufeff" + listing(",", '"path",class').replace("\n", "\r\n"), {}),
        ("l.tsv", listing("\t", "path\tclass"), {}),
        ("l.tsv", listing("\t", "file\twnid"), {"list_columns": ["file", "wnid"]}),
        ("l.csv", listing(","), {"list_header": ["path", "class"]}),
        ("l.txt", listing(" "), {}),
        ("l.txt", listing("  \t"), {}),
    ],
)
def test_lists(tmp_path, name, text, settings):
    write_images(tmp_path / "in", IMAGES)
    (tmp_path / name).write_bytes(text.encode())
    found, rejects = read(tmp_path / "in", list_file=tmp_path / name, **settings)
    assert rejects == {}
    assert [(label, number) for _, label, number in found] == sorted(IMAGES.values())
    assert [origin for origin, _, _ in found[:4]] == [
        "0000/000000.png",
        "0000/000001.png",
        "0000/000002.png",
        "0001/000000.png",
    ]


def test_a_list_in_its_own_folder_is_an_input_itself(tmp_path):
    names = {f"deep/er {WORD}/{name}": what for name, what in IMAGES.items()}
    write_images(tmp_path, names)
    (tmp_path / "l.txt").write_text(listing(" ", names=names))
    found, rejects = read(tmp_path / "l.txt")
    assert rejects == {}
    assert len(found) == 9


def test_imagenet_validation_has_a_class_a_line_by_number_not_by_order(tmp_path):
    write_images(tmp_path / "val", {f"ILSVRC2012_val_{n:08d}.PNG": (n % 4 + 1, n) for n in (1, 2, 3, 4, 6, 10, 11)})
    write_images(tmp_path / "val", {"readme.png": (1, 1), "other_0004.png": (1, 1)})
    classes = [n % 4 + 1 for n in range(1, 11)]
    (tmp_path / "truth.txt").write_text("\n".join(map(str, classes)) + "\n")
    found, rejects = read(tmp_path / "val", list_file=tmp_path / "truth.txt")
    assert [(label, number) for _, label, number in found] == [(1, 4), (2, 1), (3, 2), (3, 6), (3, 10), (4, 3)]
    assert rejects == {
        **{f"line {n}": "missing" for n in (5, 7, 8, 9)},
        "image 11": "no_annotation",
        "image file 7": "no_annotation",
        "image file 8": "no_annotation",
    }


def test_bad_lines_are_refused_by_their_numbers(tmp_path):
    root = tmp_path / "in"
    write_images(root, {"a.png": (1, 0), "b.png": (1, 1), f"sub/{WORD}.gone/c.png": (1, 2)})
    write_images(tmp_path / "outside", {"x.png": (1, 3)})
    (root / "link.png").symlink_to(tmp_path / "outside/x.png")
    (root / "linked").symlink_to(tmp_path / "outside")
    (root / "inner.png").symlink_to(root / "b.png")
    (root / "page.png").write_text("<html>")
    rows = ["path,class", "a.png,1", "b.png,1", "./a.png,1", f"a.png,{WORD}", f"{WORD}.png,1", "b.png", "a,b,c"]
    rows += [f"{tmp_path}/in/a.png,1", "../outside/x.png,1", "link.png,1", "linked/x.png,1", ",1", "a\0.png,1"]
    rows += [f"sub/{WORD}.gone,1", "page.png,1", "inner.png,1", f"sub/{WORD}.gone/c.png,", "", "sub/../a.png,1"]
    (tmp_path / "l.csv").write_text("\n".join(rows))
    found, rejects = read(root, list_file=tmp_path / "l.csv")
    assert [number for _, _, number in found] == [0, 1, 1]
    assert rejects == {
        "line 4": "duplicate",
        "line 5": "bad_annotation",
        "line 6": "missing",
        "line 7": "unreadable",
        "line 8": "unreadable",
        "line 9": "bad_annotation",
        "line 10": "bad_annotation",
        "line 11": "bad_annotation",
        "line 12": "bad_annotation",
        "line 13": "bad_annotation",
        "line 14": "bad_annotation",
        "line 15": "missing",
        "0000/000003.png": "not_image",
        "line 18": "bad_annotation",
        "line 20": "bad_annotation",
    }


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "path,class\nhttps://e.org/a.png,1\n", "line 2: a URL"),
        ("l.csv", "file,class\na.png,1\n", "no one column 'path'"),
        ("l.csv", "path,path,class\n", "no one column 'path'"),
        ("l.csv", "", "no one column 'path'"),
        ("l.csv", "path,class\n", "lists no image"),
        ("l.csv", "path,class\nnot-there.png,1\n", "line 2: no such file"),
        ("l.csv", "path,class\n" + "a" * 200_000 + ",1\n", "field larger"),
        ("l.json", "{}", "is no list"),
        ("l.csv", None, "cannot be read"),
        ("l.csv", b"path,class\n\xff,1\n", "not UTF-8"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, name, text, message):
    write_images(tmp_path / "in", {"a.png": (1, 0)})
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SourceError, match=message):
        read(tmp_path / "in", list_file=tmp_path / name)


def test_the_format_is_found_or_said(tmp_path):
    write_images(tmp_path / "in", {f"{label}/{number}.png": (label, number) for label in (1, 2) for number in (1, 2)})
    write_tar(tmp_path / "in/a.tar", tar_of(5, 5))
    with pytest.raises(SourceError, match="set format"):
        read(tmp_path / "in")
    assert [label for _, label, _ in read(tmp_path / "in", format="folders")[0]] == [1, 1, 2, 2]
    assert [label for _, label, _ in read(tmp_path / "in", format="tars")[0]] == [5]
    with pytest.raises(SourceError, match="list_file"):
        read(tmp_path / "in", format="list")
    with pytest.raises(ValidationError, match="list_file is a setting of format list"):
        read(tmp_path / "in", format="tars", list_file=tmp_path / "l.csv")
    with pytest.raises(SourceError, match="nothing of format folders"):
        read(tmp_path / "in/a.tar", format="folders")
    write_tar(tmp_path / "plain/n01440764.tar", [("a.png", picture(1, 1))])
    with pytest.raises(SourceError, match="holds an image with a class"):
        read(tmp_path / "plain")


def test_many_classes_have_numbers_that_sort_as_they_do():
    places = places_of({f"n{number:08d}" for number in range(21_841)} | {3, 20, 100})
    assert [places[label] for label in (3, 20, 100, "n00000000", "n00021840")] == [0, 1, 2, 3, 21_843]


@pytest.mark.parametrize("form", ["tars", "list"])
def test_into_a_dataset_twice_the_same_groups_of_one_class_and_no_name(tmp_path, form):
    numbers = range(70)
    if form == "tars":
        for tar in range(4):
            members = [m for n in numbers if n % 4 == tar for m in tar_of(n % 3 + 1, n, f"{WORD}{n % 3}".encode())]
            write_tar(tmp_path / f"in/{tar}.tar", [*members, (f"{WORD}.png", b"x")])
        settings: dict[str, Any] = {}
    else:
        names = {f"{WORD}_{n}.png": (n % 3 + 1, n) for n in numbers}
        write_images(tmp_path / "in", names)
        (tmp_path / "l.csv").write_text(listing(",", "path,class", names) + f"{WORD},{WORD}\n")
        settings = {"list_file": tmp_path / "l.csv"}
    config = CategoriesConfig.model_validate(
        {"dataset": "d", "input": tmp_path / "in", "shard_size": 40, "image_codec": "lossless"} | settings
    )
    for out in (tmp_path / "one", tmp_path / "two"):
        dataset, entry = Dataset(str(out)), config_entry(config)
        dataset.declare("sequences", config.folder, entry)
        for job in plan(dataset, config, entry["fingerprint"]):
            counts = make_shard(job).counts
            assert counts["inputs"] == counts["used"] + counts["rejected"] == job.unit.num_inputs
        assert verify(dataset, deep=True).problems == []
    assert dataset_bytes(tmp_path / "one") == dataset_bytes(tmp_path / "two")
    shown: Counter[int] = Counter()
    for shard in dataset.shards("sequences/categories"):
        for text in (dataset.manifest(shard).to_pylist(), dataset.rejects(shard).to_pylist(), dataset.metadata(shard)):
            assert WORD not in str(text)
        for stored in read_image_shard(dataset, shard):
            levels = np.array([picture[128, 128] for picture in stored.pictures()])
            runs = [len(list(run)) for _, run in groupby((levels[:, 0] // 10).tolist())]
            assert all(length % 2 == 0 for length in runs)
            shown.update((levels[:, 1] // 3).tolist())
    assert all(WORD.encode() not in data for data in dataset_bytes(tmp_path / "one").values())
    assert set(shown.values()) == {1}
    assert len(shown) > 60
