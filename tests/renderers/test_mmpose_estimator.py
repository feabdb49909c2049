"""MMPose's own architectures with random weights: what is asked of the networks, what is done with their answers, and
what is refused. Whether published weights find people is not tested: none come with any package.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
pytest.importorskip("mmpose")

from uvd.renderers import mm_compat  # noqa: E402
from uvd.renderers.estimators import mmpose as backend  # noqa: E402
from uvd.renderers.estimators.base import EstimatorFilesError, View  # noqa: E402
from uvd.renderers.estimators.config import PoseSettings  # noqa: E402
from uvd.renderers.estimators.mm_checkpoint import read_checkpoint  # noqa: E402
from uvd.renderers.estimators.mmpose import MMPoseEstimator, detected_people, given_people, keypoints_in  # noqa: E402
from uvd.renderers.estimators.pose import draw_people, open_pose_estimator  # noqa: E402
from uvd.sequences.errors import DeviceError  # noqa: E402

SIDE = MMPoseEstimator.side
PADDING = 1.25
BOXES = np.array([[40, 60, 200, 420], [300, 200, 420, 620], [-50, -50, 90, 100]], dtype=np.float64)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config(package: str, path: str) -> Path:
    module = pytest.importorskip(package)
    return Path(module.__file__).parent / ".mim" / "configs" / path


def rtmpose() -> Path:
    return config("mmpose", "body_2d_keypoint/rtmpose/coco/rtmpose-t_8xb256-420e_coco-256x192.py")


def rtmdet() -> Path:
    return config("mmdet", "rtmdet/rtmdet_tiny_8xb32-300e_coco.py")


def pose_state(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Seeded weights of a config, and what it says of its keypoints."""
    mm_compat.install()
    from mmpose.apis import init_model

    torch.manual_seed(1)
    model = init_model(str(path), device="cpu")
    return model.state_dict(), model.dataset_meta


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    return pose_state(rtmpose())[0]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As MMEngine saves one while training: arrays of numpy, its logs, wrapped weights."""
    from mmengine.logging import HistoryBuffer

    weights, meta = pose_state(rtmpose())
    log = HistoryBuffer([1.0, 2.0], [1, 1])
    path = tmp_path_factory.mktemp("mm") / "pose.pth"
    torch.save(
        {
            "meta": {"epoch": 3, "dataset_meta": meta, "seed": np.int64(5)},
            "state_dict": OrderedDict((f"module.{name}", value) for name, value in weights.items()),
            "message_hub": {"log_scalars": OrderedDict({"loss": log})},
        },
        path,
    )
    return path


@pytest.fixture(scope="module")
def detector_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector that is sure of people, and of bicycles, where chance has it."""
    mm_compat.install()
    from mmdet.apis import init_detector

    torch.manual_seed(2)
    weights = init_detector(str(rtmdet()), device="cpu").state_dict()
    for level in range(3):
        kernel, bias = (weights[f"bbox_head.rtm_cls.{level}.{name}"] for name in ("weight", "bias"))
        kernel[0], kernel[1], kernel[2:] = 300 * kernel[1], 250 * kernel[1], 0
        bias[:2], bias[2:] = -2, -9
        weights[f"bbox_head.rtm_reg.{level}.bias"][:] = 2.5
    path = tmp_path_factory.mktemp("mm") / "detector.pth"
    meta = {"dataset_meta": {"CLASSES": ("person", "bicycle"), "PALETTE": [(1, 2, 3)]}}
    torch.save({"state_dict": weights, "meta": meta, "data_preprocessor.mean": torch.zeros(3, 1, 1)}, path)
    return path


def settings(checkpoint: Path, config: Path | None = None, **more: Any) -> PoseSettings:
    fields: dict[str, Any] = {"backend": "mmpose", "boxes": "given", "threshold": 0, **more}
    return PoseSettings(config=config or rtmpose(), checkpoint=checkpoint, **fields)


@pytest.fixture(scope="module")
def estimator(checkpoint: Path) -> MMPoseEstimator:
    opened = open_pose_estimator(settings(checkpoint), "cpu", 4)
    assert isinstance(opened, MMPoseEstimator)
    return opened


