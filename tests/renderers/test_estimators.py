"""Depth, normals and segmentation by real architectures with tiny weights: what is drawn, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_networks import NUM_LABELS, SIDE, save_tiny
from transformers import AutoImageProcessor, BertConfig

from uvd.renderers.depth import render_depth
from uvd.renderers.estimators import hub
from uvd.renderers.estimators.base import Estimator, EstimatorFilesError, View
from uvd.renderers.estimators.batches import EstimateError, resized, torch_device
from uvd.renderers.estimators.config import DepthSettings, EstimateConfig, NormalsSettings, SegmentationSettings
from uvd.renderers.estimators.depth import FARTHEST, DepthEstimator, distance_of
from uvd.renderers.estimators.normals import NormalsEstimator
from uvd.renderers.estimators.opening import open_estimators, weights_of
from uvd.renderers.estimators.pretrained import Pixels
from uvd.renderers.estimators.segmentation import SegmentationEstimator, by_size, class_scores, panoptic_segments
from uvd.renderers.palette import PALETTE
from uvd.sequences.errors import DeviceError

BATCH = 2
DEPTH = ("dpt", "depth_anything", "zoedepth", "zoedepth_voting")
SEMANTIC = ("segformer", "upernet", "dpt_semantic", "mask2former", "maskformer", "oneformer")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small only wait for each other's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny network, written once."""
    root = tmp_path_factory.mktemp("networks")
    return lambda name: root / name if (root / name).exists() else save_tiny(name, root / name)


