"""Downloads of Objaverse and lists of objects: every way of naming one finds it, and what is not there is said so."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from object_support import OBJ, InThisProcess, textured_glb, write

from uvd.sequences import Example, Reason, Reject, Seeds
from uvd.sources import objaverse_lists
from uvd.sources.base import Item, SourceError
from uvd.sources.objaverse import ObjaverseConfig, ObjaverseSource
from uvd.sources.objaverse_inputs import identity_of
from uvd.sources.objaverse_lists import read_list, uid_of_identifier

UIDS = [f"{number:032x}" for number in range(3)]
PATHS = {uid: f"glbs/000-{number:03d}/{uid}.glb" for number, uid in enumerate(UIDS)}
SHA256 = "ab" * 32


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """What the package leaves in `~/.objaverse` when two of three objects were downloaded, and Objaverse-XL's files."""
    home = tmp_path / ".objaverse"
    layout = home / "hf-objaverse-v1"
    for uid in UIDS[:2]:
        write(layout / PATHS[uid], b"glb")
    write(layout / "object-paths.json.gz", gzip.compress(json.dumps(PATHS).encode()))
    write(layout / "metadata" / "000-000.json.gz", b"")
    write(home / "thingiverse" / "thing-12-file-34.stl", b"stl")
    write(home / "smithsonian" / "objects" / f"{uid_of_identifier('https://s.example/a.glb')}.glb", b"glb")
    return home


def items(place: Path, **changes: Any) -> list[Item]:
    source = ObjaverseSource(ObjaverseConfig(input=place, **changes))
    return [item for unit in source.plan() for item in unit.payload["items"]]


def listed(folder: Path, rows: object, **changes: Any) -> list[Item]:
    path = write(folder.parent / "list.json", json.dumps(rows))
    return items(folder, object_list=path, **changes)


def refusal(item: Item) -> tuple[str, str]:
    assert "bytes" not in item
    return item["origin"], item["refused"]


def test_an_object_is_the_same_whichever_folder_is_given(home: Path) -> None:
    layout = home / "hf-objaverse-v1"
    found = {place: items(place) for place in (home, layout, layout / "glbs")}
    assert [item["origin"] for item in found[layout]] == [PATHS[uid] for uid in UIDS[:2]]
    assert [item["origin"] for item in found[layout / "glbs"]] == [PATHS[uid][5:] for uid in UIDS[:2]]
    assert len(found[home]) == 4
    for place in found:
        assert {identity_of(item) for item in found[place]} >= set(UIDS[:2])


def test_uids_lead_to_files(home: Path) -> None:
    layout = home / "hf-objaverse-v1"
    for place, prefix in ((home, "hf-objaverse-v1/glbs/"), (layout, "glbs/"), (layout / "glbs", "")):
        *found, gone, unknown = listed(place, [*UIDS, "f" * 32])
        for uid, item in zip(UIDS, found, strict=False):
            assert item == {"origin": PATHS[uid].replace("glbs/", prefix), "bytes": 3, "uid": uid}
        assert refusal(gone) == (UIDS[2], Reason.MISSING)
        assert PATHS[UIDS[2]].replace("glbs/", prefix) in gone["detail"]
        assert refusal(unknown) == ("f" * 32, Reason.MISSING)


def test_without_the_table_uids_are_names_of_files(home: Path) -> None:
    (home / "hf-objaverse-v1" / "object-paths.json.gz").unlink()
    write(home / "mine" / "twice.obj", OBJ)
    write(home / "mine" / "other" / "twice.stl", OBJ)
    one, twice = listed(home, [UIDS[1], "twice"])
    assert one["origin"] == f"hf-objaverse-v1/{PATHS[UIDS[1]]}"
    assert refusal(twice) == ("twice", Reason.BAD_ANNOTATION)


def test_a_table_that_leads_elsewhere_is_not_followed(home: Path) -> None:
    layout = home / "hf-objaverse-v1"
    write(home / "secret.glb", b"x")
    hostile = {"a": "../secret.glb", "b": "glbs/../../secret.glb", "c": 7, "d": "/etc/passwd", **PATHS}
    write(layout / "object-paths.json.gz", gzip.compress(json.dumps(hostile).encode()))
    *found, fine = listed(layout, ["a", "b", "c", "d", UIDS[0]])
    assert [item["refused"] for item in found] == [Reason.MISSING] * 4
    assert fine["origin"] == PATHS[UIDS[0]]
    write(layout / "object-paths.json.gz", b"no gzip")
    with pytest.raises(SourceError, match=r"object-paths\.json\.gz cannot be read"):
        listed(layout, ["a"])


