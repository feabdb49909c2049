"""The files that an object refers to, from its own folder or archive and from nowhere else.

trimesh asks a resolver for materials, textures and buffers by names that come from an untrusted file. Nothing is
fetched, nothing outside the object's place is read, and all of it together may have a limited number of bytes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from trimesh.resolvers import Resolver

from uvd.sequences.reject import Reason, RejectedInput


def is_external(uri: str) -> bool:
    """Whether a reference points away from the object's folder: a scheme, a drive, an absolute path, or `..`."""
    parts = urlsplit(uri.replace("\\", "/")) if "[" not in uri else None
    if parts is not None and (parts.scheme or parts.netloc):
        return True
    path = unquote(uri).replace("\\", "/")
    return path.startswith(("/", "~")) or ".." in path.split("/") or path[1:2] == ":" or "\0" in path


class References(Resolver):
    """What all resolvers share: `get` gives the bytes of a name, up to a number of bytes in all.

    trimesh carries on without a material that it could not get, so a refusal is also kept in `refusal`.
    """

    def __init__(self, max_bytes: int) -> None:
        self.bytes_left = max_bytes
        self.refusal: RejectedInput | None = None

    @abstractmethod
    def get(self, key: str) -> bytes:
        """The bytes of `key`.

        Raises:
            RejectedInput: `EXTERNAL_REFERENCE` or `TOO_LARGE`, or `UNREADABLE` in an archive.
            FileNotFoundError: when there is no such file.
        """

    @abstractmethod
    def namespaced(self, namespace: str) -> References: ...

    def name_of(self, key: str) -> str:
        """The path that a reference means, with `/`."""
        name = key.strip().replace("\\", "/")
        if name.startswith("-"):  # options of MTL's texture lines come before the file name
            name = name.split()[-1]
        if is_external(name):
            raise self.refuse(Reason.EXTERNAL_REFERENCE, repr(key))
        return name

    def take(self, key: str, size: int) -> None:
        """Counts the bytes of a file that is about to be read."""
        if size > self.bytes_left:
            raise self.refuse(Reason.TOO_LARGE, f"{key!r} has {size} bytes, {self.bytes_left} are left")
        self.bytes_left -= size

    def refuse(self, reason: Reason, detail: str) -> RejectedInput:
        self.refusal = self.refusal or RejectedInput(reason, detail[:300])
        return self.refusal

    def keys(self) -> Iterator[str]:
        return iter(())

    def write(self, name: str, data: Any) -> None:
        raise PermissionError(f"{name!r}: nothing is written")


class ConfinedResolver(References):
    """Files of a folder and below it; links that lead out of it are external."""

    def __init__(self, folder: Path, max_bytes: int, subfolder: str = "") -> None:
        super().__init__(max_bytes)
        self.folder = folder.resolve()
        self.subfolder = subfolder

    def get(self, key: str) -> bytes:
        path = self._path(key)
        if not path.is_file():
            raise FileNotFoundError(key)
        self.take(key, path.stat().st_size)
        return path.read_bytes()

    def _path(self, key: str) -> Path:
        name = self.name_of(key)
        base = self.folder / self.subfolder
        for candidate in (base / name, base / unquote(name)):
            path = candidate.resolve()
            if not path.is_relative_to(self.folder):
                raise self.refuse(Reason.EXTERNAL_REFERENCE, repr(key))
            if path.is_file():
                return path
        return base / name

    def namespaced(self, namespace: str) -> ConfinedResolver:
        return ConfinedResolver(self.folder, self.bytes_left, namespace)
