"""Kind `files` in a test: planned and read; and map files as other programs write them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uvd.sequences import Example, Reject, Seeds
from uvd.sources.annotated.config import AnnotatedConfig
from uvd.sources.annotated.source import AnnotatedSource

WIDTH, HEIGHT = 320, 256
"""So that a centre crop is 256 columns from 32, pixel for pixel."""
CROP = np.s_[:, 32:288]


def config(root: Path, **more: Any) -> AnnotatedConfig:
    return AnnotatedConfig.model_validate({"dataset": "d", "input": root, "kind": "files"} | more)


def read(config: AnnotatedConfig) -> tuple[list[Example], list[Reject]]:
    """Examples and rejects; checks that each planned input is in one of them."""
    examples: list[Example] = []
    rejects: list[Reject] = []
    for unit in AnnotatedSource(config).plan():
        outcomes = list(AnnotatedSource(config).read(unit, Seeds(0, (unit.shard,))))
        used = {index for outcome in outcomes if isinstance(outcome, Example) for index in outcome.inputs}
        refused = {outcome.input for outcome in outcomes if isinstance(outcome, Reject)}
        assert used | refused == set(range(unit.num_inputs))
        assert not used & refused
        examples += [outcome for outcome in outcomes if isinstance(outcome, Example)]
        rejects += [outcome for outcome in outcomes if isinstance(outcome, Reject)]
    return examples, rejects


def reasons(rejects: list[Reject]) -> dict[str, str]:
    found = {reject.origin: str(reject.reason) for reject in rejects}
    assert len(found) == len(rejects)
    return found


def ids() -> NDArray[np.uint16]:
    """Stripes of 0 to 9, and 255."""
    stripes = np.repeat(np.arange(HEIGHT, dtype=np.uint16)[:, None] // 26, WIDTH, axis=1)
    stripes[:, :60] = 255
    return stripes


def ramp() -> NDArray[np.float64]:
    """Metres: 1 at the left of the crop to 5 at its right, the same in each row."""
    return np.broadcast_to(np.interp(np.arange(WIDTH), (32, 287), (1, 5)), (HEIGHT, WIDTH)).copy()


def pfm(array: NDArray[np.float32], order: str = "<") -> bytes:
    kind = "PF" if array.ndim == 3 else "Pf"
    head = f"{kind}\n{array.shape[1]} {array.shape[0]}\n{'-' if order == '<' else ''}1.0\n"
    return head.encode() + array[::-1].astype(f"{order}f4").tobytes()


def exr(planes: dict[str, NDArray[np.float32]], window: tuple[int, int] | None = None, version: int = 2) -> bytes:
    """Uncompressed scan lines; `window` is the size that the header says, if another one."""
    height, width = next(iter(planes.values())).shape
    names = sorted(planes)
    last = struct.pack("<4i", 0, 0, *(side - 1 for side in (window or (width, height))))
    listed = b"".join(name.encode() + b"\0" + struct.pack("<iB3xii", 2, 0, 1, 1) for name in names) + b"\0"
    attributes = {
        "channels": ("chlist", listed),
        "compression": ("compression", b"\0"),
        "dataWindow": ("box2i", last),
        "displayWindow": ("box2i", last),
        "lineOrder": ("lineOrder", b"\0"),
        "pixelAspectRatio": ("float", struct.pack("<f", 1)),
        "screenWindowCenter": ("v2f", struct.pack("<ff", 0, 0)),
        "screenWindowWidth": ("float", struct.pack("<f", 1)),
    }
    head = b"\x76\x2f\x31\x01" + struct.pack("<I", version)
    for name, (kind, value) in attributes.items():
        head += name.encode() + b"\0" + kind.encode() + b"\0" + struct.pack("<i", len(value)) + value
    head += b"\0"
    line = 8 + 4 * width * len(names)
    table = b"".join(struct.pack("<Q", len(head) + 8 * height + row * line) for row in range(height))
    rows = [
        struct.pack("<ii", row, line - 8) + b"".join(planes[name][row].astype("<f4").tobytes() for name in names)
        for row in range(height)
    ]
    return head + table + b"".join(rows)
