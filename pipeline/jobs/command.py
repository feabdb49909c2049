"""A `uvd …` command as it will run on a cluster: checked here, its config read, its paths judged.

Commands are parsed by the command line's own definition, so what would be refused there is refused before it travels.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import typer
import yaml

from uvd.pipeline.build_config import BASE
from uvd.pipeline.config import ConfigError, read_yaml
from uvd.pipeline.jobs.errors import SubmissionError
from uvd.sequences.object_stores import plain_uri

CONFIG_BYTES = 1 << 18
"""Of a config file: it is kept with the job, so that the job can be resumed from any machine."""
AUTO = "auto"
_NOT_ON_CLUSTERS = ("jobs", "play", "browse", "demo", "doctor")
_DATASETS = ("dataset", "out")
"""Options that name a place even where nothing shows it, as in `--out data`."""
_INPUTS = ("input",)
_IGNORED_FOR_KEY = ("address", "num_cpus", "wait")
_LOCAL_START = ("/", "~", "./", "../")
_CREDENTIALS = re.compile(r"://[^/\s@:]*:[^/\s@]+@")


@dataclass(frozen=True)
class LocalPath:
    """A path that only machines which share a file system can see: where it was given, and what."""

    where: str
    path: str

    def __str__(self) -> str:
        return f"{self.where} {self.path}"


@dataclass(frozen=True)
class ClusterCommand:
    """What runs on the cluster.

    Attributes:
        title: `ingest images`, `tokenize`, ...
        arguments: of `uvd`; a config is named by its file name alone, paths are absolute.
        dataset: which dataset it is about, without what a URI tells of access; "" if none.
        key: of commands that do the same; not of the config's content.
        config_name: file name of the config, or "".
        config: its content.
        local: what a cluster of other machines would not find.
    """

    title: str
    arguments: tuple[str, ...]
    dataset: str
    key: str
    config_name: str = ""
    config: str = ""
    local: tuple[LocalPath, ...] = ()

    @property
    def text(self) -> str:
        return "uvd " + " ".join(self.arguments)


def parse_command(arguments: Sequence[str]) -> ClusterCommand:
    """Checks the arguments of `uvd` and makes them fit for another machine.

    Raises:
        SubmissionError: if the command does not belong on a cluster, or holds credentials.
        ConfigError: if its config cannot be read.
        typer's usage errors: as the command itself would.
    """
    if any(_CREDENTIALS.search(argument) for argument in arguments):
        raise SubmissionError(
            "the command holds a password, and commands are kept with the job for all to read. Leave it out of the "
            "address and pass what the store's library reads by --env NAME, such as --env AWS_SECRET_ACCESS_KEY"
        )
    if not arguments:
        raise SubmissionError("say which command is to run, as in: uvd jobs submit --address … -- ingest images …")
    names, command, context = _resolve(list(arguments))
    values = _given(command, context)
    if "address" in values:
        raise SubmissionError("--address belongs before `--`: it names the cluster that the job is sent to")
    paths = _Paths()
    key_parts: dict[str, Any] = {}
    rebuilt: list[str] = []
    config_name = config = ""
    for parameter in command.params:
        name = parameter.name
        if name not in values:
            continue
        value = values[name]
        if name == "config":
            config_name, config = _read_config(Path(value), paths, of_build=names == ["build"])
            value = config_name
        else:
            value = _map(value, partial(_placed, name=name, option=parameter, paths=paths))
        if name not in _IGNORED_FOR_KEY:
            key_parts[name] = value
        rebuilt += _spell(parameter, value)
    if any(parameter.name == "address" for parameter in command.params):
        rebuilt += ["--address", AUTO]
    dataset = next((str(values[name]) for name in _DATASETS if name in values), "")
    if names == ["ingest"]:
        names = [*names, str(values["source"])]
        title_arguments = names[:1]
    else:
        title_arguments = names
    identity = json.dumps([names, key_parts], sort_keys=True, default=str)
    return ClusterCommand(
        title=" ".join(names),
        arguments=(*title_arguments, *rebuilt),
        dataset=plain_uri(dataset),
        key=hashlib.sha256(identity.encode()).hexdigest()[:8],
        config_name=config_name,
        config=config,
        local=tuple(paths.found),
    )


def _resolve(arguments: list[str]) -> tuple[list[str], Any, Any]:
    """(names of the command and its groups, the command, its parsed context)."""
    from uvd.pipeline.cli import app

    command: Any = typer.main.get_command(app)
    context: Any = None
    names: list[str] = []
    name = "uvd"
    while True:
        context = command.make_context(name, list(arguments), parent=context)
        rest = [*getattr(context, "_protected_args", ()), *context.args]
        if not hasattr(command, "commands") or not rest:
            break
        name, command, arguments = command.resolve_command(context, rest)
        names.append(name)
        if names[0] in _NOT_ON_CLUSTERS:
            raise SubmissionError(f"`uvd {names[0]}` is for this machine, not for a cluster")
    return names, command, context


def _given(command: Any, context: Any) -> dict[str, Any]:
    """The parameters that were given, not left at their defaults."""
    names = [parameter.name for parameter in command.params]
    given = [name for name in names if context.get_parameter_source(name).name == "COMMANDLINE"]
    return {name: context.params[name] for name in given if name in context.params}


def _map(value: Any, change: Callable[[Any], Any]) -> Any:
    return [change(part) for part in value] if isinstance(value, list | tuple) else change(value)


def _spell(parameter: Any, value: Any) -> list[str]:
    """A parameter as arguments: `--option value`, `--flag`, or the bare value."""
    values = value if isinstance(value, list) else [value]
    if parameter.param_type_name == "argument":
        return [str(part) for part in values]
    if isinstance(value, bool):
        return [parameter.opts[0]] if value else list(parameter.secondary_opts[:1])
    return [text for part in values for text in (parameter.opts[0], str(part))]


class _Paths:
    """Collects local paths, and makes them absolute."""

    def __init__(self) -> None:
        self.found: list[LocalPath] = []

    def place(self, where: str, text: str, *, surely: bool) -> str:
        """`text`, absolute if it is a local path; `surely`: it is a place, so without a scheme it must be local."""
        bare = text.removeprefix("file://")
        local = "://" not in bare and (surely or bare != text or bare.startswith(_LOCAL_START) or _is_there(bare))
        if not local or not bare:
            return text
        absolute = str(Path(bare).expanduser().absolute())
        self.found.append(LocalPath(where, text))
        return absolute


def _is_there(text: str) -> bool:
    try:
        return ("/" in text or "." in text) and Path(text).exists()
    except OSError:  # too long for a path, such as a query
        return False


def _placed(value: Any, name: str, option: Any, paths: _Paths) -> Any:
    where = option.opts[0] if option.param_type_name == "option" else name
    if name == "settings":
        return _placed_setting(str(value), paths)
    if isinstance(value, Path):
        return paths.place(where, str(value), surely=True)
    if isinstance(value, str):
        return paths.place(where, value, surely=name in _DATASETS)
    return value


def _placed_setting(setting: str, paths: _Paths) -> str:
    key, equals, text = setting.partition("=")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {setting}: the value is not YAML: {error}") from error
    placed = _placed_leaves(value, key.rpartition(".")[2], f"--set {key}", paths)
    return setting if placed == value or not equals else f"{key}={json.dumps(placed)}"


def _placed_leaves(value: Any, key: str, where: str, paths: _Paths) -> Any:
    """A YAML value with the local paths in it made absolute."""
    if isinstance(value, dict):
        return {name: _placed_leaves(part, str(name), f"{where}.{name}", paths) for name, part in value.items()}
    if isinstance(value, list):
        return [_placed_leaves(part, key, where, paths) for part in value]
    return paths.place(where, value, surely=key in _INPUTS) if isinstance(value, str) else value


def _read_config(path: Path, paths: _Paths, *, of_build: bool) -> tuple[str, str]:
    """(file name, content) of a config as it travels: one file, with absolute paths."""
    content = read_yaml(path)
    text = path.read_text()
    whole = _with_named_files(content, path.parent) if of_build else content
    if whole != content:
        content, text = whole, yaml.safe_dump(whole, sort_keys=False)
    if len(text) > CONFIG_BYTES:
        raise SubmissionError(f"{path} has {len(text):,} characters; a config that travels may have {CONFIG_BYTES:,}")
    if _CREDENTIALS.search(text):
        raise SubmissionError(f"{path} holds a password, and it would be kept with the job; pass it by --env NAME")
    placed = {key: _placed_leaves(value, str(key), f"{path.name}: {key}", paths) for key, value in content.items()}
    return path.name, text if placed == content else yaml.safe_dump(placed, sort_keys=False)


def _with_named_files(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A config of `uvd build` with the settings of the files that it names, which do not travel."""
    sources = content.get("sources")
    if not isinstance(sources, dict):
        return content
    whole = {}
    for name, entry in sources.items():
        settings = {BASE: entry} if isinstance(entry, str) else entry
        if isinstance(settings, dict) and isinstance(settings.get(BASE), str):
            named = read_yaml(folder / Path(settings[BASE]).expanduser())
            settings = {**named, **{key: value for key, value in settings.items() if key != BASE}}
        whole[name] = settings
    return {**content, "sources": whole}


def local_paths_message(local: Sequence[LocalPath]) -> str:
    """What to do about paths that the cluster's machines may not see."""

    def lines() -> Iterator[str]:
        yield "the cluster's machines are others than this one and would not find:"
        yield from (f"  {path}" for path in local)
        yield "Put it on an object store (s3://, gs://), or say --shared-paths if all of them mount it at the same path"

    return "\n".join(lines())
