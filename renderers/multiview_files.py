"""Reads a 3D file that nobody vouches for: checks before parsing, and references that cannot leave the folder.

glTF 2.0 headers are checked against the file (lengths, JSON size, a node forest without cycles, how much the accessors
ask for); every referenced file goes through `ConfinedResolver`, which fetches nothing and reads nothing outside the
object's folder. Meant to run in a child process all the same: parsers of mesh formats crash and hang.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import trimesh
from trimesh.resolvers import Resolver

from uvd.renderers import multiview_gltf
from uvd.sequences.reject import Reason, RejectedInput

FORMATS = (".glb", ".gltf", ".obj", ".ply", ".stl")

MAX_JSON_BYTES = 32 << 20
MAX_ACCESSOR_BYTES = 1 << 30
MAX_NODES = 100_000

COMPONENT_BYTES = {5120: 1, 5121: 1, 5122: 2, 5123: 2, 5125: 4, 5126: 4}
COMPONENTS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}

UNREADABLE_EXTENSIONS = ("KHR_draco_mesh_compression", "EXT_meshopt_compression", "KHR_mesh_quantization")
"""glTF extensions that change how geometry is stored; without a decoder the object would come out wrong, not plain."""


class ConfinedResolver(Resolver):
    """Gives trimesh the files that an object refers to, from its own folder and below, up to a number of bytes.

    trimesh carries on without a material that it could not get, so a refusal is also kept in `refusal`.
    """

    def __init__(self, folder: Path, max_bytes: int, subfolder: str = "") -> None:
        self.folder = folder.resolve()
        self.subfolder = subfolder
        self.bytes_left = max_bytes
        self.refusal: RejectedInput | None = None

    def get(self, key: str) -> bytes:
        """The bytes of `key`.

        Raises:
            RejectedInput: `EXTERNAL_REFERENCE` or `TOO_LARGE`.
            FileNotFoundError: when there is no such file.
        """
        path = self._path(key)
        if not path.is_file():
            raise FileNotFoundError(key)
        size = path.stat().st_size
        if size > self.bytes_left:
            raise self._refuse(Reason.TOO_LARGE, f"{key!r} has {size} bytes, {self.bytes_left} are left")
        self.bytes_left -= size
        return path.read_bytes()

    def _path(self, key: str) -> Path:
        name = key.strip().replace("\\", "/")
        if name.startswith("-"):  # options of MTL's texture lines come before the file name
            name = name.split()[-1]
        if is_external(name):
            raise self._refuse(Reason.EXTERNAL_REFERENCE, repr(key))
        base = self.folder / self.subfolder
        for candidate in (base / name, base / unquote(name)):
            path = candidate.resolve()
            if not path.is_relative_to(self.folder):
                raise self._refuse(Reason.EXTERNAL_REFERENCE, repr(key))
            if path.is_file():
                return path
        return base / name

    def _refuse(self, reason: Reason, detail: str) -> RejectedInput:
        self.refusal = self.refusal or RejectedInput(reason, detail[:300])
        return self.refusal

    def namespaced(self, namespace: str) -> ConfinedResolver:
        return ConfinedResolver(self.folder, self.bytes_left, namespace)

    def keys(self) -> Iterator[str]:
        return iter(())

    def write(self, name: str, data: Any) -> None:
        raise PermissionError(f"{name!r}: nothing is written")


def is_external(uri: str) -> bool:
    """Whether a reference points away from the object's folder: a scheme, a drive, an absolute path, or `..`."""
    parts = urlsplit(uri.replace("\\", "/")) if "[" not in uri else None
    if parts is not None and (parts.scheme or parts.netloc):
        return True
    path = unquote(uri).replace("\\", "/")
    return path.startswith(("/", "~")) or ".." in path.split("/") or path[1:2] == ":" or "\0" in path


def load_object(path: Path, max_bytes: int) -> trimesh.Scene:
    """Parses one file, with the files that it refers to.

    Raises:
        RejectedInput: `MISSING`, `TOO_LARGE`, `TRUNCATED`, `EXTERNAL_REFERENCE`, `TOO_COMPLEX`, `NO_FACES` or `NOT_3D`.
    """
    kind = path.suffix.lower()
    if kind not in FORMATS:
        raise RejectedInput(Reason.NOT_3D, f"{kind or 'no suffix'} is none of {', '.join(FORMATS)}")
    data = _read(path, max_bytes)
    resolver = ConfinedResolver(path.parent, max_bytes - len(data))
    additions = None
    if kind in (".glb", ".gltf"):
        data, additions = prepare_gltf(data, binary=kind == ".glb")
    try:
        scene = trimesh.load_scene(io.BytesIO(data), file_type=kind[1:], resolver=resolver, process=False)
        if additions is not None:
            multiview_gltf.apply(scene, additions)
    except RejectedInput:
        raise
    except FileNotFoundError as error:
        raise RejectedInput(Reason.MISSING, f"referenced file {str(error)[:300]}") from error
    except MemoryError:
        raise
    except Exception as error:
        raise resolver.refusal or RejectedInput(Reason.NOT_3D, f"{type(error).__name__}: {error}"[:300]) from error
    if resolver.refusal is not None:
        raise resolver.refusal
    if not scene.geometry:
        raise RejectedInput(Reason.NO_FACES, "no geometry")
    return scene


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise RejectedInput(Reason.TOO_LARGE, f"{size} bytes, limit {max_bytes}")
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise RejectedInput(Reason.MISSING, "no such file") from error
    except OSError as error:
        raise RejectedInput(Reason.UNREADABLE, str(error.strerror or error)) from error
    if not data:
        raise RejectedInput(Reason.NOT_3D, "empty file")
    return data


