"""Configs: one flat YAML file a run, `--set key=value` on top, checked by pydantic; unknown keys get a suggestion."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from uvd import __version__
from uvd.manifests.fingerprint import fingerprint
from uvd.sequences.errors import UserError
from uvd.sources.base import SourceConfig

C = TypeVar("C", bound=BaseModel)


class ConfigError(UserError):
    """A config file or override that cannot be used; the message names file, key and what would be right."""

    exit_code = 2


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Reads a YAML mapping.

    Raises:
        ConfigError: if there is no such file, or it is not a mapping.
    """
    try:
        content = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"no config file {path}") from error
    except OSError as error:
        raise ConfigError(f"config file {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is not a mapping of keys to values")
    return content


def override(content: dict[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """Applies `a.b=c` settings, whose values are YAML, to a copy of `content`.

    >>> override({"a": {"b": 1}}, ["a.b=2", "c=[x, y]"])
    {'a': {'b': 2}, 'c': ['x', 'y']}
    """
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in content.items()}
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path:
            raise ConfigError(f"--set {setting}: expected key=value")
        *parents, last = path.split(".")
        place = result
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ConfigError(f"--set {setting}: {parent!r} is a value, it has no keys")
        try:
            place[last] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {setting}: the value is not YAML: {error}") from error
    return result


def validate(model: type[C], content: Mapping[str, Any], origin: str) -> C:
    """Builds a config object.

    Raises:
        ConfigError: names each wrong key with the nearest valid one, and each wrong value with what was expected.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        lines = [_explain(model, problem) for problem in error.errors()]
        raise ConfigError(f"{origin}:\n  " + "\n  ".join(lines)) from error


def _keys_beside(model: type[BaseModel], place: tuple[str | int, ...]) -> list[str]:
    """The valid keys of the mapping in which the key at `place` stands."""
    for part in place[:-1]:
        inner = model.model_fields[str(part)].annotation if str(part) in model.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)


def _explain(model: type[BaseModel], problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(problem["loc"][-1]), _keys_beside(model, problem["loc"]), n=1)
        return f"unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    if problem["type"] == "missing":
        return f"key {key!r} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    # A rule over several keys has no place of its own, and its input is the whole config.
    return f"{key}: {message} (got {problem['input']!r})" if key else message


def data_settings(config: BaseModel) -> dict[str, Any]:
    """The settings that decide what the data is: without places, speeds and other fields marked `NOT_DATA`."""
    settings = config.model_dump(mode="json")
    for name, field in type(config).model_fields.items():
        extra, value = field.json_schema_extra, getattr(config, name)
        if isinstance(extra, dict) and extra.get("fingerprint") is False:
            del settings[name]
        elif isinstance(value, BaseModel):
            settings[name] = data_settings(value)
    return settings


def config_entry(config: BaseModel) -> dict[str, Any]:
    """What `dataset.json` records about a source: its settings, uvd's version, and the fingerprint of both."""
    entry: dict[str, Any] = {"config": data_settings(config), "uvd_version": __version__}
    if isinstance(config, SourceConfig) and (identity := config.identity()):
        entry["identity"] = dict(identity)
    return {**entry, "fingerprint": fingerprint(entry)}
