"""`uvd prompt` from end to end, with a checkpoint of plain transformers and the embedded tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests_support import write_photo
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from uvd.manifests.dataset import Dataset
from uvd.pipeline.cli import app
from uvd.pipeline.config import config_entry
from uvd.pipeline.ingest import make_shard, plan
from uvd.sequences.errors import UserError
from uvd.sources.images import ImagesConfig

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, a dataset of pairs made from them, and a model for each vocabulary."""
    root = tmp_path_factory.mktemp("prompt")
    for seed in range(3):
        write_photo(root / "photos" / f"{seed}.jpg", seed)
    config = ImagesConfig(dataset="photos", input=root / "photos", derive=("grey",), layouts={"pairs": 1.0})
    dataset = Dataset(str(root / "dataset"))
    entry = config_entry(config)
    dataset.declare("sequences", "images", entry)
    for job in plan(dataset, config, entry["fingerprint"]):
        make_shard(job)
    for vocabulary in (8192, 8292):
        torch.manual_seed(0)
        shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, max_position_embeddings=1024, **shape))
        model.generation_config.eos_token_id = list(range(100))
        model.save_pretrained(root / str(vocabulary))
    return root


def run(*arguments: str | Path) -> dict:
    result = RUNNER.invoke(app, ["prompt", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout) if "--json" in arguments else {}


def test_an_analogy_with_candidates(folder: Path, tmp_path: Path) -> None:
    photos = [folder / "photos" / f"{seed}.jpg" for seed in range(3)]
    ask = ["--model", folder / "8292", "--form", "analogy", "--pairs", f"{photos[0]},{photos[1]}"]
    told = run(
        *ask, "--images", photos[2], "--candidates", 2, "--seed", 7, "--out", tmp_path / "sheets/a.png", "--json"
    )
    assert told["form"] == "analogy"
    assert told["prompt_images"] == 3
    assert {one["seed"] for one in told["candidates"]} == {7, 8}
    first, second = (one["perplexity"] for one in told["candidates"])
    assert 1000 < first <= second < 20_000  # of random weights: nearly the size of the vocabulary
    sheet = np.asarray(Image.open(tmp_path / "sheets/a.png"))
    assert (sheet == (214, 40, 40)).all(axis=2).sum() == 2 * 4 * 4 * 260


def test_a_sequence_of_a_dataset_with_its_truth_and_bare_codes(folder: Path) -> None:
    key = "images-000000-000000"
    ask = ["--model", folder / "8192", "--from-dataset", folder / "dataset", key, "--context", 3, "--json"]
    told = run(*ask, "--temperature", 0)
    assert told["form"] == "pairs"
    assert told["truth"]["perplexity"] > 1000
    assert len(told["candidates"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "a.png"], "--out, --json or both"),
        (["--json"], "either --images"),
        (["--json", "--images", "a.png", "--from-dataset", "d", "k"], "either --images"),
        (["--json", "--form", "analogy", "--from-dataset", "d", "k"], "either --images"),
        (["--json", "--images", "a.png", "--context", "3"], "--context goes with"),
        (["--json", "--images", "a.png", "--device", "gpu"], "device 'gpu'"),
        (["--json", "--images", "a.png", "--top-p", "2"], "top_p 2.0"),
        (["--json", "--images", "a.png"], "a.png"),
    ],
)
def test_what_does_not_go_together_is_refused(folder: Path, arguments: list[str], message: str) -> None:
    result = RUNNER.invoke(app, ["prompt", "--model", str(folder / "8292"), *arguments])
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)


def test_a_prompt_that_does_not_fit_says_how_many_images_do(folder: Path) -> None:
    photo = str(folder / "photos/0.jpg")
    arguments = ["prompt", "--model", str(folder / "8292"), "--json", *["--images", photo] * 4]
    result = RUNNER.invoke(app, arguments)
    assert "at most 4 images" in str(result.exception)
    assert "--window" in str(result.exception)
