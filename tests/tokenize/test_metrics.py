"""Measures of a tokenizer against closed forms, published implementations and a codec that loses nothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from uvd.tokenize.metrics import (
    FeatureMoments,
    QualityMeter,
    frechet_distance,
    measure_pictures,
    perplexity,
    psnr,
    ssim,
)
from uvd.tokenize.mobilenet import MobileNetV2
from uvd.tokenize.tokenizer import Vocabulary

EQUAL = 10 * np.log10(255**2 / 1e-10)


class NumberingCodec:
    """Gives each picture its number as its only id, and returns it with `errors[number]` added to all values."""

    device = torch.device("cpu")
    batch_size = 2

    def __init__(self, errors: tuple[int, ...] = (0,), codes: int = 8) -> None:
        self.errors, self.vocab = errors, Vocabulary(codes=codes)
        self.seen: list[np.ndarray] = []

    def encode(self, images: np.ndarray) -> np.ndarray:
        assert 1 <= len(images) <= self.batch_size
        first = len(self.seen)
        self.seen += list(images)
        return np.arange(first, len(self.seen), dtype=np.uint16)[:, None] % self.vocab.codes

    def decode(self, ids: np.ndarray) -> np.ndarray:
        last = self.seen[-len(ids) :]
        first = len(self.seen) - len(ids)
        return np.stack([image + np.uint8(self.errors[(first + n) % len(self.errors)]) for n, image in enumerate(last)])


def pattern_pair(height: int, width: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture and a coarser copy, in whole numbers, so that they are the same everywhere."""
    y, x, c = np.ogrid[:height, :width, :3]
    first = abs((5 * x + 3 * y + 40 * c) % 240 - 120) + abs((2 * x - 7 * y + 9 * c) % 160 - 80) + x * y % 17
    second = first // step * step + (3 * x + 5 * y) % 11 + c
    return first.clip(0, 255).astype(np.uint8), second.clip(0, 255).astype(np.uint8)


def noise(number: int, side: int = 32, high: int = 200) -> np.ndarray:
    return np.random.default_rng(number).integers(0, high, (number, side, side, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "step", "expected"),
    [
        (64, 48, 16, 0.9310652910823841),
        (11, 11, 40, 0.7685882679001846),
        (40, 90, 97, 0.2786263629059666),
    ],
)
def test_ssim_equals_scikit_image(height, width, step, expected):
    # scikit-image 0.26: structural_similarity(first, second, gaussian_weights=True, sigma=1.5,
    # use_sample_covariance=False, data_range=255, channel_axis=2)
    assert ssim(*pattern_pair(height, width, step)) == pytest.approx(expected, abs=1e-9)


def test_ssim_of_plain_pictures_is_that_of_their_means():
    first, second = (np.full((20, 30, 3), value, np.uint8) for value in (100, 140))
    c1 = 2.55**2
    assert ssim(first, second) == pytest.approx((2 * 100 * 140 + c1) / (100**2 + 140**2 + c1))
    assert ssim(first, first) == pytest.approx(1)


@pytest.mark.parametrize("shapes", [((10, 64, 3), (10, 64, 3)), ((64, 64, 3), (64, 32, 3)), ((64, 64), (64, 64))])
def test_ssim_refuses_what_it_is_not_defined_for(shapes):
    with pytest.raises(ValueError, match="11x11"):
        ssim(*(np.zeros(shape, np.uint8) for shape in shapes))


def test_psnr_of_known_errors():
    assert psnr(1.0) == pytest.approx(48.1308, abs=1e-4)
    assert psnr(255.0**2) == 0
    assert psnr(np.zeros(1)) == pytest.approx([EQUAL])


def test_perplexity_of_known_histograms():
    assert perplexity(np.array([0, 7, 0])) == pytest.approx(1)
    assert perplexity(np.array([5, 0, 5, 5, 5])) == pytest.approx(4)
    assert perplexity(np.array([3, 1])) == pytest.approx(4 / 27**0.25)


def test_frechet_distance_of_diagonal_gaussians():
    first, second = np.array([1.0, 4.0, 0.0]), np.array([9.0, 4.0, 0.25])
    distance = frechet_distance(np.zeros(3), np.diag(first), np.array([1.0, 2.0, 0.0]), np.diag(second))
    assert distance == pytest.approx(1 + 4 + (2**2 + 0 + 0.5**2))


def test_frechet_distance_of_gaussians_that_do_not_share_axes():
    # In two dimensions tr((A B)^(1/2)) = (tr(A B) + 2 det(A B)^(1/2))^(1/2).
    first, second = np.array([[2.0, 0.9], [0.9, 1.0]]), np.array([[0.5, -0.3], [-0.3, 3.0]])
    product = first @ second
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = np.trace(first) + np.trace(second) - 2 * root
    assert frechet_distance(np.zeros(2), first, np.zeros(2), second) == pytest.approx(expected)


