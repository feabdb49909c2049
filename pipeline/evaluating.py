"""Measuring a tokenizer on a dataset's pictures, source by source, or on image files: what `uvd eval tokenizer` does.

From each source a seeded choice is taken, one picture at random from each of N equal parts of all its pictures in the
order of the shards. Only the chosen sequences are read, and one batch of pictures is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from uvd.manifests.codec import CodecError
from uvd.manifests.dataset import Dataset, DatasetError, Shard
from uvd.manifests.image_shard import read_sequence
from uvd.manifests.sheet import contact_sheet
from uvd.manifests.tar import TarError
from uvd.pipeline.showing import read_pictures
from uvd.sequences import IMAGE_SIZE, Seeds
from uvd.sources.decode import IMAGE_SUFFIXES, input_files
from uvd.tokenize.metrics import Codec, QualityMeter, TokenizerQuality, batches, psnr
from uvd.tokenize.mobilenet import MobileNetV2
from uvd.tokenize.perceptual import LpipsLoss

ALL = "all"
SHEET_COLUMNS = 8
BLANK = 250
"""Grey level of the sheet's empty places: that of its background."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen pictures of one sequence or file, `(n, 256, 256, 3)` uint8 RGB, or why they cannot be read."""

    key: str
    pictures: NDArray[np.uint8] | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class PictureGroup:
    """What is measured together: a source. `size` pictures are chosen; `choices` reads them, once."""

    name: str
    size: int
    choices: Iterator[Choice]


@dataclass(frozen=True, slots=True)
class SourceQuality:
    """What was measured of a source.

    Attributes:
        quality: None if there was no picture to measure.
        unreadable: sequences (or files) left out because a chosen picture is damaged, each with the decoder's message.
    """

    source: str
    quality: TokenizerQuality | None
    unreadable: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        quality = self.quality
        measures: dict[str, Any] = {"pictures": 0}
        if quality is not None:
            names = ("pictures", "psnr", "psnr_pooled", "ssim", "codes_used", "usage", "perplexity")
            measures = {name: getattr(quality, name) for name in (*names, "perceptual", "frechet", "lpips")}
        return {"source": self.source, **measures, "unreadable": len(self.unreadable), "problems": self.unreadable}


@dataclass(slots=True)
class Evaluation:
    """The sources in order, all of them together, and pairs (picture, reconstruction) of each source to look at."""

    sources: list[SourceQuality]
    total: SourceQuality
    samples: dict[str, list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]] = field(default_factory=dict)


