"""`uvd eval tokenizer`: which pictures it takes, what it says of each source, and of pictures that cannot be read."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tests_support import write_photo
from typer.testing import CliRunner

from uvd.manifests import Dataset
from uvd.pipeline.cli import app
from uvd.pipeline.config import config_entry
from uvd.pipeline.evaluating import Choice, PictureGroup, dataset_groups, evaluate, evenly_spread, file_group
from uvd.pipeline.ingest import make_shard, plan
from uvd.sequences.errors import UserError
from uvd.sources.images import ImagesConfig
from uvd.tokenize.metrics import measure_pictures
from uvd.tokenize.tokenizer import load_tokenizer

RUNNER = CliRunner()


def make_dataset(folder) -> Dataset:
    """Two sources made without Ray: five photos in two shards of single pictures, two photos as a sequence of four."""
    dataset = Dataset(str(folder / "dataset"))
    for name, photos, layout, derive in (("lone", 5, "single", ()), ("paired", 2, "pairs", ("grey",))):
        for seed in range(photos):
            write_photo(folder / name / f"{seed}.jpg", seed)
        config = ImagesConfig(
            name=name,
            dataset=name,
            input=folder / name,
            derive=derive,
            layouts={layout: 1.0},
            shard_size=3,
            holdout={"val": 0.5 if name == "lone" else 0.0},
        )
        entry = config_entry(config)
        dataset.declare("sequences", name, entry)
        for job in plan(dataset, config, entry["fingerprint"]):
            make_shard(job)
    return dataset


def damage(dataset: Dataset, source: str, sequence: int) -> str:
    """Breaks the first picture of a sequence of shard 0, not the tar around it; returns the key."""
    (shard, *_) = dataset.shards(f"sequences/{source}")
    row = dataset.manifest(shard).to_pylist()[sequence]
    tar = dataset.storage.local_root / shard.tar
    content = bytearray(tar.read_bytes())
    start = row["offset"] + 512
    content[start : start + 64] = b"\0" * 64
    tar.write_bytes(content)
    return row["key"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("eval"))


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("uvd-small", "cpu")


def run(*arguments: object):
    return RUNNER.invoke(app, ["eval", "tokenizer", "--device", "cpu", *map(str, arguments)])


def content_of(*arguments: object) -> dict:
    result = run(*arguments, "--format", "json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def pictures_of(groups: list[PictureGroup]) -> list[list[tuple[str, bytes]]]:
    return [[(choice.key, choice.pictures.tobytes()) for choice in group.choices] for group in groups]


@pytest.mark.parametrize(("total", "wanted"), [(0, 5), (3, 5), (5, 5), (7, 5), (1000, 7), (1_500_000_000, 3)])
def test_choices_are_distinct_one_from_each_part(total, wanted):
    chosen = evenly_spread(total, wanted, np.random.default_rng(0))
    assert len(chosen) == min(total, wanted)
    assert (np.diff(chosen) > 0).all()
    for part, place in enumerate(chosen):
        assert part * total // len(chosen) <= place < (part + 1) * total // len(chosen)


def test_every_place_is_chosen_by_some_seed():
    seen = {int(place) for seed in range(60) for place in evenly_spread(7, 3, np.random.default_rng(seed))}
    assert seen == set(range(7))


def test_the_choice_is_a_function_of_the_seed(dataset):
    first = pictures_of(dataset_groups(dataset, max_images=3, seed=1))
    assert [sum(len(pictures) for _, pictures in group) // (256 * 256 * 3) for group in first] == [3, 3]
    assert pictures_of(dataset_groups(dataset, max_images=3, seed=1)) == first
    others = [pictures_of(dataset_groups(dataset, max_images=3, seed=seed)) for seed in range(2, 8)]
    assert any(other != first for other in others)


def test_chosen_pictures_of_a_sequence_are_the_right_ones(dataset):
    (everything,) = dataset_groups(dataset, ["paired"], max_images=4)
    (sequence,) = everything.choices
    for seed in range(6):
        (group,) = dataset_groups(dataset, ["paired"], max_images=2, seed=seed)
        (choice,) = group.choices
        assert choice.pictures.shape == (2, 256, 256, 3)
        for part, picture in enumerate(choice.pictures):
            assert any(np.array_equal(picture, sequence.pictures[2 * part + place]) for place in (0, 1))


def test_sources_and_all_are_what_their_pictures_measure(dataset, tokenizer):
    content = content_of("--dataset", dataset.uri)
    assert content["tokenizer"] == "uvd-small"
    assert content["fingerprint"] == tokenizer.fingerprint
    assert content["precision"] == "fp32"
    assert [(row["source"], row["pictures"]) for row in content["sources"]] == [("lone", 5), ("paired", 4)]
    groups = dataset_groups(dataset)
    pictures = [[picture for choice in group.choices for picture in choice.pictures] for group in groups]
    for row, part in zip((*content["sources"], content["all"]), (*pictures, [*pictures[0], *pictures[1]]), strict=True):
        expected = measure_pictures(tokenizer, part)
        for name in ("pictures", "psnr", "psnr_pooled", "ssim", "codes_used", "usage", "perplexity"):
            assert row[name] == pytest.approx(getattr(expected, name)), (row["source"], name)
        assert (row["perceptual"], row["frechet"], row["unreadable"]) == (None, None, 0)


def test_source_and_split_limit_what_is_measured(dataset):
    splits = {split: content_of("--dataset", dataset.uri, "--split", split) for split in ("val", "train")}
    counts = {split: [row["pictures"] for row in content["sources"]] for split, content in splits.items()}
    assert counts["val"][0] + counts["train"][0] == 5
    assert 0 < counts["val"][0] < 5
    assert (counts["val"][1], counts["train"][1]) == (0, 4)
    assert "psnr" not in splits["val"]["sources"][1]
    content = content_of("--dataset", dataset.uri, "--source", "paired", "--max-images", 1)
    assert [(row["source"], row["pictures"]) for row in content["sources"]] == [("paired", 1)]


def test_the_table_names_tokenizer_and_sources_and_the_sheet_shows_them(dataset, tmp_path):
    sheet = tmp_path / "new" / "sheet.png"
    result = run("--dataset", dataset.uri, "--sheet", sheet)
    assert result.exit_code == 0, result.output
    for text in ("uvd-small", "fp32", "lone", "paired", "\n all ", "PSNR", "SSIM", "perplexity"):
        assert text in result.stdout
    assert "Fréchet" not in result.stdout
    width, height = Image.open(sheet).size
    assert 5 * 256 < width < 6 * 256  # five photos, and four pictures of the other source below
    assert 6 * 256 < height < 7 * 256  # pictures, reconstructions and errors of each


def test_damaged_sequences_are_left_out_counted_and_named(tmp_path):
    dataset = make_dataset(tmp_path)
    key = damage(dataset, "lone", 1)
    result = run("--dataset", dataset.uri, "--format", "json")
    assert result.exit_code == 0
    content = json.loads(result.stdout)
    assert [(row["pictures"], row["unreadable"]) for row in content["sources"]] == [(4, 1), (4, 0)]
    assert (content["all"]["pictures"], content["all"]["unreadable"]) == (8, 1)
    assert content["sources"][0]["problems"][0].startswith(f"{key}: damaged JPEG")
    assert key in result.stderr


def test_a_dataset_of_which_nothing_can_be_read_is_an_error(tmp_path):
    dataset = make_dataset(tmp_path)
    key = damage(dataset, "paired", 0)
    result = run("--dataset", dataset.uri, "--source", "paired")
    assert isinstance(result.exception, UserError)
    assert key in str(result.exception)


def test_files_and_folders_are_one_source(tmp_path):
    for seed in range(3):
        write_photo(tmp_path / "photos" / f"{seed}.png", seed)
    write_photo(tmp_path / "more.jpg", 7)
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no")
    content = content_of("--images", tmp_path / "photos", "--images", tmp_path / "more.jpg")
    (row,) = content["sources"]
    assert (row["source"], row["pictures"], row["unreadable"]) == ("images", 4, 1)
    assert "broken.jpg" in row["problems"][0]
    assert content["all"]["psnr"] == row["psnr"]
    assert file_group([tmp_path / "photos"], max_images=2).size == 2


def test_features_add_their_distances(dataset, tmp_path):
    weights = tmp_path / "weights.pth"
    torch.save({"features.0.0.weight": torch.zeros(1)}, weights)
    result = run("--dataset", dataset.uri, "--features", weights)
    assert isinstance(result.exception, UserError)
    assert "weights.pth" in str(result.exception)


def test_precision_is_that_of_the_tokenizer(dataset):
    contents = {
        name: content_of("--dataset", dataset.uri, "--source", "paired", "--precision", name)
        for name in ("fp32", "bf16")
    }
    assert contents["bf16"]["precision"] == "bf16"
    assert contents["bf16"]["fingerprint"] != contents["fp32"]["fingerprint"]
    assert contents["bf16"]["all"]["psnr"] == pytest.approx(contents["fp32"]["all"]["psnr"], abs=0.5)


def test_pictures_to_look_at_are_few_and_spread(tokenizer):
    pictures = np.random.default_rng(0).integers(0, 256, (9, 256, 256, 3)).astype(np.uint8)
    group = PictureGroup("noise", 9, iter([Choice("a", pictures[:4]), Choice("b", pictures[4:])]))
    steps: list[int] = []
    samples = evaluate(tokenizer, [group], advance=steps.append).samples["noise"]
    assert sum(steps) == 9
    assert [original.tobytes() for original, _ in samples] == [pictures[index].tobytes() for index in range(0, 9, 2)]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "either --dataset or --images"),
        (["--dataset", "d", "--images", "a.jpg"], 2, "either --dataset or --images"),
        (["--images", "a.jpg", "--split", "val"], 2, "not from --images"),
        (["--images", "a.jpg", "--source", "s"], 2, "not from --images"),
        (["--dataset", "d", "--split", "valid"], 2, "--split valid: expected one of all, train"),
        (["--dataset", "d", "--format", "xml"], 2, "--format xml"),
        (["--dataset", "d", "--precision", "fp8"], 2, "--precision fp8"),
        (["--dataset", "d", "--device", "gpu"], 2, "--device gpu: expected auto"),
        (["--dataset", "d", "--device", "cuda:99"], 2, "--device cuda:99: there are"),
        (["--dataset", "/nowhere"], 1, "no dataset"),
        (["--images", "/nowhere.jpg"], 1, "/nowhere.jpg"),
        (["--images", "a.jpg", "--tokenizer", "no-such"], 1, "no tokenizer"),
        (["--images", "a.jpg", "--features", "none.pth"], 1, "none.pth"),
    ],
)
def test_errors_are_messages_with_exit_codes(arguments, code, said):
    result = run(*arguments)
    assert isinstance(result.exception, UserError), result.output
    assert result.exception.exit_code == code
    assert said in str(result.exception)


def test_an_unknown_source_is_named(dataset):
    result = run("--dataset", dataset.uri, "--source", "laion")
    assert "no source 'laion'" in str(result.exception)
    assert "lone, paired" in str(result.exception)


def test_help_has_an_example():
    result = RUNNER.invoke(app, ["eval", "tokenizer", "--help"])
    assert "uvd eval tokenizer --dataset" in result.output.replace("\n", " ")
