"""How a source or a tokenizer was run before: by `dataset.json`, by the run logs, by what a person adds.

`dataset.json` records what the data is, and not where the inputs lie: that is in the run logs, `runs/*.jsonl`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, cast

from uvd import __version__
from uvd.manifests.dataset import Dataset
from uvd.manifests.duplicates import read_duplicates
from uvd.manifests.fingerprint import differences
from uvd.manifests.runs import FOLDER
from uvd.pipeline.config import config_entry, override, validate
from uvd.pipeline.tokenizing import TokenizeSettings, tokens_entry
from uvd.sequences.errors import UserError
from uvd.sources import SourceConfig, source_class
from uvd.tokenize.precision import Precision
from uvd.tokenize.tokenizer import find_folder

_LOGS, _LINE = 50, 1 << 20


class CannotRebuildError(UserError):
    """Shards cannot be made again; the message says why."""


def logged_settings(dataset: Dataset, stage: str, name: str) -> Iterator[dict[str, Any]]:
    """Settings of earlier runs, newest first; only of those that logged them."""
    found = 0
    for log in reversed([name for name in dataset.storage.list(FOLDER) if name.endswith(".jsonl")]):
        if f"-{stage}-{name.replace('/', '-')}-" not in log:
            continue
        with dataset.storage.open(f"{FOLDER}/{log}") as file:
            line = file.read_at(min(file.size(), _LINE), 0).partition(b"\n")[0]
        try:
            start = json.loads(line)
        except ValueError:
            continue  # a log that is damaged is no data
        if not isinstance(start, dict) or (start.get("stage"), start.get("name")) != (stage, name):
            continue
        settings = start.get("settings")
        if isinstance(settings, dict):
            yield settings
            found += 1
        if found == _LOGS:
            return


def recall_config(dataset: Dataset, name: str, overrides: Sequence[str]) -> SourceConfig:
    """The config of a source, with the places of its inputs.

    Args:
        overrides: `key=value` settings, such as where the inputs are now.

    Raises:
        CannotRebuildError: if none is known that makes the same data.
    """
    entry = dataset.info()["sequences"][name]
    stored = entry.get("config")
    if not isinstance(stored, dict) or not isinstance(stored.get("source"), str):
        raise CannotRebuildError(f"dataset.json does not say how sequences/{name} was made")
    if entry.get("uvd_version") != __version__:
        made_by = entry.get("uvd_version")
        raise CannotRebuildError(f"sequences/{name} was made by uvd {made_by}, this is {__version__}")
    why = ""
    built = (settings["config"] for settings in logged_settings(dataset, "build", name))
    for settings in (*logged_settings(dataset, "ingest", name), *built, stored):
        try:
            model = source_class(stored["source"]).config_class
            config = validate(model, override(settings, overrides), f"sequences/{name}")
            found = config_entry(config)
        except UserError as error:
            why = str(error)
            continue
        if found["fingerprint"] == entry["fingerprint"]:
            return config
        changes = differences({key: entry.get(key) for key in found}, found)
        why = "other settings: " + ", ".join(changes)
    raise CannotRebuildError(
        f"where the inputs of sequences/{name} are is not known; give it, as by --set {name}.input=PLACE. {why}"
    )


def recall_tokenizer(
    dataset: Dataset, name: str, made: dict[str, Any] | None, given: str | None, gpus: bool
) -> TokenizeSettings:
    """How the tokens `name` (`TOKENIZER/SOURCE`) were made.

    Args:
        made: metadata of one of the manifests, if any can be read: it says device, precision and batch.
        given: folder of the tokenizer, if a person gave it.
        gpus: whether there is a GPU to use.

    Raises:
        CannotRebuildError: if the tokenizer, or the device, is not at hand.
    """
    entry = dataset.info()["tokens"][name]
    if "imported" in entry:
        raise CannotRebuildError(
            f"tokens/{name} was imported: the same `uvd import` with --overwrite, from the same files, makes it anew"
        )
    logged = list(logged_settings(dataset, "tokenize", name))
    logged += [settings["tokenizer"] for settings in logged_settings(dataset, "build", name.partition("/")[2])]
    about = made or (logged[0] if logged else {})
    device = "cpu" if about.get("device", "cpu") == "cpu" else "cuda"
    if device == "cuda" and not gpus:
        raise CannotRebuildError(f"tokens/{name} was made on {about['device']}, and no GPU is here")
    places = dict.fromkeys([given] if given else [*(one["tokenizer"] for one in logged), name.partition("/")[0]])
    why = ""
    for place in places:
        try:
            settings = TokenizeSettings(
                str(find_folder(place)),
                "cpu" if device == "cpu" else "cuda",
                about.get("batch_size"),
                cast(Precision, about.get("precision", "fp32")),
                bool(about.get("compiled", False)),
                duplicates=entry["duplicates"].partition(":")[0] if "duplicates" in entry else None,
            )
            marks = read_duplicates(dataset, settings.duplicates) if settings.duplicates is not None else None
            _, found = tokens_entry(settings, marks)
        except UserError as error:
            why = str(error)
            continue
        if found["fingerprint"] == entry["fingerprint"]:
            return settings
        why = f"{place} is another tokenizer, or this is another version of uvd"
    raise CannotRebuildError(f"the tokenizer of tokens/{name} is not at hand; give --tokenizer FOLDER. {why}")
