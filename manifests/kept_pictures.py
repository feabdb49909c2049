"""Sources whose pictures were not kept: `uvd build --drop-images` makes tokens of them, and no image tars.

`dataset.json` says so for the source; manifests and rejects are there and are, byte for byte, those of a dataset with
pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uvd.manifests.dataset import ConfigChangedError, Dataset, DatasetError

_FIELD, _NOT_KEPT = "pictures", "not kept"


class PicturesNotKeptError(DatasetError):
    """Pictures are asked for that the dataset does not hold."""


def pictures_kept(dataset: Dataset, source: str) -> bool:
    """Whether the image shards of a source have, or will have, their tars."""
    place = dataset if dataset.base is None else dataset.base
    return says_kept(place.info()["sequences"].get(source, {}))


def says_kept(entry: Mapping[str, Any]) -> bool:
    """The same, of what `dataset.json` records about a source."""
    return entry.get(_FIELD) != _NOT_KEPT


def declare_pictures(
    dataset: Dataset, source: str, entry: Mapping[str, Any], *, keep: bool, overwrite: bool = False
) -> dict[str, Any]:
    """Records how a source is made, as `Dataset.declare` does, and whether its pictures are kept.

    Returns:
        the entry as it is recorded.

    Raises:
        ConfigChangedError: if it was begun with other settings, or the other way with its pictures.
    """
    known = dataset.info()["sequences"].get(source)
    if known is not None and known["fingerprint"] == entry["fingerprint"] and says_kept(known) != keep:
        if not overwrite:
            begun, instead = ("with", "without") if says_kept(known) else ("without", "with")
            option = "--keep-images" if says_kept(known) else "--drop-images"
            raise ConfigChangedError(
                f"sequences/{source} in {dataset.uri} was begun {begun} its pictures, and would go on {instead} them. "
                f"Use `uvd build {option}`, another name, another dataset, or --overwrite to make it anew."
            )
        dataset.drop("sequences", source)
    recorded = {**entry, **({} if keep else {_FIELD: _NOT_KEPT})}
    dataset.declare("sequences", source, recorded, overwrite=overwrite)
    return recorded


def why_not_kept(source: str) -> PicturesNotKeptError:
    return PicturesNotKeptError(
        f"the pictures of sequences/{source} are not kept (`uvd build --drop-images`): there are only its tokens, "
        "manifests and rejects. `uvd show --decoded` draws what the tokens stand for; `uvd build --keep-images "
        "--overwrite` makes it anew, with pictures."
    )