def test_annotations_of_objaverse_xl(home: Path) -> None:
    rows = [
        {"fileIdentifier": f"https://sketchfab.com/3d-models/{UIDS[0]}", "source": "sketchfab", "sha256": SHA256},
        {"fileIdentifier": "https://www.thingiverse.com/thing:12/files?fileId=34", "sha256": SHA256},
        {"fileIdentifier": "https://s.example/a.glb", "sha256": SHA256},
        {"fileIdentifier": "https://github.com/a/b/blob/c/d.obj", "sha256": SHA256},
    ]
    path = home / "annotations.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    *found, gone = items(home, object_list=path)
    assert [Path(item["origin"]).parent.name for item in found] == ["000-000", "thingiverse", "objects"]
    assert {item["sha256"] for item in found} == {SHA256}
    assert refusal(gone) == (rows[3]["fileIdentifier"], Reason.MISSING)


ROWS = [{"uid": "one", "path": "a b.obj", "sha256": SHA256, "split": "test"}, {"path": "sub/b.zip", "split": "train"}]
CSV = f"uid,path,other,sha256,split\none,a b.obj,7,{SHA256},test\n,sub/b.zip,8,,train\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.csv", CSV),
        ("l.tsv", CSV.replace(",", "\t")),
        ("l.CSV.gz", CSV),
        ("l.jsonl", "\n".join(map(json.dumps, ROWS)) + "\n\n"),
        ("l.jsonl.gz", "\n".join(map(json.dumps, ROWS))),
        ("l.json", json.dumps(ROWS)),
        ("l.json", json.dumps({"test": [{**ROWS[0], "split": "?"}], "train": ["sub/b.zip"]})),
        ("l.parquet", ""),
    ],
)
def test_one_list_in_every_format(tmp_path: Path, name: str, text: str) -> None:
    for path in ("a b.obj", "sub/b.zip"):
        write(tmp_path / path, OBJ)
    if text:
        write(tmp_path / name, gzip.compress(text.encode()) if name.endswith(".gz") else text)
    else:
        pq.write_table(pa.Table.from_pylist([{**ROWS[0], "n": 1}, ROWS[1]]), tmp_path / name)
    expected = [
        {"origin": "a b.obj", "bytes": len(OBJ), "uid": "one", "sha256": SHA256, "split": "test"},
        {"origin": "sub/b.zip", "bytes": len(OBJ), "split": "train"},
    ]
    assert items(tmp_path / name) == expected  # a list as the input: paths are relative to it
    assert items(tmp_path, object_list=tmp_path / name) == expected


def test_lists_of_words(tmp_path: Path) -> None:
    write(tmp_path / "sub" / "b.GLB", b"x")
    write(tmp_path / "l.txt", f"\ufeffsub/b.GLB\n\n  {UIDS[0]}  \nc.stl\n")
    assert list(read_list(tmp_path / "l.txt")) == [{"path": "sub/b.GLB"}, {"uid": UIDS[0]}, {"path": "c.stl"}]
    answer = {"one": str(tmp_path / "sub" / "b.GLB")}  # of objaverse.load_objects
    write(tmp_path / "l.json", json.dumps(answer))
    assert items(tmp_path / "l.json") == [{"origin": "sub/b.GLB", "bytes": 1, "uid": "one"}]


