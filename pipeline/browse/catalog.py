"""Pages of sequences: a walk through shards in order from a cursor, and random draws; no request scans the dataset.

A cursor is a place (source, shard, row). A page reads the manifests that its sequences are in and those that lie
between; shards of which the index or their footer says that nothing is wanted are passed over, and after a fixed effort
a page ends with the cursor to go on from.
"""

from __future__ import annotations

import re
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from uvd.manifests.blocks import read_shard
from uvd.manifests.dataset import Dataset, DatasetError, Shard
from uvd.manifests.find import find_sequence
from uvd.manifests.schema import SEQUENCES
from uvd.manifests.summary import DIMENSIONS, Summary
from uvd.pipeline.browse.filters import Filter, FilterError
from uvd.pipeline.browse.listing import Listing, Part
from uvd.sequences.errors import UserError

COLUMNS = ["key", "dataset", "layout", "split", "num_images", "roles", "origins", "indices", "offset", "length"]
"""Of manifests, that a page shows or reads pictures by."""
KEY = re.compile(r"^.+-\d{1,12}-\d{1,12}$", re.ASCII | re.DOTALL)
EFFORT = 600
"""Of one page, in footers read; a tenth of a second to half a one."""
ROWS_EFFORT = 5
"""Of reading columns of a manifest, in footers."""
PROBES = 4
"""Shards that are looked for by name where nothing is listed yet."""
SAMPLED = 256
"""Shards whose footers stand for all others outside of the index, where these are many."""
DRAWN_BLOCKS = 3
"""Blocks of the index that the sequences of one draw come from: the footers of each are read, a tenth of a second."""
SETTLED_S = 300.0
"""How long a listing is taken as it is, on stores whose folders have no time of change."""


class StoppedError(UserError):
    """The server is ending, so nothing long is begun."""


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """A place in the dataset: the first row that was not shown yet."""

    source: str
    shard: int = 0
    row: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.shard}:{self.row}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """
        Raises:
            FilterError: if it is not what `str` makes of a cursor.
        """
        source, shard, row = ["", "", *text.rsplit(":", 2)][-3:]
        if not source or not all(part.isascii() and part.isdigit() and len(part) <= 12 for part in (shard, row)):
            raise FilterError(f"{text[:80]!r} is no place in a dataset: SOURCE:SHARD:ROW is one")
        return cls(source, int(shard), int(row))


@dataclass(frozen=True, slots=True)
class Found:
    """One sequence: its place, shard and manifest row (with `COLUMNS` at least)."""

    place: Cursor
    shard: Shard
    row: dict[str, Any]


@dataclass
class Page:
    """Some sequences in order.

    Attributes:
        next: where the next one begins; None at the end of the dataset.
        gave_up: it ended because of the effort, not because it was full.
        looked: shards that were looked into.
    """

    found: list[Found] = field(default_factory=list)
    next: Cursor | None = None
    gave_up: bool = False
    looked: int = 0


@dataclass(frozen=True, slots=True)
class Drawn:
    """Random sequences.

    Attributes:
        of: from how many they were drawn; of any origin.
        sampled: shards whose footers stood for those of all, where reading all would take too long; 0 if all were.
    """

    found: list[Found]
    of: int
    sampled: int = 0


