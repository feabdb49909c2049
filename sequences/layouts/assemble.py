"""Assembly: each example of a shard goes to one of the configured layouts, drawn by weight with the seed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from uvd.sequences.example import Example
from uvd.sequences.layouts.base import Arranged, Layout
from uvd.sequences.reject import Reject
from uvd.sequences.seeds import Seeds


def assemble(
    examples: Iterable[Example | Reject],
    layouts: Mapping[str, type[Layout]],
    weights: Mapping[str, float],
    seeds: Seeds,
) -> Iterator[Arranged]:
    """Streams visual sequences and rejects, in an order that depends on examples and seeds only.

    Args:
        examples: of one shard; rejects pass through.
        layouts: registry of layout classes by name.
        weights: mixing weight of each layout to use; they need not sum to 1.
        seeds: of this shard.

    Raises:
        KeyError: for a weight whose layout is not in the registry.
    """
    names = sorted(weights)
    active = [layouts[name](seeds) for name in names]
    edges = np.cumsum([weights[name] for name in names])
    for number, example in enumerate(examples):
        if isinstance(example, Reject):
            yield example
            continue
        drawn = seeds.generator("layout", number).uniform(0.0, float(edges[-1])) if len(active) > 1 else 0.0
        yield from active[min(int(np.searchsorted(edges, drawn, side="right")), len(active) - 1)].add(example)
    for layout in active:
        yield from layout.finish()
