"""Configs: clear errors, overrides, and what belongs to a fingerprint."""

from __future__ import annotations

import pytest

from uvd.pipeline.config import ConfigError, config_entry, data_settings, override, read_yaml, validate
from uvd.sources import SOURCES, source_class
from uvd.sources.images import ImagesConfig
from uvd.sources.laion import LaionConfig

ROOT = __import__("pathlib").Path(__file__).parents[2]


def test_an_unknown_key_gets_a_suggestion():
    with pytest.raises(ConfigError, match="unknown key 'shard_siez'; did you mean 'shard_size'"):
        validate(ImagesConfig, {"dataset": "d", "input": "x", "shard_siez": 3}, "f.yaml")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"dataset": "d"}, "'input' is missing"),
        ({"dataset": "d", "input": "x", "shard_size": 0}, "shard_size: .*greater than or equal to 1"),
        ({"dataset": "d", "input": "x", "resize": "squash"}, "resize"),
        ({"dataset": "d", "input": "x", "name": "../x"}, "name"),
        ({"dataset": "d", "input": "x", "layouts": {"single": "much"}}, "layouts.single"),
    ],
)
def test_wrong_values_are_named(content, said):
    with pytest.raises(ConfigError, match=said):
        validate(ImagesConfig, content, "f.yaml")


def test_overrides_reach_into_the_tree_and_leave_the_original():
    content = {"fetch": {"retries": 2}}
    assert override(content, ["fetch.retries=5", "layouts={single: 1}"]) == {
        "fetch": {"retries": 5},
        "layouts": {"single": 1},
    }
    assert content == {"fetch": {"retries": 2}}


@pytest.mark.parametrize("setting", ["novalue", "=3", "a=[1"])
def test_bad_overrides_are_named(setting):
    with pytest.raises(ConfigError, match="--set"):
        override({"a": 1}, [setting])


def test_files_that_are_no_config(tmp_path):
    with pytest.raises(ConfigError, match="no config file"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="not a mapping"):
        read_yaml(tmp_path / "list.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not YAML"):
        read_yaml(tmp_path / "bad.yaml")


def test_places_and_speeds_are_not_part_of_the_data():
    one = LaionConfig(dataset="d", input="/a")
    other = LaionConfig(dataset="d", input="/b", fetch={"concurrency": 3})
    assert config_entry(one)["fingerprint"] == config_entry(other)["fingerprint"]
    assert "input" not in data_settings(one)
    stricter = LaionConfig(dataset="d", input="/a", fetch={"max_bytes": 10})
    assert config_entry(one)["fingerprint"] != config_entry(stricter)["fingerprint"]


@pytest.mark.parametrize("source", SOURCES)
def test_the_shipped_config_of_each_source_is_valid(source, tmp_path):
    content = {**read_yaml(ROOT / "configs" / f"{source}.yaml"), "input": tmp_path}
    if source == "annotated":
        content["annotations"] = [tmp_path / "a.json"]
    config = validate(source_class(source).config_class, content, source)
    assert config.source == source
