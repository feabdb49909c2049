"""Which token sequences of a dataset are meant (tokenizer, sources, split, condition), and in which order they come.

Manifests are read one shard at a time, so memory does not grow with the dataset.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from uvd.manifests.condition import Condition
from uvd.manifests.dataset import Dataset, DatasetError, Shard
from uvd.manifests.schema import TOKENS, read_metadata
from uvd.manifests.token_shard import iter_rows
from uvd.manifests.tokens import TokenFramingError, unframe
from uvd.sequences.example import SPLITS
from uvd.sequences.seeds import Seeds

SHUFFLE_TOKENS = 1 << 26
"""Sequences of so many tokens of whole shards, 128 MiB, are shuffled among themselves."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What is asked for.

    Attributes:
        tokenizer: needed only if the dataset was tokenized by several.
        sources: names below `tokens/TOKENIZER/`; all if empty.
        split: `train`, `val` or `test`; all if None.
        where: a condition over the columns of token manifests (see `Condition`).
    """

    tokenizer: str | None = None
    sources: tuple[str, ...] = ()
    split: str | None = None
    where: str | None = None


class SelectedTokens:
    """The shards and rows that a selection means.

    Attributes:
        tokenizer: name of the folder below `tokens/`.

    Raises:
        DatasetError: if there are no such tokens, source or split, several tokenizers to choose from, or a condition
            that is none.
    """

    def __init__(self, dataset: Dataset, selection: Selection) -> None:
        self.dataset = dataset
        self.tokenizer, sources = dataset.tokens_of(selection.tokenizer)
        if unknown := sorted(set(selection.sources) - set(sources)):
            raise DatasetError(
                f"no tokens of source {unknown[0]!r} by {self.tokenizer}; there are {', '.join(sources)}"
            )
        if selection.split is not None and selection.split not in SPLITS:
            raise DatasetError(f"--split {selection.split}: expected {', '.join(SPLITS)}")
        self.sources = [source for source in sources if source in selection.sources or not selection.sources]
        self._split = selection.split
        self._condition = None if selection.where is None else Condition(selection.where)

    def shards(self) -> Iterator[Shard]:
        """Shards of the sources: by name of the source, then by number."""
        for source in self.sources:
            yield from self.dataset.shards(f"tokens/{self.tokenizer}/{source}")

    def rows(self, shard: Shard) -> pa.Table:
        """The chosen rows of a shard's manifest, with its metadata.

        Raises:
            DatasetError: if it is not a manifest of tokens, or the base of a view has changed.
        """
        try:
            table = self.dataset.manifest(shard)
            metadata = read_metadata(table.schema, shard.manifest)
        except (OSError, ValueError) as error:
            raise DatasetError(f"{shard.manifest} cannot be read: {error}; `uvd verify` tells more") from error
        if not table.schema.equals(TOKENS):
            raise DatasetError(f"{shard.manifest} has other columns than this version of uvd writes")
        self.dataset.check_base(shard, metadata)
        kept = np.ones(table.num_rows, bool)
        if self._split is not None:
            kept &= np.asarray(pc.equal(table["split"], self._split))
        if self._condition is not None:
            kept &= self._condition.mask(table)
        return table if kept.all() else table.filter(pa.array(kept))

    def tokenizer_fingerprint(self) -> str:
        """Fingerprint of the one tokenizer that made all the shards.

        Raises:
            DatasetError: if there is none, or shards differ.
        """
        found: dict[str, str] = {}
        for shard in self.shards():
            try:
                found.setdefault(self.dataset.metadata(shard)["tokenizer_fingerprint"], shard.tar)
            except (OSError, ValueError, KeyError) as error:
                raise DatasetError(
                    f"{shard.manifest} is not one of tokens: {error}; `uvd verify` tells more"
                ) from error
        if len(found) > 1:
            (one, a), (other, b) = list(found.items())[:2]
            raise DatasetError(f"{a} was made by tokenizer {one[:12]}, {b} by {other[:12]}: tokenize again")
        if not found:
            raise DatasetError(f"{self.dataset.uri} has no token shards of {self.tokenizer}: run `uvd tokenize`")
        return next(iter(found))

    def sequences(self, shuffle: int | None = None) -> Iterator[tuple[dict[str, Any], NDArray[np.uint16]]]:
        """(manifest row, framed tokens) of all chosen sequences.

        Args:
            shuffle: seed; shards then come in a random order, and sequences of about 67 million tokens of them are
                shuffled among themselves. By default shards and rows come as they are.

        Raises:
            DatasetError: names the shard or sequence that is damaged.
        """
        if shuffle is None:
            for shard in self.shards():
                yield from self._read(shard)
            return
        seeds = Seeds(shuffle, ("export",))
        shards = list(self.shards())
        waiting: list[tuple[dict[str, Any], NDArray[np.uint16]]] = []
        tokens, blocks = 0, 0
        for number in seeds.generator("shards").permutation(len(shards)).tolist():
            read = list(self._read(shards[number]))
            waiting += read
            tokens += sum(len(part) for _, part in read)
            if tokens >= SHUFFLE_TOKENS:
                yield from _shuffled(waiting, seeds.generator("block", blocks))
                waiting, tokens, blocks = [], 0, blocks + 1
        yield from _shuffled(waiting, seeds.generator("block", blocks))

    def _read(self, shard: Shard) -> Iterator[tuple[dict[str, Any], NDArray[np.uint16]]]:
        key = ""
        try:
            for row, tokens in iter_rows(self.dataset, shard, self.rows(shard)):
                key = row["key"]
                unframe(tokens)
                yield row, tokens
        except TokenFramingError as error:
            raise DatasetError(f"{shard.tar}, sequence {key}: {error}; `uvd verify` tells more") from error
        except (OSError, ValueError) as error:
            raise DatasetError(f"{shard.tar} cannot be read: {error}; `uvd verify` tells more") from error


def _shuffled(items: list[Any], rng: np.random.Generator) -> Iterator[Any]:
    for number in rng.permutation(len(items)).tolist():
        yield items[number]
