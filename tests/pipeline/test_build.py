"""`uvd build` as users run it: configs, the bytes of two commands, resuming, what is killed on the way."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from build_support import SETTINGS, TOKENIZER, in_two_steps
from commands_support import committed, finished, kill_worker, uvd, wait_for
from rich.console import Console
from tests_support import dataset_bytes, write_photo
from video_support import write_clip

from uvd.manifests import Dataset
from uvd.manifests.dataset import ConfigChangedError
from uvd.manifests.kept_pictures import PicturesNotKeptError
from uvd.manifests.verify import verify
from uvd.pipeline.browse.catalog import Catalog
from uvd.pipeline.browse.pictures import Pictures
from uvd.pipeline.build_config import read_build_config
from uvd.pipeline.building import BuildOptions, build
from uvd.pipeline.card.gallery import draw_gallery
from uvd.pipeline.config import ConfigError
from uvd.pipeline.ingest import ingest
from uvd.pipeline.ray_runtime import LOCAL, ray_runtime
from uvd.pipeline.repair_plan import Means
from uvd.pipeline.repairing import repair
from uvd.pipeline.showing import sequence_sheet
from uvd.pipeline.tokenizing import tokenize
from uvd.pipeline.writing import writing
from uvd.sources import SourceConfig

CONFIG = """
tokenizer: {{name: {tokenizer}, device: cpu}}
sources:
  photos:
    config: photos.yaml
    input: {folder}/photos
  clips: {{source: video, dataset: clips, input: {folder}/clips, min_frames: 4, strides: [3], layouts: {{frames: 1.0}}}}
