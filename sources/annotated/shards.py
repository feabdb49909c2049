"""Kind `shards`: image shards that uvd wrote with the layout `whole` → the photos and all that was made of them.

Estimating costs far more than arranging: estimates are kept once in such shards, and other datasets are made from them
with other layouts, weights and derived pictures. `input` is one folder of a dataset, DATASET/sequences/NAME. Pictures
are as they were stored, split and roles too; origin is the sequence's key, by which the manifest beside the tar names
the raw file. Which pictures pairs put before the photo follows from their roles. Planning reads headers and JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from uvd.renderers.derived import DERIVED
from uvd.sequences import IMAGE_SIZE, MAX_IMAGES, Reason, Transform
from uvd.sequences.example import SPLITS
from uvd.sequences.reject import RejectedInput
from uvd.sources.annotated.base import AnnotatedImage, Annotation, Reader
from uvd.sources.annotated.config import AnnotatedConfig
from uvd.sources.base import Item, SourceError, refused
from uvd.sources.decode import decode_image
from uvd.sources.drawing import Draw, naming
from uvd.sources.image_tars import SUFFIXES, DamagedTarError, TarMember, list_members
from uvd.sources.input_place import InputFile, InputPlace

LAYOUT = "whole"
PHOTO = "image"
MAX_JSON_BYTES = 1 << 16
_MEMBER = re.compile(r"[a-z0-9_-]+\.(?:(?P<place>[0-9]{2})\.(?P<codec>jpg|png)|json)")


class ShardsReader(Reader):
    def __init__(self, config: AnnotatedConfig) -> None:
        super().__init__(config)
        self._place = InputPlace(str(config.input))
        self._tar: tuple[str, pa.NativeFile] | None = None
        """Name and content of the tar that was read last: items come in the order of the tars."""

    def items(self) -> Iterator[Item]:
        usable, refusal = 0, "all shards are empty"
        for file in self._tars():
            with self._place.open(file.name) as tar:
                for item in self._sequences(file, tar):
                    if "refused" in item:
                        refusal = f"{item['origin']}: {item['detail']}"
                    else:
                        self._check_added(item)
                        usable += 1
                    yield item
        if not usable:
            raise SourceError(f"no sequence of layout {LAYOUT} in {self.config.input}; {refusal}")

    def _check_added(self, item: Item) -> None:
        """
        Raises:
            SourceError: if the config adds pictures that the shards hold already.
        """
        estimate = self.config.estimate
        added = {*self.config.derive, *(name for name in type(estimate).model_fields if getattr(estimate, name))}
        twice = sorted(added.intersection(item["roles"]))
        if twice:
            raise SourceError(f"{item['origin']} holds {twice[0]} already: take it out of derive or estimate")

    def _tars(self) -> list[InputFile]:
        """The committed shards.

        Raises:
            SourceError: if this is no folder of shards, or a shard is not finished.
        """
        folder = self.config.input
        if (folder / "dataset.json").is_file():
            raise SourceError(f"{folder} is a whole dataset: name one folder of it, {folder}/sequences/NAME")
        tars = [file for file in self._place.files(SUFFIXES) if "/" not in file.name] if folder.is_dir() else []
        if not tars:
            raise SourceError(f"no image shards (.tar) in {folder}: expected DATASET/sequences/NAME")
        for file in tars:
            if not (folder / file.name).with_suffix(".parquet").is_file():
                raise SourceError(f"shard {folder / file.name} has no manifest: finish the ingest that makes it first")
        return tars

    def _sequences(self, file: InputFile, tar: pa.NativeFile) -> Iterator[Item]:
        """The sequences of a tar; where it is damaged, the rest of it is one input."""
        listed: list[TarMember] = []
        damage = ""
        try:
            listed.extend(list_members(self._place, file))
        except DamagedTarError as error:
            damage = str(error)
        groups = [list(members) for _, members in groupby(listed, key=lambda member: member.key)]
        if damage and groups and not groups[-1][-1].name.endswith(".json"):
            del groups[-1]  # it was cut off
        for members in groups:
            try:
                yield _planned(file, members, tar)
            except RejectedInput as rejected:
                yield refused(members[0].key, rejected.reason, rejected.detail)
        if damage:
            yield refused(file.name, Reason.UNREADABLE, f"the rest of the tar: {damage}")

    def open(self, item: Item) -> AnnotatedImage:
        pixels = [self._decode(item, place, *span) for place, span in enumerate(item["pictures"])]
        annotations = []
        for role, picture, (_, _, codec) in list(zip(item["roles"], pixels, item["pictures"], strict=True))[1:]:
            degraded = role in DERIVED
            drawn = codec == "png" and not degraded
            draw = _draw(picture, drawn)
            annotations.append(Annotation(role, item["origin"], draw, drawn=drawn, degraded=degraded))
        return AnnotatedImage(pixels[0], (IMAGE_SIZE, IMAGE_SIZE), item["origin"], tuple(annotations))

    def _decode(self, item: Item, place: int, offset: int, size: int, codec: str) -> NDArray[np.uint8]:
        name = f"picture {place:02d} ({item['roles'][place]})"
        if size > self.config.max_bytes:
            raise RejectedInput(Reason.TOO_LARGE, f"{name}: {size} bytes, over {self.config.max_bytes}")
        tar = self._opened(item)
        tar.seek(offset)
        with naming(name):
            pixels, _ = decode_image(tar.read(size), max_pixels=IMAGE_SIZE * IMAGE_SIZE)
        if pixels.shape[:2] != (IMAGE_SIZE, IMAGE_SIZE):
            detail = f"{name} is {pixels.shape[1]}x{pixels.shape[0]}, expected {IMAGE_SIZE}x{IMAGE_SIZE}"
            raise RejectedInput(Reason.BAD_ANNOTATION, detail)
        return pixels

    def _opened(self, item: Item) -> pa.NativeFile:
        name = item["tar"]
        if self._tar is None or self._tar[0] != name:
            self.close()
            self._place.check_unchanged(InputFile(name, item["bytes"]))
            self._tar = (name, self._place.open(name))
        return self._tar[1]

    def close(self) -> None:
        if self._tar is not None:
            self._tar[1].close()
            self._tar = None


def _planned(file: InputFile, members: list[TarMember], tar: pa.NativeFile) -> Item:
    """One sequence as an item.

    Raises:
        RejectedInput: unless it is a photo and pictures of different roles, as `whole` writes it.
    """
    *pictures, last = members
    matches = [_MEMBER.fullmatch(member.name) for member in pictures]
    places = [int(match["place"]) if match and match["place"] else None for match in matches]
    if not last.name.endswith(".json") or not _MEMBER.fullmatch(last.name) or places != list(range(len(pictures))):
        detail = f"expected KEY.00.jpg or .png, KEY.01 and so on, then KEY.json; it has {', '.join(_names(members))}"
        raise RejectedInput(Reason.BAD_ANNOTATION, detail)
    described = _description(last, tar)
    spans = [
        [member.content, member.size, match["codec"]]
        for member, match in zip(pictures, matches, strict=True)
        if match is not None
    ]
    return {
        "origin": last.key,
        "tar": file.name,
        "bytes": file.bytes,
        "split": described["split"],
        "roles": _roles(described, len(pictures)),
        "pictures": spans,
    }


def _description(member: TarMember, tar: pa.NativeFile) -> dict[str, Any]:
    """The JSON of a sequence, its layout and split checked."""
    if member.size > MAX_JSON_BYTES:
        raise RejectedInput(Reason.TOO_LARGE, f"its JSON has {member.size} bytes, over {MAX_JSON_BYTES}")
    tar.seek(member.content)
    try:
        described = json.loads(tar.read(member.size))
    except (ValueError, RecursionError) as error:
        raise RejectedInput(Reason.BAD_ANNOTATION, "its JSON cannot be parsed") from error
    if not isinstance(described, dict):
        raise RejectedInput(Reason.BAD_ANNOTATION, "its JSON is no object")
    layout, split = described.get("layout"), described.get("split")
    if layout != LAYOUT:
        raise RejectedInput(Reason.BAD_ANNOTATION, f"its layout is {_shown(layout)}, only {LAYOUT} can be taken apart")
    if split not in SPLITS:
        raise RejectedInput(Reason.BAD_ANNOTATION, f"split is {_shown(split)}, expected one of {', '.join(SPLITS)}")
    return described


def _roles(described: dict[str, Any], pictures: int) -> list[str]:
    roles = described.get("roles")
    if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles) or len(roles) != pictures:
        raise RejectedInput(Reason.BAD_ANNOTATION, f"roles are {_shown(roles)}, expected one for each picture")
    if not roles or roles[0] != PHOTO or len(set(roles)) != len(roles) or len(roles) > MAX_IMAGES:
        raise RejectedInput(Reason.BAD_ANNOTATION, f"roles are {_shown(roles)}, expected {PHOTO} and different ones")
    return roles


def _names(members: list[TarMember]) -> list[str]:
    return [repr(member.name)[:60] for member in members[: MAX_IMAGES + 2]]


def _shown(value: object) -> str:
    return repr(value)[:200]


def _draw(picture: NDArray[np.uint8], drawn: bool) -> Draw:
    """What is drawn goes through another transform by nearest neighbour; it may be cut away, unless it was empty."""

    def draw(transform: Transform, _: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], bool]:
        if not drawn:
            return transform.image(picture), True
        pixels = transform.labels(picture).astype(np.uint8)
        return pixels, bool(pixels.any() or not picture.any())

    return draw
