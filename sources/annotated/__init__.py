"""Readers of annotated images, one published form each; `source` makes examples of what they read."""

from __future__ import annotations

from importlib import import_module

from uvd.sources.annotated.base import Reader

READERS: dict[str, str] = {
    "coco": "uvd.sources.annotated.coco:CocoReader",
    "panoptic": "uvd.sources.annotated.panoptic:PanopticReader",
    "voc": "uvd.sources.annotated.voc:VocReader",
    "yolo": "uvd.sources.annotated.yolo:YoloReader",
    "files": "uvd.sources.annotated.files:FilesReader",
    "shards": "uvd.sources.annotated.shards:ShardsReader",
}
"""Kind → where its reader is; imported when used, so that a worker loads what it needs."""


def reader_class(kind: str) -> type[Reader]:
    """The reader of a kind; kinds are checked by the config."""
    module, _, attribute = READERS[kind].partition(":")
    return getattr(import_module(module), attribute)


__all__ = ["READERS", "Reader", "reader_class"]
