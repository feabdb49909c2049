"""A dataset: `dataset.json`, image shards under `sequences/`, token shards under `tokens/`, run logs under `runs/`.

`dataset.json` says with which config each source and tokenizer was run; a second run with another config is refused.
A shard exists if, and only if, its manifest does.

A view (`manifests.subset`) is a dataset that holds manifests only: its `dataset.json` names the base, where the tars
lie under the same names. Readers take tars from `Dataset.tars` and so need not know.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from uvd import __version__
from uvd.manifests.fingerprint import differences
from uvd.manifests.footer import read_footer
from uvd.manifests.schema import read_metadata
from uvd.manifests.storage import Storage
from uvd.sequences.errors import UserError
from uvd.sequences.object_stores import with_query_of

FORMAT_VERSION = 1
_MANIFEST = re.compile(r"^(\d{6,})\.parquet$")
SHARD_FILE = re.compile(r"^(\d{6,})\.(tar|parquet|rejects\.parquet)$")
_INFO = "dataset.json"
RETRY_PLAN = "plan.parquet"
"""In a folder of retries: which rejects its inputs were."""


class DatasetError(UserError):
    """The dataset cannot be used as asked; the message says why and what to do."""


class ConfigChangedError(DatasetError):
    """Something was made with another config, input or version; mixing is refused."""

    exit_code = 2


class ConservationError(AssertionError):
    """An input was neither used nor rejected, or one was named that was not planned: a bug in a source or stage."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Names of the files of one shard, relative to the dataset."""

    folder: str
    number: int

    @property
    def name(self) -> str:
        return f"{self.number:06d}"

    @property
    def tar(self) -> str:
        return f"{self.folder}/{self.name}.tar"

    @property
    def manifest(self) -> str:
        return f"{self.folder}/{self.name}.parquet"

    @property
    def rejects(self) -> str:
        return f"{self.folder}/{self.name}.rejects.parquet"