def test_every_row_is_an_object_or_a_refusal(tmp_path: Path) -> None:
    folder = tmp_path / "objects"
    write(tmp_path / "outside.obj", OBJ)
    write(folder / "a.obj", OBJ)
    rows: list[tuple[object, Reason | None]] = [
        ({"path": "a.obj", "sha256": SHA256.upper(), "split": "validation"}, None),
        ({"path": "./x/../a.obj"}, Reason.DUPLICATE),
        ({"path": "gone.obj"}, Reason.MISSING),
        ({"path": "../outside.obj"}, Reason.EXTERNAL_REFERENCE),
        ({"path": "/etc/passwd"}, Reason.EXTERNAL_REFERENCE),
        ({"path": "."}, Reason.EXTERNAL_REFERENCE),
        ({"path": "a\0.obj"}, Reason.EXTERNAL_REFERENCE),
        ({"path": "x" * 5000}, Reason.MISSING),
        ({"path": "\ud800.obj"}, Reason.MISSING),
        ({"path": 7}, Reason.BAD_ANNOTATION),
        ({"uid": ["a"]}, Reason.BAD_ANNOTATION),
        ({"sha256": SHA256}, Reason.BAD_ANNOTATION),
        (None, Reason.BAD_ANNOTATION),
        ({"path": "b.obj", "sha256": "abc"}, Reason.HASH_MISMATCH),
        ({"path": "b.obj", "split": "dev"}, Reason.BAD_ANNOTATION),
    ]
    write(folder / "b.obj", OBJ)
    found = listed(folder, [row for row, _ in rows])
    assert [item.get("refused") for item in found] == [reason for _, reason in rows]
    assert found[0] == {"origin": "a.obj", "bytes": len(OBJ), "sha256": SHA256, "split": "val"}
    assert found[11]["origin"] == "list.json row 12"
    json.dumps(found, ensure_ascii=False).encode()  # all of it can be written down


def test_lists_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.obj", OBJ)

    def message(name: str, content: bytes | str) -> str:
        with pytest.raises(SourceError) as refused:
            items(tmp_path, object_list=write(tmp_path / name, content))
        return str(refused.value)

    assert "no column uid, path or fileIdentifier; it has name, size" in message("l.csv", "name,size\na,1\n")
    assert "cannot be read" in message("l.csv", "path,uid\na.obj\n")
    assert "names no object" in message("l.csv", "path,uid\n")
    assert "cannot be read" in message("l.parquet", "PAR1")
    assert "cannot be read" in message("l.json.gz", gzip.compress(b"[]")[:-4])
    assert "cannot be read" in message("l.txt", b"\xff\xfe")
    assert "is not JSON" in message("l.json", "[" * 100_000)
    assert "is a int" in message("l.json", "7")
    assert "names no object" in message("l.json", "[]")
    assert "first gone.obj: no file gone.obj" in message("l.txt", "gone.obj\n")
    with pytest.raises(SourceError, match="cannot be read"):
        items(tmp_path, object_list=tmp_path / "nowhere.csv")
    monkeypatch.setattr(objaverse_lists, "MAX_LIST_BYTES", 1000)
    assert "more than 1000 bytes" in message("l.jsonl.gz", gzip.compress(bytes(1 << 20)))


def test_one_object_as_the_input(tmp_path: Path) -> None:
    write(tmp_path / "a.glb", b"x")
    write(tmp_path / "b.glb", b"x")
    assert items(tmp_path / "b.glb") == [{"origin": "b.glb", "bytes": 1}]
    with pytest.raises(SourceError, match="no file of"):
        items(write(tmp_path / "notes.md", "x"))


def test_names_and_links_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.glb").symlink_to(tmp_path / "gone.glb")
    write(tmp_path / "b.obj", OBJ)
    (tmp_path / "c\udcff.obj").write_text(OBJ)
    link, fine, name = items(tmp_path)
    assert refusal(link) == ("a.glb", Reason.MISSING)
    assert fine["origin"] == "b.obj"
    assert refusal(name) == ("c\\udcff.obj", Reason.UNREADABLE)


def test_hash_and_split_of_a_list_reach_the_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ObjaverseSource, "_child", lambda _: InThisProcess)
    data = textured_glb()
    for name in ("a.glb", "b.glb", "c.glb"):
        write(tmp_path / name, data)
    digest = hashlib.sha256(data).hexdigest()
    rows = [
        {"path": "a.glb", "sha256": digest, "split": "test"},
        {"path": "b.glb", "sha256": SHA256, "split": "test"},
        {"path": "c.glb", "split": "val"},
    ]
    write(tmp_path / "l.json", json.dumps(rows))
    source = ObjaverseSource(ObjaverseConfig(input=tmp_path / "l.json", views=2))
    (unit,) = source.plan()
    first, second, third = source.read(unit, Seeds(0))
    assert isinstance(first, Example)
    assert isinstance(second, Reject)
    assert isinstance(third, Example)
    assert (first.split, third.split) == ("test", "val")
    assert (second.reason, second.detail) == (Reason.HASH_MISMATCH, f"{digest}, listed as {SHA256}")
