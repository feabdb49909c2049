"""What verification finds, as data: where, of which kind, and in words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """The closed list of what can be wrong. Values appear in `uvd verify --format json` and never change meaning."""

    # of a shard
    MISSING_TAR = "missing_tar"
    TRUNCATED = "truncated"
    """The tar has another length than the manifest says."""
    CHECKSUM = "checksum"
    MEMBERS = "members"
    """Files in the tar: their order, names, headers, places, JSON."""
    PIXELS = "pixels"
    TOKENS = "tokens"
    HISTOGRAM = "histogram"
    SUMMARY = "summary"
    COUNTS = "counts"
    CONSERVATION = "conservation"
    """Inputs are not used + rejected."""
    KEYS = "keys"
    REJECTS = "rejects"
    DAMAGED_MANIFEST = "damaged_manifest"
    FOREIGN_MANIFEST = "foreign_manifest"
    """A Parquet file that is no manifest, or that of another shard."""
    MIXED_FINGERPRINT = "mixed_fingerprint"
    OTHER_IMAGES = "other_images"
    """Tokens whose image shard is gone, or is not the one that was tokenized."""
    BASE = "base"
    """A view's shard that its base does not hold."""
    UNREACHABLE = "unreachable"
    """The store did not give the file, or the worker died: nothing is known of the shard."""
    # of a folder or the dataset
    GAP_IN_PLAN = "gap_in_plan"
    RETRY_PLAN = "retry_plan"
    LEFTOVER = "leftover"
    """What a killed run left: temporary files, files of shards without manifest, its lease."""
    EXTRA_FILE = "extra_file"
    UNDECLARED = "undeclared"
    """What `dataset.json` does not know."""


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """Something wrong.

    Attributes:
        folder: such as `sequences/laion`; empty for the dataset itself.
        shard: number of the shard; -1 if it is not about one.
        last: of a gap, its last shard.
        file: name of the file in the folder, if it is about that file and not about what it holds.
        detail: for a person.
    """

    folder: str
    shard: int
    file: str
    kind: Kind
    detail: str
    last: int = -1

    @property
    def place(self) -> str:
        if self.file:
            return f"{self.folder}/{self.file}".removeprefix("/")
        if self.shard < 0:
            return self.folder or "dataset"
        return f"{self.folder}/{self.shard:06d}" + (f"-{self.last:06d}" if self.last > self.shard else "")

    @property
    def shards(self) -> range:
        """The shards that it is about; none if it is about a file or folder."""
        return range(self.shard, max(self.shard, self.last) + 1) if self.shard >= 0 else range(0)

    def __str__(self) -> str:
        return f"{self.place}: {self.detail} ({self.kind})"

    def as_json(self) -> dict[str, Any]:
        return {"place": self.place, "kind": str(self.kind), "detail": self.detail}


@dataclass
class Verification:
    """What was looked at and what was found, in an order that does not depend on who looked.

    Attributes:
        inputs: planned inputs of the shards of each folder.
        writing: folders that other runs write, as in `lease.Holder`, and by whom: what is not committed there is not
            judged.
        interrupted: not all was looked at.
        without_pictures: image shards whose pictures were not kept; of them there is only the manifest.
    """

    shards: int = 0
    sequences: int = 0
    findings: list[Finding] = field(default_factory=list)
    inputs: dict[str, int] = field(default_factory=dict)
    writing: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    without_pictures: int = 0

    @property
    def problems(self) -> list[str]:
        """The findings, a line each."""
        return [str(finding) for finding in self.findings]

    def add(self, folder: str, shards: int, sequences: int, inputs: int, findings: Iterable[Finding]) -> None:
        self.shards += shards
        self.sequences += sequences
        self.inputs[folder] = self.inputs.get(folder, 0) + inputs
        self.findings += findings
