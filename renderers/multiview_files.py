"""Reads a 3D file that nobody vouches for: checks before parsing, and references that cannot leave the folder or zip.

glTF 2.0 headers are checked against the file (lengths, JSON size, a node forest without cycles, how much the accessors
ask for); every referenced file goes through a resolver that fetches nothing and reads nothing outside the object's own
place. Meant to run in a child process all the same: parsers of mesh formats crash and hang.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trimesh

from uvd.renderers import multiview_gltf
from uvd.renderers.multiview_archives import open_archive
from uvd.renderers.multiview_references import ConfinedResolver, References, is_external
from uvd.sequences.reject import Reason, RejectedInput

FORMATS = (".glb", ".gltf", ".obj", ".ply", ".stl")
ARCHIVE = ".zip"
"""One object of these formats, with its other files."""

MAX_JSON_BYTES = 32 << 20
MAX_ACCESSOR_BYTES = 1 << 30
MAX_NODES = 100_000

COMPONENT_BYTES = {5120: 1, 5121: 1, 5122: 2, 5123: 2, 5125: 4, 5126: 4}
COMPONENTS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}

UNREADABLE_EXTENSIONS = ("KHR_draco_mesh_compression", "EXT_meshopt_compression", "KHR_mesh_quantization")
"""glTF extensions that change how geometry is stored; without a decoder the object would come out wrong, not plain."""


@dataclass(frozen=True, slots=True)
class ObjectFile:
    """An object that was read but not parsed yet.

    Attributes:
        format: one of `FORMATS`.
        data: the bytes of its file.
        references: where the files that it refers to come from.
    """

    format: str
    data: bytes
    references: References


def load_object(path: Path, max_bytes: int) -> trimesh.Scene:
    """`parse_object(open_object(path, max_bytes))`."""
    return parse_object(open_object(path, max_bytes))


def open_object(path: Path, max_bytes: int, sha256: str | None = None) -> ObjectFile:
    """Reads an object's file, from a zip if it is one.

    Args:
        max_bytes: of the file with all that it refers to; for a zip, of the zip and of what is unpacked from it.
        sha256: what the file's hash must be, in lower-case hex.

    Raises:
        RejectedInput: `MISSING`, `UNREADABLE`, `TOO_LARGE`, `HASH_MISMATCH` or `NOT_3D`; of zips, see `open_archive`.
    """
    suffix = path.suffix.lower()
    if suffix not in (*FORMATS, ARCHIVE):
        raise RejectedInput(Reason.NOT_3D, f"{suffix or 'no suffix'} is none of {', '.join((*FORMATS, ARCHIVE))}")
    data = _read(path, max_bytes)
    if sha256 is not None and (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise RejectedInput(Reason.HASH_MISMATCH, f"{found}, listed as {sha256}")
    if suffix != ARCHIVE:
        return ObjectFile(suffix, data, ConfinedResolver(path.parent, max_bytes - len(data)))
    name, data, members = open_archive(data, max_bytes, FORMATS)
    return ObjectFile(Path(name).suffix.lower(), data, members)


def parse_object(file: ObjectFile) -> trimesh.Scene:
    """Parses an object, with the files that it refers to.

    Raises:
        RejectedInput: `MISSING`, `TOO_LARGE`, `TRUNCATED`, `UNREADABLE`, `EXTERNAL_REFERENCE`, `TOO_COMPLEX`,
            `NO_FACES` or `NOT_3D`.
    """
    data, resolver = file.data, file.references
    additions = None
    if file.format in (".glb", ".gltf"):
        data, additions = prepare_gltf(data, binary=file.format == ".glb")
    try:
        scene = trimesh.load_scene(io.BytesIO(data), file_type=file.format[1:], resolver=resolver, process=False)
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
        RejectedInput: see `parse_object`.
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
