"""Degraded photos: as strong as the settings say, in the way that the name says, the same for the same seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from uvd.renderers.degradations import (
    Blur,
    JpegArtefacts,
    LowLight,
    LowResolution,
    Noise,
    render_blur,
    render_jpeg,
    render_low_light,
    render_low_resolution,
    render_noise,
)
from uvd.renderers.derived import DERIVED, Derived, DeriveSettings
from uvd.renderers.rain import Rain, render_rain
from uvd.sequences import Seeds

SETTINGS = DeriveSettings()
Picture = NDArray[np.uint8]


def rng(*path: str | int) -> np.random.Generator:
    return Seeds(11).generator(*path)


def plain(level: int, side: int = 256) -> Picture:
    return np.full((side, side, 3), level, np.uint8)


@pytest.fixture
def scene(photo: Picture) -> Picture:
    """Gradients with edges, thin lines and a checkerboard."""
    scene = photo // 2 + 40
    scene[30:110, 20:120] = (200, 60, 40)
    scene[130:200, 150:236] = (30, 90, 210)
    scene[150:180, 20:110] = np.where(np.indices((30, 90)).sum(axis=0) // 3 % 2, 235, 15)[..., None]
    scene[20:240:9, 128:140] = 255
    cv2.circle(scene, (190, 70), 40, (250, 220, 90), -1)
    return scene


def test_all_names_have_a_function() -> None:
    assert set(DERIVED) == set(get_args(Derived))


@pytest.mark.parametrize("kind", get_args(Derived))
def test_the_seed_decides_and_the_photo_stays(scene: Picture, kind: Derived) -> None:
    before = scene.copy()
    for number in range(6):
        picture = DERIVED[kind](scene, rng(kind, number), SETTINGS)
        assert picture.shape == scene.shape
        assert picture.dtype == np.uint8
        assert picture.flags.c_contiguous
        assert (picture != scene).any(axis=-1).mean() > 0.005
        assert np.array_equal(picture, DERIVED[kind](scene, rng(kind, number), SETTINGS))
    assert np.array_equal(scene, before)
    others = {DERIVED[kind](scene, rng(kind, number), SETTINGS).tobytes() for number in range(12)}
    assert len(others) == 1 if kind == "grey" else len(others) >= 3


@pytest.mark.parametrize("kind", sorted(set(get_args(Derived)) - {"grey", "masked"}))
@pytest.mark.parametrize("level", [0, 255])
def test_black_and_white_photos_do_not_wrap_around(kind: Derived, level: int) -> None:
    for number in range(4):
        picture = DERIVED[kind](plain(level), rng(kind, number), SETTINGS).astype(int)
        if kind in ("blur", "low_resolution", "jpeg"):
            assert np.abs(picture - level).max() <= (4 if kind == "jpeg" else 0)
        elif level == 0:
            assert np.median(picture) < 60
        elif kind != "low_light":
            assert np.median(picture) > 180


def test_a_view_into_a_larger_array_is_taken_as_it_is(scene: Picture) -> None:
    larger = np.zeros((300, 300, 3), np.uint8)
    larger[20:276, 30:286] = scene
    for kind, derive in DERIVED.items():
        assert np.array_equal(
            derive(larger[20:276, 30:286], rng(kind), SETTINGS), derive(scene, rng(kind), SETTINGS)
        ), kind


@pytest.mark.parametrize(
    ("name", "render", "settings", "side"),
    [
        ("rain", render_rain, Rain(), 256),
        ("rain_slanted", render_rain, Rain(angle=(40, 40), veil=(0, 0), density=(200, 200)), 256),
        ("noise_gaussian", render_noise, Noise(kinds=("gaussian",)), 128),
        ("noise_shot", render_noise, Noise(kinds=("shot",)), 128),
        ("low_light", render_low_light, LowLight(), 128),
        ("blur_motion", render_blur, Blur(kinds=("motion",)), 256),
        ("blur_defocus", render_blur, Blur(kinds=("defocus",)), 256),
        ("low_resolution", render_low_resolution, LowResolution(factors=(8,)), 256),
        ("jpeg", render_jpeg, JpegArtefacts(), 256),
    ],
)
def test_golden(golden: Callable[..., None], scene: Picture, name: str, render: Callable, settings: object, side: int):
    golden(f"degraded_{name}", render(scene, rng(name), settings)[:side, :side])


@pytest.mark.parametrize("std", [3.0, 20.0, 60.0])
def test_gaussian_noise_has_its_strength_whatever_the_level(std: float) -> None:
    settings = Noise(kinds=("gaussian",), std=(std, std))
    for level in (60, 128, 190):
        noise = render_noise(plain(level), rng(level), settings).astype(float) - level
        expected = rng("numpy").normal(level, std, noise.shape).round().clip(0, 255) - level
        assert noise.mean() == pytest.approx(expected.mean(), abs=0.5)
        assert noise.std() == pytest.approx(expected.std(), rel=0.02)
    flat = render_noise(plain(128), rng(1), settings).astype(float) - 128
    assert abs(np.corrcoef(flat[..., 0].ravel(), flat[..., 1].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(flat[:, :-1, 0].ravel(), flat[:, 1:, 0].ravel())[0, 1]) < 0.02


def test_gaussian_noise_is_normal() -> None:
    noise = render_noise(plain(128), rng(5), Noise(kinds=("gaussian",), std=(20, 20))).astype(float) - 128
    for deviations, share in ((1, 0.6827), (2, 0.9545), (3, 0.9973)):
        # A level stands for all values within half of one around it.
        assert (np.abs(noise) < 20 * deviations).mean() == pytest.approx(share, abs=0.012)


@pytest.mark.parametrize("photons", [20.0, 100.0])
def test_shot_noise_has_the_variance_of_counted_photons(photons: float) -> None:
    for level in (0, 25, 100, 150):
        noisy = render_noise(plain(level), rng(level), Noise(kinds=("shot",), photons=(photons, photons)))
        counted = rng("numpy", level).poisson(level / 255 * photons, noisy.shape) * 255 / photons
        expected = np.clip(counted, 0, 255)
        assert noisy.mean() == pytest.approx(expected.mean(), abs=1.5)
        few = level / 255 * photons < 3
        assert noisy.std() == pytest.approx(expected.std(), rel=0.1 if few else 0.04)


def test_low_light_is_dark_and_keeps_the_order_of_levels() -> None:
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (256, 256, 3))
    for number in range(10):
        columns = render_low_light(ramp, rng(number), LowLight()).mean(axis=(0, 2))
        assert columns.max() <= 0.6 * 255 + 2
        assert columns[128] < 80
        assert (np.diff(columns[::16]) > -0.5).all()
    exact = render_low_light(ramp, rng(0), LowLight(gamma=(2, 2), gain=(0.5, 0.5), std=(0, 0)))
    assert np.array_equal(exact[7, :, 1], np.rint(127.5 * (np.arange(256) / 255) ** 2))


def test_motion_blur_is_the_mean_along_a_line() -> None:
    point = plain(0)
    point[128, 128] = 255
    for number in range(20):
        spread = render_blur(point, rng(number), Blur(kinds=("motion",), length=(9, 15)))[..., 0]
        rows, columns = np.nonzero(spread)
        assert 6 <= len(rows) <= 15
        assert set(spread[rows, columns].tolist()) == {round(255 / len(rows))}
        assert 7 <= np.hypot(np.ptp(rows), np.ptp(columns)) <= 16
        away = np.stack([rows, columns]) - 128.0
        assert np.linalg.svd(away, compute_uv=False)[1] / len(rows) ** 0.5 < 0.5
        assert np.abs(away.mean(axis=1)).max() <= 0.5


def test_defocus_is_the_mean_over_a_disc() -> None:
    point = plain(0)
    point[128, 128] = 255
    for radius in (1.0, 2.0, 3.4, 5.0, 9.0):
        spread = render_blur(point, rng(1), Blur(kinds=("defocus",), radius=(radius, radius)))[..., 2]
        rows, columns = np.indices(spread.shape) - 128
        disc = rows**2 + columns**2 <= radius**2
        assert np.array_equal(spread > 0, disc)
        assert set(spread[disc].tolist()) == {round(255 / disc.sum())}


def test_the_longest_and_widest_blur_keep_white_white() -> None:
    for settings in (Blur(kinds=("motion",), length=(64, 64)), Blur(kinds=("defocus",), radius=(9, 9))):
        assert (render_blur(plain(255), rng(2), settings) == 255).all()


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_low_resolution_agrees_with_float_interpolation(scene: Picture, factor: int) -> None:
    low = render_low_resolution(scene, rng(1), LowResolution(factors=(factor,)))
    side = 256 // factor
    small = scene.reshape(side, factor, side, factor, 3).mean(axis=(1, 3))
    centres = (np.arange(256) + 0.5) / factor - 0.5
    weights = np.zeros((256, side))
    for row, centre in enumerate(centres):
        for neighbour in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            d = abs(centre - neighbour)
            weight = 1.5 * d**3 - 2.5 * d**2 + 1 if d <= 1 else -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
            weights[row, min(max(neighbour, 0), side - 1)] += weight
    expected = np.stack([weights @ small[..., channel] @ weights.T for channel in range(3)], axis=-1).clip(0, 255)
    assert np.abs(low - expected).max() < 0.7
    assert np.array_equal(low, render_low_resolution(scene, rng(1), LowResolution(factors=(factor,))))


def test_low_resolution_refuses_sides_that_cannot_be_divided() -> None:
    with pytest.raises(ValueError, match="100x100"):
        render_low_resolution(plain(0, 100), rng(1), LowResolution(factors=(8,)))


def test_jpeg_gets_worse_with_lower_quality(scene: Picture) -> None:
    errors = [
        np.abs(render_jpeg(scene, rng(1), JpegArtefacts(quality=(q, q))).astype(int) - scene).mean()
        for q in (5, 15, 30, 90)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 2 * errors[2]


def test_rain_brightens_dark_photos_along_its_angle() -> None:
    for angle in (-40.0, 0.0, 30.0):
        settings = Rain(angle=(angle, angle), veil=(0, 0), density=(150, 150), brightness=(0.7, 0.7))
        wet = render_rain(plain(20), rng("rain", int(angle)), settings).astype(float)
        assert (wet >= 20).all()
        assert 0.02 < (wet > 40).all(axis=-1).mean() < 0.4
        grey = wet[..., 0]
        # The direction of least change, by the structure tensor.
        down, right = np.gradient(grey)
        tensor = np.array([[(right * right).sum(), (right * down).sum()], [(right * down).sum(), (down * down).sum()]])
        along = np.linalg.eigh(tensor)[1][:, 0]
        found = np.degrees(np.arctan2(along[0], along[1]))
        assert (found - angle + 90) % 180 - 90 == pytest.approx(0, abs=4)


def test_rain_falls_on_all_parts_and_its_veil_takes_contrast() -> None:
    settings = Rain(density=(1200, 1200), veil=(0, 0))
    wet = np.mean([render_rain(plain(0), rng(n), settings)[..., 0] for n in range(6)], axis=0)
    parts = wet.reshape(4, 64, 4, 64).mean(axis=(1, 3))
    assert parts.min() > 0.6 * parts.max()
    veiled = render_rain(plain(0), rng(1), Rain(density=(10, 10), veil=(0.5, 0.5)))
    assert np.median(veiled) == pytest.approx(95, abs=1)


@pytest.mark.parametrize(
    "settings",
    [
        {"noise": {"std": (20, 10)}},
        {"noise": {"std": (0, 10)}},
        {"noise": {"photons": (1, float("nan"))}},
        {"noise": {"kinds": ()}},
        {"noise": {"kinds": ("pepper",)}},
        {"rain": {"brightness": (0.1, 1.5)}},
        {"rain": {"wind": 3}},
        {"low_light": {"gain": (0, 1)}},
        {"blur": {"radius": (1, 20)}},
        {"low_resolution": {"factors": (3,)}},
        {"jpeg": {"quality": (0, 30)}},
        {"snow": {}},
    ],
)
def test_wrong_settings_are_refused(settings: dict) -> None:
    with pytest.raises(ValidationError):
        DeriveSettings.model_validate(settings)


@pytest.mark.parametrize("kind", sorted(set(get_args(Derived)) - {"masked"}))
def test_other_arrays_are_refused(kind: Derived) -> None:
    for wrong in (np.zeros((256, 256), np.uint8), np.zeros((256, 256, 3), np.float32)):
        with pytest.raises(ValueError, match="expected uint8"):
            DERIVED[kind](wrong, rng(1), SETTINGS)
