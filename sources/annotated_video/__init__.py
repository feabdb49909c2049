"""Readers of annotated video, one published form each; `annotated_video` makes sequences of what they read."""

from __future__ import annotations

from importlib import import_module

from uvd.sources.annotated_video.base import Reader

READERS: dict[str, str] = {
    "frames": "uvd.sources.annotated_video.frames:FramesReader",
    "vipseg": "uvd.sources.annotated_video.vipseg:VipsegReader",
    "hand14k": "uvd.sources.annotated_video.hand14k:Hand14kReader",
    "ava": "uvd.sources.annotated_video.ava:AvaReader",
    "jhmdb": "uvd.sources.annotated_video.jhmdb:JhmdbReader",
}
"""Kind → where its reader is; imported when used, so that a worker loads what it needs."""


def reader_class(kind: str) -> type[Reader]:
    """The reader of a kind; kinds are checked by the config."""
    module, _, attribute = READERS[kind].partition(":")
    return getattr(import_module(module), attribute)


__all__ = ["READERS", "Reader", "reader_class"]
