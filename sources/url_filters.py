"""Filters on what a list says of its images, before anything is downloaded: one pyarrow expression over a unit's rows.

Filters are tried in the order of `FILTERS`, and the first that a row fails is its reason. Bounds are inclusive. A value
that is missing (null, NaN, no number, a side of 0) passes, unless `missing: drop`. Costs about 10 µs a row.
"""

from __future__ import annotations

from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from pydantic import BaseModel, ConfigDict, Field, field_validator
from yarl import URL

from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput
from uvd.sources.addresses import parse_url

FILTERS: dict[str, Reason] = {
    "min_side": Reason.FILTERED_SIDE,
    "max_aspect": Reason.FILTERED_ASPECT,
    "max_punsafe": Reason.FILTERED_PUNSAFE,
    "max_pwatermark": Reason.FILTERED_PWATERMARK,
    "min_similarity": Reason.FILTERED_SIMILARITY,
    "min_aesthetic": Reason.FILTERED_AESTHETIC,
    "hosts": Reason.FILTERED_HOST,
}
_COLUMNS: dict[str, tuple[str, ...]] = {
    "min_side": ("width", "height"),
    "max_aspect": ("width", "height"),
    "max_punsafe": ("punsafe",),
    "max_pwatermark": ("pwatermark",),
    "min_similarity": ("similarity",),
    "min_aesthetic": ("aesthetic",),
}
_PASSED = len(FILTERS)


class ListFilters(BaseModel):
    """What a row of a list must say for its image to be downloaded; no filter by default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_side: int | None = Field(None, ge=1)
    """Shorter of width and height, in pixels."""
    max_aspect: float | None = Field(None, ge=1)
    """Longer side by shorter side."""
    max_punsafe: float | None = None
    max_pwatermark: float | None = None
    min_similarity: float | None = None
    min_aesthetic: float | None = None
    allow_hosts: tuple[str, ...] = ()
    """Only these hosts: `example.com` is that host, `.example.com` also all below it. Empty: all."""
    deny_hosts: tuple[str, ...] = ()
    """None of these hosts; wins over `allow_hosts`."""
    missing: Literal["keep", "drop"] = "keep"
    """Rows without the value that a filter looks at."""

    @field_validator("allow_hosts", "deny_hosts")
    @classmethod
    def _canonical(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        """Lower case, IDNA, sorted."""
        return tuple(sorted({_canonical_host(host) for host in hosts}))

    @property
    def columns(self) -> tuple[str, ...]:
        """Meanings of the columns that the filters look at."""
        asked = [name for name in _COLUMNS if getattr(self, name) is not None]
        return tuple(dict.fromkeys(column for name in asked for column in _COLUMNS[name]))

    def verdicts(self, rows: pa.Table) -> dict[int, RejectedInput]:
        """Row → why it is filtered out.

        Args:
            rows: table of `url_columns.ROWS`.
        """
        if not self.columns and not self.allow_hosts and not self.deny_hosts:
            return {}
        table = rows.append_column(
            "host", pa.array([_dotted_host(url) for url in rows["url"].to_pylist()], pa.string())
        )
        scanned = pads.dataset(table).to_table(columns={"verdict": self.expression()}, use_threads=False)
        names = list(FILTERS)
        return {
            number: RejectedInput(FILTERS[names[verdict]], self._detail(names[verdict], table, number))
            for number, verdict in enumerate(scanned["verdict"].to_pylist())
            if verdict != _PASSED
        }

    def expression(self) -> pc.Expression:
        """The place in `FILTERS` of the first filter that a row fails, or their number for rows that pass."""
        verdict = pc.scalar(_PASSED)
        for place, fails in reversed(list(enumerate(self._failures()))):
            if fails is not None:
                verdict = pc.if_else(fails, pc.scalar(place), verdict)
        return verdict

    def _failures(self) -> list[pc.Expression | None]:
        """One expression a filter, in the order of `FILTERS`; None for those that are not asked for."""
        width, height = pc.field("width"), pc.field("height")
        known = (width > 0) & (height > 0)
        wide = pc.if_else(width > height, width, height)
        short = pc.if_else(width > height, height, width)
        tests: dict[str, pc.Expression] = {}
        if self.min_side is not None:
            tests["min_side"] = pc.if_else(known, short < self.min_side, pc.scalar(None))
        if self.max_aspect is not None:
            tests["max_aspect"] = pc.if_else(known, wide > short * self.max_aspect, pc.scalar(None))
        for name in ("max_punsafe", "max_pwatermark", "min_similarity", "min_aesthetic"):
            bound, column = getattr(self, name), pc.field(_COLUMNS[name][0])
            if bound is not None:
                fails = column > bound if name.startswith("max") else column < bound
                tests[name] = pc.if_else(pc.is_nan(column), pc.scalar(None), fails)
        if self.allow_hosts or self.deny_hosts:
            tests["hosts"] = self._hosts()
        drop = pc.scalar(self.missing == "drop")
        return [pc.coalesce(tests[name], drop) if name in tests else None for name in FILTERS]

    def _hosts(self) -> pc.Expression:
        refused = _listed(self.deny_hosts)
        if self.allow_hosts:
            refused = refused | ~_listed(self.allow_hosts)
        # What has no host passes here whatever `missing` says: fetching refuses it as `bad_url`.
        return pc.is_valid(pc.field("host")) & refused

    def _detail(self, name: str, table: pa.Table, number: int) -> str:
        if name == "hosts":
            return (table["host"][number].as_py() or "").removeprefix(".")
        values = [table[column][number].as_py() for column in _COLUMNS[name]]
        shown = "x".join("none" if value is None else f"{value:g}" for value in values)
        return f"{shown}, {name} is {getattr(self, name):g}"


def _listed(hosts: tuple[str, ...]) -> pc.Expression:
    """Whether the column `host`, `.www.example.com`, is among `hosts`; costs a look-up for each length of suffix."""
    host = pc.field("host")
    exact = [f".{entry.removeprefix('.')}" for entry in hosts]
    found = pc.is_in(host, value_set=pa.array(exact, pa.string()))
    suffixes = [entry for entry in hosts if entry.startswith(".")]
    for labels in sorted({entry.count(".") for entry in suffixes}):
        of_length = pa.array([entry for entry in suffixes if entry.count(".") == labels], pa.string())
        ending = pc.replace_substring_regex(host, pattern=rf"^.*((?:\.[^.]*){{{labels}}})$", replacement=r"\1")
        found = found | pc.is_in(ending, value_set=of_length)
    return found


def _canonical_host(entry: str) -> str:
    dot, name = entry[: entry.startswith(".")], entry.strip().strip(".")
    try:
        host = URL.build(scheme="http", host=name).raw_host
    except (ValueError, UnicodeError) as error:
        raise ValueError(f"{entry!r} is not a host") from error
    if not host:
        raise ValueError(f"{entry!r} is not a host")
    return dot + host.lower()


def _dotted_host(url: str | None) -> str | None:
    """The host that would be dialled, with a dot before it; None for what is no URL, which fetching refuses."""
    try:
        host = parse_url(url or "").raw_host or ""
    except RejectedInput:
        return None
    return f".{host.lower().rstrip('.')}"