@pytest.fixture
def own(saved: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """The same, to be damaged."""
    return lambda name: Path(shutil.copytree(saved(name), tmp_path / name))


def depth(folder: Path, predicts: str = "inverse", normals: bool = False) -> DepthEstimator:
    settings = DepthSettings.model_validate({"model": str(folder), "predicts": predicts})
    return DepthEstimator(settings, NormalsSettings() if normals else None, "cpu", BATCH)


def segmentation(folder: Path, form: str = "semantic") -> SegmentationEstimator:
    settings = SegmentationSettings.model_validate({"model": str(folder), "form": form})
    return SegmentationEstimator(settings, "cpu", BATCH)


def open_any(name: str, folder: Path) -> Estimator:
    if name == "omnidata":
        return NormalsEstimator(NormalsSettings(model=str(folder)), "cpu", BATCH)
    if name in SEMANTIC:
        return segmentation(folder, "panoptic" if name == "oneformer" else "semantic")
    return depth(folder, normals=True)


def photos(side: int, count: int) -> list[View]:
    """Pictures of different brightness with coarse parts and fine ones."""
    rng = np.random.default_rng(5)
    views = []
    for number in range(count):
        coarse = np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((side // 4 + 1, side // 4 + 1, 1)))[:side, :side]
        noise = rng.integers(-20, 21, (side, side, 3))
        views.append(View(np.clip(coarse / (number + 1) + noise, 0, 255).astype(np.uint8)))
    return views


@pytest.mark.parametrize("name", [*DEPTH, "omnidata", *SEMANTIC])
def test_a_photos_answer_does_not_depend_on_its_neighbours(name: str, saved: Callable[[str], Path]) -> None:
    estimator = open_any(name, saved(name))
    views = photos(estimator.side, BATCH + 1)
    together = list(estimator._network(views))
    assert len(together) == BATCH + 1
    for number in (1, BATCH):
        (alone,) = estimator._network([views[number]])
        assert all(torch.equal(*pair) for pair in zip(alone, together[number], strict=True))
    # Otherwise the network sees nothing, and the comparison above means nothing.
    assert not torch.equal(together[0][-1], together[1][-1])


def test_a_photo_alone_decides_between_indoors_and_outdoors(own: Callable[[str], Path]) -> None:
    """ZoeDepth with two heads sums the votes of a batch; here two photos would be outvoted by each other."""
    folder = own("zoedepth_voting")
    estimator = depth(folder)
    views = photos(estimator.side, 2)
    with torch.no_grad():
        pixels = estimator._network.pixels(torch.from_numpy(np.stack([view.pixels for view in views])))
        votes = estimator._network.model(pixels).domain_logits
    lead = votes[:, 0] - votes[:, 1]
    assert lead[0] != lead[1]
    change(folder, lambda weights: weights["metric_head.mlp_classifier.linear2.bias"][0].sub_(lead.mean()))
    estimator = depth(folder)
    for view, (together,) in zip(views, estimator._network(views), strict=True):
        ((alone,),) = estimator._network([view])
        assert torch.equal(alone, together)


@pytest.mark.parametrize("name", ["depth_anything", "omnidata", "upernet", "mask2former", "oneformer"])
def test_pictures_are_drawn_for_each_role(name: str, saved: Callable[[str], Path]) -> None:
    estimator = open_any(name, saved(name))
    found = estimator.estimate(photos(estimator.side, BATCH + 1))
    assert len(found) == BATCH + 1
    for pictures in found:
        assert tuple(pictures) in ((estimator.roles, ()) if name == "oneformer" else (estimator.roles,))
        assert {(picture.shape, picture.dtype.name) for picture in pictures.values()} <= {((256, 256, 3), "uint8")}
    assert len({picture.tobytes() for pictures in found for picture in pictures.values()}) > 1


@pytest.mark.parametrize("name", ["dpt", "segformer", "zoedepth"])
def test_pixels_are_scaled_as_the_networks_processor_does(name: str, saved: Callable[[str], Path]) -> None:
    processor = AutoImageProcessor.from_pretrained(saved(name), backend="pil")
    pixels = Pixels.of(processor)
    (view,) = photos(pixels.side, 1)
    expected = processor(images=view.pixels, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels(torch.from_numpy(view.pixels[None])), expected, rtol=1e-5, atol=1e-5)


def test_sides_are_what_networks_want(saved: Callable[[str], Path]) -> None:
    def side(name: str, **settings: object) -> int:
        return Pixels.of(AutoImageProcessor.from_pretrained(saved(name), backend="pil", **settings)).side

    assert side("depth_anything") == 56  # 60, as a multiple of 14
    assert side("glpn") == 480
    assert side("segformer", do_center_crop=True, crop_size={"height": 48, "width": 48}) == 48
    assert side("mask2former", size={"shortest_edge": 100, "longest_edge": 300}) == 96
    zoe = Pixels.of(AutoImageProcessor.from_pretrained(saved("zoedepth"), backend="pil"))
    assert zoe.side + sum(zoe.border) == 96
    whole = torch.zeros(1, 192, 192)
    whole[:, 2 * zoe.border[0] : -2 * zoe.border[1], 2 * zoe.border[0] : -2 * zoe.border[1]] = 1
    assert bool(zoe.without_border(whole).all())
    assert int(zoe.without_border(whole).sum()) == int(whole.sum())
    with pytest.raises(ValueError, match="100000 pixels wide"):
        side("segformer", size={"height": 100_000, "width": 100_000})


def test_depth_is_what_transformers_predicts(saved: Callable[[str], Path]) -> None:
    estimator = depth(saved("dpt"))
    (view,) = photos(SIDE, 1)
    processor = AutoImageProcessor.from_pretrained(saved("dpt"), backend="pil")
    with torch.no_grad():
        output = estimator._network.model(**processor(images=view.pixels, return_tensors="pt"))
    expected = render_depth(resized(output.predicted_depth)[0], predicts="inverse")
    drawn = estimator.estimate([view])[0]["depth"]
    assert np.abs(drawn.astype(int) - expected).max() <= 1
    assert drawn.max() == 255
    # The same numbers, taken for distances, have their nearest point elsewhere.
    as_distance = depth(saved("dpt"), "metric").estimate([view])[0]["depth"]
    known = (as_distance > 0) & (drawn > 1)
    assert known.any()
    assert np.corrcoef(drawn[known], as_distance[known])[0, 1] < 0


def test_depth_and_its_normals_come_in_one_pass(saved: Callable[[str], Path]) -> None:
    estimator = depth(saved("dpt"), normals=True)
    assert estimator.roles == ("depth", "normals")
    passes: list[int] = []
    estimator._network.model.register_forward_hook(lambda *_: passes.append(1))
    (found,) = estimator.estimate(photos(SIDE, 1))
    assert tuple(found) == estimator.roles
    assert len(passes) == 1
    vectors = found["normals"] / 127.5 - 1
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=0.02)


def test_depth_without_relief_is_grey_and_faces_the_camera(own: Callable[[str], Path]) -> None:
    folder = own("dpt")
    change(folder, lambda weights: (weights["head.head.4.weight"].zero_(), weights["head.head.4.bias"].fill_(3.0)))
    (found,) = depth(folder, normals=True).estimate(photos(SIDE, 1))
    assert np.unique(found["depth"]).tolist() == [128]
    assert np.unique(found["normals"].reshape(-1, 3), axis=0).tolist() == [[128, 128, 255]]


def test_distance_of_inverse_depth_is_relative() -> None:
    inverse = np.array([[5.0, 9.0], [7.0, 5.0]], np.float32)
    np.testing.assert_allclose(distance_of(inverse), [[FARTHEST, 1], [2 / (1 + 1 / FARTHEST), FARTHEST]])
    np.testing.assert_allclose(distance_of(inverse * 3 + 11), distance_of(inverse))


def change(folder: Path, damage: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    damage(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_normals_of_omnidata_are_turned_up(own: Callable[[str], Path]) -> None:
    """A floor is green at the top of Omnidata's range downwards: (0, -1, 0) there, (0, 1, 0) here."""
    folder = own("omnidata")

    def floor(weights: dict[str, torch.Tensor]) -> None:
        weights["head.head.4.weight"].zero_()
        weights["head.head.4.bias"].copy_(torch.tensor([0.5, -0.2, 0.5]))

    change(folder, floor)
    estimator = NormalsEstimator(NormalsSettings(model=str(folder)), "cpu", BATCH)
    (found,) = estimator.estimate(photos(SIDE, 1))
    assert np.unique(found["normals"].reshape(-1, 3), axis=0).tolist() == [[128, 255, 128]]


def test_classes_take_the_place_after_their_number(own: Callable[[str], Path]) -> None:
    folder = own("segformer")

    def third(weights: dict[str, torch.Tensor]) -> None:
        weights["decode_head.classifier.weight"].zero_()
        weights["decode_head.classifier.bias"].copy_(torch.tensor([0.0, 0.0, 9.0, 0.0, 1.0]))

    change(folder, third)
    (found,) = segmentation(folder).estimate(photos(SIDE, 1))
    assert (found["segmentation"] == PALETTE[3]).all()


def test_class_scores_are_those_of_transformers(saved: Callable[[str], Path]) -> None:
    """The processor enlarges twice, so borders may move by a pixel."""
    torch.manual_seed(3)
    classes, masks = torch.randn(6, NUM_LABELS + 1) * 3, torch.randn(6, 8, 8) * 4
    processor = AutoImageProcessor.from_pretrained(saved("mask2former"), backend="pil")
    outputs = SimpleNamespace(class_queries_logits=classes[None], masks_queries_logits=masks[None])
    (expected,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(256, 256)])
    ours = class_scores(classes, masks).argmax(dim=0)
    assert len(ours.unique()) > 2
    assert (ours == expected).float().mean() > 0.98


def mask(rows: slice, columns: slice, sure: float = 8.0) -> torch.Tensor:
    logits = torch.full((64, 64), -8.0)
    logits[rows, columns] = sure
    return logits


def test_panoptic_segments_do_not_overlap_and_stuff_is_one() -> None:
    left, right, middle = slice(0, 16), slice(48, 64), slice(16, 48)
    everything = slice(0, 64)
    masks = torch.stack(
        [
            mask(everything, left),  # 1: class 0, stuff
            mask(everything, middle),  # 2: class 1
            mask(everything, right),  # 3: class 0, stuff again
            mask(slice(0, 8), middle),  # 4: class 1, less sure than 2, which covers it: dropped
            mask(everything, everything),  # nothing
            mask(slice(0, 8), right, 20.0),  # class 2, not sure enough
        ]
    )
    classes = torch.full((6, 4), -9.0)
    for query, (label, logit) in enumerate([(0, 9), (1, 9), (0, 9), (1, 3), (3, 9), (2, -9)]):
        classes[query, label] = logit
    found = panoptic_segments(classes, masks, stuff={0})
    assert found.unique().tolist() == [1, 2]
    assert found[100, [10, 128, 250]].tolist() == [1, 2, 1]
    assert panoptic_segments(classes, masks)[100, [10, 128, 250]].tolist() == [1, 2, 3]
    assert not panoptic_segments(classes - 30 * torch.eye(4)[[0, 1, 0, 1, 2, 2]], masks).any()


def test_largest_segment_takes_the_first_colour() -> None:
    segments = np.array([[7, 7, 2, 2], [9, 9, 9, 0]])
    assert by_size(segments).tolist() == [[3, 3, 2, 2], [1, 1, 1, 0]]
    assert not by_size(np.full((2, 2), -1)).any()


def test_oneformer_is_told_its_task(saved: Callable[[str], Path]) -> None:
    semantic, panoptic = (segmentation(saved("oneformer"), form)._network.inputs for form in ("semantic", "panoptic"))
    assert semantic["task_inputs"].shape == (1, 40)
    assert not torch.equal(semantic["task_inputs"], panoptic["task_inputs"])
    assert segmentation(saved("oneformer"), "panoptic")._stuff == {0, 2, 4}


def refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(EstimatorFilesError, match=message):
        call()


def test_incomplete_folders_are_refused(own: Callable[[str], Path], tmp_path: Path) -> None:
    refused(lambda: depth(tmp_path / "nothing"), "no such folder")
    (tmp_path / "empty").mkdir()
    refused(lambda: depth(tmp_path / "empty"), "no config.json")
    folder = own("dpt")
    refused(lambda: depth(folder / "config.json"), "is a file")
    pickled = folder / "pytorch_model.bin"
    torch.save(load_file(folder / "model.safetensors"), pickled)
    (folder / "model.safetensors").rename(folder / "kept")
    refused(lambda: depth(folder), "only as a pickle")
    pickled.unlink()
    refused(lambda: depth(folder), "no model.safetensors")
    (folder / "model.safetensors").write_bytes((folder / "kept").read_bytes()[:500])
    refused(lambda: depth(folder), "dpt: ")
    refused(lambda: NormalsEstimator(NormalsSettings(model=str(folder)), "cpu", 1), "no readable weight")
    (folder / "kept").replace(folder / "model.safetensors")
    (folder / "preprocessor_config.json").rename(folder / "kept")
    refused(lambda: depth(folder), "no preprocessor_config.json")
    (folder / "preprocessor_config.json").write_text("{")
    refused(lambda: depth(folder), "dpt: ")
    (folder / "kept").replace(folder / "preprocessor_config.json")
    (folder / "config.json").write_text("[]")
    refused(lambda: depth(folder), "dpt: ")


def test_weights_in_several_files_are_read_and_checked(own: Callable[[str], Path]) -> None:
    folder = own("omnidata")
    settings = NormalsSettings(model=str(folder))
    (expected,) = NormalsEstimator(settings, "cpu", 1).estimate(photos(SIDE, 1))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(weights)}
    for file in set(places.values()):
        save_file({name: weights[name] for name in places if places[name] == file}, folder / file, {"format": "pt"})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (found,) = NormalsEstimator(settings, "cpu", 1).estimate(photos(SIDE, 1))
    np.testing.assert_array_equal(found["normals"], expected["normals"])
    for name in ("pytorch_model.bin", "../model-0.safetensors", "/etc/model.safetensors"):
        index.write_text(json.dumps({"weight_map": {**places, "head.head.4.bias": name}}))
        refused(lambda: hub.check_folder(folder), "which is no safetensors file beside it")
    index.write_text(json.dumps({"weight_map": {**places, "head.head.4.bias": "model-2.safetensors"}}))
    refused(lambda: hub.check_folder(folder), "has no model-2.safetensors")
    index.write_text("[" * 100_000)
    refused(lambda: hub.check_folder(folder), "cannot be read")


def test_networks_for_something_else_are_refused(own: Callable[[str], Path], saved: Callable[[str], Path]) -> None:
    text = own("dpt")
    BertConfig().save_pretrained(text)
    refused(lambda: depth(text), "of type bert; depth needs one of .*dpt")
    refused(lambda: segmentation(text), "of type bert; semantic segmentation")
    refused(lambda: depth(saved("segformer")), "of type segformer")
    refused(lambda: segmentation(saved("segformer"), "panoptic"), "panoptic segmentation needs one of maskformer")
    refused(lambda: NormalsEstimator(NormalsSettings(model=str(saved("dpt"))), "cpu", 1), "1 channels")
    refused(lambda: NormalsEstimator(NormalsSettings(model=str(saved("glpn"))), "cpu", 1), "normals needs one of dpt")
    refused(lambda: depth(saved("omnidata")), "omnidata: ")


def test_code_of_a_repository_is_never_run(own: Callable[[str], Path]) -> None:
    folder = own("dpt")
    (folder / "evil.py").write_text("raise SystemExit('code of a repository was run')")
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForDepthEstimation": "evil.M"}}
    (folder / "config.json").write_text(json.dumps(settings))
    refused(lambda: depth(folder), "of type evil")
    (folder / "config.json").write_text(json.dumps({**settings, "model_type": "dpt"}))
    assert depth(folder).side == SIDE
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    processor |= {"image_processor_type": "Evil", "auto_map": {"AutoImageProcessor": "evil.P"}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    refused(lambda: depth(folder), "dpt: ")


def test_weights_that_are_needed_must_be_there(own: Callable[[str], Path]) -> None:
    """DPT's published files lack a layer that the forward pass never uses; others must not be made up."""
    folder = own("dpt")
    unused = [name for name in load_file(folder / "model.safetensors") if "layers.0.residual_layer1" in name]
    assert unused
    before = depth(folder).estimate(photos(SIDE, 1))[0]["depth"]
    change(folder, lambda weights: [weights.pop(name) for name in unused])
    np.testing.assert_array_equal(depth(folder).estimate(photos(SIDE, 1))[0]["depth"], before)
    change(folder, lambda weights: weights.pop("neck.fusion_stage.layers.1.residual_layer1.convolution1.weight"))
    refused(lambda: depth(folder), "lacks weights .*layers.1.residual_layer1.convolution1.weight$")


def test_networks_that_cannot_see_such_views_are_refused(own: Callable[[str], Path]) -> None:
    folder = own("dpt")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings["image_mean"] = [0.5, 0.5]
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    refused(lambda: depth(folder), "dpt: ")


def test_answers_that_are_not_finite_are_an_error(own: Callable[[str], Path]) -> None:
    folder = own("depth_anything")
    change(folder, lambda weights: weights["head.conv3.bias"].fill_(torch.nan))
    estimator = depth(folder)
    with pytest.raises(EstimateError, match="not finite"):
        estimator.estimate(photos(estimator.side, 1))


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert torch_device("auto").type == "cpu"
    with pytest.raises(DeviceError, match="no GPU"):
        torch_device("cuda")


def test_a_config_opens_its_estimators_in_order(saved: Callable[[str], Path]) -> None:
    config = EstimateConfig.model_validate(
        {
            "depth": {"model": str(saved("dpt"))},
            "normals": {},
            "segmentation": {"model": str(saved("segformer"))},
            "batch_size": BATCH,
            "device": "cpu",
        }
    )
    estimators = open_estimators(config)
    assert [estimator.roles for estimator in estimators] == [("depth", "normals"), ("segmentation",)]
    assert open_estimators(config) is estimators
    assert {estimator._network.batch_size for estimator in estimators} == {BATCH}


def test_identity_changes_with_every_file_that_decides(own: Callable[[str], Path], tmp_path: Path) -> None:
    folder = own("dpt")
    config = EstimateConfig.model_validate({"depth": {"model": str(folder)}})
    before = weights_of(config)
    assert before["depth"].keys() == {"config.json", "model.safetensors", "preprocessor_config.json"}
    (folder / "README.md").write_text("text")
    assert weights_of(config) == before
    moved = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    assert weights_of(EstimateConfig.model_validate({"depth": {"model": str(moved)}})) == before
    change(folder, lambda weights: weights["head.head.4.bias"].add_(1))
    assert weights_of(config) != before
    missing = EstimateConfig.model_validate({"edges": {"weights": tmp_path / "hed.safetensors"}})
    refused(lambda: weights_of(missing), "no such file")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A hub that cannot be reached, and a cache that is empty; notes each try."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    tries: list[bool] = []

    def fail(model_id: str, allow_patterns: list[str], local_files_only: bool = False) -> str:
        assert not any(pattern.endswith((".bin", ".py", "*")) for pattern in allow_patterns)
        tries.append(local_files_only)
        raise LocalEntryNotFoundError("cannot reach the hub\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    return tries


def test_a_hub_id_offline_says_so(offline: list[bool]) -> None:
    refused(lambda: hub.folder_of("Intel/dpt-large"), "Intel/dpt-large is no folder.*cannot reach the hub$")
    assert offline == [True, False]
    for typo in ("models/dpt/large", "dpt-large", "/missing/dpt", "../dpt", "a b/c"):
        refused(lambda typo=typo: hub.folder_of(typo), "no such folder")
    assert len(offline) == 2


def test_what_the_cache_has_is_not_fetched(saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def cached(model_id: str, allow_patterns: list[str], local_files_only: bool = False) -> str:
        assert local_files_only
        return str(saved("dpt"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    assert hub.folder_of("Intel/dpt-large") == saved("dpt")
