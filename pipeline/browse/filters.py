"""What a person wants to see: a filter over sequences, decided on a shard's summary first and on its rows then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from uvd.manifests.summary import DIMENSIONS, Group, Summary
from uvd.sequences.errors import UserError

_LAYOUT, _SPLIT = DIMENSIONS.index("layout"), DIMENSIONS.index("split")
ANY_ENDING = "*"
MAX_CHARACTERS = 4096
"""Of a value, such as a URL."""


class FilterError(UserError):
    """A filter or position in a page's address that cannot be used."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Sequences are wanted that have all of these; an empty one is not asked for.

    Attributes:
        source: name below `sequences/`.
        role: at least one picture has it.
        origin: of at least one picture, whole; with `*` at the end, its beginning.
    """

    source: str = ""
    layout: str = ""
    role: str = ""
    split: str = ""
    origin: str = ""

    def __post_init__(self) -> None:
        if any(len(value) > MAX_CHARACTERS for value in asdict(self).values()):
            raise FilterError(f"a filter has over {MAX_CHARACTERS} characters")

    @property
    def of_rows(self) -> bool:
        """Whether some rows of a source may be wanted and others not."""
        return bool(self.layout or self.role or self.split or self.origin)

    @property
    def columns(self) -> list[str]:
        """Of manifests, which `rows` looks at; the keys, if at none."""
        wanted = {"layout": self.layout, "split": self.split, "roles": self.role, "origins": self.origin}
        return [name for name, value in wanted.items() if value] or ["key"]

    def count(self, summary: Summary) -> int:
        """Wanted sequences of a shard or many; those of any origin, which summaries do not have."""
        if not self.role:
            return sum(counts[0] for key, counts in summary.groups.items() if self._wants(key))
        return sum(
            counts[0] for (*key, role), counts in summary.roles.items() if role == self.role and self._wants(tuple(key))
        )

    def _wants(self, key: Group) -> bool:
        return (not self.layout or key[_LAYOUT] == self.layout) and (not self.split or key[_SPLIT] == self.split)

    def rows(self, table: pa.Table) -> NDArray[np.int64]:
        """Numbers of the wanted rows of a manifest, of which `columns` are there, in order."""
        mask = np.ones(len(table), bool)
        for name, value in (("layout", self.layout), ("split", self.split)):
            if value:
                mask &= pc.equal(table[name], value).to_numpy()
        if self.role:
            mask &= _any(table["roles"], lambda roles: pc.equal(roles, self.role))
        if self.origin:
            mask &= _any(table["origins"], self._has_origin)
        return np.flatnonzero(mask)

    def _has_origin(self, origins: pa.Array) -> pa.Array:
        if self.origin.endswith(ANY_ENDING):
            return pc.starts_with(origins, self.origin.removesuffix(ANY_ENDING))
        return pc.equal(origins, self.origin)


def _any(column: pa.ChunkedArray, condition: Callable[[pa.Array], pa.Array]) -> NDArray[np.bool_]:
    """`(rows,)`: whether the condition holds for any value of the list in each row."""
    lists = column.combine_chunks()
    mask = np.zeros(len(lists), bool)
    mask[pc.list_parent_indices(lists).to_numpy()[condition(lists.flatten()).to_numpy(zero_copy_only=False)]] = True
    return mask
