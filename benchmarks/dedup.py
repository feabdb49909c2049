"""`uvd dedup`: how well near-duplicates are found among real photos, and how long very many hashes take.

Quality: photos that Debian packages carry, and edited copies of them, by the project's own way from file to hash. For
each edit the share of copies within so many bits of their photo (recall), and over all of them the share of found pairs
that are a photo and its copy (precision). Scale: made-up manifests of real size with random hashes, of which one in
twenty is that of another picture with up to three bits changed; the whole pass, from manifests to marks.

    python -m uvd.benchmarks.dedup [--sizes 1e6,1e7,1e8] [--folder /somewhere/with/20/GB]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from uvd.benchmarks.made_up_manifests import write_dataset
from uvd.benchmarks.record import write_result
from uvd.benchmarks.tokenize import sample_photos
from uvd.sequences import fit
from uvd.sequences.phash import phash

Pixels = NDArray[np.uint8]
BARS = {"hashes": 100_000_000, "seconds": 600, "gb": 8}
BITS = (0, 1, 2, 3, 4, 5, 6, 8)
DEFAULT_BITS = 3


def jpeg(quality: int) -> Callable[[Pixels], Pixels]:
    def edit(pixels: Pixels) -> Pixels:
        done, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
        assert done
        return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)

    return edit


def resized(share: float) -> Callable[[Pixels], Pixels]:
    def edit(pixels: Pixels) -> Pixels:
        small = cv2.resize(pixels, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)
        return np.asarray(small, np.uint8)

    return edit


def cropped(share: float) -> Callable[[Pixels], Pixels]:
    def edit(pixels: Pixels) -> Pixels:
        top, left = (round(side * share / 2) for side in pixels.shape[:2])
        return pixels[top : pixels.shape[0] - top, left : pixels.shape[1] - left].copy()

    return edit


def brighter(pixels: Pixels) -> Pixels:
    return np.asarray(cv2.convertScaleAbs(pixels, alpha=1.15, beta=10), np.uint8)


def grey(pixels: Pixels) -> Pixels:
    return np.repeat(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None], 3, 2).astype(np.uint8)


def mirrored(pixels: Pixels) -> Pixels:
    return pixels[:, ::-1].copy()


EDITS: dict[str, Callable[[Pixels], Pixels]] = {
    "JPEG quality 90": jpeg(90),
    "JPEG quality 50": jpeg(50),
    "JPEG quality 20": jpeg(20),
    "half size": resized(0.5),
    "quarter size": resized(0.25),
    "cropped by 2 %": cropped(0.02),
    "cropped by 5 %": cropped(0.05),
    "cropped by 10 %": cropped(0.10),
    "brighter": brighter,
    "grey": grey,
    "mirrored": mirrored,
}


def hashed(pixels: Pixels) -> int:
    """As a source would: one centre crop to 256x256, then the hash."""
    height, width = pixels.shape[:2]
    return phash(fit(width, height, "center_crop").image(pixels))


def measure_quality(photos: list[Pixels]) -> dict[str, Any]:
    """Recall of each edit and precision over all pairs, by the bits that may differ."""
    own = np.array([hashed(photo) for photo in photos], np.uint64)
    copies = {name: np.array([hashed(edit(photo)) for photo in photos], np.uint64) for name, edit in EDITS.items()}
    recall = {
        name: {bits: round(float((np.bitwise_count(own ^ hashes) <= bits).mean()), 4) for bits in BITS}
        for name, hashes in copies.items()
    }
    everything = np.stack([own, *copies.values()])
    photo_of = np.tile(np.arange(len(photos)), len(everything))
    flat = everything.reshape(-1)
    apart = np.bitwise_count(flat[:, None] ^ flat[None, :])
    above = np.triu(np.ones(apart.shape, bool), 1)
    same = photo_of[:, None] == photo_of[None, :]
    precision, unrelated = {}, {}
    for bits in BITS:
        found = (apart <= bits) & above
        precision[bits] = round(float((found & same).sum() / max(1, found.sum())), 5)
        unrelated[bits] = float((found & ~same).sum() / (above & ~same).sum())
    return {
        "photos": len(photos),
        "default_bits": DEFAULT_BITS,
        "recall": recall,
        "precision": precision,
        "unrelated_pairs_found": unrelated,
    }


PASS = """
import json, resource, sys, time
from uvd.manifests.dataset import Dataset
from uvd.manifests.dedup import DedupSettings, find_duplicates
start = time.perf_counter()
found = find_duplicates(Dataset(sys.argv[1]), DedupSettings(bits=int(sys.argv[2]), memory_gb=float(sys.argv[3])))
seconds = time.perf_counter() - start
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
counts = {"images": found.images, "marked": found.marked}
print(json.dumps({"seconds": round(seconds, 2), "gb": round(memory, 3), **counts}))
"""


def measure_scale(folder: Path, sequences: int, bits: int, memory_gb: float) -> dict[str, Any]:
    """One pass in a process of its own."""
    uri = write_dataset(folder / f"{sequences}", sequences)
    command = [sys.executable, "-c", PASS, uri, str(bits), str(memory_gb)]
    said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {**said, "microseconds_a_hash": round(1e6 * said["seconds"] / said["images"], 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1e6,1e7,1e8")
    parser.add_argument("--bits", type=int, default=DEFAULT_BITS)
    parser.add_argument("--memory-gb", type=float, default=3.0)
    parser.add_argument("--folder", type=Path, help="of the datasets, those of `benchmarks.manifests --keep` too")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    console = Console(stderr=True)
    content: dict[str, Any] = {"bars": BARS, "bits": given.bits, "memory_gb": given.memory_gb}
    content["quality"] = measure_quality(sample_photos(console))
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        content["scale"] = {
            size: measure_scale(folder, int(float(size)), given.bits, given.memory_gb)
            for size in given.sizes.split(",")
        }
    print(f"wrote {write_result('dedup', content, given.out)}")


if __name__ == "__main__":
    main()
