"""Near is bright, what is not known is black, and normals point where surfaces face."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from uvd.renderers.depth import FARTHEST, FLAT, NEAREST, render_depth
from uvd.renderers.normals import normals_from_depth, render_normals, unit_vectors

FOV = 60.0


def rays(side: int = 256) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """x and y, up, at distance 1 for each pixel of a square picture."""
    tangent = 2 * np.tan(np.radians(FOV) / 2) / side
    place = (np.arange(side) + 0.5 - side / 2) * tangent
    return np.broadcast_to(place, (side, side)), np.broadcast_to(-place[:, None], (side, side))


def ball_on_the_floor() -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Depth of a ball of radius 1 at distance 5 above a floor at y = -1; above the horizon nothing is known."""
    x, y = rays()
    floor = np.where(y < 0, -1 / np.where(y < 0, y, -1), np.inf)
    # |t (x, y, 1) - (0, 0, 5)| = 1
    a, b, c = x**2 + y**2 + 1, -10.0, 24.0
    inside = b * b - 4 * a * c
    ball = np.where(inside > 0, (-b - np.sqrt(np.maximum(inside, 0))) / (2 * a), np.inf)
    depth = np.minimum(floor, ball)
    return depth, depth < 40


def test_golden_depth(golden):
    depth, known = ball_on_the_floor()
    golden("depth", render_depth(depth, known))


def test_golden_normals(golden):
    depth, known = ball_on_the_floor()
    golden("normals", render_normals(normals_from_depth(depth, FOV, known)))


@pytest.mark.parametrize("predicts", ["metric", "inverse"])
def test_near_is_bright(predicts):
    depth = np.array([[1.0, 2.0, 4.0]], np.float32)
    picture = render_depth(depth if predicts == "metric" else 1 / depth, predicts=predicts)
    # Inverse depth 1, 1/2 and 1/4, from 1 to 255.
    assert picture[0, :, 0].tolist() == [NEAREST, 86, FARTHEST]
    assert (picture == picture[..., :1]).all()


def test_scale_and_unit_do_not_matter():
    depth = np.random.default_rng(0).uniform(1, 9, (32, 32)).astype(np.float32)
    assert np.array_equal(render_depth(depth), render_depth(depth * 1024))
    assert np.array_equal(render_depth(depth, predicts="inverse"), render_depth(depth * 4, predicts="inverse"))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0.0, -3.0])
def test_what_is_not_known_is_black_and_does_not_stretch_the_rest(bad):
    depth = np.array([[1.0, 2.0, 4.0, bad]], np.float32)
    assert render_depth(depth)[0, :, 0].tolist() == [255, 86, 1, 0]


def test_disparity_of_zero_is_far_and_known():
    assert render_depth(np.array([[0.0, 5.0, np.inf]]), predicts="inverse")[0, :, 0].tolist() == [1, 255, 0]


def test_the_mask_counts_too():
    depth = np.array([[1.0, 2.0, 4.0, 1000.0]])
    picture = render_depth(depth, np.array([[True, True, True, False]]))
    assert picture[0, :, 0].tolist() == [255, 86, 1, 0]


def test_one_distance_and_none():
    assert (render_depth(np.full((4, 4), 7.0)) == FLAT).all()
    assert not render_depth(np.full((4, 4), np.nan)).any()


def test_extreme_numbers_stay_finite():
    with np.errstate(all="raise"):
        assert render_depth(np.array([[-1e308, 1e308]]), predicts="inverse")[0, :, 0].tolist() == [1, 255]


@pytest.mark.parametrize(
    "bad", [np.ones((4, 4), int), np.ones((4, 4, 1)), np.ones((0, 4)), np.ones(4)], ids=lambda bad: str(bad.shape)
)
def test_maps_of_another_kind_are_refused(bad):
    with pytest.raises(ValueError, match="depth is"):
        render_depth(bad)
    with pytest.raises(ValueError, match="depth is"):
        normals_from_depth(bad, FOV)
    with pytest.raises(ValueError, match="normals are"):
        render_normals(bad)


def test_masks_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="valid is"):
        render_depth(np.ones((4, 4)), np.ones((4, 5), bool))
    with pytest.raises(ValueError, match="valid is"):
        render_normals(np.ones((4, 4, 3)), np.ones((4, 4), np.uint8))


@pytest.mark.parametrize(
    ("vector", "colour"),
    [
        ((0, 0, 1), (128, 128, 255)),
        ((0, 0, 9), (128, 128, 255)),
        ((1, 0, 0), (255, 128, 128)),
        ((0, -1, 0), (128, 0, 128)),
        ((0, 0, 0), (0, 0, 0)),
        ((np.nan, 0, 1), (0, 0, 0)),
        ((0, np.inf, 1), (0, 0, 0)),
        ((1e30, 0, 1e30), (218, 128, 218)),
    ],
)
def test_colours_of_normals(vector, colour):
    picture = render_normals(np.array([[vector]], np.float32))
    assert tuple(picture[0, 0].tolist()) == colour
    assert not render_normals(np.array([[vector]], np.float32), np.zeros((1, 1), bool)).any()


@pytest.mark.parametrize("normal", [(0.0, 0.0, 1.0), (0.3, 0.5, 0.8), (-0.6, 0.1, 0.7), (0.0, 1.0, 0.2)])
@pytest.mark.parametrize("unit", [1.0, 1e-30, 1e30])
def test_a_plane_has_one_normal(normal, unit):
    expected = np.array(normal) / np.linalg.norm(normal)
    x, y = rays(64)
    # normal . (x z, y z, -z) = -1 for all points of the plane.
    below = expected[0] * x + expected[1] * y - expected[2]
    seen = below < -0.05
    depth = np.where(seen, -unit / np.where(seen, below, -1), np.nan)
    found = normals_from_depth(depth, FOV)
    assert np.allclose(found[seen], expected, atol=1e-6)
    assert not found[~seen].any()


def test_a_wall_is_not_speckled_by_the_last_bit():
    noise = np.random.default_rng(0).normal(0, 1e-12, (64, 64, 3))
    assert (render_normals(noise + np.array([0, 0, 1])) == (128, 128, 255)).all()


def test_the_ball_faces_where_it_should():
    depth, known = ball_on_the_floor()
    normals = normals_from_depth(depth, FOV, known)
    left, right, top = normals[128, 100], normals[128, 155], normals[100, 128]
    assert left[0] < -0.3
    assert right[0] > 0.3
    assert top[1] > 0.3
    assert np.allclose(normals[250, 20], (0, 1, 0), atol=1e-6)
    assert np.allclose(normals[127:129, 127:129], (0, 0, 1), atol=0.03)
    assert not normals[~known].any()


def test_a_hole_does_not_spread():
    depth = np.full((9, 9), 2.0)
    depth[4, 4] = 0
    normals = normals_from_depth(depth, FOV)
    expected = np.zeros((9, 9, 3))
    expected[..., 2] = 1
    expected[4, 4] = 0
    assert np.allclose(normals, expected)


@pytest.mark.parametrize("angle", [0.0, 180.0, -5.0, float("nan")])
def test_impossible_angles_are_refused(angle):
    with pytest.raises(ValueError, match="field of view"):
        normals_from_depth(np.ones((4, 4)), angle)


def test_unit_vectors_leave_the_callers_array():
    vectors = np.array([[3.0, 0.0, 4.0]])
    assert unit_vectors(vectors).tolist() == [[0.6, 0.0, 0.8]]
    assert vectors.tolist() == [[3.0, 0.0, 4.0]]
