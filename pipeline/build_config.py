"""The config of `uvd build`: several sources, each as its own config file has it, and the tokenizer."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from uvd.pipeline.config import ConfigError, override, read_yaml, validate
from uvd.sources import SOURCES, SourceConfig, source_class

BASE = "config"
"""Key of a source under which another file's settings may be taken in; those beside it win."""


class TokenizerSettings(BaseModel):
    """How tokens are made; as the options of `uvd tokenize`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "uvd-small"
    """Embedded tokenizer by name, or a folder."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_size: int | None = Field(None, ge=1)
    """Images a forward pass; 8 on CPU, 64 on GPU."""
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False


class BuildConfig(BaseModel):
    """Settings of `uvd build`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokenizer: TokenizerSettings = TokenizerSettings()
    keep_images: bool = True
    """Keep the image shards' tars; their manifests and rejects are kept anyway."""
    sources: dict[str, dict[str, Any]] = Field(min_length=1)
    """Name in the dataset → settings of a source, or the path of a file that has them."""


def read_build_config(file: Path, settings: Iterable[str]) -> tuple[BuildConfig, list[SourceConfig]]:
    """Reads a config and those that it names.

    Args:
        file: YAML; paths of configs in it are relative to it.
        settings: `key=value` overrides, such as `sources.photos.input=~/photos`.

    Raises:
        ConfigError: names file and key, and the nearest valid key.
    """
    content = read_yaml(file)
    sources = content.get("sources")
    if isinstance(sources, dict):
        content["sources"] = {
            name: {BASE: entry} if isinstance(entry, str) else entry for name, entry in sources.items()
        }
    if isinstance(content.get("tokenizer"), str):
        content["tokenizer"] = {"name": content["tokenizer"]}
    content = override(content, settings)
    config = validate(BuildConfig, content, str(file))
    configs = [_source(name, entry, file) for name, entry in config.sources.items()]
    names = [one.folder for one in configs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{file}: two sources have the name {twice[0]!r}")
    return config, configs


def _source(name: str, entry: Mapping[str, Any], file: Path) -> SourceConfig:
    place = f"{file}, sources.{name}"
    content = {key: value for key, value in entry.items() if key != BASE}
    if BASE in entry:
        if not isinstance(entry[BASE], str):
            raise ConfigError(f"{place}.{BASE}: expected the path of a config file, got {entry[BASE]!r}")
        base = file.parent / Path(entry[BASE]).expanduser()
        content = {**read_yaml(base), **content}
        place += f" ({base})"
    kind = content.get("source")
    if kind is None:
        raise ConfigError(f"{place}: key 'source' is missing; there are {', '.join(SOURCES)}")
    if kind not in SOURCES:
        near = difflib.get_close_matches(str(kind), SOURCES, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(SOURCES)}"
        raise ConfigError(f"{place}: unknown source {kind!r}{meant}")
    content = {"name": name, **content}
    return validate(source_class(kind).config_class, content, place)