class Dataset:
    """Opens or starts a dataset at a path or URI; creates nothing until something is declared."""

    def __init__(self, uri: str) -> None:
        self.storage = Storage(str(uri))
        # Absolute, because workers have another working directory.
        root = self.storage.local_root
        self.uri = str(root) if root is not None else self.storage.uri
        """How messages, logs and manifests name it."""
        self.address = str(root) if root is not None else self.storage.address
        """What opens it in another process."""

    @classmethod
    def existing(cls, uri: str) -> Dataset:
        """Opens a dataset that must be there.

        Raises:
            DatasetError: if there is no `dataset.json`, or one of another format version.
        """
        dataset = cls(uri)
        if not dataset.storage.exists(_INFO):
            why = dataset.storage.why_not_there(_INFO)
            raise DatasetError(f"no dataset at {dataset.uri}: {why}. `uvd ingest` makes one.")
        view = dataset.info().get("view")
        if view is not None:
            if not view["complete"]:
                raise DatasetError(f"{uri} is a view that was not finished: run the same `uvd subset` again")
            dataset._check_settings()
        return dataset

    @cached_property
    def base(self) -> Dataset | None:
        """The dataset whose tars this one, a view, refers to; None if it has its own.

        Raises:
            DatasetError: if there is no dataset any more where the base was.
        """
        view = self.info().get("view")
        if view is None:
            return None
        place = str(view["base"])
        if self.storage.local_root is not None and "://" not in place:
            place = os.path.normpath(self.storage.local_root / place)
        base = Dataset(with_query_of(place, self.address))
        if not base.storage.exists(_INFO) or "view" in base.info():
            raise DatasetError(
                f"{self.uri} is a view of {place}, where no dataset with shards of its own is. Bring it back, or make "
                "the view anew with `uvd subset`."
            )
        return base

    @property
    def tars(self) -> Storage:
        """Where the tars lie: a shard's is `shard.tar` there."""
        return self.storage if self.base is None else self.base.storage

    def check_base(self, shard: Shard, metadata: Mapping[str, Any]) -> None:
        """Makes sure that the base of a view still holds the shard that the view was made from.

        Args:
            metadata: of the shard's manifest here.

        Raises:
            DatasetError: if it does not.
        """
        if self.base is None:
            return
        there = self.base.storage.exists(shard.manifest)
        if not there or self.base.metadata(shard)["tar_sha256"] != metadata["tar_sha256"]:
            raise DatasetError(
                f"{self.uri} is a view of {self.base.uri}, whose shard {shard.folder}/{shard.name} "
                f"{'has changed' if there else 'is gone'}. Make the view anew with `uvd subset --overwrite`."
            )

    def _check_settings(self) -> None:
        """
        Raises:
            DatasetError: if the base of this view was made anew under other settings.
        """
        assert self.base is not None
        mine, theirs = self.info(), self.base.info()
        for section in ("sequences", "tokens"):
            for name, entry in mine[section].items():
                if theirs[section].get(name, {}).get("fingerprint") != entry["fingerprint"]:
                    raise DatasetError(
                        f"{self.uri} is a view of {self.base.uri}, whose {section}/{name} was made anew under other "
                        "settings, or is gone. Make the view anew with `uvd subset --overwrite`."
                    )

    def info(self) -> dict[str, Any]:
        """Content of `dataset.json`, or of an empty one."""
        if not self.storage.exists(_INFO):
            return {"format": FORMAT_VERSION, "sequences": {}, "tokens": {}}
        try:
            info = json.loads(self.storage.read(_INFO))
        except ValueError as error:
            raise DatasetError(f"{self.uri}/{_INFO} is damaged: {error}") from error
        if not isinstance(info, dict) or info.get("format") != FORMAT_VERSION:
            raise DatasetError(
                f"{self.uri}/{_INFO} is not of format version {FORMAT_VERSION}, which uvd {__version__} reads"
            )
        return info

    def declare(self, section: str, name: str, entry: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Records how `section/name` is made, before any of its shards is.

        Args:
            section: `sequences` or `tokens`.
            name: source, or `tokenizer/source`.
            entry: JSON-able, with `fingerprint` and whatever explains it; `plan`, once it is known: `shards`, `inputs`.
            overwrite: drop what is there under another fingerprint (and tokens made from it).

        Raises:
            ConfigChangedError: if it is recorded with another fingerprint; says what changed.
        """
        with self.storage.locked():
            info = self.info()
            if "view" in info:
                raise DatasetError(f"{self.uri} is a view: make {section} in {info['view']['base']}, and the view anew")
            known = info[section].get(name)
            if known is not None and known["fingerprint"] != entry["fingerprint"] and not overwrite:
                old = {key: value for key, value in known.items() if key != "plan"}
                changes = "\n  ".join(differences(old, entry))
                raise ConfigChangedError(
                    f"{section}/{name} in {self.uri} was made with other settings:\n  {changes}\n"
                    "Use the old settings, another name, another dataset, or --overwrite to make it anew."
                )
            if known is not None and known["fingerprint"] != entry["fingerprint"]:
                self._drop(info, section, name)
            elif known is not None and "plan" in known:
                entry = {"plan": known["plan"], **entry}
            if info[section].get(name) != entry:
                info[section][name] = dict(entry)
                self._write_info(info)

    def drop(self, section: str, name: str) -> None:
        """Deletes the shards of `section/name` and what was made from them, to make them anew."""
        with self.storage.locked():
            info = self.info()
            entry = info[section][name]
            self._drop(info, section, name)
            info[section][name] = entry
            self._write_info(info)

    def _drop(self, info: dict[str, Any], section: str, name: str) -> None:
        self.storage.delete_folder(f"{section}/{name}")
        info[section].pop(name, None)
        if section == "sequences":
            for derived in [key for key in info["tokens"] if key.partition("/")[2] == name]:
                self._drop(info, "tokens", derived)
            for again in [key for key, entry in info["sequences"].items() if entry.get("retry_of") == name]:
                self._drop(info, "sequences", again)

    def _write_info(self, info: dict[str, Any]) -> None:
        self.storage.put(_INFO, (json.dumps(info, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())

    def write_view(self, sequences: Mapping[str, Any], tokens: Mapping[str, Any], view: Mapping[str, Any]) -> None:
        """Makes this dataset a view: records its sections, and in `view` where its base is and how it was made."""
        with self.storage.locked():
            self._write_info(
                {"format": FORMAT_VERSION, "sequences": dict(sequences), "tokens": dict(tokens), "view": dict(view)}
            )

    def sources(self) -> list[str]:
        """Names of the sources that `dataset.json` records."""
        return sorted(self.info()["sequences"])

    def token_folders(self) -> list[tuple[str, str]]:
        """(tokenizer, source) of everything below `tokens/`."""
        pairs = (name.partition("/") for name in sorted(self.info()["tokens"]))
        return [(tokenizer, source) for tokenizer, _, source in pairs]

    def tokens_of(self, tokenizer: str | None) -> tuple[str, list[str]]:
        """The tokenizer whose tokens are meant, and the sources that it has tokens of.

        Args:
            tokenizer: None for the only one.

        Raises:
            DatasetError: if there are no tokens, none of this tokenizer, or of several and none is named.
        """
        folders = self.token_folders()
        available = sorted({name for name, _ in folders})
        if not available:
            raise DatasetError(f"{self.uri} has no tokens: run `uvd tokenize` first")
        if tokenizer is None and len(available) > 1:
            raise DatasetError(f"{self.uri} has tokens of {', '.join(available)}: say which by its tokenizer's name")
        if tokenizer is not None and tokenizer not in available:
            raise DatasetError(f"{self.uri} has no tokens of {tokenizer!r}, but of {', '.join(available)}")
        chosen = tokenizer or available[0]
        return chosen, [source for name, source in folders if name == chosen]

    def shards(self, folder: str) -> list[Shard]:
        """The committed shards of `sequences/<source>` or `tokens/<tokenizer>/<source>`, in order."""
        return [Shard(folder, number) for number in self.shard_numbers(folder).tolist()]

    def shard_numbers(self, folder: str) -> NDArray[np.int64]:
        """The numbers of the same shards: `(shards,)` int64, increasing."""
        matches = map(_MANIFEST.match, self.storage.names(folder))
        return np.sort(np.fromiter((int(match[1]) for match in matches if match), np.int64))

    def sweep(self, folder: str) -> None:
        """Deletes what a killed run left in `folder`: temporary files, and files of shards without a manifest."""
        self.storage.sweep(folder)
        names = self.storage.names(folder)
        committed = {match[1] for match in map(_MANIFEST.match, names) if match}
        for match in map(SHARD_FILE.match, names):
            if match is not None and match[1] not in committed:
                self.storage.delete(f"{folder}/{match[0]}")

    def all_shards(self, section: str) -> Iterator[Shard]:
        for name in sorted(self.info()[section]):
            yield from self.shards(f"{section}/{name}")

    def manifest(self, shard: Shard, columns: list[str] | None = None) -> pa.Table:
        """A shard's manifest, with its metadata; `columns` limits what is read."""
        with self.storage.open(shard.manifest) as file:
            return pq.read_table(file, columns=columns)

    def metadata(self, shard: Shard) -> dict[str, Any]:
        """The `uvd` metadata of a shard's manifest: reads the footer only."""
        text = read_footer(self.storage.full(shard.manifest)) if self.storage.local_root is not None else None
        if text is not None:
            found: dict[str, Any] = json.loads(text)
            return found
        with self.storage.open(shard.manifest) as file:
            return read_metadata(pq.read_schema(file), shard.manifest)

    def rejects(self, shard: Shard) -> pa.Table:
        with self.storage.open(shard.rejects) as file:
            return pq.read_table(file)