def evaluate(
    tokenizer: Codec,
    groups: Sequence[PictureGroup],
    network: MobileNetV2 | None = None,
    advance: Callable[[int], None] = lambda pictures: None,
    lpips: LpipsLoss | None = None,
) -> Evaluation:
    """Measures each group and all of them together.

    Args:
        network: for the feature distances, on the tokenizer's device.
        advance: called with the number of pictures that are done with.
        lpips: on the tokenizer's device.

    Raises:
        DatasetError: if no picture of any group could be measured.
    """
    evaluation = Evaluation([], SourceQuality(ALL, None, ()))
    total = QualityMeter(tokenizer, network, lpips)
    for group in groups:
        meter = QualityMeter(tokenizer, network, lpips)
        unreadable: list[str] = []
        samples = evaluation.samples.setdefault(group.name, [])
        every = max(1, -(-group.size // SHEET_COLUMNS))
        for batch in batches(_readable(group, unreadable, advance), tokenizer.batch_size):
            decoded = meter.add(np.stack(batch))
            first = meter.pictures - len(batch)
            samples += [
                pair for number, pair in enumerate(zip(batch, decoded, strict=True), start=first) if number % every == 0
            ]
            advance(len(batch))
        total.merge(meter)
        quality = meter.quality() if meter.pictures else None
        evaluation.sources.append(SourceQuality(group.name, quality, tuple(unreadable)))
    problems = tuple(problem for source in evaluation.sources for problem in source.unreadable)
    if not total.pictures:
        found = f"{len(problems)} unreadable, the first is {problems[0]}" if problems else "nothing was chosen"
        raise DatasetError(f"there are no pictures to measure: {found}")
    evaluation.total = SourceQuality(ALL, total.quality(), problems)
    return evaluation


def _readable(
    group: PictureGroup, unreadable: list[str], advance: Callable[[int], None]
) -> Iterator[NDArray[np.uint8]]:
    for choice in group.choices:
        if choice.pictures is None:
            unreadable.append(f"{choice.key}: {choice.error}")
            advance(1)
        else:
            yield from choice.pictures


def dataset_groups(
    dataset: Dataset, sources: Sequence[str] = (), split: str = ALL, max_images: int = 1000, seed: int = 0
) -> list[PictureGroup]:
    """One group a source, all sources by default.

    Args:
        split: of the sequences to choose from; `all` for any.
        max_images: pictures chosen of each source.

    Raises:
        DatasetError: if the dataset does not have such a source.
    """
    unknown = sorted(set(sources) - set(dataset.sources()))
    if unknown:
        raise DatasetError(f"no source {unknown[0]!r} in {dataset.uri}; there are {', '.join(dataset.sources())}")
    groups = []
    for source in dict.fromkeys(sources or dataset.sources()):
        shards = dataset.shards(f"sequences/{source}")
        images = [int(_images(dataset.manifest(shard, ["split", "num_images"]), split).sum()) for shard in shards]
        chosen = evenly_spread(sum(images), max_images, _seeds(seed).generator(source))
        groups.append(PictureGroup(source, len(chosen), _read_shards(dataset, shards, images, split, chosen)))
    return groups


def file_group(paths: Sequence[Path], max_images: int = 1000, seed: int = 0) -> PictureGroup:
    """The group `images`: files, and all image files below folders.

    Raises:
        DatasetError: if a path does not exist.
        SourceError: if there is no image file in a folder.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += [path / name for name, _ in input_files(path, IMAGE_SUFFIXES, "images")]
        elif path.exists():
            files.append(path)
        else:
            raise DatasetError(f"no file or folder {path}")
    chosen = evenly_spread(len(files), max_images, _seeds(seed).generator("images"))
    return PictureGroup("images", len(chosen), (_read_file(files[index]) for index in chosen))


def _seeds(seed: int) -> Seeds:
    return Seeds(seed, ("eval", "tokenizer"))


def evenly_spread(total: int, wanted: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """`wanted` of `range(total)`, ascending: one drawn from each of `wanted` equal parts; all if there are no more."""
    if total <= wanted:
        return np.arange(total)
    edges = np.arange(wanted + 1) * total // wanted
    return rng.integers(edges[:-1], edges[1:])


def _images(manifest: pa.Table, split: str) -> NDArray[np.int64]:
    """Pictures of each sequence; 0 for those of other splits."""
    images = manifest["num_images"].to_numpy().astype(np.int64)
    return images if split == ALL else np.where(manifest["split"].to_numpy() == split, images, 0)


def _read_shards(
    dataset: Dataset, shards: Sequence[Shard], images: Sequence[int], split: str, chosen: NDArray[np.int64]
) -> Iterator[Choice]:
    """Reads the chosen pictures, shard by shard; `chosen` counts through all `images` of the shards."""
    for shard, (start, end) in zip(shards, pairwise(accumulate(images, initial=0)), strict=True):
        first, last = np.searchsorted(chosen, [start, end])
        if first < last:
            yield from _read_shard(dataset, shard, split, chosen[first:last] - start)


def _read_shard(dataset: Dataset, shard: Shard, split: str, places: NDArray[np.int64]) -> Iterator[Choice]:
    manifest = dataset.manifest(shard)
    images = _images(manifest, split)
    ends = np.cumsum(images)
    sequences = np.searchsorted(ends, places, side="right")
    for sequence in np.unique(sequences):
        numbers = places[sequences == sequence] - (ends[sequence] - images[sequence])
        (row,) = manifest.slice(sequence, 1).to_pylist()
        try:
            stored = read_sequence(dataset, shard, row)
            members = tuple(stored.members[number] for number in numbers)
            yield Choice(row["key"], replace(stored, members=members).pictures())
        except (CodecError, TarError) as error:
            yield Choice(row["key"], None, str(error))


def _read_file(file: Path) -> Choice:
    try:
        return Choice(str(file), read_pictures([file]))
    except DatasetError as error:
        return Choice(str(file), None, str(error).removeprefix(f"{file}: "))


def quality_sheet(evaluation: Evaluation, title: str) -> NDArray[np.uint8]:
    """Draws some pictures of each source, evenly spread, above their reconstructions and the absolute errors."""
    pictures: list[NDArray[np.uint8]] = []
    labels: list[str] = []
    columns = max(len(pairs) for pairs in evaluation.samples.values())
    for source, pairs in evaluation.samples.items():
        if not pairs:
            continue
        errors = [np.abs(decoded.astype(np.int16) - original).astype(np.uint8) for original, decoded in pairs]
        decibels = [psnr(np.square(error.astype(np.float64)).mean()) for error in errors]
        rows = (
            ([original for original, _ in pairs], [source] * len(pairs)),
            ([decoded for _, decoded in pairs], [f"{value:.1f} dB" for value in decibels]),
            (errors, ["error"] * len(pairs)),
        )
        empty = columns - len(pairs)
        for row, names in rows:
            pictures += [*row, *[np.full((IMAGE_SIZE, IMAGE_SIZE, 3), BLANK, np.uint8)] * empty]
            labels += [*names, *[""] * empty]
    return contact_sheet(pictures, labels, columns=columns, title=title)
