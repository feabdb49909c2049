"""Verification names each kind of damage by its kind and shard, and nothing else; it knows who is at work."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from uvd.manifests import Dataset, ImageShardWriter, TokenShardWriter
from uvd.manifests import verify as verification
from uvd.manifests.codec import encode_png
from uvd.manifests.lease import hold
from uvd.manifests.schema import METADATA_KEY, REJECTS, table_to_parquet
from uvd.manifests.verify import Scope, verify
from uvd.manifests.verify_findings import Finding, Kind
from uvd.sequences import Picture, Reason, Reject, VisualSequence

ENTRY = {"fingerprint": "f", "plan": {"shards": 3, "inputs": 12}}
IMAGES, TOKENS = "sequences/pairs", "tokens/t/pairs"


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """Three image shards of pairs, a photo and a drawn picture, and their token shards."""
    root = tmp_path_factory.mktemp("sound") / "d"
    dataset = Dataset(str(root))
    dataset.declare("sequences", "pairs", ENTRY)
    dataset.declare("tokens", "t/pairs", {"fingerprint": "f"})
    rng = np.random.default_rng(0)
    for shard in range(3):
        with ImageShardWriter(dataset, "pairs", shard) as writer:
            for index in range(3):
                pixels = rng.integers(0, 255, (256, 256, 3)).astype(np.uint8)
                photo = Picture("image", pixels, f"{index}.jpg", (256, 256))
                drawn = Picture("boxes", pixels // 2, f"{index}.jpg", (256, 256), drawn=True)
                writer.add(VisualSequence((photo, drawn), "pairs", "p", "train", frozenset({index})))
            writer.commit(4, [Reject(3, "3.jpg", Reason.NOT_IMAGE, "no")], f"f{shard}", "f")
        with TokenShardWriter(dataset, "t", "pairs", shard) as tokens:
            for row in dataset.manifest(dataset.shards(IMAGES)[shard]).to_pylist():
                tokens.add(row, rng.integers(0, 8192, (2, 256)).astype(np.uint16))
            sha = dataset.metadata(dataset.shards(IMAGES)[shard])["tar_sha256"]
            tokens.commit(3, f"f{shard}", {"image_tar_sha256": sha, "config_fingerprint": "f"})
    return root


@pytest.fixture
def root(sound, tmp_path) -> Path:
    shutil.copytree(sound, tmp_path / "d")
    return tmp_path / "d"


def found(root: Path, deep: bool = True, **scope: object) -> list[tuple[str, str]]:
    result = verify(Dataset(str(root)), deep=deep, scope=Scope(**scope))  # type: ignore[arg-type]
    return [(finding.place, str(finding.kind)) for finding in result.findings]


Members = list[tuple[tarfile.TarInfo, bytes]]


def repack(root: Path, stem: str, change: Callable[[Members], Members], **metadata: object) -> None:
    """Changes the files of a tar as a careful forger does: length and sha256 in the manifest are right."""
    tar = root / f"{stem}.tar"
    with tarfile.open(tar) as old:
        members = [(info, old.extractfile(info).read()) for info in old]  # type: ignore[union-attr]
    with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as new:
        for info, data in change(members):
            info.size = len(data)
            new.addfile(info, io.BytesIO(data))
    data = tar.read_bytes()
    rewrite(root, stem, tar_sha256=hashlib.sha256(data).hexdigest(), tar_bytes=len(data), **metadata)


def rewrite(root: Path, stem: str, columns: dict[str, list] | None = None, **metadata: object) -> None:
    path = root / f"{stem}.parquet"
    table = pq.read_table(path)
    known = json.loads(table.schema.metadata[METADATA_KEY])
    for name, values in (columns or {}).items():
        place = table.schema.get_field_index(name)
        field = table.schema.field(place)
        table = table.set_column(place, field, pa.array(values, field.type))
    path.write_bytes(table_to_parquet(table, known | metadata))


def replaced(index: int, data: bytes) -> Callable[[Members], Members]:
    return lambda members: [(info, data if at == index else old) for at, (info, old) in enumerate(members)]


def renamed(index: int, name: str) -> Callable[[Members], Members]:
    def change(members: Members) -> Members:
        members[index][0].name = name
        return members

    return change


def owned(members: Members) -> Members:
    members[1][0].uid = 1000
    return members


def test_a_sound_dataset(sound):
    result = verify(Dataset(str(sound)), deep=True)
    assert (result.findings, result.shards, result.sequences) == ([], 6, 18)
    assert result.inputs == {IMAGES: 12, TOKENS: 9}


IMAGE_FORGERIES: dict[str, tuple[Callable[[Members], Members], str]] = {
    "an owner": (owned, "members"),
    "two swapped": (lambda members: [members[1], members[0], *members[2:]], "members"),
    "one more": (lambda members: [*members, members[-1]], "members"),
    "one less": (lambda members: members[:-1], "members"),
    "another name": (renamed(1, "pairs-000001-000000.07.png"), "members"),
    "a foreign extension": (renamed(0, "pairs-000001-000000.00.pickle"), "members"),
    "JSON of another split": (
        replaced(2, b'{"layout": "pairs", "roles": ["image", "boxes"], "source": "pairs", "split": "test"}'),
        "members",
    ),
    "JSON with text": (
        replaced(2, b'{"layout":"pairs","roles":["image","boxes"],"source":"pairs","split":"train","text":"a cat"}'),
        "members",
    ),
    "another drawing": (replaced(1, encode_png(np.zeros((256, 256, 3), np.uint8))), "counts"),
}


@pytest.mark.parametrize("forgery", IMAGE_FORGERIES)
def test_a_forged_tar_of_images(root, forgery):
    change, kind = IMAGE_FORGERIES[forgery]
    repack(root, f"{IMAGES}/000001", change)
    named = found(root)
    assert (f"{IMAGES}/000001", kind) in named
    assert {place for place, _ in named} == {f"{IMAGES}/000001", f"{TOKENS}/000001"}
    assert (f"{TOKENS}/000001", "other_images") in named


def of_another_size(data: bytes) -> bytes:
    """A PNG of as many bytes whose header says 512 pixels."""
    return data[:16] + (512).to_bytes(4, "big") + data[20:]


@pytest.mark.parametrize(
    ("index", "change", "kind"),
    [
        (0, lambda data: b"\xff\xd8\xff" + bytes(len(data) - 3), "pixels"),
        (1, of_another_size, "pixels"),
    ],
)
def test_pictures_are_decoded(root, index, change, kind):
    repack(
        root,
        f"{IMAGES}/000001",
        lambda members: [(i, change(d) if at == index else d) for at, (i, d) in enumerate(members)],
    )
    assert (f"{IMAGES}/000001", kind) in found(root)
    assert (f"{IMAGES}/000001", kind) not in found(root, deep=False)


def test_the_hash_of_a_drawn_picture_is_that_of_its_pixels(root):
    hashes = pq.read_table(root / f"{IMAGES}/000002.parquet")["phashes"].to_pylist()
    hashes[0][1] ^= 1
    rewrite(root, f"{IMAGES}/000002", {"phashes": hashes})
    assert found(root) == [(f"{IMAGES}/000002", "pixels")]


def test_the_digest_of_a_picture_is_that_of_its_bytes(root):
    digests = pq.read_table(root / f"{IMAGES}/000002.parquet")["digests"].to_pylist()
    digests[0][0] ^= 1
    rewrite(root, f"{IMAGES}/000002", {"digests": digests})
    assert found(root) == [(f"{IMAGES}/000002", "pixels")]


def _array(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Members], Members]:
    def apply(members: Members) -> Members:
        tokens = np.lib.format.read_array(io.BytesIO(members[0][1]), allow_pickle=False)
        sink = io.BytesIO()
        np.lib.format.write_array(sink, change(tokens.copy()), version=(1, 0), allow_pickle=False)
        return [(members[0][0], sink.getvalue()), *members[1:]]

    return apply


def _set(place: int, value: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(tokens: np.ndarray) -> np.ndarray:
        tokens[place] = value
        return tokens

    return change


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (_array(_set(0, 5)), "tokens"),
        (_array(_set(513, 8192)), "tokens"),
        (_array(_set(77, 8200)), "tokens"),
        (_array(lambda tokens: tokens.astype(">u2")), "tokens"),
        (_array(lambda tokens: tokens[:-1]), "tokens"),
        (_array(lambda tokens: np.concatenate([tokens[:1], tokens[2:3], tokens[1:2], tokens[3:]])), None),
        (_array(_set(9, 1)), "histogram"),
        (replaced(1, b'{"offsets": [0, 514, 1028]}'), "tokens"),
        (renamed(0, "pairs-000001-r000001.tokens.npy"), "members"),
        (owned, "members"),
    ],
)
def test_a_forged_tar_of_tokens(root, change, kind):
    """All but a permutation within a picture, with the sha256 forged too, is found."""
    repack(root, f"{TOKENS}/000001", change)
    named = found(root)
    assert named == [] if kind is None else (f"{TOKENS}/000001", kind) in named
    assert {place for place, _ in named} <= {f"{TOKENS}/000001"}


@pytest.mark.parametrize(
    ("stem", "columns", "metadata", "kind"),
    [
        (IMAGES, {}, {"sequences": 4}, "counts"),
        (IMAGES, {}, {"images": 5}, "counts"),
        (IMAGES, {}, {"rejected": 0}, "conservation"),
        (IMAGES, {}, {"inputs": 5}, "conservation"),
        (IMAGES, {}, {"tar_sha256": 7}, "foreign_manifest"),
        (IMAGES, {}, {"kind": "tokens"}, "foreign_manifest"),
        (IMAGES, {}, {"folder": "other"}, "foreign_manifest"),
        (IMAGES, {}, {"config_fingerprint": "g"}, "mixed_fingerprint"),
        (IMAGES, {}, {"summary": "AAAA"}, "summary"),
        (IMAGES, {"offset": [0, 0, 0]}, {}, "counts"),
        (IMAGES, {"num_images": [2, 2, 1]}, {"images": 5}, "counts"),
        (IMAGES, {"key": [f"pairs-000001-{i:06d}" for i in (0, 0, 1)]}, {}, "keys"),
        (IMAGES, {"key": [f"pairs-000002-{i:06d}" for i in range(3)]}, {}, "keys"),
        (TOKENS, {"num_tokens": [514, 514, 513]}, {}, "counts"),
        (TOKENS, {}, {"tokens": 1}, "counts"),
        (TOKENS, {}, {"records": 2}, "counts"),
        (TOKENS, {}, {"image_tar_sha256": "0"}, "other_images"),
        (TOKENS, {"split": ["train", "test", "train"]}, {}, "summary"),
        (TOKENS, {"roles": [["boxes", "image"]] * 3}, {}, "keys"),
    ],
)
def test_a_manifest_that_says_something_else(root, stem, columns, metadata, kind):
    rewrite(root, f"{stem}/000001", columns, **metadata)
    assert (f"{stem}/000001", kind) in found(root)


def test_rejects_hold_known_reasons_and_planned_inputs(root):
    path = root / f"{IMAGES}/000000.rejects.parquet"
    (row,) = pq.read_table(path).to_pylist()
    for change, kind in (({"reason": "bored"}, "rejects"), ({"input": 9}, "rejects"), ({"shard": 1}, "rejects")):
        path.write_bytes(table_to_parquet(pa.Table.from_pylist([row | change], REJECTS), {"kind": "rejects"}))
        assert (f"{IMAGES}/000000", kind) in found(root, deep=False)
    path.write_bytes(b"PAR1 no")
    assert found(root, deep=False) == [(f"{IMAGES}/000000", "rejects")]


def test_gaps_and_totals_against_the_plan(root):
    info = json.loads((root / "dataset.json").read_text())
    info["sequences"]["pairs"]["plan"] = {"shards": 6, "inputs": 24}
    (root / "dataset.json").write_text(json.dumps(info))
    gaps = [(f"{IMAGES}/000003-000005", "gap_in_plan"), (f"{TOKENS}/000003-000005", "gap_in_plan")]
    assert found(root) == gaps
    info["sequences"]["pairs"]["plan"] = {"shards": 3, "inputs": 13}
    (root / "dataset.json").write_text(json.dumps(info))
    assert found(root) == [(IMAGES, "conservation")]
    info["sequences"]["pairs"]["plan"] = {"shards": 2, "inputs": 8}
    (root / "dataset.json").write_text(json.dumps(info))
    assert (f"{IMAGES}/000002", "foreign_manifest") in found(root)
    del info["sequences"]["pairs"]["plan"]  # as older datasets are
    (root / "dataset.json").write_text(json.dumps(info))
    assert found(root) == []
    for path in root.rglob("000001*"):
        path.unlink()
    assert found(root) == [(f"{IMAGES}/000001", "gap_in_plan")]


def test_only_what_was_asked_for_is_looked_at(root):
    (root / f"{IMAGES}/000001.tar").unlink()
    (root / f"{IMAGES}/stranger").write_bytes(b"")
    assert found(root, first=0, last=0) == []
    assert found(root, first=1, last=1) == [(f"{IMAGES}/000001", "missing_tar")]
    assert found(root, sources=("other",)) == []
    assert len(found(root, sources=("pairs",))) == 2
    assert verify(Dataset(str(root)), scope=Scope(first=2)).shards == 2


def test_the_order_does_not_depend_on_bunches(root, monkeypatch):
    for path in sorted(root.rglob("*.tar")):
        path.write_bytes(path.read_bytes()[:-512])
    together = verify(Dataset(str(root)))
    monkeypatch.setattr(verification, "BUNCH_SHARDS", 1)
    assert verify(Dataset(str(root))) == together
    assert together.findings == sorted(together.findings)


def test_a_store_that_fails_is_not_called_damage(root, monkeypatch):
    dataset = Dataset(str(root))

    def refuse(path: str) -> bytes:
        if path.endswith("pairs/000001.parquet"):
            raise OSError("connection reset")
        return (root / path).read_bytes()

    monkeypatch.setattr("uvd.manifests.verify_shard._PAUSE_S", 0.0)
    monkeypatch.setattr(dataset.storage, "read", refuse)
    assert {finding.kind for finding in verify(dataset).findings} == {Kind.UNREACHABLE}


def test_a_run_at_work_is_no_damage(root):
    (root / f"{IMAGES}/.000002.tar.0123456789ab.tmp").write_bytes(b"half")
    (root / f"{IMAGES}/000002.parquet").unlink()
    code = (
        "import sys, time; from uvd.manifests.lease import hold; from uvd.manifests.storage import Storage\n"
        f"with hold(Storage({str(root)!r}), [{IMAGES!r}]): print('held', flush=True); time.sleep(60)"
    )
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "held\n"
        result = verify(Dataset(str(root)), deep=True)
        assert {finding.kind for finding in result.findings} == {Kind.OTHER_IMAGES}
        assert f"process {writer.pid}" in result.writing["sequences.pairs"]
    finally:
        writer.kill()
        writer.wait()
    kinds = {finding.kind for finding in verify(Dataset(str(root))).findings}
    assert kinds == {Kind.LEFTOVER, Kind.GAP_IN_PLAN, Kind.OTHER_IMAGES}
    with hold(Dataset(str(root)).storage, [IMAGES]):
        pass  # cleans up after the killed one


def test_findings_are_data():
    finding = Finding("sequences/a", 3, "", Kind.GAP_IN_PLAN, "planned and not there", 5)
    assert finding.as_json() == {
        "place": "sequences/a/000003-000005",
        "kind": "gap_in_plan",
        "detail": "planned and not there",
    }
    assert list(finding.shards) == [3, 4, 5]
    assert str(Finding("", -1, "x", Kind.LEFTOVER, "left")) == "x: left (leftover)"