"""
PHOTOS = "{source: images, dataset: p, shard_size: 2, derive: [grey], resize: random_crop, layouts: {pairs: 1}}"


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("build")
    for seed in range(9):
        # Large, so that a shard takes long enough to be killed in its middle.
        write_photo(folder / "photos" / f"{seed}.jpg", seed, 1600, 2000)
    (folder / "photos" / "broken.jpg").write_bytes(b"\xff\xd8\xff not a photo")
    write_clip(folder / "clips" / "a.mp4", 12)
    (folder / "photos.yaml").write_text(PHOTOS)
    file = folder / "build.yaml"
    file.write_text(CONFIG.format(tokenizer=TOKENIZER, folder=folder))
    return file


@pytest.fixture(scope="module")
def sources(config) -> list[SourceConfig]:
    return read_build_config(config, [])[1]


@pytest.fixture(scope="module")
def calm(sources, tmp_path_factory) -> Path:
    """What two steps make, in this process."""
    out = tmp_path_factory.mktemp("calm") / "dataset"
    in_two_steps(out, *sources)
    return out


@pytest.fixture(scope="module")
def local_ray():
    with ray_runtime(num_cpus=2):
        yield


def run(out: Path, sources: list[SourceConfig], **options: object) -> dict[str, bool]:
    results = build(sources, str(out), SETTINGS, BuildOptions(**options))  # type: ignore[arg-type]
    return {name: result.complete and bool(result.run.done) for name, result in results}


def test_a_build_is_two_commands_and_all_three_find_nothing_to_do_after_it(local_ray, sources, calm, tmp_path):
    out = tmp_path / "d"
    shutil.copytree(calm, out)
    # Half states: of clips all is missing, of one shard of photos the tokens, of another everything.
    shutil.rmtree(out / "sequences" / "clips")
    shutil.rmtree(out / "tokens" / "muse-vqgan" / "clips")
    for path in (*out.glob("tokens/*/photos/00000[13].*"), *out.glob("sequences/photos/000003.*")):
        path.unlink()
    (results := dict(build(sources, str(out), SETTINGS, BuildOptions())))
    assert {name: (result.existing, result.run.done) for name, result in results.items()} == {
        "photos": (3, 2),
        "clips": (0, 1),
    }
    assert results["photos"].totals["inputs"] == 10
    assert results["photos"].totals["images"] == 18
    assert results["photos"].totals["tokens"] == 18 * 256 + 5 * 2
    assert dataset_bytes(out) == dataset_bytes(calm)
    assert run(out, sources) == {"photos": False, "clips": False}
    assert ingest(sources[0], str(out)).run.done == 0
    assert [result.run.done for _, result in tokenize(Dataset.existing(str(out)), (), SETTINGS)] == [0, 0]
    assert dataset_bytes(out) == dataset_bytes(calm)
    assert verify(Dataset.existing(str(out)), deep=True).problems == []


@pytest.mark.slow
def test_without_pictures(local_ray, sources, calm, tmp_path):
    photos, out = sources[:1], tmp_path / "d"
    assert run(out, photos, keep_images=False) == {"photos": True}
    assert not list(out.glob("sequences/*/*.tar"))
    dataset = Dataset.existing(str(out))
    found = verify(dataset, deep=True)
    assert (found.problems, found.without_pictures) == ([], 5)
    assert run(out, photos, keep_images=False) == {"photos": False}
    assert ingest(photos[0], str(out)).complete
    assert all(result.complete for _, result in tokenize(dataset, (), SETTINGS))
    before = dataset_bytes(out)
    for path in out.glob("tokens/*/photos/000001.*"):
        path.unlink()
    with pytest.raises(PicturesNotKeptError, match="--drop-images"):
        list(tokenize(dataset, (), SETTINGS, overwrite=True))
    assert run(out, photos, keep_images=False) == {"photos": True}
    assert dataset_bytes(out) == before
    for command in (
        lambda: list(build(photos, str(out), SETTINGS, BuildOptions())),
        lambda: list(tokenize(dataset, ("photos",))),
        lambda: sequence_sheet(dataset, "photos-000000-000000"),
    ):
        with pytest.raises(Exception, match="--drop-images"):
            command()
    assert dataset_bytes(out) == before
    assert sequence_sheet(dataset, "photos-000000-000000", str(TOKENIZER)).shape[2] == 3
    assert [name for name, _ in draw_gallery(dataset, 0).unreadable] == ["photos"]
    with pytest.raises(PicturesNotKeptError):
        Pictures(Catalog(dataset)).stored("photos-000000-000000")
    (out / "tokens" / "muse-vqgan" / "photos" / "000002.tar").write_bytes(b"")
    console = Console(quiet=True)
    with writing(dataset, ["sequences/photos", "tokens/muse-vqgan/photos"], console) as lease:
        done = repair(dataset, verify(dataset), Means(console, lease, LOCAL))
    assert "uvd build" in done.impossible["tokens/muse-vqgan/photos/000002"]
    (out / "sequences" / "photos" / "000002.tar").write_bytes(b"from somewhere")
    assert "photos/000002.tar: a tar, where pictures are not kept" in "".join(verify(dataset).problems)


@pytest.mark.slow
def test_what_a_build_made_is_repaired_from_what_its_log_says(local_ray, sources, calm, tmp_path):
    photos, out, console = sources[:1], tmp_path / "d", Console(quiet=True)
    shutil.copytree(calm, out)
    shutil.rmtree(out / "tokens" / "muse-vqgan" / "photos")
    assert run(out, photos) == {"photos": True}
    (out / "sequences" / "photos" / "000001.tar").unlink()
    (out / "tokens" / "muse-vqgan" / "photos" / "000002.tar").write_bytes(b"")
    dataset = Dataset.existing(str(out))
    folders = ["sequences/photos", "tokens/muse-vqgan/photos"]
    with writing(dataset, folders, console) as lease:
        done = repair(dataset, verify(dataset, deep=True), Means(console, lease, LOCAL))
    assert done.complete, list(done.lines())
    assert dataset_bytes(out) == dataset_bytes(calm)


def test_pictures_that_were_begun_with_stay(local_ray, sources, calm, tmp_path):
    out = tmp_path / "d"
    shutil.copytree(calm, out)
    with pytest.raises(ConfigChangedError, match="--keep-images"):
        list(build(sources[:1], str(out), SETTINGS, BuildOptions(keep_images=False)))
    assert dataset_bytes(out) == dataset_bytes(calm)


def kill_on_the_way(process, rng: random.Random, most: int) -> set[str]:
    """Kills workers of both kinds while they are at work; which kinds were met."""
    killed, met = 0, set[str]()
    while process.poll() is None and killed < most:
        time.sleep(rng.uniform(0.02, 0.2))
        for doing in ("build_shard", "EncodingActor"):
            if killed < most and kill_worker(process, doing):
                killed += 1
                met.add(doing)
    return met


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 5))])
def test_killing_workers_and_actors_costs_nothing(config, calm, tmp_path, seed):
    out = tmp_path / "d"
    process = uvd("build", "--config", str(config), "--out", str(out), "--num-cpus", "2")
    try:
        met = kill_on_the_way(process, random.Random(seed), 3)
        finished(process)
    finally:
        process.kill()
    assert met
    assert dataset_bytes(out) == dataset_bytes(calm)


@pytest.mark.slow
@pytest.mark.parametrize("drop", [False, True])
def test_killing_the_driver(config, calm, tmp_path, drop):
    out = tmp_path / "d"
    command = ("build", "--config", str(config), "--out", str(out), *(["--drop-images"] if drop else []))
    for seed in range(3):
        process = uvd(*command)
        try:
            wait_for(process, lambda seed=seed: committed(out, "sequences") > seed)
            time.sleep(random.Random(seed).uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=60)
        finally:
            process.kill()
    finished(uvd(*command))
    expected = {
        name: data
        for name, data in dataset_bytes(calm).items()
        if name != "dataset.json" and not (drop and name.startswith("sequences/") and name.endswith(".tar"))
    }
    assert {name: data for name, data in dataset_bytes(out).items() if name != "dataset.json"} == expected
    assert verify(Dataset.existing(str(out)), deep=True).problems == []


def refused(tmp_path: Path, text: str, *settings: str) -> str:
    file = tmp_path / "b.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_build_config(file, settings)
    return str(error.value)


def test_what_is_wrong_in_a_config_is_named(tmp_path):
    assert "did you mean 'sources'" in refused(tmp_path, "source: {}")
    assert "did you mean 'keep_images'" in refused(tmp_path, "keep_image: no\nsources: {a: {source: images}}")
    assert "did you mean 'batch_size'" in refused(tmp_path, "tokenizer: {batch: 8}\nsources: {a: {source: images}}")
    assert "sources" in refused(tmp_path, "sources: {}")
    assert "sources.a: key 'source' is missing" in refused(tmp_path, "sources: {a: {input: x}}")
    assert "did you mean 'images'" in refused(tmp_path, "sources: {a: {source: image}}")
    said = refused(tmp_path, "sources: {a: {source: images, dataset: a, input: x, shard_sise: 1}}")
    assert "sources.a" in said
    assert "did you mean 'shard_size'" in said
    assert "key 'input' is missing" in refused(tmp_path, "sources: {a: {source: images, dataset: a}}")
    assert "no config file" in refused(tmp_path, "sources: {a: other.yaml}")
    assert "expected the path" in refused(tmp_path, "sources: {a: {config: 3}}")
    same = "{source: images, dataset: a, input: x, name: same}"
    assert "two sources have the name 'same'" in refused(tmp_path, f"sources: {{a: {same}, b: {same}}}")
    assert "sources.a" in refused(tmp_path, "sources: {a: 3}")


def test_settings_beside_and_above_those_of_another_file(tmp_path):
    (tmp_path / "other.yaml").write_text("{source: images, dataset: other, input: here, shard_size: 7}")
    (tmp_path / "b.yaml").write_text("tokenizer: t\nsources: {a: other.yaml, b: {config: other.yaml, seed: 3}}")
    config, (a, b) = read_build_config(tmp_path / "b.yaml", ["sources.a.shard_size=9", "tokenizer.device=cpu"])
    assert (config.tokenizer.name, config.tokenizer.device, config.keep_images) == ("t", "cpu", True)
    assert (a.folder, a.shard_size, a.seed) == ("a", 9, 0)
    assert (b.folder, b.shard_size, b.seed) == ("b", 7, 3)


def test_a_source_that_is_not_in_the_config_is_refused(config, tmp_path):
    output = finished(uvd("build", "--config", str(config), "--out", str(tmp_path / "d"), "--source", "x"), code=2)
    assert "photos, clips" in output
    assert not (tmp_path / "d").exists()


def test_the_example_config_is_complete_but_for_its_inputs(tmp_path):
    example = Path(__file__).parents[2] / "configs" / "build.yaml"
    _, sources = read_build_config(example, ["sources.photos.input=/photos", "sources.clips.input=/clips"])
    assert [(source.folder, source.source) for source in sources] == [("photos", "images"), ("clips", "video")]
    with pytest.raises(ConfigError, match="'input' is missing"):
        read_build_config(example, [])
