"""Every form of annotated images goes from its files to tokens, accounted for, whatever the number of workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console
from scenes_support import scenes
from tests_support import dataset_bytes

from uvd.manifests import Dataset
from uvd.manifests.stats import query
from uvd.manifests.verify import verify
from uvd.pipeline.config import config_entry
from uvd.pipeline.demo import published_images as forms
from uvd.pipeline.demo.published_images import Scene
from uvd.pipeline.ingest import ingest, make_shard, plan
from uvd.pipeline.ray_runtime import ray_runtime
from uvd.pipeline.tokenizing import TokenizeSettings, tokenize
from uvd.sources.annotated.config import AnnotatedConfig

LayOut = Callable[[Path, list[Scene]], None]


def _darker(scene: Scene) -> NDArray[np.uint8]:
    return scene.pixels // np.uint8(3)


def _pairs(root: Path, found: list[Scene]) -> None:
    forms.lay_out_pairs(root, found, _darker)


DEPTH = {"images": "images/*.jpg", "maps": {"depth": {"files": "depth/*.png", "form": "depth", "scale": 1000}}}
KINDS: dict[str, tuple[LayOut, dict[str, Any], set[str]]] = {
    "coco": (
        forms.lay_out_coco,
        {"input": "images", "annotations": ["instances.json"], "derive": ["grey", "masked"]},
        {"boxes", "pose", "segmentation", "grey", "masked"},
    ),
    "panoptic": (forms.lay_out_panoptic, {"input": "images", "annotations": ["panoptic.json"]}, {"segmentation"}),
    "voc": (
        forms.lay_out_voc,
        {"render": ["boxes", "segmentation", "foreground"], "layouts": {"pairs": 1.0}},
        {"boxes", "segmentation", "foreground"},
    ),
    "yolo": (forms.lay_out_yolo, {"render": ["boxes", "filled_boxes"]}, {"boxes", "filled_boxes"}),
    "ade20k": (forms.lay_out_ade20k, {}, {"segmentation"}),
    "cityscapes": (forms.lay_out_cityscapes, {}, {"segmentation"}),
    "files": (forms.lay_out_depth, DEPTH, {"depth"}),
    "pairs": (_pairs, {}, {"target"}),
}
"""Kind → what lays it out, its settings (paths below the folder), and the roles that must come out beside the photo."""


def config(kind: str, root: Path, count: int = 6) -> AnnotatedConfig:
    """Lays `count` scenes out in the form of a kind, if they are not there yet."""
    lay_out, settings, _ = KINDS[kind]
    if not root.exists():
        lay_out(root, scenes(count))
    content: dict[str, Any] = {"kind": kind, "name": kind, "dataset": kind, "shard_size": 2, "input": root, **settings}
    content["input"] = root / settings.get("input", "")
    if "annotations" in settings:
        content["annotations"] = [root / name for name in settings["annotations"]]
    return AnnotatedConfig.model_validate(content)


@pytest.mark.parametrize("kind", KINDS)
def test_every_scene_is_used_with_every_annotation(tmp_path: Path, kind: str) -> None:
    settings = config(kind, tmp_path / "inputs")
    dataset, entry = Dataset(str(tmp_path / "out")), config_entry(settings)
    dataset.declare("sequences", settings.folder, entry)
    for job in plan(dataset, settings, entry["fingerprint"]):
        counts = make_shard(job).counts
        assert counts["inputs"] == counts["used"] == job.unit.num_inputs
    assert verify(dataset, deep=True).problems == []
    found = {role for row in query(dataset, "select roles from sequences").to_pylist() for role in row["roles"]}
    assert found == {"image", *KINDS[kind][2]}


@pytest.mark.slow
def test_bytes_do_not_depend_on_workers_and_everything_becomes_tokens(tmp_path: Path) -> None:
    for workers in (1, 2):
        out = str(tmp_path / f"out{workers}")
        with ray_runtime(num_cpus=workers):
            for kind in KINDS:
                settings = config(kind, tmp_path / kind)
                assert ingest(settings, out, num_cpus=workers, console=Console(quiet=True)).complete
            tokens = TokenizeSettings("uvd-small", device="cpu", batch_size=8)
            for _, result in tokenize(Dataset.existing(out), (), tokens, num_cpus=workers, console=Console(quiet=True)):
                assert result.complete
        assert verify(Dataset.existing(out), deep=True).problems == []
    assert dataset_bytes(tmp_path / "out1") == dataset_bytes(tmp_path / "out2")