def photo(seed: int) -> NDArray[np.uint8]:
    rng = np.random.Generator(np.random.Philox(seed))
    coarse = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((SIDE // 20, SIDE // 20, 1), dtype=np.uint8))


def test_given_boxes_end_to_end(estimator: MMPoseEstimator) -> None:
    views = [View(photo(1), BOXES), View(photo(2), np.zeros((0, 4))), View(photo(3)), View(photo(4), BOXES[:1])]
    people = estimator.people(views)
    assert [found.shape for found in people] == [(3, 17, 3), (0, 17, 3), (0, 17, 3), (1, 17, 3)]
    # Smallest first: the one at the corner, cut to the view.
    for person, (left, top, right, bottom) in zip(people[0], [(0, 0, 90, 100), BOXES[1], BOXES[0]], strict=True):
        height = max(bottom - top, (right - left) * 4 / 3) * PADDING / 2
        centre = np.array([left + right, top + bottom]) / 2
        assert (np.abs(person[:, :2] - centre) <= (height * 0.75 + 1, height + 1)).all()
    drawn = estimator.estimate(views)
    assert [set(pictures) for pictures in drawn] == [{"pose"}, set(), set(), {"pose"}]
    assert drawn[0]["pose"].shape == (256, 256, 3)
    assert drawn[0]["pose"].any()


def test_keypoints_are_those_of_mmposes_own_inference(estimator: MMPoseEstimator) -> None:
    from mmpose.apis import inference_topdown

    model = estimator._pose.model
    theirs = inference_topdown(model, photo(1)[..., ::-1], BOXES[:2].astype(np.float32))
    (ours,) = estimator.people([View(photo(1), BOXES[:2])])
    for person, result in zip(ours[::-1], theirs, strict=True):
        assert np.abs(person[:, :2] - result.pred_instances.keypoints[0]).max() < 1.01
        assert np.allclose(person[:, 2], result.pred_instances.keypoint_scores[0], rtol=1e-3)


def test_bytes_do_not_depend_on_neighbours(estimator: MMPoseEstimator) -> None:
    alone = estimator.estimate([View(photo(5), BOXES)])
    among = estimator.estimate([View(photo(6), BOXES[:2]), View(photo(5), BOXES), View(photo(7), BOXES)])
    assert np.array_equal(alone[0]["pose"], among[1]["pose"])


def test_batches_have_one_size_and_places_in_them_do_not_matter(
    estimator: MMPoseEstimator, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = backend._Network(estimator._pose.model, estimator._pose._pipeline, estimator._pose.shared, 4)
    sizes = []
    step = network.model.test_step
    monkeypatch.setattr(network.model, "test_step", lambda data: sizes.append(len(data["inputs"])) or step(data))
    inputs = [{"img": photo(8), "bbox": np.float32([[n, n, n + 90, n + 190]])} for n in range(0, 350, 70)]
    found = keypoints_in(network, inputs)
    assert sizes == [4, 4]
    assert np.array_equal(found, keypoints_in(network, inputs[::-1])[::-1])
    assert np.array_equal(found[4:], keypoints_in(network, inputs[4:]))


def test_a_network_on_the_cpu_sees_one_at_a_time(estimator: MMPoseEstimator) -> None:
    assert estimator._pose.batch_size == 1


def test_boxes_are_cut_sorted_and_counted() -> None:
    boxes = np.array(
        [[0, 0, 50, 50], [-9, -9, 2, 50], [700, 0, 800, 9], [5, 5, 1, 1], [9, 9, 20, 20], [0, 0, np.inf, 9]]
    )
    assert given_people(boxes, SIDE).tolist() == [[9, 9, 20, 20], [0, 0, 50, 50]]
    many = np.array([[0, 0, n, n] for n in range(10, 110)], dtype=np.float64)
    kept = given_people(many, SIDE)
    assert len(kept) == backend.MAX_PEOPLE
    assert kept[-1].tolist() == [0, 0, 109, 109]
    assert given_people(None, SIDE).shape == (0, 4)


def test_detected_people(checkpoint: Path, detector_checkpoint: Path) -> None:
    from mmdet.apis import inference_detector

    detecting = settings(
        checkpoint, boxes="detected", detector_config=rtmdet(), detector_checkpoint=detector_checkpoint
    )
    estimator = open_pose_estimator(detecting, "cpu", 1)
    assert isinstance(estimator, MMPoseEstimator)
    assert estimator._detector is not None
    image = np.ascontiguousarray(photo(9)[..., ::-1])
    (boxes,) = detected_people(estimator._detector, [image])
    theirs = inference_detector(estimator._detector.model, image).pred_instances
    people = theirs[(theirs.labels == 0) & (theirs.scores > 0.3)]
    assert 0 < len(boxes) < len(people)
    # The surest is drawn last.
    assert np.allclose(boxes[-1], np.clip(people.bboxes[int(people.scores.argmax())].numpy(), 0, SIDE), atol=0.01)
    assert (boxes >= 0).all()
    assert (boxes <= SIDE).all()
    assert mm_compat.suppress(boxes.astype(np.float64), np.arange(len(boxes)), 0.3) == list(range(len(boxes)))[::-1]
    # Less sure boxes are forgotten early, and would have changed nothing.
    estimator._detector.model.bbox_head.test_cfg["score_thr"] = 0.2
    assert np.array_equal(detected_people(estimator._detector, [image])[0], boxes)
    (found,) = estimator.people([View(photo(9), BOXES)])
    assert found.shape == (len(boxes), 17, 3)
    assert draw_people(found, SIDE, 0.0)["pose"].any()


def test_a_detector_that_sees_nobody(checkpoint: Path, detector_checkpoint: Path, tmp_path: Path) -> None:
    content = torch.load(detector_checkpoint, weights_only=True)
    for level in range(3):
        content["state_dict"][f"bbox_head.rtm_cls.{level}.weight"] *= 0
        content["state_dict"][f"bbox_head.rtm_cls.{level}.bias"][0] = -9
    torch.save(content, tmp_path / "detector.pth")
    detecting = settings(
        checkpoint, boxes="detected", detector_config=rtmdet(), detector_checkpoint=tmp_path / "detector.pth"
    )
    assert open_pose_estimator(detecting, "cpu", 1).estimate([View(photo(9))]) == [{}]
    content["meta"]["dataset_meta"] = {"classes": ("bicycle", "person")}
    torch.save(content, tmp_path / "detector.pth")
    with pytest.raises(EstimatorFilesError, match=r"first class is not 'person'.*bicycle"):
        open_pose_estimator(detecting, "cpu", 1)


def test_safetensors_give_the_same_weights(checkpoint: Path, state: dict[str, Any], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "pose.safetensors")
    read = read_checkpoint(tmp_path / "pose.safetensors")
    assert read.dataset_meta == {}
    assert read.weights.keys() == read_checkpoint(checkpoint).weights.keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in read.weights.items())
    MMPoseEstimator(settings(tmp_path / "pose.safetensors"), "cpu")


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


class Fetched:
    """Unpickles by way of `getattr`, which a training checkpoint may name."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return getattr, (Bomb(self.path), "path")


@pytest.mark.parametrize("place", ["meta", "state_dict", "message_hub"])
@pytest.mark.parametrize("hostile", [Bomb, Fetched])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_refused_and_not_run(
    tmp_path: Path, place: str, hostile: type[Bomb], zipped: bool
) -> None:
    content: dict[str, Any] = {
        "state_dict": {"weight": torch.zeros(2)},
        place: {"dataset_meta": hostile(tmp_path / "x")},
    }
    torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        EstimatorFilesError, match=r"evil\.pth was not loaded: it asks for (posix|os|nt)\.mkdir|getattr"
    ):
        read_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "x").exists()


def test_a_bare_pickle_and_noise_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bare.pth").write_bytes(pickle.dumps({"state_dict": Bomb(tmp_path / "x")}))
    (tmp_path / "noise.pth").write_bytes(b"\x80\x02" + bytes(range(256)) * 4)
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "noise.safetensors").write_bytes(b"{}" * 50)
    for name in ("bare.pth", "noise.pth", "empty.pth", "noise.safetensors"):
        with pytest.raises(EstimatorFilesError, match=name):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "x").exists()


def test_compressed_and_foreign_content_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(checkpoint) as source,
        zipfile.ZipFile(tmp_path / "z.pth", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
    with pytest.raises(EstimatorFilesError, match="compressed"):
        read_checkpoint(tmp_path / "z.pth")
    for content in ([1], {"state_dict": 3}, {"state_dict": {"a": "text"}}, {"state_dict": {1: torch.zeros(1)}}):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(EstimatorFilesError, match="no state dict of tensors"):
            read_checkpoint(tmp_path / "other.pth")


def test_weights_that_do_not_fit_are_named(state: dict[str, Any], tmp_path: Path) -> None:
    def refused(weights: dict[str, Any], match: str) -> None:
        torch.save(weights, tmp_path / "w.pth")
        with pytest.raises(EstimatorFilesError, match=match):
            MMPoseEstimator(settings(tmp_path / "w.pth"), "cpu")

    name = "head.cls_x.weight"
    refused({key: value for key, value in state.items() if key != name}, rf"w\.pth does not fit .*missing {name}")
    refused({**state, "extra.weight": torch.zeros(1)}, r"extra extra\.weight")
    refused({**state, name: torch.zeros(3, 3)}, rf"size mismatch for {name}")
    refused({**state, name: torch.full_like(state[name], torch.nan)}, rf"not finite: {name}")


def test_configs_that_give_no_top_down_network_of_cocos_keypoints(checkpoint: Path, tmp_path: Path) -> None:
    def refused(text: str, match: str, weights: Path = checkpoint) -> None:
        (tmp_path / "net.py").write_text(text)
        with pytest.raises(EstimatorFilesError, match=match):
            MMPoseEstimator(settings(weights, tmp_path / "net.py"), "cpu")

    refused("x = 1", r"net\.py gives no network")
    refused("x = ", r"net\.py gives no network")
    refused("model = dict(type='NoSuchNet', backbone=dict())", "NoSuchNet")
    refused(f"_base_ = {str(rtmdet())!r}", "no top-down network")
    base = f"_base_ = {str(rtmpose())!r}\nmodel = dict(head=dict(out_channels=5))\n"
    (tmp_path / "five.py").write_text(base)
    torch.save(pose_state(tmp_path / "five.py")[0], tmp_path / "five.pth")
    refused(base, "cannot be run with the 17 keypoints of 'coco'", tmp_path / "five.pth")
    base += "model['test_cfg'] = dict(flip_test=False)\n"
    refused(base, "predicts 5 keypoints, and 'coco' has 17", tmp_path / "five.pth")
    with pytest.raises(EstimatorFilesError, match="no such config"):
        MMPoseEstimator(settings(checkpoint, tmp_path / "none.py"), "cpu")
    with pytest.raises(EstimatorFilesError, match="no such checkpoint"):
        MMPoseEstimator(settings(tmp_path / "none.pth"), "cpu")


def test_the_checkpoint_says_what_its_keypoints_are(state: dict[str, Any], tmp_path: Path) -> None:
    from mmpose.datasets.datasets.utils import parse_pose_metainfo

    meta = parse_pose_metainfo({"from_file": "configs/_base_/datasets/ap10k.py"})
    torch.save({"state_dict": state, "meta": {"dataset_meta": meta}}, tmp_path / "animals.pth")
    with pytest.raises(EstimatorFilesError, match="17 keypoints of 'ap10k' do not begin with COCO's"):
        MMPoseEstimator(settings(tmp_path / "animals.pth"), "cpu")


def test_cuda_without_a_gpu_is_refused(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError):
        MMPoseEstimator(settings(checkpoint), "cuda")


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        "body_2d_keypoint/topdown_heatmap/coco/td-hm_hrnet-w32_8xb64-210e_coco-256x192.py",
        "body_2d_keypoint/topdown_regression/coco/td-reg_res50_8xb64-210e_coco-256x192.py",
        "body_2d_keypoint/rtmpose/body8/rtmpose-m_8xb256-420e_body8-256x192.py",
        "wholebody_2d_keypoint/rtmpose/ubody/rtmpose-t_8xb64-270e_coco-ubody-wholebody-256x192.py",
    ],
)
def test_other_networks(path: str, tmp_path: Path) -> None:
    network = config("mmpose", path)
    weights, meta = pose_state(network)
    torch.save({"state_dict": weights, "meta": {"dataset_meta": meta}}, tmp_path / "net.pth")
    estimator = MMPoseEstimator(settings(tmp_path / "net.pth", network), "cpu")
    views = [View(photo(1), BOXES), View(photo(2))]
    found, nobody = estimator.people(views)
    assert found.shape == (3, 17, 3)
    assert not len(nobody)
    assert np.array_equal(found, estimator.people(views[:1])[0])
