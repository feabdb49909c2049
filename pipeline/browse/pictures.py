"""Pictures of sequences as they lie in the shards, and those that a tokenizer decodes: read once, kept for a while.

A sequence is one range of bytes of its tar. Its pictures are sent as they are, after a look at their headers: a page
asks for several of them, so those read last are kept, up to a number of bytes. A dataset that is made anew
(`--overwrite`) while it is browsed shows old pictures until then.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Generic, TypeVar

import pyarrow as pa
from PIL import Image

from uvd.manifests.codec import encode_png
from uvd.manifests.dataset import DatasetError
from uvd.manifests.find import find_tokens
from uvd.manifests.image_shard import read_sequence
from uvd.manifests.tar import TarError
from uvd.manifests.token_shard import read_tokens
from uvd.manifests.tokens import TokenFramingError, unframe
from uvd.pipeline.browse.catalog import Catalog, Found
from uvd.sequences import IMAGE_SIZE, MAX_IMAGES

if TYPE_CHECKING:
    from uvd.tokenize.tokenizer import Tokenizer

KEPT_BYTES = 128 << 20
KEPT_ROWS = 4096
MAX_SEQUENCE_BYTES = 64 << 20
"""Of the pictures of one sequence in the tar: 16 of 256x256 have 3 MB uncompressed."""
MAX_TOKEN_BYTES = 2 * (2 + MAX_IMAGES * 256)
_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png"}
Encoded = tuple[bytes, str]
"""A picture and its media type."""
V = TypeVar("V")


class PictureError(DatasetError):
    """A sequence's pictures cannot be shown."""


class Kept(Generic[V]):
    """Values that were made last, up to a weight in all; each is made once however many threads ask for it."""

    def __init__(self, most: int, weigh: Callable[[V], int]) -> None:
        self._most, self._weigh = most, weigh
        self._values: OrderedDict[Hashable, V] = OrderedDict()
        self._making: dict[Hashable, threading.Lock] = {}
        self._weight = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                if key in self._values:
                    return self._values[key]
            try:
                value = make()
            finally:
                with self._lock:
                    self._making.pop(key, None)
            self.put(key, value)
            return value

    def put(self, key: Hashable, value: V) -> None:
        with self._lock:
            if key in self._values:
                self._weight -= self._weigh(self._values.pop(key))
            self._values[key] = value
            self._weight += self._weigh(value)
            while self._weight > self._most and len(self._values) > 1:
                _, oldest = self._values.popitem(last=False)
                self._weight -= self._weigh(oldest)


def _bytes(pictures: tuple[Encoded, ...]) -> int:
    return sum(len(data) for data, _ in pictures)


class Pictures:
    """Pictures by the key of their sequence."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._rows: Kept[Found] = Kept(KEPT_ROWS, lambda _: 1)
        self._stored: Kept[tuple[Encoded, ...]] = Kept(KEPT_BYTES, _bytes)

    def remember(self, found: Found) -> None:
        """Keeps the row of a sequence that a page shows, so that its pictures need no manifest."""
        self._rows.put(found.row["key"], found)

    def stored(self, key: str) -> tuple[Encoded, ...]:
        """The pictures of a sequence as they are in its shard.

        Raises:
            DatasetError: if there is no such sequence, or it is damaged.
        """
        return self._stored.get(key, lambda: self._read(self.found(key)))

    def found(self, key: str) -> Found:
        """A sequence, from what pages have shown lately or from its manifest.

        Raises:
            DatasetError: if there is none.
        """
        return self._rows.get(key, lambda: self._catalog.find(key))

    def _read(self, found: Found) -> tuple[Encoded, ...]:
        key = found.row["key"]
        if not 0 <= found.row["length"] <= MAX_SEQUENCE_BYTES:
            raise PictureError(f"{key}: {found.row['length']} bytes are no sequence's")
        try:
            members = read_sequence(self._catalog.dataset, found.shard, found.row).members
        except (TarError, OSError, pa.ArrowException) as error:
            raise PictureError(f"the pictures of {key} cannot be read: {error}. `uvd verify` says more.") from error
        return tuple((member.data, media_type(member.name, member.data)) for member in members)


def media_type(name: str, data: bytes) -> str:
    """By content, from the header alone: no pixel is decoded.

    Raises:
        PictureError: if it is no JPEG or PNG of 256x256.
    """
    try:
        with Image.open(io.BytesIO(data), formats=list(_TYPES)) as image:
            if image.size == (IMAGE_SIZE, IMAGE_SIZE) and image.format in _TYPES:
                return _TYPES[image.format]
            said = f"it is {image.size[0]}x{image.size[1]}"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        said = str(error)
    raise PictureError(f"{name} is no JPEG or PNG of {IMAGE_SIZE}x{IMAGE_SIZE}: {said}")


class Decoded:
    """Pictures that the tokens of sequences stand for; the tokenizer is loaded when it is first needed."""

    def __init__(self, catalog: Catalog, stored: Pictures, tokenizer: str) -> None:
        """
        Args:
            stored: finds the sequences.
            tokenizer: embedded one by name, or a folder.
        """
        self._catalog, self._stored, self._tokenizer = catalog, stored, tokenizer
        self._loaded: dict[str, Tokenizer] = {}
        self._one = threading.Lock()
        self._pictures: Kept[tuple[Encoded, ...]] = Kept(KEPT_BYTES, _bytes)

    def pictures(self, key: str) -> tuple[Encoded, ...]:
        """All decoded pictures of a sequence, as PNG.

        Raises:
            DatasetError: if it has no tokens by this tokenizer, or they were made by another of that name.
            TokenizerError: if there is no such tokenizer.
        """
        return self._pictures.get(key, lambda: self._decode(key))

    def _decode(self, key: str) -> tuple[Encoded, ...]:
        from uvd.tokenize.tokenizer import find_folder

        # The sequence is looked for first: that makes sure that the key names a source.
        known, dataset = self._stored.found(key).row["key"], self._catalog.dataset
        shard, row = find_tokens(dataset, known, find_folder(self._tokenizer).name)
        made_by = dataset.metadata(shard)["tokenizer_fingerprint"]
        if not 0 <= row["length"] <= MAX_TOKEN_BYTES:
            raise PictureError(f"{key}: {row['length']} bytes are not the tokens of up to {MAX_IMAGES} pictures")
        try:
            codes = unframe(read_tokens(dataset, shard, row))
        except (TokenFramingError, ValueError, OSError) as error:
            raise PictureError(f"the tokens of {key} cannot be read: {error}. `uvd verify` says more.") from error
        with self._one:
            self._catalog.go_on()
            pixels = self._load(made_by).decode(codes)
        return tuple((encode_png(picture), "image/png") for picture in pixels)

    def _load(self, made_by: str) -> Tokenizer:
        from uvd.tokenize.tokenizer import load_matching

        if made_by not in self._loaded:
            tokenizer = load_matching(self._tokenizer, made_by)
            if tokenizer.fingerprint != made_by:
                raise PictureError(
                    f"tokens were made by another tokenizer named {tokenizer.name!r}; name its folder by --tokenizer"
                )
            self._loaded = {made_by: tokenizer}
        return self._loaded[made_by]