class Catalog:
    """Answers the questions of the pages; many threads may ask at a time."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._listings: dict[str, tuple[Any, Listing]] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Lets everything that runs long end with `StoppedError`."""
        self._stopped.set()

    def go_on(self) -> None:
        """
        Raises:
            StoppedError: after `stop`.
        """
        if self._stopped.is_set():
            raise StoppedError("the server is ending")

    @property
    def sources(self) -> list[str]:
        return self.dataset.sources()

    def chosen(self, wanted: Filter) -> list[str]:
        """The sources that a filter leaves.

        Raises:
            FilterError: if there is no such source.
        """
        sources = self.sources
        if wanted.source and wanted.source not in sources:
            raise FilterError(f"no source {wanted.source!r}; there are {', '.join(sources) or 'none'}")
        return [wanted.source] if wanted.source else sources

    def listing(self, source: str) -> Listing:
        """The shards of a source as they are now: listed once, and again when its folder has changed."""
        stamp = self._stamp(source)
        listed = self._listings.get(source)
        if listed is not None and listed[0] == stamp:
            return listed[1]
        with self._lock:
            listed = self._listings.get(source)
            if listed is None or listed[0] != stamp:
                listed = self._listings[source] = (stamp, Listing(self.dataset, source))
        return listed[1]

    def _stamp(self, source: str) -> Any:
        storage = self.dataset.storage
        if storage.local_root is None:
            return int(time.monotonic() / SETTLED_S)
        return storage.info(f"sequences/{source}").mtime_ns

    def listed(self, source: str) -> Listing | None:
        """The listing if it is at hand."""
        listed = self._listings.get(source)
        return listed[1] if listed is not None and listed[0] == self._stamp(source) else None

    def table(self, shard: Shard, columns: list[str]) -> pa.Table:
        """Columns of a manifest.

        Raises:
            DatasetError: if it is not one.
        """
        table = self.dataset.manifest(shard, columns)
        if [(field.name, field.type) for field in table.schema] != [
            (name, SEQUENCES.field(name).type) for name in columns
        ]:
            raise DatasetError(f"{shard.manifest} is not a manifest of uvd: its columns are others")
        return table

    def page(self, wanted: Filter, start: Cursor | None, size: int) -> Page:
        """Up to `size` wanted sequences from a place on, or from the first.

        Raises:
            FilterError: for an unknown source.
            DatasetError: if a shard's manifest is not one.
        """
        page, effort = Page(), 0
        for place in self._places(wanted, start):
            self.go_on()
            if effort >= EFFORT:
                page.next, page.gave_up = place, True
                return page
            shard = Shard(f"sequences/{place.source}", place.shard)
            page.looked += 1
            if wanted.of_rows:
                effort += 1
                if not wanted.count(self._summary(place)):
                    continue
            effort += ROWS_EFFORT
            # One more than is shown, so that there is no link to an empty page.
            page.found += self._rows(shard, place, wanted, size + 1 - len(page.found))
            if len(page.found) > size:
                page.next = page.found.pop().place
                return page
        return page

    def _places(self, wanted: Filter, start: Cursor | None) -> Iterator[Cursor]:
        """The start of each shard that may hold something wanted; of the first one, the row where to go on."""
        for source in self.chosen(wanted):
            if start is not None and source < start.source:
                continue
            first = start if start is not None and source == start.source else Cursor(source)
            number = self._after(source, first.shard - 1, wanted)
            while number is not None:
                yield Cursor(source, number, first.row if number == first.shard else 0)
                number = self._after(source, number, wanted)

    def _after(self, source: str, number: int, wanted: Filter) -> int | None:
        listed = self.listed(source)
        if listed is None:
            # Listing a source of a million shards takes many seconds; mostly the next shard is the next number.
            for near in range(number + 1, number + 1 + PROBES):
                if self.dataset.storage.exists(Shard(f"sequences/{source}", near).manifest):
                    return near
            listed = self.listing(source)
        return listed.after(number, wanted)

    def _summary(self, place: Cursor) -> Summary:
        listed = self.listed(place.source)
        if listed is not None:
            return listed.summary(place.shard)
        return read_shard(self.dataset, Shard(f"sequences/{place.source}", place.shard)).summary

    def _rows(self, shard: Shard, place: Cursor, wanted: Filter, most: int) -> list[Found]:
        """Wanted rows of one shard from a place on."""
        rows = wanted.rows(self.table(shard, wanted.columns))
        rows = rows[np.searchsorted(rows, place.row) :][:most]
        return self._take(shard, place.source, rows.tolist())

    def _take(self, shard: Shard, source: str, rows: Sequence[int]) -> list[Found]:
        if not rows:
            return []
        taken = self.table(shard, COLUMNS).take(list(rows)).to_pylist()
        return [
            Found(Cursor(source, shard.number, number), shard, row) for number, row in zip(rows, taken, strict=True)
        ]

    def find(self, key: str) -> Found:
        """One sequence, with all columns of its row.

        Raises:
            DatasetError: if there is none; names the nearest keys.
        """
        shard, row = find_sequence(self.dataset, key)
        number = self.keys(shard).index(key)
        return Found(Cursor(shard.folder.partition("/")[2], shard.number, number), shard, row)

    def at(self, shard: Shard, row: int) -> Found:
        """The sequence in row number `row` of a shard."""
        return self._take(shard, shard.folder.partition("/")[2], [row])[0]

    def keys(self, shard: Shard) -> list[str]:
        """All keys of one shard."""
        return list(self.table(shard, ["key"])["key"].to_pylist())

    def draw(self, wanted: Filter, seed: int, size: int) -> Drawn:
        """Sequences drawn evenly from all that are wanted; the same ones for the same seed and dataset.

        An origin is not looked at. Each sequence has the same chance; in large datasets those of one draw come from a
        few blocks of shards, which are drawn by how many wanted sequences they hold.

        Raises:
            FilterError: for an unknown source.
        """
        rng = np.random.Generator(np.random.Philox(seed))
        parts: list[tuple[str, Part]] = []
        weights: list[float] = []
        sampled = 0
        for source in self.chosen(wanted):
            listing = self.listing(source)
            outside = listing.outside
            read = outside
            if len(listing.unknown) > EFFORT:
                read = sorted(rng.choice(outside, SAMPLED, replace=False).tolist())
                sampled += SAMPLED
            for part in listing.parts(wanted, read):
                scale = 1.0 if part.indexed else len(outside) / len(read)
                parts.append((source, part))
                weights.append(part.sequences * scale)
        total = round(sum(weights))
        if not total:
            return Drawn([], 0, sampled)
        share = np.array(weights) / sum(weights)
        # More than are shown, because some come twice.
        drawn = rng.choice(len(parts), 4 * size, p=share).tolist()
        few = [number for number in drawn if parts[number][1].indexed][:DRAWN_BLOCKS]
        chosen = (parts[int(rng.choice(few)) if parts[number][1].indexed else number] for number in drawn)
        places = (self._pick(source, part, int(rng.integers(part.sequences)), wanted) for source, part in chosen)
        found: dict[Cursor, Found] = {}
        for one in places:
            found.setdefault(one.place, one)
            if len(found) == min(size, total):
                break
        return Drawn(list(found.values()), total, sampled)

    def _pick(self, source: str, part: Part, place: int, wanted: Filter) -> Found:
        """Wanted sequence number `place` of a part."""
        listing = self.listing(source)
        plain = Filter(wanted.source, wanted.layout, wanted.role, wanted.split)
        for number, summary in zip(part.numbers, listing.summaries(part.numbers), strict=True):
            count = plain.count(summary)
            if place < count:
                shard = Shard(listing.folder, number)
                rows = plain.rows(self.table(shard, plain.columns))
                return self._take(shard, source, [int(rows[place])])[0]
            place -= count
        raise DatasetError(f"the shards of {source} changed meanwhile; ask again")

    def count(self, wanted: Filter) -> tuple[int, int] | None:
        """(wanted sequences of any origin, all sequences), or None where that would take long."""
        if any(self.listed(source) is None for source in self.chosen(wanted)):
            return None
        chosen = [self.listing(source) for source in self.chosen(wanted)]
        if sum(len(listing.unknown) for listing in chosen) > EFFORT:
            return None
        one = Filter(layout=wanted.layout, role=wanted.role, split=wanted.split)
        return tuple(  # type: ignore[return-value]
            sum(part.sequences for listing in chosen for part in listing.parts(each, listing.outside))
            for each in (one, Filter())
        )

    def progress(self, place: Cursor) -> tuple[int, int] | None:
        """(shards of its source before a place, all of them), if they are listed."""
        listed = self.listed(place.source)
        return None if listed is None else (bisect_left(listed.numbers, place.shard), len(listed.numbers))

    def values(self) -> dict[str, list[str]]:
        """Layouts, roles and splits that were met so far, to choose from."""
        met: dict[str, set[str]] = {"layout": set(), "role": set(), "split": set()}
        for _, listing in list(self._listings.values()):
            if listing.numbers and not any(True for _ in listing.known()):
                listing.summary(listing.numbers[0])
            for summary in listing.known():
                for name in ("layout", "split"):
                    met[name] |= {key[DIMENSIONS.index(name)] for key in summary.groups}
                met["role"] |= {key[-1] for key in summary.roles}
        return {name: sorted(values) for name, values in met.items()}

    def prepare(self) -> None:
        """Lists every source."""
        for source in self.sources:
            self.listing(source)
