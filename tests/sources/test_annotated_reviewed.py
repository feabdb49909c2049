"""What a review of annotated kinds found: classes apart, roles once, files named, settings that cannot work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError
from scenes_support import scenes

from uvd.pipeline.demo import published_images as forms
from uvd.sequences import Example, Reject, Seeds
from uvd.sequences.layouts import Arranged, assemble
from uvd.sequences.layouts.tuples import Tuples
from uvd.sources.annotated.config import AnnotatedConfig
from uvd.sources.annotated.source import AnnotatedSource
from uvd.sources.images import ImagesConfig


def config(root: Path, kind: str, **settings: Any) -> AnnotatedConfig:
    return AnnotatedConfig.model_validate({"dataset": "d", "kind": kind, "input": root, **settings})


def outcomes(settings: AnnotatedConfig) -> Iterator[Example | Reject]:
    source = AnnotatedSource(settings)
    for unit in source.plan():
        yield from source.read(unit, Seeds(0, ("annotated", unit.shard)))


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    forms.lay_out_voc(tmp_path, scenes(4))
    return tmp_path


def test_masks_of_different_classes_share_no_tuples(voc: Path) -> None:
    examples = list(outcomes(config(voc, "voc-segmentation", roles=["foreground"])))
    group_of = {id(picture.pixels): e.group for e in examples if isinstance(e, Example) for picture in e.pictures[1:]}
    assert len(set(group_of.values())) > 1
    arranged: list[Arranged] = list(assemble(examples, {"tuples": Tuples}, {"tuples": 1.0}, Seeds(0, ("t",))))
    for sequence in arranged:
        assert not isinstance(sequence, Reject)
        masks = {group_of[id(p.pixels)] for p in sequence.pictures if p.role == "foreground"}
        assert len(masks) == 1, "masks of two classes in one sequence: which class is meant cannot be seen"


@pytest.mark.parametrize("layout", ["pairs", "tuples"])
def test_map_may_not_have_the_role_of_a_derived_picture(tmp_path: Path, layout: str) -> None:
    maps = {"grey": {"files": "target/*.jpg", "form": "picture"}}
    with pytest.raises(ValidationError, match="grey"):
        config(tmp_path, "files", images="input/*.jpg", maps=maps, derive=["grey"], layouts={layout: 1})


def test_masks_of_one_class_are_not_kept_whole(voc: Path) -> None:
    with pytest.raises(ValidationError, match="foreground"):
        config(voc, "voc-segmentation", layouts={"whole": 1})
    with pytest.raises(ValidationError, match="foreground"):
        config(voc, "voc", render=["foreground"], layouts={"whole": 1})
    config(voc, "voc-segmentation", roles=["segmentation"], layouts={"whole": 1})


@pytest.mark.parametrize("layout", ["pairs", "tuples"])
def test_photos_alone_make_no_pairs(tmp_path: Path, layout: str) -> None:
    with pytest.raises(ValidationError, match=layout):
        ImagesConfig.model_validate({"dataset": "d", "input": tmp_path, "layouts": {layout: 1}})


@pytest.mark.parametrize("kind", ["voc", "yolo"])
def test_pose_is_estimated_where_the_form_has_no_keypoints(tmp_path: Path, kind: str) -> None:
    assert config(tmp_path, kind, estimate={"pose": {}}).estimate.roles == ("pose",)


def test_mask_that_is_a_jpeg_is_refused(voc: Path) -> None:
    mask = voc / "SegmentationClass/scene-0.png"
    Image.open(mask).convert("L").save(mask.with_suffix(".jpg"), quality=60)
    mask.unlink()
    rejects = [outcome for outcome in outcomes(config(voc, "voc")) if isinstance(outcome, Reject)]
    assert [reject.origin for reject in rejects] == ["JPEGImages/scene-0.jpg"]


@pytest.mark.parametrize("content", [b"", b"text", "cut", "rgb"])
def test_unreadable_mask_is_named(voc: Path, content: bytes | str) -> None:
    mask = voc / "SegmentationClass/scene-0.png"
    if content == "rgb":
        Image.open(mask).convert("RGB").save(mask)
    else:
        mask.write_bytes(content if isinstance(content, bytes) else mask.read_bytes()[:200])
    (reject,) = [outcome for outcome in outcomes(config(voc, "voc")) if isinstance(outcome, Reject)]
    assert "SegmentationClass/scene-0.png" in reject.detail


def test_beyond_the_palette_names_the_label_file(tmp_path: Path) -> None:
    forms.lay_out_yolo(tmp_path, scenes(2))
    (tmp_path / "labels/scene-0.txt").write_text("3000 0.5 0.5 0.2 0.2\n")
    (reject,) = [outcome for outcome in outcomes(config(tmp_path, "yolo")) if isinstance(outcome, Reject)]
    assert "labels/scene-0.txt" in reject.detail


def test_one_json_needs_no_list(tmp_path: Path) -> None:
    forms.lay_out_coco(tmp_path, scenes(1))
    one = config(tmp_path / "images", "coco", annotations=str(tmp_path / "instances.json"))
    assert one.annotations == (tmp_path / "instances.json",)


def test_photo_without_any_annotation_is_told_from_one_cut_away(tmp_path: Path) -> None:
    forms.lay_out_yolo(tmp_path, scenes(2))
    (tmp_path / "labels/scene-0.txt").write_text("\n")
    (reject,) = [outcome for outcome in outcomes(config(tmp_path, "yolo")) if isinstance(outcome, Reject)]
    assert "crop" not in reject.detail
