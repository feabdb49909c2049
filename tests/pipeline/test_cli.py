"""The command line: help with examples, exit codes, clear errors, and the commands that look."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from tests_support import write_photo
from typer.testing import CliRunner

from uvd.manifests import Dataset
from uvd.pipeline.cli import app
from uvd.pipeline.config import config_entry
from uvd.pipeline.ingest import make_shard, plan
from uvd.sequences.errors import UserError
from uvd.sources.images import ImagesConfig

RUNNER = CliRunner()
COMMANDS = ["ingest", "tokenize", "samples", "stats", "show", "verify", "dedup", "doctor", "train", "prompt", "demo"]
NESTED = [
    ("train", "plot"),
    *[("tokenizer", name) for name in ("train", "convert", "info", "reconstruct", "samples")],
    ("eval", "tokenizer"),
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A small dataset, made without Ray."""
    folder = tmp_path_factory.mktemp("cli")
    for seed in range(3):
        write_photo(folder / "photos" / f"{seed}.jpg", seed)
    (folder / "photos" / "bad.jpg").write_bytes(b"no")
    config = ImagesConfig(dataset="photos", input=folder / "photos", derive=("grey",), layouts={"pairs": 1.0})
    dataset = Dataset(str(folder / "dataset"))
    entry = config_entry(config)
    dataset.declare("sequences", "images", entry)
    for job in plan(dataset, config, entry["fingerprint"]):
        make_shard(job)
    return dataset.uri


def run(*arguments: str):
    return RUNNER.invoke(app, list(arguments))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output


@pytest.mark.parametrize("command", NESTED)
def test_every_nested_command_explains_itself_with_an_example(command):
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert f"uvd {' '.join(command)}" in result.output.split("Usage", 1)[1].split("\n", 1)[1].replace("\n", " ")


@pytest.mark.parametrize("command", ["ingest", "tokenize", "stats", "show", "verify", "train", "prompt"])
def test_help_has_an_example(command):
    assert f"uvd {command}" in run(command, "--help").output.replace("\n", " ")


def test_stats_as_table_json_and_sql(dataset):
    table = run("stats", "--dataset", dataset)
    assert table.exit_code == 0
    assert "unlabelled images" in table.output
    content = json.loads(run("stats", "--dataset", dataset, "--format", "json").output)
    assert content["accounting"][0]["inputs"] == 4
    rows = run("stats", "--dataset", dataset, "--sql", "select reason from rejects", "--format", "json")
    assert json.loads(rows.output) == [{"reason": "not_image"}]


def test_show_draws_a_labelled_sheet(dataset, tmp_path):
    out = tmp_path / "sheet.png"
    result = run("show", "images-000000-000000", "--dataset", dataset, "--out", str(out))
    assert result.exit_code == 0
    sheet = np.asarray(Image.open(out))
    assert sheet.shape[1] > 6 * 256
    assert sheet.shape[0] > 256


def test_verify_passes_and_fails_by_exit_code(dataset, tmp_path):
    assert run("verify", "--dataset", dataset, "--deep").exit_code == 0
    (stray := Dataset(dataset).storage.local_root / "sequences/images/000009.tar").write_bytes(b"")
    try:
        result = run("verify", "--dataset", dataset)
    finally:
        stray.unlink()
    assert result.exit_code == 1
    assert "orphan" in result.output


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["ingest", "imagse", "--config", "x.yaml", "--out", "d"], 2, "unknown source 'imagse'"),
        (["ingest", "images", "--config", "none.yaml", "--out", "d"], 2, "no config file"),
        (["stats", "--dataset", "/nowhere"], 1, "no dataset"),
        (["verify", "--dataset", "/nowhere"], 1, "no dataset"),
        (["tokenizer", "info", "no-such"], 1, "no tokenizer"),
    ],
)
def test_errors_are_messages_with_exit_codes(arguments, code, said):
    result = run(*arguments)
    assert isinstance(result.exception, UserError)
    assert result.exception.exit_code == code
    assert said in str(result.exception)


def test_an_unknown_key_on_the_command_line_is_a_usage_error(tmp_path):
    (tmp_path / "c.yaml").write_text("source: images\ndataset: d\n")
    result = run("ingest", "images", "--config", str(tmp_path / "c.yaml"), "--out", "d", "--set", "inptu=x")
    assert result.exception.exit_code == 2
    assert "did you mean 'input'" in str(result.exception)


def test_a_config_of_another_source_is_refused(tmp_path):
    (tmp_path / "c.yaml").write_text("source: video\ndataset: d\n")
    result = run("ingest", "images", "--config", str(tmp_path / "c.yaml"), "--out", "d")
    assert "is for source 'video'" in str(result.exception)


def test_the_machine_that_runs_the_tests_passes_the_doctor():
    result = run("doctor")
    assert result.exit_code == 0, result.output
    for name in ("Python", "torch", "Ray", "video", "OpenGL", "MMPose", "tokenizer", "disk"):
        assert name in result.output
