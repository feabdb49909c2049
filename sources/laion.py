"""`laion`: URL lists as LAION, COYO and DataComp publish them → downloaded images; or images that img2dataset has
downloaded into tars. One picture an image.

Lists are Parquet, CSV, TSV or JSON lines (`url_lists`), filtered by what they say (`url_filters`), then downloaded
(`fetch`), and the images checked (`image_checks`). Captions never pass the reader. Folders of images: source `images`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from uvd.sequences import Example, Picture, Reason, Reject, Seeds
from uvd.sequences.geometry import Resample
from uvd.sequences.reject import RejectedInput
from uvd.sources import image_tars, url_lists
from uvd.sources.base import NOT_DATA, RetriedPart, SourceConfig, SourceError, WorkUnit
from uvd.sources.decode import decode_image
from uvd.sources.fetch import fetch_in_order
from uvd.sources.fetch_config import FetchConfig, FetchStats
from uvd.sources.image_checks import ImageCheckConfig, ImageChecks
from uvd.sources.image_tars import TarSpan, read_samples
from uvd.sources.input_place import InputFile, InputPlace, absolute_place
from uvd.sources.photos import PhotoConfig, PhotoSource
from uvd.sources.url_columns import Columns
from uvd.sources.url_filters import ListFilters
from uvd.sources.url_lists import UnitPlan, UrlLists


class LaionConfig(PhotoConfig):
    """Settings of the `laion` source."""

    source: Literal["laion"] = "laion"
    input: Annotated[str, BeforeValidator(absolute_place)] = Field(json_schema_extra=NOT_DATA)
    """File, or folder searched recursively: a path, or `file://`, `s3://`, `gs://` URI."""
    format: Literal["auto", "urls", "img2dataset"] = "auto"
    """`urls`: lists. `img2dataset`: tars of images. `auto`: tars if there are any (img2dataset writes lists beside)."""
    columns: Columns = Columns()
    list_header: tuple[str, ...] = ()
    """Names of the columns of CSV and TSV files whose first row is not a header."""
    filters: ListFilters = ListFilters()
    """Before downloading, on what the list says."""
    checks: ImageCheckConfig = ImageCheckConfig()
    """After downloading, on the image."""
    resample: Resample = "fast"
    min_side: int = Field(64, ge=1)
    """Shortest side of an image in pixels, after downloading."""
    fetch: FetchConfig = FetchConfig()

    @property
    def warning(self) -> str:
        if not self.fetch.contact_missing or self.fetch.allow_private_hosts:
            return ""
        return "fetch.contact_url is not set: those whose servers you load cannot reach you"


class LaionSource(PhotoSource):
    config_class: ClassVar[type[SourceConfig]] = LaionConfig
    num_cpus: ClassVar[float] = 0.5  # while one shard waits for its slowest servers, another has the core
    config: LaionConfig

    def __init__(self, config: LaionConfig) -> None:
        super().__init__(config)
        needed = ("url", *config.filters.columns, *(("hash",) if config.checks.verify_hash else ()))
        self._place = InputPlace(config.input)
        self._lists = UrlLists(self._place, config.columns, needed, config.list_header, config.shard_size)

    def plan(self) -> Iterator[WorkUnit]:
        left = self.config.limit
        for shard, unit in enumerate(self._units()):
            count = unit.num_inputs if left is None else min(unit.num_inputs, left)
            yield WorkUnit(shard, count, unit.payload)
            left = None if left is None else left - count
            if left == 0:
                return

    def _units(self) -> Iterator[UnitPlan]:
        wanted = {"auto": (*image_tars.SUFFIXES, *url_lists.SUFFIXES), "img2dataset": image_tars.SUFFIXES}
        suffixes = wanted.get(self.config.format, url_lists.SUFFIXES)
        files = self._place.files(suffixes)
        if not files:
            raise SourceError(
                f"input {self.config.input} is neither a file nor a folder that holds some of {', '.join(suffixes)}"
            )
        tars = [file for file in files if file.name.lower().endswith(image_tars.SUFFIXES)]
        if not tars:
            return self._lists.plan(files)
        if self.config.filters != ListFilters() or self.config.checks.verify_hash:
            raise SourceError(
                f"input {self.config.input} holds images in tars (first: {tars[0].name}): `filters` and "
                "`checks.verify_hash` are for lists of URLs. For lists beside tars set format: urls"
            )
        return self._plan_tars(tars)

    def _plan_tars(self, tars: list[InputFile]) -> Iterator[UnitPlan]:
        found = False
        for file in tars:
            identity = {"file": file.name, "bytes": file.bytes}
            spans, damage = image_tars.find_spans(self._place, file, self.config.shard_size)
            for span in spans:
                found = True
                yield UnitPlan(
                    span.samples, identity | {"offset": span.offset, "length": span.length, "samples": span.samples}
                )
            if damage:
                yield UnitPlan(1, identity | {"damaged": f"the rest of the tar: {damage}"})
        if not found:
            raise SourceError(f"no tar at {self.config.input} holds samples that can be read")

    def read(self, unit: WorkUnit, seeds: Seeds) -> Iterator[Example | Reject]:
        if _in_tar(unit):
            return self.estimated(self._read_tar(unit, seeds))
        return self.estimated(self._read_list(unit, seeds, range(unit.num_inputs)))

    def read_again(self, part: RetriedPart, seeds: Seeds) -> Iterator[Example | Reject]:
        if _in_tar(part.unit):
            raise SourceError("images in tars are not downloaded: there is nothing to try again")
        return self.estimated(self._read_list(part.unit, seeds, part.indices))

    def _read_list(self, unit: WorkUnit, seeds: Seeds, indices: Sequence[int]) -> Iterator[Example | Reject]:
        """The rows `indices` of a unit."""
        names = [_row_name(unit, index) for index in range(unit.num_inputs)]
        try:
            rows, refused = self._lists.read(unit.payload, unit.num_inputs)
        except RejectedInput as rejected:
            yield from (rejected.reject(index, names[index]) for index in indices)
            return
        urls = [url or "" for url in rows["url"].to_pylist()]
        origins = [name if index in refused else urls[index] for index, name in enumerate(names)]
        refused = self.config.filters.verdicts(rows) | refused
        hashes = rows["hash"].to_pylist()
        checks = ImageChecks(self.config.checks)
        wanted = [urls[index] for index in indices if index not in refused]
        stats = FetchStats()
        with closing(fetch_in_order(wanted, self.config.fetch, stats)) as bodies:  # type: ignore[type-var]
            for index in indices:
                if index in refused:
                    yield refused[index].reject(index, origins[index])
                    continue
                with self.stages("fetch"):
                    body = next(bodies)
                yield self._outcome(body, origins[index], index, seeds, checks, hashes[index])
        self.counters.update({f"fetch_{name}": round(value) for name, value in asdict(stats).items()})

    def _read_tar(self, unit: WorkUnit, seeds: Seeds) -> Iterator[Example | Reject]:
        payload = unit.payload
        file = InputFile(payload["file"], payload["bytes"])
        self._place.check_unchanged(file)
        if "damaged" in payload:
            yield Reject(0, file.name, Reason.UNREADABLE, payload["damaged"])
            return
        checks = ImageChecks(self.config.checks)
        span = TarSpan(payload["offset"], payload["length"], payload["samples"])
        index = -1
        for index, sample in enumerate(read_samples(self._place, file, span, self.config.fetch.max_bytes)):
            if index == unit.num_inputs:
                return
            yield self._outcome(sample.image, sample.origin, index, seeds, checks)
        for lost in range(index + 1, unit.num_inputs):
            yield Reject(lost, file.name, Reason.UNREADABLE, "a sample that was there when the tar was planned")

    def _outcome(
        self,
        body: bytes | RejectedInput,
        origin: str,
        index: int,
        seeds: Seeds,
        checks: ImageChecks,
        listed_hash: str | None = None,
    ) -> Example | Reject:
        try:
            if isinstance(body, RejectedInput):
                raise body
            return self._example(body, origin, index, seeds.child(index), checks, listed_hash)
        except RejectedInput as rejected:
            return rejected.reject(index, origin)

    def _example(
        self, body: bytes, origin: str, index: int, seeds: Seeds, checks: ImageChecks, listed_hash: str | None
    ) -> Example:
        with self.stages("check"):
            digest = checks.file(body, listed_hash)
        with self.stages("decode"):
            pixels, size = decode_image(
                body, max_pixels=self.config.max_pixels, min_side=self.config.min_side, scale_to=self.config.scale_to
            )
        checks.shape(*size)
        with self.stages("resize"):
            transform = self.transform(pixels.shape[1], pixels.shape[0], seeds)
            picture = Picture("image", transform.image(pixels), origin, size)
        with self.stages("check"):
            checks.picture(picture.pixels, origin, digest)
        self.show(index, pixels, transform)
        pictures = (picture, *self.derived(picture, seeds))
        return Example((index,), self.config.dataset, self.split(origin), pictures)


def _in_tar(unit: WorkUnit) -> bool:
    return unit.payload["file"].lower().endswith(image_tars.SUFFIXES)


def _row_name(unit: WorkUnit, index: int) -> str:
    """How an input is called whose URL is not known."""
    payload: Any = unit.payload
    return payload["file"] if "damaged" in payload else f"{payload['file']} row {payload['start'] + index}"
