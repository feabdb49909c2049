"""Near-duplicates: the same groups as comparing all with all, whatever the hashes; old marks are known as such."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import typer
from tests_support import dataset_bytes
from typer.testing import CliRunner

from uvd.manifests import Dataset, DatasetError, schema
from uvd.manifests.dedup import DedupSettings, find_duplicates, read_marks
from uvd.manifests.duplicate_groups import first_leaders
from uvd.manifests.near_hashes import block_choices, cheapest_choices
from uvd.pipeline import cli_dedup

FLAT = 1 << 63


def flipped(value: int, bits: int, rng: np.random.Generator) -> int:
    """`value` with that many bits changed."""
    for bit in rng.choice(64, bits, replace=False):
        value ^= 1 << int(bit)
    return value


def write_shard(
    dataset: Dataset,
    source: str,
    shard: int,
    hashes: list[list[int]],
    role: str = "image",
    digests: list[list[int]] | None = None,
) -> None:
    """A manifest of sequences with these hashes; there need be no tar for what is tested here."""
    name = f"{source}-{shard:06d}"
    rows = [
        {
            "key": f"{name}-{index:06d}",
            "source": source,
            "dataset": "d",
            "layout": "single",
            "split": "train",
            "num_images": len(images),
            "roles": [role] * len(images),
            "origins": [f"http://h/{shard}/{index}/{image}" for image in range(len(images))],
            "indices": [None] * len(images),
            "widths": [300] * len(images),
            "heights": [300] * len(images),
            "phashes": images,
            "digests": (digests or hashes)[index],
            "inputs": [index],
            "offset": 0,
            "length": 0,
        }
        for index, images in enumerate(hashes)
    ]
    metadata = {"tar_sha256": schema.json.dumps(hashes)}
    dataset.storage.put(f"sequences/{source}/{shard:06d}.parquet", schema.to_parquet(rows, schema.SEQUENCES, metadata))


def make(tmp_path, hashes: list[int], source: str = "laion", per_shard: int = 500) -> Dataset:
    dataset = Dataset(str(tmp_path / "d"))
    dataset.declare("sequences", source, {"fingerprint": "f"})
    for shard, start in enumerate(range(0, len(hashes), per_shard)):
        write_shard(dataset, source, shard, [[value] for value in hashes[start : start + per_shard]])
    return dataset


def brute_force(hashes: list[int], bits: int) -> dict[int, int]:
    """Index → index of its representative, by the rule: in order, the first that stays and is near, else itself."""
    staying: list[int] = []
    result = {}
    for index, value in enumerate(hashes):
        result[index] = next((other for other in staying if (hashes[other] ^ value).bit_count() <= bits), index)
        if result[index] == index:
            staying.append(index)
    return result


def marked(dataset: Dataset, name: str = "all") -> dict[str, tuple[str, int]]:
    return {row["key"]: (row["representative"], row["distance"]) for row in read_marks(dataset, name)[0].to_pylist()}


def planted(seed: int, count: int = 600) -> list[int]:
    """Random hashes, and about as many that differ from an earlier one in 0 to 6 bits: chains and clusters arise."""
    rng = np.random.default_rng(seed)
    hashes = [int(value) for value in rng.integers(0, 2**64, count, dtype=np.uint64)]
    for _ in range(count):
        hashes.append(flipped(hashes[int(rng.integers(len(hashes)))], int(rng.integers(7)), rng))
    return [hashes[int(index)] for index in rng.permutation(len(hashes))]


@pytest.mark.parametrize("memory_gb", [1.0, 1e-5], ids=["in memory", "parted on disk"])
@pytest.mark.parametrize("bits", [0, 1, 3, 5, 8])
def test_groups_are_those_of_comparing_all_with_all(tmp_path, monkeypatch, bits, memory_gb):
    hashes = planted(bits)
    dataset = make(tmp_path, hashes)
    if memory_gb < 0.1:
        for name, value in (("near_hashes.CHUNK", 100), ("distinct._MIN_ROWS", 64), ("dedup.CHUNK", 50)):
            monkeypatch.setattr(f"uvd.manifests.{name}", value)
        monkeypatch.setattr(DedupSettings, "memory_bytes", property(lambda self: 10_000))
    found = find_duplicates(dataset, DedupSettings(bits=bits))
    keys = [f"laion-{index // 500:06d}-{index % 500:06d}" for index in range(len(hashes))]
    representatives = brute_force(hashes, bits)
    sizes = np.bincount(list(representatives.values()), minlength=len(hashes))
    expected = {
        keys[index]: (keys[first], (hashes[index] ^ hashes[first]).bit_count())
        for index, first in representatives.items()
        if sizes[first] > 1
    }
    assert len(expected) > 100
    assert marked(dataset) == expected
    assert found.images == len(hashes)
    assert found.hashes == len(set(hashes))
    assert found.groups == (sizes > 1).sum()
    assert found.marked == len(expected) - found.groups
    assert found.equal == sum(distance == 0 for _, distance in expected.values()) - found.groups
    assert found.largest[0] == (keys[int(sizes.argmax())], sizes.max())


@pytest.mark.parametrize("bits", range(9))
@pytest.mark.parametrize("more", [1, 2, 3, 4])
def test_near_hashes_agree_under_some_mask_wherever_they_differ(bits, more):
    masks = [choice.mask for choice in block_choices(bits, bits + more)]
    rng = np.random.default_rng(bits)
    for _ in range(300):
        difference = flipped(0, bits, rng)
        assert any(difference & mask == 0 for mask in masks)
    # The worst case: the bits spread over as many blocks as they can.
    for places in itertools.islice(itertools.combinations(range(0, 64, 5), bits), 500):
        difference = sum(1 << place for place in places)
        assert any(difference & mask == 0 for mask in masks)


def test_hashes_that_share_a_part_get_masks_under_which_they_do_not_all_meet():
    even = np.random.default_rng(0).integers(0, 2**64, 5000, dtype=np.uint64)
    shared = even & np.uint64(0xFFFFFFFF) | np.uint64(0xABC << 40)
    assert len(cheapest_choices(3, even, 10**5)) == 4
    assert len(cheapest_choices(3, shared, 10**5)) > 4
    assert len(cheapest_choices(3, even, 10**9)) > 10


def test_a_chain_does_not_lead_away_from_its_representative():
    # 0 - 1 - 2 - 3: each near the next only. 1 joins 0; 2 is not near 0, so it stays, and 3 joins it.
    low, high = np.array([0, 1, 2]), np.array([1, 2, 3])
    assert first_leaders(low, high, 4).tolist() == [0, 0, 2, 2]


def test_a_hash_that_very_many_share_is_one_group(tmp_path):
    """Flat pictures: as pairs these would be a billion."""
    rng = np.random.default_rng(0)
    near = [flipped(FLAT, 2, rng) for _ in range(20)]
    dataset = make(tmp_path, [FLAT] * 50_000 + near, per_shard=50_000)
    found = find_duplicates(dataset, DedupSettings())
    assert (found.images, found.groups, found.marked, found.equal) == (50_020, 1, 50_019, 49_999)
    assert found.largest == (("laion-000000-000000", 50_020),)


def test_pictures_of_one_sequence_are_compared_too_and_other_roles_are_not(tmp_path):
    dataset = make(tmp_path, [])
    dataset.declare("sequences", "pairs", {"fingerprint": "f"})
    write_shard(dataset, "laion", 0, [[1 << 40, 63, 1 << 40]])
    write_shard(dataset, "pairs", 0, [[63]], role="boxes")
    find_duplicates(dataset, DedupSettings())
    rows = read_marks(dataset)[0].to_pylist()
    assert [(row["image"], row["representative_image"], row["origin"]) for row in rows] == [
        (0, 0, "http://h/0/0/0"),
        (2, 0, "http://h/0/0/2"),
    ]
    find_duplicates(dataset, DedupSettings(roles=("image", "boxes")))
    assert marked(dataset)["pairs-000000-000000"] == ("laion-000000-000000", 0)


def test_sources_can_be_chosen_and_groups_cross_them(tmp_path):
    dataset = make(tmp_path, [7, 7, 1 << 50])
    dataset.declare("sequences", "other", {"fingerprint": "f"})
    write_shard(dataset, "other", 0, [[7], [1 << 30]])
    assert find_duplicates(dataset, DedupSettings(sources=("laion",))).images == 3
    assert set(marked(dataset, "laion")) == {"laion-000000-000000", "laion-000000-000001"}
    assert find_duplicates(dataset, DedupSettings(bits=0)).images == 5
    assert marked(dataset)["other-000000-000000"] == ("laion-000000-000000", 0)
    assert find_duplicates(dataset, DedupSettings(sources=("other", "laion"))).path == "dedup/laion+other.parquet"


def test_nothing_but_the_marks_changes_and_they_are_the_same_each_time(tmp_path):
    dataset = make(tmp_path, planted(1))
    before = dataset_bytes(tmp_path / "d")
    find_duplicates(dataset, DedupSettings(threads=1))
    first = dataset_bytes(tmp_path / "d")
    assert {name for name in first if name not in before} == {"dedup/all.parquet"}
    assert {name: first[name] for name in before} == before
    find_duplicates(dataset, DedupSettings(threads=3, memory_gb=0.2))
    assert dataset_bytes(tmp_path / "d") == first


def test_marks_are_stale_once_the_manifests_change(tmp_path):
    dataset = make(tmp_path, [7, 7])
    find_duplicates(dataset, DedupSettings(bits=2))
    metadata = read_marks(dataset)[1]
    assert (metadata["stale"], metadata["bits"], metadata["roles"]) == (False, 2, ["image"])
    write_shard(dataset, "laion", 1, [[7]])
    assert read_marks(dataset)[1]["stale"]
    find_duplicates(dataset, DedupSettings())
    assert not read_marks(dataset)[1]["stale"]
    write_shard(dataset, "laion", 1, [[8]])
    assert read_marks(dataset)[1]["stale"]


def test_a_pass_that_fails_leaves_the_marks_of_the_last_one(tmp_path, monkeypatch):
    dataset = make(tmp_path, [7, 7])
    find_duplicates(dataset, DedupSettings())
    before = dataset_bytes(tmp_path / "d")
    write_shard(dataset, "laion", 0, [[7], [7], [7]])
    monkeypatch.setattr("uvd.manifests.dedup.pq.ParquetWriter.write_table", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        find_duplicates(dataset, DedupSettings())
    after = dataset_bytes(tmp_path / "d")
    assert set(after) == set(before)
    assert after["dedup/all.parquet"] == before["dedup/all.parquet"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bits": 9}, "0 to 8"),
        ({"sources": ("nope",)}, "nope"),
        ({"roles": ("nope",)}, "nope"),
    ],
)
def test_wrong_settings_are_explained(tmp_path, change, said):
    dataset = make(tmp_path, [7, 7])
    with pytest.raises(DatasetError, match=said):
        find_duplicates(dataset, dataclasses.replace(DedupSettings(), **change))
    assert not (tmp_path / "d" / "dedup").exists()


def test_without_images_or_a_pass_it_says_so(tmp_path):
    dataset = make(tmp_path, [])
    with pytest.raises(DatasetError, match="no image shards"):
        find_duplicates(dataset, DedupSettings())
    with pytest.raises(DatasetError, match="uvd dedup"):
        read_marks(dataset)


def test_unique_pictures_give_an_empty_file(tmp_path):
    dataset = make(tmp_path, [1, 1 << 20 | 1 << 30 | 1 << 40 | 1 << 50])
    found = find_duplicates(dataset, DedupSettings())
    assert (found.groups, found.marked, found.largest) == (0, 0, ())
    assert read_marks(dataset)[0].num_rows == 0


def test_the_command_says_what_was_found(tmp_path):
    dataset = make(tmp_path, [7, 7, 1 << 50])
    app = typer.Typer()
    cli_dedup.register(app)
    app.callback()(lambda: None)
    done = CliRunner().invoke(app, ["dedup", "--dataset", dataset.uri, "--bits", "1"])
    assert done.exit_code == 0, done.output
    assert "3 images, 2 different hashes" in done.output
    assert "1 images (33.33 %) are near-duplicates" in done.output
    assert "no image was removed" in done.output


def evaluation_set(tmp_path, hashes: list[int]) -> Dataset:
    (tmp_path / "other").mkdir()
    make(tmp_path / "other", hashes, source="photos")
    (tmp_path / "other" / "d").rename(tmp_path / "eval")
    return Dataset(str(tmp_path / "eval"))


@pytest.mark.parametrize("bits", [0, 3])
def test_against_an_evaluation_set_all_that_is_near_it_is_marked_and_nothing_else(tmp_path, bits):
    hashes = planted(11)
    rng = np.random.default_rng(3)
    theirs = [flipped(hashes[int(index)], int(rng.integers(7)), rng) for index in range(0, len(hashes), 5)]
    dataset, other = make(tmp_path, hashes), evaluation_set(tmp_path, theirs)
    found = find_duplicates(dataset, DedupSettings(bits=bits, against=(other.uri,)))
    expected = {}
    for index, value in enumerate(hashes):
        # Their very hash if it is there, or else the first near one.
        near = [number for number, their in enumerate(theirs) if (value ^ their).bit_count() <= bits]
        if near:
            first = min(near, key=lambda number: (theirs[number] != value, number))
            expected[f"laion-{index // 500:06d}-{index % 500:06d}"] = f"{other.uri}#photos-000000-{first:06d}"
    assert len(expected) > 20
    assert found.path == "dedup/all-against-eval.parquet"
    marks = marked(dataset, "all-against-eval")
    assert {key: name for key, (name, _) in marks.items()} == expected
    assert (found.images, found.marked) == (len(hashes), len(expected))
    assert all(distance <= bits for _, distance in marks.values())


def test_exact_duplicates_are_those_of_equal_bytes(tmp_path):
    """Near-duplicates are told apart; looking for exact ones alone finds no others, equal digests by chance neither."""
    dataset = make(tmp_path, [])
    hashes = [[5], [5], [4], [5], [0xFFFF << 30], [0xFFFF << 46], [9 << 50], [9 << 50]]
    digests = [[70], [71], [70], [70], [80], [80], [90], [90]]
    write_shard(dataset, "laion", 0, hashes, digests=digests)
    near = find_duplicates(dataset, DedupSettings())
    exact = {row["key"][-1]: row["exact"] for row in read_marks(dataset)[0].to_pylist()}
    assert exact == {"0": True, "1": False, "2": False, "3": True, "6": True, "7": True}
    assert (near.groups, near.marked, near.equal, near.exact) == (2, 4, 3, 2)

    found = find_duplicates(dataset, DedupSettings(exact=True))
    marks, metadata = read_marks(dataset, "all-exact")
    groups = [(row["key"][-1], row["representative"][-1], row["exact"]) for row in marks.to_pylist()]
    assert groups == [("0", "0", True), ("3", "0", True), ("6", "6", True), ("7", "6", True)]
    assert (found.groups, found.marked, found.equal, found.exact) == (2, 2, 2, 2)
    assert (found.path, metadata["exact"], metadata["bits"]) == ("dedup/all-exact.parquet", True, 0)


def test_exact_duplicates_of_an_evaluation_set(tmp_path):
    dataset, other = make(tmp_path, [1, 2, 3]), evaluation_set(tmp_path, [4, 2])
    found = find_duplicates(dataset, DedupSettings(exact=True, against=(other.uri,)))
    assert (found.groups, found.marked, found.path) == (1, 1, "dedup/all-exact-against-eval.parquet")
    assert set(marked(dataset, "all-exact-against-eval")) == {"laion-000000-000001"}


@pytest.mark.slow
def test_a_million_hashes(tmp_path):
    rng = np.random.default_rng(5)
    hashes = [int(value) for value in rng.integers(0, 2**64, 990_000, dtype=np.uint64)]
    hashes += [flipped(hashes[index * 90], 3, rng) for index in range(10_000)]
    dataset = make(tmp_path, hashes, per_shard=100_000)
    found = find_duplicates(dataset, DedupSettings(memory_gb=1))
    assert (found.groups, found.marked, found.equal) == (10_000, 10_000, 0)
