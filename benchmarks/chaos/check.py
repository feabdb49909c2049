"""What must hold after a disturbed run was finished by the same command: compared with the calm dataset."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from uvd.manifests.dataset import Dataset
from uvd.manifests.stats import statistics
from uvd.manifests.storage import is_temporary
from uvd.manifests.verify import verify

_FREE = ("runs", "index")
"""Folders whose files may differ: run logs and the index of statistics."""


@dataclass
class Checked:
    """What is wrong; all empty if nothing is."""

    different: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    unaccounted: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not (self.different or self.leftovers or self.unaccounted or self.damaged)


def check(out: Path, calm: Path) -> Checked:
    """Compares every byte with the calm dataset, looks for leftovers, adds up inputs, and verifies deeply."""
    checked = Checked()
    mine, theirs = _files(out), _files(calm)
    for name in sorted(mine.keys() | theirs.keys()):
        if name not in theirs or is_temporary(Path(name).name):
            checked.leftovers.append(name)
        elif name not in mine:
            checked.different.append(f"{name} is missing")
        elif mine[name].read_bytes() != theirs[name].read_bytes():
            checked.different.append(name)
    for path in (out / "runs").iterdir():
        if path.suffix != ".jsonl":
            checked.leftovers.append(f"runs/{path.name}")
    dataset = Dataset.existing(str(out))
    planned = {name: entry["plan"] for name, entry in dataset.info()["sequences"].items()}
    for row in statistics(dataset)["accounting"]:
        plan = planned[row["source"]]
        if not row["inputs"] == row["used"] + row["rejected"] == plan["inputs"] or row["shards"] != plan["shards"]:
            checked.unaccounted.append(f"{row} of {plan}")
    checked.damaged += [str(problem) for problem in verify(dataset, deep=True).problems]
    return checked


def _files(root: Path) -> dict[str, Path]:
    found = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    return {name: path for name, path in found.items() if name.split("/")[0] not in _FREE}
