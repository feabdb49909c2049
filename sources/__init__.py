"""Sources: raw inputs in, examples out. One file and one line here each."""

from __future__ import annotations

from importlib import import_module

from uvd.sources.base import ItemSource, Source, SourceConfig, SourceError, WorkUnit

SOURCES: dict[str, str] = {
    "laion": "uvd.sources.laion:LaionSource",
    "images": "uvd.sources.images:ImagesSource",
    "video": "uvd.sources.video:VideoSource",
    "annotated": "uvd.sources.annotated.source:AnnotatedSource",
    "categories": "uvd.sources.categories:CategoriesSource",
    "annotated-video": "uvd.sources.annotated_video.source:AnnotatedVideoSource",
    "objaverse": "uvd.sources.objaverse:ObjaverseSource",
}
"""Source name → where its class is; imported when used, so that a worker loads one source's packages only."""


def source_class(name: str) -> type[Source]:
    """The class of a source.

    Raises:
        SourceError: for an unknown name; says which there are.
    """
    if name not in SOURCES:
        raise SourceError(f"unknown source {name!r}; there are {', '.join(SOURCES)}")
    module, _, attribute = SOURCES[name].partition(":")
    return getattr(import_module(module), attribute)


__all__ = ["SOURCES", "ItemSource", "Source", "SourceConfig", "SourceError", "WorkUnit", "source_class"]