def test_frechet_distance_of_equal_sets_is_nothing_even_with_fewer_vectors_than_dimensions():
    moments = FeatureMoments(64)
    moments.add(np.random.default_rng(0).normal(3, 2, (5, 64)))
    assert frechet_distance(*moments.gaussian(), *moments.gaussian()) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_covariances_of_rank_one_and_none():
    first, second = np.random.default_rng(0).normal(size=(2, 50))
    zero = np.zeros(50)
    expected = first @ first + second @ second - 2 * abs(first @ second)
    found = frechet_distance(zero, np.outer(first, first), zero, np.outer(second, second))
    assert found == pytest.approx(expected, rel=1e-9)
    none = np.zeros((50, 50))
    assert frechet_distance(first, none, zero, none) == pytest.approx(first @ first)


def test_moments_in_parts_are_those_of_the_whole():
    features = np.random.default_rng(1).normal(5, 1, (40, 6))
    whole, part = FeatureMoments(6), FeatureMoments(6)
    whole.add(features[:7])
    part.add(features[7:25])
    part.add(features[25:])
    whole.merge(part)
    mean, covariance = whole.gaussian()
    np.testing.assert_allclose(mean, features.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(features.T), rtol=1e-9)
    lone = FeatureMoments(6)
    lone.add(features[:1])
    with pytest.raises(ValueError, match="1 vectors"):
        lone.gaussian()


@pytest.fixture(scope="module")
def network() -> MobileNetV2:
    """With random weights that keep the size of signals; torch's own start lets them fade to nothing."""
    network = MobileNetV2().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, generator=generator)
    return network


def test_a_codec_that_loses_nothing(network):
    quality = measure_pictures(NumberingCodec(), noise(5), network)
    assert quality.pictures == 5
    assert quality.psnr == pytest.approx(EQUAL)
    assert quality.psnr_pooled == pytest.approx(EQUAL)
    assert quality.ssim == pytest.approx(1)
    assert (quality.codes, quality.codes_used, quality.usage) == (8, 5, 5 / 8)
    assert quality.perplexity == pytest.approx(5)
    assert quality.perceptual == 0
    assert quality.frechet == pytest.approx(0, abs=1e-9)


def test_a_codec_that_loses_something_is_told_by_every_measure(network):
    quality = measure_pictures(NumberingCodec((3, 40)), noise(6), network)
    assert quality.psnr == pytest.approx(np.mean([psnr(3.0**2), psnr(40.0**2)]))
    assert quality.psnr_pooled == pytest.approx(psnr((3**2 + 40**2) / 2))
    assert quality.ssim < 0.99
    assert quality.perceptual is not None
    assert quality.perceptual > 1e-3
    assert quality.frechet is not None
    assert quality.frechet > 1e-3


def test_without_a_network_there_are_no_feature_distances_and_one_picture_has_no_covariance(network):
    quality = measure_pictures(NumberingCodec(), noise(3))
    assert (quality.perceptual, quality.frechet) == (None, None)
    quality = measure_pictures(NumberingCodec((9,)), noise(1), network)
    assert quality.perceptual is not None
    assert quality.frechet is None


def test_nothing_to_measure_is_an_error():
    with pytest.raises(ValueError, match="no pictures"):
        measure_pictures(NumberingCodec(), [])


def test_only_one_batch_of_pictures_is_taken_at_a_time():
    codec, pictures = NumberingCodec(), noise(7)
    ahead = []

    def stream() -> Iterator[np.ndarray]:
        for index, picture in enumerate(pictures):
            ahead.append(index - len(codec.seen))
            yield picture

    assert measure_pictures(codec, stream()).pictures == 7
    assert max(ahead) < codec.batch_size


def test_meters_merge_to_the_measures_of_all_pictures(network):
    pictures, codec = noise(6), NumberingCodec((1, 20, 5))
    whole = measure_pictures(codec, pictures, network)
    codec.seen.clear()
    meters = [QualityMeter(codec, network), QualityMeter(codec, network)]
    for start in range(0, 6, 2):
        meters[start // 4].add(pictures[start : start + 2])
    meters[0].merge(meters[1])
    merged = meters[0].quality()
    for name in ("pictures", "psnr", "psnr_pooled", "ssim", "codes_used", "perplexity", "perceptual"):
        assert getattr(merged, name) == pytest.approx(getattr(whole, name)), name
    assert merged.frechet == pytest.approx(whole.frechet, rel=1e-6)
