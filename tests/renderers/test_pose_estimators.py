from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from uvd.renderers.estimators import blazepose
from uvd.renderers.estimators.base import EstimatorFilesError, View
from uvd.renderers.estimators.blazepose import DETECTOR, IN_WHEEL, LANDMARK_NET, BlazePoseEstimator, Person, model_files
from uvd.renderers.estimators.config import PoseSettings
from uvd.renderers.estimators.pose import PoseEstimator, draw_people, open_pose_estimator, pose_files
from uvd.renderers.pose import render_pose


def view(side: int) -> View:
    return View(np.zeros((side, side, 3), np.uint8))


def test_keypoints_are_scaled_from_the_view_to_the_picture(people: NDArray[np.float64]) -> None:
    larger = people * (2.5, 2.5, 1)
    (picture,) = draw_people(larger, 640, 0.3).values()
    assert np.array_equal(picture, render_pose(people))


def test_nobody_visible_leaves_the_role_out(people: NDArray[np.float64]) -> None:
    assert draw_people(np.zeros((0, 17, 3)), 512, 0.3) == {}
    faint = people.copy()
    faint[..., 2] = 0.29
    assert draw_people(faint, 256, 0.3) == {}
    assert set(draw_people(faint, 256, 0.2)) == {"pose"}
    assert draw_people(people + np.array([300, 0, 0]), 256, 0.3) == {}


def test_only_visible_people_are_drawn(people: NDArray[np.float64]) -> None:
    lone = people[:1].copy()
    lone[0, 1:, 2] = 0
    (picture,) = draw_people(np.concatenate([lone, people[1:]]), 256, 0.3).values()
    assert np.array_equal(picture, render_pose(people[1:]))


class Fixed(PoseEstimator):
    side = 512

    def __init__(self, found: list[NDArray[np.float64]]) -> None:
        super().__init__(0.3)
        self.found = found

    def people(self, views: Sequence[View]) -> list[NDArray[np.float64]]:
        return self.found


def test_one_answer_a_view_in_order(people: NDArray[np.float64]) -> None:
    answers = Fixed([people[:1], np.zeros((0, 17, 3)), people]).estimate([view(512)] * 3)
    assert [set(answer) for answer in answers] == [{"pose"}, set(), {"pose"}]
    assert answers[0]["pose"].shape == (256, 256, 3)
    assert answers[0]["pose"].dtype == np.uint8
    assert not np.array_equal(answers[0]["pose"], answers[2]["pose"])


def test_blazepose_draws_the_surest_on_top(monkeypatch: pytest.MonkeyPatch, people: NDArray[np.float64]) -> None:
    class Model:
        def __init__(self, model_dir: Path | None, masks: bool, num_threads: int) -> None:
            assert num_threads == 1

        def estimate(self, image: NDArray[np.uint8]) -> list[Person]:
            surest_first = [Person(p * (2, 2, 1), (0, 0, 9, 9), 0.9, None) for p in people]
            return surest_first if image.any() else []

    monkeypatch.setattr(blazepose, "BlazePose", Model)
    estimator = BlazePoseEstimator(PoseSettings())
    assert estimator.roles == ("pose",)
    seen, empty = estimator.estimate([View(np.full((512, 512, 3), 9, np.uint8)), view(512)])
    assert empty == {}
    assert np.array_equal(seen["pose"], render_pose(people[::-1]))
    assert not np.array_equal(seen["pose"], render_pose(people)), "the order must matter here"


def test_files_lie_together_or_as_in_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, place in IN_WHEEL.items():
        (tmp_path / "cache" / place).mkdir(parents=True)
        (tmp_path / "cache" / place / name).write_bytes(b"x")
        (tmp_path / name).write_bytes(b"y")
    monkeypatch.setenv("UVD_SAMPLES", str(tmp_path / "cache"))
    assert set(model_files()) == {DETECTOR, LANDMARK_NET}
    assert {path.read_bytes() for path in pose_files(PoseSettings()).values()} == {b"x"}
    assert {path.read_bytes() for path in pose_files(PoseSettings(model_dir=tmp_path)).values()} == {b"y"}


def test_missing_files_are_named_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UVD_SAMPLES", str(tmp_path))
    with pytest.raises(EstimatorFilesError, match="uvd samples"):
        pose_files(PoseSettings())
    with pytest.raises(EstimatorFilesError, match="uvd samples"):
        open_pose_estimator(PoseSettings())
    with pytest.raises(EstimatorFilesError, match=r"net\.pth"):
        pose_files(mmpose_settings(tmp_path))


def mmpose_settings(folder: Path) -> PoseSettings:
    return PoseSettings(
        backend="mmpose", boxes="given", config=folder / "sub" / "net.py", checkpoint=folder / "net.pth"
    )


def test_inherited_configs_are_part_of_what_decides_and_are_not_run(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "net.pth").write_bytes(b"weights")
    (tmp_path / "sub" / "net.py").write_text("_base_ = ['../a.py', 'mmpose::b.py']\nraise SystemExit('run')\n")
    (tmp_path / "a.py").write_text("_base_ = 'c.py'\n")
    (tmp_path / "c.py").write_text("x = 1\n")
    found = pose_files(mmpose_settings(tmp_path))
    assert {name: path.name for name, path in found.items()} == {
        "checkpoint": "net.pth",
        "config": "net.py",
        "config.1": "a.py",
        "config.2": "c.py",
    }
    (tmp_path / "c.py").write_text("_base_ = './a.py'\n")
    with pytest.raises(EstimatorFilesError, match="its own _base_"):
        pose_files(mmpose_settings(tmp_path))
    (tmp_path / "a.py").write_text("_base_ = [print('no')]\n")
    with pytest.raises(EstimatorFilesError, match=r"a\.py is not a config"):
        pose_files(mmpose_settings(tmp_path))
    (tmp_path / "a.py").unlink()
    with pytest.raises(EstimatorFilesError, match=r"no such file: .*a\.py"):
        pose_files(mmpose_settings(tmp_path))


def test_neither_backend_is_imported_before_it_is_wanted() -> None:
    code = "import sys, uvd.renderers.estimators.pose; print({'torch', 'mmpose', 'ai_edge_litert'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


@pytest.mark.samples
@pytest.mark.skipif(not blazepose.samples_folder().is_dir(), reason="run `uvd samples` first")
def test_a_real_photo_gets_its_skeleton() -> None:
    pytest.importorskip("ai_edge_litert")
    from PIL import Image

    estimator = open_pose_estimator(PoseSettings())
    photo = Image.open(blazepose.samples_folder() / "skimage/data/astronaut.png").convert("RGB")
    seen = View(np.asarray(photo.resize((estimator.side, estimator.side))))
    found, nothing = estimator.estimate([seen, view(estimator.side)])
    rows, columns = np.nonzero(found["pose"].any(axis=-1))
    # The face is in the upper half left of the middle; the right forearm reaches the left edge's third.
    assert 40 < rows.min() < 70
    assert columns.min() < 50
    assert 140 < columns.max() < 190
    assert nothing == {}
    (again,) = estimator.estimate([seen])
    assert np.array_equal(again["pose"], found["pose"])
