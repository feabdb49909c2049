"""What a job takes along: its command, config, wheel and variables; what is refused before a cluster is asked."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from uvd.pipeline.cli import app
from uvd.pipeline.config import ConfigError
from uvd.pipeline.jobs import environment
from uvd.pipeline.jobs import package as package_module
from uvd.pipeline.jobs.command import parse_command
from uvd.pipeline.jobs.entry import check_image
from uvd.pipeline.jobs.errors import (
    SubmissionError,
    VersionSkewError,
)
from uvd.pipeline.jobs.package import build_wheel, package_for_cluster

CONFIG = "source: images\ndataset: images\n"


# --- commands ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "photos.yaml"
    path.write_text(CONFIG)
    return str(path)


def test_a_command_travels_with_its_config_and_with_uris_as_they_are(config):
    parsed = parse_command(
        ["ingest", "images", "--out", "s3://b/uvd", "--config", config, "--set", 'input="s3://b/in"', "--overwrite"]
    )
    assert parsed.title == "ingest images"
    assert parsed.dataset == "s3://b/uvd"
    assert (parsed.config_name, parsed.config) == ("photos.yaml", CONFIG)
    assert not parsed.local
    words = list(parsed.arguments)
    assert words[:2] == ["ingest", "images"]
    assert words[-2:] == ["--address", "auto"]
    assert words[words.index("--config") + 1] == "photos.yaml"
    assert words[words.index("--set") + 1] == 'input="s3://b/in"'
    assert "--overwrite" in words


def test_the_key_is_of_what_is_done_not_of_how_it_was_written(config):
    key = parse_command(["ingest", "images", "--config", config, "--out", "s3://b/uvd"]).key
    assert parse_command(["ingest", "images", "--out", "s3://b/uvd", "--config", config, "--wait"]).key == key
    assert parse_command(["ingest", "images", "--config", config, "--out", "s3://b/other"]).key != key
    assert parse_command(["ingest", "images", "--config", config, "--out", "s3://b/uvd", "--limit", "3"]).key != key


def test_local_paths_are_found_and_made_absolute(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tok").mkdir()
    (tmp_path / "b.json").touch()
    settings = [
        "--set",
        "input=photos",
        "--set",
        "annotations=[./a.json, b.json, s3://b/b.json]",
        "--set",
        "shard_size=4",
    ]
    parsed = parse_command(["ingest", "images", "--config", config, "--out", "data", *settings])
    assert {path.where for path in parsed.local} == {"--out", "--set input", "--set annotations"}
    words = list(parsed.arguments)
    assert words[words.index("--out") + 1] == str(tmp_path / "data")
    assert f'input="{tmp_path}/photos"' in words
    assert f'annotations=["{tmp_path}/a.json", "{tmp_path}/b.json", "s3://b/b.json"]' in words
    assert "shard_size=4" in words
    named = parse_command(["tokenize", "--dataset", "file:///data", "--tokenizer", "uvd-small"])
    assert [path.where for path in named.local] == ["--dataset"]
    folder = parse_command(["tokenize", "--dataset", "s3://b/d", "--tokenizer", "./tok"])
    assert folder.arguments[folder.arguments.index("--tokenizer") + 1] == str(tmp_path / "tok")


def test_local_paths_in_a_config_are_found(tmp_path):
    path = tmp_path / "with-input.yaml"
    path.write_text(f"{CONFIG}input: photos\nestimate: {{depth: {{model: /models/depth}}}}\n")
    parsed = parse_command(["ingest", "images", "--config", str(path), "--out", "s3://b/d"])
    assert [str(found) for found in parsed.local] == [
        "with-input.yaml: input photos",
        "with-input.yaml: estimate.depth.model /models/depth",
    ]
    assert f"input: {Path.cwd()}/photos" in parsed.config


def test_the_files_that_a_build_names_travel_in_its_config(tmp_path):
    (tmp_path / "photos.yaml").write_text(f"{CONFIG}input: s3://b/one\nshard_size: 5\n")
    (tmp_path / "build.yaml").write_text(
        "sources:\n  a: photos.yaml\n  b: {config: photos.yaml, input: s3://b/two}\n  c: {source: images}\n"
    )
    parsed = parse_command(["build", "--config", str(tmp_path / "build.yaml"), "--out", "s3://b/d", "--drop-images"])
    sources = yaml.safe_load(parsed.config)["sources"]
    assert sources["a"] == {"source": "images", "dataset": "images", "input": "s3://b/one", "shard_size": 5}
    assert sources["b"] == {**sources["a"], "input": "s3://b/two"}
    assert sources["c"] == {"source": "images"}
    assert "--drop-images" in parsed.arguments
    assert not parsed.local


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ([], SubmissionError, "say which command"),
        (["jobs", "list"], SubmissionError, "for this machine"),
        (["play", "--model", "x"], SubmissionError, "for this machine"),
        (["stats", "--dataset", "s3://key:secret@b/d"], SubmissionError, "--env"),
        (["tokenize", "--dataset", "s3://b/d", "--address", "auto"], SubmissionError, "belongs before"),
        (["ingest", "images", "--config", "nowhere.yaml", "--out", "s3://b/d"], ConfigError, "no config file"),
        (
            ["ingest", "images", "--config", "x.yaml", "--out", "s3://b/d", "--set", "a=[1"],
            ConfigError,
            "not YAML|no c",
        ),
    ],
)
def test_commands_that_cannot_be_sent(arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        parse_command(arguments)
    assert caught.value.exit_code == 2
    assert "secret" not in str(caught.value)


def test_a_config_with_a_password_is_refused(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("source: images\ninput: https://me:hidden@host/photos\n")
    with pytest.raises(SubmissionError, match="password") as caught:
        parse_command(["ingest", "images", "--config", str(path), "--out", "s3://b/d"])
    assert "hidden" not in str(caught.value)


def test_wrong_usage_of_the_command_is_told_as_its_own():
    told = CliRunner().invoke(app, ["jobs", "submit", "--address", "h", "--", "tokenize", "--datset", "s3://b/d"])
    assert told.exit_code == 2
    assert "--datset" in told.output


# --- the package ------------------------------------------------------------------------------------------------------
PYPROJECT = """
[build-system]
requires = ["setuptools", "wheel"]
build-backend = "setuptools.build_meta"
[project]
name = "uvd"
version = "7.0"
dependencies = ["av>=18"]
optional-dependencies = { dev = ["pytest"] }
[tool.setuptools]
package-dir = { "uvd" = "." }
packages = ["uvd", "uvd.pipeline"]
"""


def write_tree(tree: Path) -> None:
    """A small working tree that is built as ours is."""
    (tree / "pipeline").mkdir(parents=True)
    (tree / "pyproject.toml").write_text(PYPROJECT)
    for name in ("__init__.py", "README.md", "LICENSE", "pipeline/__init__.py", "pipeline/code.py"):
        (tree / name).write_text(f"# {name}\n")


def test_the_wheel_is_the_same_for_the_same_files_wherever_they_lie(tmp_path, monkeypatch):
    trees = [tmp_path / "one", tmp_path / "two"]
    for tree in trees:
        write_tree(tree)
    # What a working tree has besides: earlier builds, caches, data.
    for name in ("build/lib/uvd/stale.py", "pipeline/__pycache__/code.pyc", "data/big.tar", "uvd.egg-info/SOURCES.txt"):
        (trees[1] / name).parent.mkdir(parents=True)
        (trees[1] / name).write_text("left over")
    (trees[1] / "pipeline/code.py").chmod(0o755)
    wheels = []
    for tree in trees:
        monkeypatch.setenv("UVD_WHEELS", str(tmp_path / f"{tree.name}-wheels"))
        wheels.append(build_wheel(tree))
    assert wheels[0] != wheels[1]
    assert wheels[0].read_bytes() == wheels[1].read_bytes()
    with zipfile.ZipFile(wheels[1]) as archive:
        code = [name for name in archive.namelist() if "dist-info/" not in name]
    assert sorted(code) == ["uvd/__init__.py", "uvd/pipeline/__init__.py", "uvd/pipeline/code.py"]
    assert not (trees[0] / "build").exists()
    monkeypatch.setattr(package_module, "_run_pip", None)  # from here on all comes from the cache
    package = package_for_cluster(tmp_path / "unpacked", trees[1])
    assert (package.folder / "pipeline/code.py").is_file()
    assert (package.folder.name, package.version, package.requirements) == ("uvd", "7.0", ("av>=18",))
    (trees[1] / "pipeline/code.py").write_text("changed")
    with pytest.raises(TypeError):  # a changed file is built anew
        build_wheel(trees[1])


def test_a_tree_that_cannot_be_built_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("UVD_WHEELS", str(tmp_path / "wheels"))
    write_tree(tmp_path / "tree")
    (tmp_path / "tree/pyproject.toml").write_text(PYPROJECT.replace('version = "7.0"', 'version = "seven"'))
    with pytest.raises(SubmissionError, match=r"(?s)could not build.*pep440"):
        build_wheel(tmp_path / "tree")
    assert not (tmp_path / "wheels").exists()


# --- variables --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["NOT_SET_ANYWHERE", "A=b", "1A", "RAY_AUTH_TOKEN", "PATH", ""])
def test_variables_that_cannot_be_passed(name):
    with pytest.raises(SubmissionError):
        environment.read_variables([name])


def test_variables_travel_in_a_file_that_only_its_owner_reads(tmp_path, monkeypatch):
    monkeypatch.setenv("UVD_TEST_KEY", "the value")
    environment.write_variables(environment.read_variables(["UVD_TEST_KEY"]), tmp_path)
    assert (tmp_path / environment.FILE).stat().st_mode & 0o777 == 0o600
    monkeypatch.delenv("UVD_TEST_KEY")
    monkeypatch.chdir(tmp_path)
    environment.apply()
    assert environment.os.environ["UVD_TEST_KEY"] == "the value"


# --- versions ---------------------------------------------------------------------------------------------------------
def test_an_image_of_another_uvd_or_without_a_package_is_refused():
    there = {"uvd": "0.1.0", "av": "16.1", "numpy": "2.3.5"}
    check_image("0.1.0", ["numpy>=2.0,<2.4", 'pywin32; sys_platform == "win32"'], there.get)
    check_image("0.1.0", ["numpy>=2"], {"numpy": "2.3.5"}.get)  # an image with the dependencies alone
    with pytest.raises(VersionSkewError, match=r"brings uvd 0\.2\.0.*made for uvd 0\.1\.0"):
        check_image("0.2.0", [], there.get)
    with pytest.raises(VersionSkewError, match=r"av>=18 \(16\.1 there\), ray>=2\.57 \(none there\)"):
        check_image("0.1.0", ["av>=18", "ray[default]>=2.57", "numpy"], there.get)


def test_what_is_sent_is_satisfied_by_what_is_installed_here(tmp_path, monkeypatch):
    monkeypatch.setenv("UVD_WHEELS", str(tmp_path / "wheels"))
    package = package_for_cluster(tmp_path / "package")
    assert (package.folder / "pipeline/jobs/entry.py").is_file()
    check_image(package.version, package.requirements)