def prepare_gltf(data: bytes, binary: bool) -> tuple[bytes, list[list[multiview_gltf.Addition]] | None]:
    """Checks a glTF or GLB file before a parser sees it (glTF 2.0 specification, sections 3 and 4).

    Returns:
        The file, rewritten where trimesh would read it in another way than it is meant, and what is then left to do.

    Raises:
        RejectedInput: see `load_object`.
    """
    text = _json_chunk(data) if binary else data
    if len(text) > MAX_JSON_BYTES:
        raise RejectedInput(Reason.TOO_LARGE, f"JSON of {len(text)} bytes, limit {MAX_JSON_BYTES}")
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RejectedInput(Reason.NOT_3D, f"JSON: {str(error)[:200]}") from error
    if not isinstance(tree, dict):
        raise RejectedInput(Reason.NOT_3D, "JSON is not an object")
    try:
        _check_references(tree)
        _check_extensions(tree)
        _check_accessors(tree)
        _check_nodes(tree)
        additions = multiview_gltf.prepare(tree)
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        raise RejectedInput(Reason.NOT_3D, f"glTF structure: {type(error).__name__}: {error}"[:300]) from error
    if additions is None:
        return data, None
    rewritten = json.dumps(tree).encode()
    return (_with_json(data, len(text), rewritten) if binary else rewritten), additions


def _with_json(data: bytes, length: int, text: bytes) -> bytes:
    """A GLB with another JSON chunk than its own of `length` bytes."""
    text += b" " * (-len(text) % 4)
    rest = data[20 + length :]
    return struct.pack("<4sIIII", b"glTF", 2, 20 + len(text) + len(rest), len(text), 0x4E4F534A) + text + rest


def _json_chunk(data: bytes) -> bytes:
    if len(data) < 20 or data[:4] != b"glTF":
        raise RejectedInput(Reason.NOT_3D, "no GLB header")
    version, length, json_length, kind = struct.unpack_from("<IIII", data, 4)
    if version != 2 or kind != 0x4E4F534A:
        raise RejectedInput(Reason.NOT_3D, f"GLB version {version}, first chunk {kind:#x}")
    if length > len(data):
        raise RejectedInput(Reason.TRUNCATED, f"{len(data)} of {length} bytes")
    if 20 + json_length > len(data):
        raise RejectedInput(Reason.NOT_3D, f"JSON chunk of {json_length} bytes in a file of {len(data)}")
    return data[20 : 20 + json_length]


def _check_references(tree: dict[str, Any]) -> None:
    for kind in ("buffers", "images"):
        for entry in tree.get(kind, []):
            uri = entry.get("uri", "data:")
            if not uri.startswith("data:") and is_external(uri):
                raise RejectedInput(Reason.EXTERNAL_REFERENCE, f"{kind}: {uri[:200]!r}")


def _check_extensions(tree: dict[str, Any]) -> None:
    for name in UNREADABLE_EXTENSIONS:
        if name in tree.get("extensionsRequired", []):
            raise RejectedInput(Reason.NOT_3D, f"glTF extension {name} is not supported")


def _check_accessors(tree: dict[str, Any]) -> None:
    total = 0
    for accessor in tree.get("accessors", []):
        count = accessor["count"]
        if not isinstance(count, int) or count < 0:
            raise RejectedInput(Reason.NOT_3D, f"accessor of {count!r} elements")
        total += count * COMPONENT_BYTES[accessor["componentType"]] * COMPONENTS[accessor["type"]]
    if total > MAX_ACCESSOR_BYTES:
        raise RejectedInput(Reason.TOO_COMPLEX, f"accessors of {total} bytes, limit {MAX_ACCESSOR_BYTES}")


def _check_nodes(tree: dict[str, Any]) -> None:
    """A node has at most one parent and is not below itself (section 3.5.2): no cycle, no exponential scene."""
    nodes = tree.get("nodes", [])
    if len(nodes) > MAX_NODES:
        raise RejectedInput(Reason.TOO_COMPLEX, f"{len(nodes)} nodes, limit {MAX_NODES}")
    parent: dict[int, int] = {}
    for index, node in enumerate(nodes):
        for child in node.get("children", []):
            if not isinstance(child, int) or not 0 <= child < len(nodes) or child in parent:
                raise RejectedInput(Reason.NOT_3D, f"node {child!r} does not exist or has two parents")
            parent[child] = index
    rooted: set[int] = set()
    for index in range(len(nodes)):
        trail: set[int] = set()
        while index in parent and index not in rooted:
            if index in trail:
                raise RejectedInput(Reason.NOT_3D, f"node {index} is its own ancestor")
            trail.add(index)
            index = parent[index]
        rooted |= trail
