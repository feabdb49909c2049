"""Estimated pictures join their photos: right batch, right order, one reject where a network finds nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from tests_support import write_photo

from uvd.pipeline.config import config_entry
from uvd.renderers.estimators.base import Estimates, Estimator, EstimatorFilesError, View
from uvd.sequences import Example, Reason, Reject, Seeds
from uvd.sources import photos
from uvd.sources.annotated.config import AnnotatedConfig
from uvd.sources.images import ImagesConfig, ImagesSource


class Means(Estimator):
    """Draws a view's mean colour as `depth`, its green channel as `edges`; sees nothing in dark photos."""

    side = 320
    roles = ("edges", "depth")

    def __init__(self) -> None:
        self.batches: list[int] = []

    def estimate(self, views: Sequence[View]) -> list[Estimates]:
        self.batches.append(len(views))
        assert {view.pixels.shape for view in views} == {(320, 320, 3)}
        return [self._of(view) for view in views]

    def _of(self, view: View) -> Estimates:
        mean = view.pixels.mean(axis=(0, 1))
        if mean.max() < 20:
            return {}
        colour = np.rint(mean).astype(np.uint8)
        return {
            "depth": np.full((256, 256, 3), colour, np.uint8),
            "edges": np.full((256, 256, 3), colour[1], np.uint8),
        }


@pytest.fixture
def means(monkeypatch: pytest.MonkeyPatch) -> Means:
    estimator = Means()
    monkeypatch.setattr(photos, "open_estimators", lambda config: (estimator,))
    return estimator


def read(folder: Path, **settings: Any) -> list[Example | Reject]:
    estimate = {"edges": {"weights": folder / "weights.safetensors"}, "batch_size": 3}
    config = ImagesConfig.model_validate({"dataset": "d", "input": folder, "estimate": estimate, **settings})
    source = ImagesSource(config)
    (unit,) = source.plan()
    return list(source.read(unit, Seeds(0)))


def test_estimates_follow_their_photo_in_order_and_batches_are_full(tmp_path: Path, means: Means) -> None:
    for number in range(7):
        write_photo(tmp_path / f"{number}.png", seed=number)
    (tmp_path / "3x.jpg").write_bytes(b"no image")
    outcomes = read(tmp_path, derive=["grey"])
    assert [o.input if isinstance(o, Reject) else o.inputs[0] for o in outcomes] == list(range(8))
    assert means.batches == [3, 3, 1]
    for outcome in outcomes:
        if isinstance(outcome, Reject):
            assert outcome.origin == "3x.jpg"
            continue
        assert [picture.role for picture in outcome.pictures] == ["image", "grey", "edges", "depth"]
        image, _, _, depth = outcome.pictures
        assert depth.drawn
        assert not image.drawn
        assert np.abs(image.pixels.mean(axis=(0, 1)) - depth.pixels[0, 0]).max() < 1.5


def test_a_photo_in_which_nothing_is_found_is_rejected_unless_it_has_other_pictures(
    tmp_path: Path, means: Means, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        write_photo(tmp_path / f"{number}.png", seed=number)
    monkeypatch.setattr(means, "_of", lambda view: {})
    outcomes = read(tmp_path)
    assert [outcome.reason for outcome in outcomes if isinstance(outcome, Reject)] == [Reason.NO_ANNOTATION] * 2
    kept = read(tmp_path, derive=["masked"])
    assert [[picture.role for picture in example.pictures] for example in kept if isinstance(example, Example)] == [
        ["image", "masked"]
    ] * 2


def test_the_fingerprint_follows_the_weights_and_not_their_place(tmp_path: Path) -> None:
    def entry(path: Path) -> Any:
        estimate = {"edges": {"weights": path}}
        return config_entry(ImagesConfig.model_validate({"dataset": "d", "input": tmp_path, "estimate": estimate}))

    (tmp_path / "a.safetensors").write_bytes(b"weights")
    (tmp_path / "b.safetensors").write_bytes(b"weights")
    (tmp_path / "c.safetensors").write_bytes(b"others")
    assert entry(tmp_path / "a.safetensors") == entry(tmp_path / "b.safetensors")
    assert entry(tmp_path / "a.safetensors")["fingerprint"] != entry(tmp_path / "c.safetensors")["fingerprint"]
    with pytest.raises(EstimatorFilesError, match=r"no\.safetensors"):
        entry(tmp_path / "no.safetensors")


def test_what_is_annotated_is_not_estimated_too(tmp_path: Path) -> None:
    content = {"dataset": "d", "input": tmp_path, "annotations": [tmp_path / "a.json"], "estimate": {"pose": {}}}
    with pytest.raises(ValidationError, match="pose is annotated and would be derived or estimated too"):
        AnnotatedConfig.model_validate(content)
    assert AnnotatedConfig.model_validate({**content, "render": ["boxes"]}).estimate.roles == ("pose",)
    pose = {"backend": "mmpose", "config": "c.py", "checkpoint": "c.pth", "boxes": "given"}
    with pytest.raises(ValidationError, match="no annotation of this source gives boxes of people"):
        ImagesConfig.model_validate({"dataset": "d", "input": tmp_path, "estimate": {"pose": pose}})
