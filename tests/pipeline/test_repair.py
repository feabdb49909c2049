"""Repair: every kind of damage is named, and undone to the byte; what cannot be undone is named and left alone."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from commands_support import finished, uvd, wait_for
from rich.console import Console
from tests_support import dataset_bytes, write_photo
from typer.testing import CliRunner

from uvd.manifests import Dataset
from uvd.manifests.schema import METADATA_KEY, table_to_parquet
from uvd.manifests.token_shard import decode_histogram, encode_histogram
from uvd.manifests.verify import Bunch, survey_folders, verify
from uvd.pipeline.cli import app
from uvd.pipeline.ingest import ingest
from uvd.pipeline.ray_runtime import ray_runtime
from uvd.pipeline.repair_plan import Means, Repair
from uvd.pipeline.repairing import repair
from uvd.pipeline.tokenizing import ALLOCATOR, TokenizeSettings, tokenize
from uvd.pipeline.verifying import check_on_ray
from uvd.pipeline.writing import writing
from uvd.sources.images import ImagesConfig

TOKENIZER = Path(__file__).parents[1] / "data" / "muse-vqgan"
CONSOLE = Console(quiet=True)
TOKENS = "tokens/muse-vqgan"
FOLDERS = ["sequences/drawn", "sequences/plain", f"{TOKENS}/drawn", f"{TOKENS}/plain"]


@pytest.fixture(scope="module", autouse=True)
def one_ray():
    with ray_runtime(num_cpus=2, environment=ALLOCATOR):
        yield


@pytest.fixture(scope="module")
def calm(tmp_path_factory) -> Path:
    """Two sources of three shards, with tokens; two inputs are refused."""
    folder = tmp_path_factory.mktemp("calm")
    for seed in range(10):
        write_photo(folder / "photos" / f"{seed:02d}.jpg", seed)
    for number in (2, 7):
        (folder / "photos" / f"broken-{number}.jpg").write_bytes(b"\xff\xd8\xff no photo")
    for config in (
        ImagesConfig(name="plain", dataset="p", input=folder / "photos", shard_size=4, resize="random_crop"),
        ImagesConfig(
            name="drawn", dataset="d", input=folder / "photos", shard_size=4, derive=("grey",), layouts={"pairs": 1.0}
        ),
    ):
        assert ingest(config, str(folder / "d"), console=CONSOLE).complete
    settings = TokenizeSettings(str(TOKENIZER), device="cpu")
    assert all(result.complete for _, result in tokenize(Dataset(str(folder / "d")), (), settings, console=CONSOLE))
    return folder / "d"


@pytest.fixture
def damaged(calm, tmp_path) -> Path:
    shutil.copytree(calm, tmp_path / "d")
    return tmp_path / "d"


def repaired(root: Path, dry_run: bool = False, **more: object) -> Repair:
    dataset = Dataset(str(root))
    with writing(dataset, FOLDERS, CONSOLE) as lease:
        found = verify(dataset, deep=True)
        means = Means(CONSOLE, lease, "local", **more)  # type: ignore[arg-type]
        return repair(dataset, found, means, dry_run=dry_run)


def kinds(root: Path, place: str = "") -> set[str]:
    found = verify(Dataset(str(root)), deep=True).findings
    return {str(finding.kind) for finding in found if finding.place.startswith(place)}


def edit_metadata(manifest: Path, **changes: object) -> None:
    table = pq.read_table(manifest)
    metadata = json.loads(table.schema.metadata[METADATA_KEY])
    manifest.write_bytes(table_to_parquet(table, metadata | changes))


def truncate(stem: Path) -> None:
    data = stem.with_suffix(".tar").read_bytes()
    stem.with_suffix(".tar").write_bytes(data[:-700])


def flip(stem: Path) -> None:
    data = bytearray(stem.with_suffix(".tar").read_bytes())
    data[1500] ^= 4
    stem.with_suffix(".tar").write_bytes(data)


def rewrite_with_a_time(stem: Path) -> None:
    """Another program packed the same files, and somebody wrote its checksum into the manifest."""
    tar = stem.with_suffix(".tar")
    with tarfile.open(tar) as old:
        members = [(info, old.extractfile(info).read()) for info in old]  # type: ignore[union-attr]
    with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as new:
        for info, data in members:
            info.mtime = 1_700_000_000
            new.addfile(info, io.BytesIO(data))
    data = tar.read_bytes()
    edit_metadata(stem.with_suffix(".parquet"), tar_sha256=hashlib.sha256(data).hexdigest(), tar_bytes=len(data))


def half_manifest(stem: Path) -> None:
    manifest = stem.with_suffix(".parquet")
    manifest.write_bytes(manifest.read_bytes()[: manifest.stat().st_size // 2])


def another_manifest(stem: Path) -> None:
    shutil.copy(stem.with_name("000000.parquet"), stem.with_suffix(".parquet"))


def foreign_parquet(stem: Path) -> None:
    shutil.copy(stem.with_suffix(".rejects.parquet"), stem.with_suffix(".parquet"))


def all_gone(stem: Path) -> None:
    for suffix in (".tar", ".parquet", ".rejects.parquet"):
        stem.with_suffix(suffix).unlink()


def other_settings(stem: Path) -> None:
    edit_metadata(stem.with_suffix(".parquet"), config_fingerprint="f" * 64)


def wrong_counts(stem: Path) -> None:
    edit_metadata(stem.with_suffix(".parquet"), images=999)


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no tar": (lambda stem: stem.with_suffix(".tar").unlink(), "missing_tar"),
    "truncated tar": (truncate, "truncated"),
    "flipped bit": (flip, "checksum"),
    "headers with a time": (rewrite_with_a_time, "members"),
    "half a manifest": (half_manifest, "damaged_manifest"),
    "another shard's manifest": (another_manifest, "foreign_manifest"),
    "a foreign Parquet file": (foreign_parquet, "foreign_manifest"),
    "no manifest": (lambda stem: stem.with_suffix(".parquet").unlink(), "gap_in_plan"),
    "no rejects": (lambda stem: stem.with_suffix(".rejects.parquet").unlink(), "rejects"),
    "nothing left": (all_gone, "gap_in_plan"),
    "other settings": (other_settings, "mixed_fingerprint"),
    "wrong counts": (wrong_counts, "counts"),
}


def test_a_sound_dataset_needs_nothing(calm, damaged):
    result = repaired(damaged)
    assert (result.complete, list(result.lines())) == (True, [])
    assert dataset_bytes(damaged) == dataset_bytes(calm)


def test_all_kinds_of_damage_at_once(calm, damaged):
    """A shard each; here, other than below, images and their tokens may be damaged together."""
    stems = [f"{folder}/{number:06d}" for number in (1, 2) for folder in FOLDERS]
    chosen = [name for name in DAMAGE if name not in ("no tar", "no rejects", "truncated tar", "no manifest")]
    for stem, name in zip(stems, chosen, strict=True):
        DAMAGE[name][0](damaged / stem)
    found = {finding.place: str(finding.kind) for finding in verify(Dataset(str(damaged)), deep=True).findings}
    assert {stem: found[stem] for stem in stems}.keys() == set(stems)
    assert repaired(damaged).complete
    assert dataset_bytes(damaged) == dataset_bytes(calm)


def test_ray_finds_what_this_process_finds(calm, damaged):
    flip(damaged / "sequences/plain/000001")
    half_manifest(damaged / TOKENS / "drawn/000000")
    all_gone(damaged / "sequences/drawn/000002")
    dataset = Dataset(str(damaged))
    here = verify(dataset, deep=True)
    survey = survey_folders(dataset, deep=True)
    survey.bunches = [Bunch(bunch.folder, (number,)) for bunch in survey.bunches for number in bunch.numbers]
    there = check_on_ray(dataset, survey, True, "local", None, CONSOLE)
    assert there == here
    assert len(here.findings) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_undone_to_the_byte(calm, damaged, damage):
    """In an image shard of one source and token shards of both, at once."""
    places = ["sequences/drawn/000001", f"{TOKENS}/drawn/000002", f"{TOKENS}/plain/000001"]
    undamaged = {name: path.stat().st_mtime_ns for name, path in _shard_files(damaged, places)}
    before = {name: (damaged / name).stat().st_ino for name in undamaged}
    act, kind = DAMAGE[damage]
    for place in places:
        act(damaged / place)
        assert kind in kinds(damaged, place), place
    result = repaired(damaged)
    assert result.complete, (result.impossible, result.changed, result.unsound)
    assert dataset_bytes(damaged) == dataset_bytes(calm)
    # Exactly these: all other shards are the same files as before.
    assert {name: (damaged / name).stat().st_ino for name in before} == before
    assert not list((damaged / "runs").glob("*.lease"))


def _shard_files(root: Path, but: list[str]) -> list[tuple[str, Path]]:
    files = [(path.relative_to(root).as_posix(), path) for path in root.rglob("0*") if path.is_file()]
    return [(name, path) for name, path in files if name.split(".")[0] not in but]


def test_a_wrong_histogram_is_undone(calm, damaged):
    manifest = damaged / TOKENS / "plain/000000.parquet"
    counts = decode_histogram(json.loads(pq.read_schema(manifest).metadata[METADATA_KEY])["histogram"])
    counts[7] += 1
    edit_metadata(manifest, histogram=encode_histogram(counts))
    assert kinds(damaged) == {"histogram"}
    assert repaired(damaged).complete
    assert dataset_bytes(damaged) == dataset_bytes(calm)


def test_the_last_shard_of_the_plan_is_missed(calm, damaged):
    all_gone(damaged / "sequences/plain/000002")
    all_gone(damaged / TOKENS / "plain/000002")
    assert kinds(damaged) == {"gap_in_plan"}
    assert repaired(damaged).complete
    assert dataset_bytes(damaged) == dataset_bytes(calm)


def test_a_source_whose_shards_are_all_gone(calm, damaged):
    shutil.rmtree(damaged / "sequences/plain")
    shutil.rmtree(damaged / TOKENS / "plain")
    assert repaired(damaged).complete
    assert dataset_bytes(damaged) == dataset_bytes(calm)


def test_leftovers_and_strangers_are_named_and_removed(calm, damaged):
    (damaged / "sequences/plain/.000001.tar.0123456789ab.tmp").write_bytes(b"torn")
    (damaged / "sequences/plain/000009.tar").write_bytes(b"orphan")
    (damaged / TOKENS / "drawn/notes.txt").write_text("mine")
    for suffix in (".tar", ".parquet", ".rejects.parquet"):
        shutil.copy(damaged / f"sequences/drawn/000001{suffix}", damaged / f"sequences/drawn/000033{suffix}")
    assert kinds(damaged) == {"leftover", "extra_file", "foreign_manifest"}
    planned = list(repaired(damaged, dry_run=True).lines())
    assert "sequences/drawn/000033: remove, no plan has it" in planned
    assert f"{TOKENS}/drawn/notes.txt: remove" in planned
    assert (damaged / TOKENS / "drawn/notes.txt").exists()  # a dry run touches nothing
    assert repaired(damaged).complete
    assert dataset_bytes(damaged) == dataset_bytes(calm)


def test_unknown_folders_are_named_and_left_alone(calm, damaged):
    (damaged / "sequences/ghost").mkdir()
    (damaged / "sequences/ghost/000000.tar").write_bytes(b"dear")
    result = repaired(damaged)
    assert list(result.impossible) == ["sequences/ghost"]
    assert (damaged / "sequences/ghost/000000.tar").read_bytes() == b"dear"


def test_inputs_that_are_gone_are_named_and_nothing_of_the_source_is_touched(calm, damaged):
    """The other source is repaired all the same."""
    for log in (damaged / "runs").glob("*-ingest-plain-*"):
        log.write_text(log.read_text().replace("/photos", "/elsewhere"))
    flip(damaged / "sequences/plain/000001")
    flip(damaged / "sequences/drawn/000001")
    (damaged / "sequences/plain/000002.parquet").unlink()  # its tar is the last copy now
    before = dataset_bytes(damaged)
    result = repaired(damaged)
    assert not result.complete
    assert {"sequences/plain/000001", "sequences/plain/000002", "sequences/plain/000002.tar"} <= set(result.impossible)
    after = dataset_bytes(damaged)
    assert {n: b for n, b in after.items() if "/plain/" in n} == {n: b for n, b in before.items() if "/plain/" in n}
    assert after["sequences/drawn/000001.tar"] == dataset_bytes(calm)["sequences/drawn/000001.tar"]


def test_inputs_that_moved_are_told(calm, damaged, tmp_path):
    shutil.rmtree(damaged / "runs")
    flip(damaged / "sequences/plain/000001")
    shutil.copytree(calm.parent / "photos", tmp_path / "moved")
    (why,) = repaired(damaged).impossible.values()
    assert "--set plain.input=PLACE" in why
    assert repaired(damaged, settings=[f"plain.input={tmp_path / 'moved'}"]).complete
    assert dataset_bytes(damaged) == dataset_bytes(calm)


def test_changed_inputs_are_refused_before_anything_is_removed(calm, damaged, tmp_path):
    shutil.copytree(calm.parent / "photos", tmp_path / "moved")
    (tmp_path / "moved" / "05.jpg").unlink()
    flip(damaged / "sequences/plain/000001")
    before = dataset_bytes(damaged)
    (why,) = repaired(damaged, settings=[f"plain.input={tmp_path / 'moved'}"]).impossible.values()
    assert "inputs are not what they were" in why
    assert dataset_bytes(damaged) == before


def test_an_input_of_the_same_size_and_other_content_is_found_out(calm, damaged, tmp_path):
    """Its tokens are made anew too: the dataset is sound, and the user is told that it is another."""
    shutil.copytree(calm.parent / "photos", tmp_path / "moved")
    photo = tmp_path / "moved" / "04.jpg"
    size = photo.stat().st_size
    data = (tmp_path / "moved" / "05.jpg").read_bytes()[:size]
    photo.write_bytes(data + bytes(size - len(data)))
    flip(damaged / "sequences/plain/000001")
    result = repaired(damaged, settings=[f"plain.input={tmp_path / 'moved'}"])
    assert (result.changed, result.unsound) == (["sequences/plain/000001"], [])
    assert not result.complete
    assert kinds(damaged) == set()


def test_a_tokenizer_that_is_not_at_hand_is_named(calm, damaged, tmp_path):
    shutil.copytree(TOKENIZER, tmp_path / "muse-vqgan")
    for log in (damaged / "runs").glob("*-tokenize-*"):
        log.unlink()
    flip(damaged / TOKENS / "plain/000001")
    (why,) = repaired(damaged).impossible.values()
    assert "--tokenizer FOLDER" in why
    assert repaired(damaged, tokenizer=str(tmp_path / "muse-vqgan")).complete
    assert dataset_bytes(damaged) == dataset_bytes(calm)


@pytest.mark.slow
def test_a_killed_repair_goes_on(calm, damaged):
    """Killed after the first shard was removed or made: the same command, or the runs themselves, mend the rest."""
    for number in range(3):
        flip(damaged / f"sequences/plain/{number:06d}")
        flip(damaged / f"{TOKENS}/drawn/{number:06d}")
    manifest = damaged / "sequences/plain/000000.parquet"
    before = manifest.stat().st_ino
    command = ("verify", "--dataset", str(damaged), "--deep", "--repair")
    process = uvd(*command)
    wait_for(process, lambda: not manifest.exists() or manifest.stat().st_ino != before)
    process.kill()
    process.communicate()
    finished(uvd(*command))
    assert dataset_bytes(damaged) == dataset_bytes(calm)
    assert not list((damaged / "runs").glob("*.lease"))


def test_the_command(calm, damaged):
    def run(*more: str):
        return CliRunner().invoke(app, ["verify", "--dataset", str(damaged), "--deep", "--format", "json", *more])

    flip(damaged / "sequences/plain/000001")
    found = run()
    assert found.exit_code == 1
    content = json.loads(found.stdout)
    assert {row["kind"] for row in content["findings"]} >= {"checksum"}
    assert run("--source", "drawn").exit_code == 0
    assert run("--shards", "0-0").exit_code == 0
    assert run("--shards", "1").exit_code == 1
    dry = run("--repair", "--dry-run")
    assert dry.exit_code == 1
    assert json.loads(dry.stdout)["repair"]["plan"] == ["sequences/plain/000001: make again"]
    done = run("--repair")
    assert done.exit_code == 0, done.output
    assert run().exit_code == 0
    assert dataset_bytes(damaged) == dataset_bytes(calm)
    (damaged / "sequences/ghost").mkdir()
    assert run("--repair").exit_code == 3
    for wrong in (["--shards", "2-1"], ["--source", "none"], ["--dry-run"], ["--repair", "--set", "input=x"]):
        assert run(*wrong).exception.exit_code == 2
