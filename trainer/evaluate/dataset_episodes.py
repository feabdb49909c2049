"""Pairs and windows of frames from a uvd dataset's image shards, as what episodes are drawn from.

Only manifests are read to plan; of a chosen sequence only the wanted pictures are decoded. Query and examples never
share an origin, so no photo is its own example. Reading a pair takes about 3 ms.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from uvd.manifests.codec import CodecError
from uvd.manifests.dataset import Dataset, Shard
from uvd.manifests.image_shard import StoredSequence, read_sequence
from uvd.manifests.tar import TarError
from uvd.sequences import Seeds
from uvd.sequences.example import SPLITS
from uvd.trainer.evaluate.prompting import Episode, EvaluationError, Pixels

PHOTO = "image"
HELD_OUT = ("val", "test")
ONE_CLASS_ROLES = ("foreground",)
"""Roles that mean something only within a sequence: white is the class that the sequence's masks share."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Some pictures of one sequence.

    Attributes:
        shard: where it is.
        row: of the manifest.
        places: of the pictures, in the order in which they are wanted.
        photo: origin of the photo that they show, for pairs.
    """

    shard: Shard
    row: dict[str, Any]
    places: tuple[int, ...]
    photo: str = ""


class DatasetPictures:
    """Reads pictures of one dataset; keeps the encoded bytes of the last 64 sequences."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._rows: dict[str, tuple[Shard, dict[str, Any]]] = {}
        self._sequence = lru_cache(maxsize=64)(self._read)

    def _read(self, key: str) -> StoredSequence:
        return read_sequence(self.dataset, *self._rows[key])

    def read(self, stored: Stored) -> Pixels:
        """`(places, 256, 256, 3)` uint8 RGB.

        Raises:
            EvaluationError: names the sequence that is damaged.
        """
        key = stored.row["key"]
        self._rows[key] = (stored.shard, stored.row)
        try:
            sequence = self._sequence(key)
            members = tuple(sequence.members[place] for place in stored.places)
            return replace(sequence, members=members).pictures()
        except (CodecError, TarError) as error:
            raise EvaluationError(f"{key} cannot be read: {error}; `uvd verify` lists what is damaged") from error


def held_out_rows(
    dataset: Dataset, layout: str, splits: Sequence[str] = HELD_OUT, sources: Sequence[str] = ()
) -> Iterator[tuple[Shard, dict[str, Any]]]:
    """Shards and manifest rows of all sequences of a layout, in the dataset's order.

    Raises:
        EvaluationError: for a split or source that there is not.
    """
    if wrong := [split for split in splits if split not in SPLITS]:
        raise EvaluationError(f"no split {wrong[0]!r}; there are {', '.join(SPLITS)}")
    known = dataset.sources()
    if missing := sorted(set(sources) - set(known)):
        raise EvaluationError(f"no source {missing[0]!r} in {dataset.uri}; there are {', '.join(known)}")
    for source in sources or known:
        for shard in dataset.shards(f"sequences/{source}"):
            for row in dataset.manifest(shard).to_pylist():
                if row["layout"] == layout and row["split"] in splits:
                    yield shard, row


def pairs_by_role(
    dataset: Dataset, splits: Sequence[str] = HELD_OUT, sources: Sequence[str] = ()
) -> dict[str, list[Stored]]:
    """All pairs of `pairs` sequences by the role of what goes with the photo, in the dataset's order.

    A pair keeps its direction: {photo, annotation}, or {degraded, photo} for what is restored from.
    """
    found: dict[str, list[Stored]] = defaultdict(list)
    for shard, row in held_out_rows(dataset, "pairs", splits, sources):
        for first in range(0, row["num_images"] - 1, 2):
            roles = row["roles"][first : first + 2]
            other = [role for role in roles if role != PHOTO]
            if len(other) == 1 and PHOTO in roles:
                photo = row["origins"][first + roles.index(PHOTO)]
                found[other[0]].append(Stored(shard, row, (first, first + 1), photo))
    return dict(found)


def pair_episodes(
    pictures: DatasetPictures, role: str, pairs: Sequence[Stored], examples: int, episodes: int, seed: int
) -> Iterator[Episode]:
    """Draws a query and `examples` other pairs of the role for each episode.

    Queries go through all pairs in a seeded order before one comes again. Examples are drawn without replacement from
    the pairs of other photos; of the same sequence for a role whose meaning is the sequence's own (`foreground`).

    Raises:
        EvaluationError: if no query has enough pairs of other photos.
    """
    seeds = Seeds(seed, ("evaluate", "pairs", role))
    groups = _by_meaning(role, pairs)
    usable = [(group, pair) for group in groups for pair in group if len(group) > examples]
    if not usable:
        where = "in one sequence" if role in ONE_CLASS_ROLES else "of different photos"
        raise EvaluationError(f"{role}: no {examples + 1} pairs {where} among the {len(pairs)} that are held out")
    for turn in range(-(-episodes // len(usable))):
        order = seeds.generator("order", turn).permutation(len(usable))
        for number, place in enumerate(order[: episodes - turn * len(usable)].tolist(), start=turn * len(usable)):
            group, query = usable[place]
            # One more than is needed, because the query may be among them.
            drawn = seeds.generator("examples", number).choice(len(group), examples + 1, replace=False)
            others = [group[index] for index in drawn if group[index] is not query][:examples]
            asked, truth = pictures.read(query)
            shown = [pictures.read(pair) for pair in others]
            yield Episode(f"{role}/{number:05d}", np.concatenate([*shown, asked[None]]), truth, role)


def most_examples(role: str, pairs: Sequence[Stored]) -> int:
    """How many examples a query can have at most, or -1 if there are no pairs."""
    return max(map(len, _by_meaning(role, pairs)), default=0) - 1


def _by_meaning(role: str, pairs: Sequence[Stored]) -> list[list[Stored]]:
    """Pairs that can be examples of each other: one pair, the first, of each photo."""
    groups: dict[str, dict[str, Stored]] = defaultdict(dict)
    for pair in pairs:
        key = pair.row["key"] if role in ONE_CLASS_ROLES else ""
        groups[key].setdefault(f"{pair.row['source']} {pair.row['dataset']} {pair.photo}", pair)
    return [list(group.values()) for group in groups.values()]


def windows(
    dataset: Dataset, frames: int, splits: Sequence[str] = HELD_OUT, sources: Sequence[str] = ()
) -> list[Stored]:
    """The first `frames` frames of every window of the `frames` layout that has as many.

    Raises:
        EvaluationError: if there is none; says how long the longest is.
    """
    rows = list(held_out_rows(dataset, "frames", splits, sources))
    long = [(shard, row) for shard, row in rows if row["num_images"] >= frames]
    if not long:
        longest = max((row["num_images"] for _, row in rows), default=0)
        raise EvaluationError(
            f"no window of {frames} frames in {dataset.uri}, splits {', '.join(splits)}: the longest of {len(rows)} "
            f"has {longest}; --context-frames can be one less"
        )
    places = tuple(range(frames))
    return [Stored(shard, row, places) for shard, row in long]
