"""How good a tokenizer is: PSNR, SSIM, use of the codebook, and distances in a network's features.

SSIM is that of Wang et al. (2004). The Fréchet distance is that of FID (Heusel et al., 2017, arXiv 1706.08500) on
MobileNetV2's features in place of Inception's, so its values are no FID. A meter keeps sums, never pictures: 27 MB with
a feature network, next to nothing without. On one core SSIM costs about 5 ms a picture, the network about 100 ms.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from uvd.manifests.tokens import perplexity
from uvd.tokenize.mobilenet import POOLED, MobileNetV2
from uvd.tokenize.perceptual import LpipsLoss, perceptual_distance
from uvd.tokenize.tokenizer import Vocabulary

PEAK = 255
MIN_SQUARED_ERROR = 1e-10
"""Floor of the mean squared error, so that equal pictures have a finite PSNR: 148.1 dB."""
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
SSIM_C1, SSIM_C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2

T = TypeVar("T")


class Codec(Protocol):
    """What is measured: a `Tokenizer`, or anything else that turns pictures into ids and back."""

    @property
    def batch_size(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def vocab(self) -> Vocabulary: ...

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.uint16]: ...

    def decode(self, ids: NDArray[np.uint16]) -> NDArray[np.uint8]: ...


@dataclass(frozen=True, slots=True)
class TokenizerQuality:
    """What was measured over some pictures, each of which counts alike.

    Attributes:
        pictures: how many.
        psnr: mean over pictures of each one's PSNR, dB.
        psnr_pooled: PSNR of the mean squared error over all pixels of all pictures, dB; never above `psnr`.
        ssim: mean over pictures, at most 1.
        codes: size of the codebook.
        codes_used: codes that at least one token is.
        perplexity: exp of the entropy of the codes' frequencies: 1 if all tokens are one code, `codes` if all codes are
            equally frequent.
        perceptual: mean MobileNetV2 perceptual distance, 0 for equal pictures; None without a feature network.
        frechet: squared Fréchet distance of MobileNetV2's pooled features of originals and reconstructions; None
            without a feature network or with one picture. It falls as pictures are added: compare at equal numbers.
        lpips: mean LPIPS distance on VGG-16; None where it is not at hand.
    """

    pictures: int
    psnr: float
    psnr_pooled: float
    ssim: float
    codes: int
    codes_used: int
    perplexity: float
    perceptual: float | None = None
    frechet: float | None = None
    lpips: float | None = None

    @property
    def usage(self) -> float:
        """Share of the codebook in use, 0 to 1."""
        return self.codes_used / self.codes


def measure_pictures(
    codec: Codec, pictures: Iterable[NDArray[np.uint8]], network: MobileNetV2 | None = None
) -> TokenizerQuality:
    """Encodes, decodes and compares pictures, one batch of them in memory at a time.

    Args:
        codec: the tokenizer.
        pictures: `(H, W, 3)` uint8 RGB each, square and all of one size.
        network: on the tokenizer's device; None leaves the feature distances out.

    Raises:
        ValueError: if there are no pictures.
    """
    meter = QualityMeter(codec, network)
    for batch in batches(pictures, codec.batch_size):
        meter.add(np.stack(batch))
    return meter.quality()


class QualityMeter:
    """Running sums over pictures and their reconstructions."""

    def __init__(self, codec: Codec, network: MobileNetV2 | None = None, lpips: LpipsLoss | None = None) -> None:
        self._codec, self._network, self._lpips = codec, network, lpips
        self.pictures = 0
        self._psnr = self._ssim = self._perceptual = self._lpips_sum = 0.0
        self._squared_error = self._values = 0
        self._histogram = np.zeros(codec.vocab.codes, np.int64)
        # Of originals and of reconstructions.
        self._moments = () if network is None else (FeatureMoments(POOLED), FeatureMoments(POOLED))

    def add(self, pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Measures `(N, H, W, 3)` uint8 RGB pictures; returns their reconstructions, of the same shape."""
        ids = self._codec.encode(pictures)
        decoded = self._codec.decode(ids)
        difference = decoded.astype(np.int32) - pictures
        squared = (difference * difference).sum(axis=(1, 2, 3), dtype=np.int64)
        self.pictures += len(pictures)
        self._squared_error += int(squared.sum())
        self._values += pictures.size
        self._psnr += float(psnr(squared / pictures[0].size).sum())
        self._ssim += sum(ssim(*pair) for pair in zip(pictures, decoded, strict=True))
        self._histogram += np.bincount(ids.reshape(-1), minlength=len(self._histogram))
        if self._network is not None:
            self._add_features(self._network, pictures, decoded)
        if self._lpips is not None:
            with torch.inference_mode():
                distances = self._lpips.distances(self._images(pictures), self._images(decoded))
            self._lpips_sum += float(distances.sum())
        return decoded

    @torch.inference_mode()
    def _add_features(self, network: MobileNetV2, pictures: NDArray[np.uint8], decoded: NDArray[np.uint8]) -> None:
        found = [network.features_and_pooled(self._images(part)) for part in (pictures, decoded)]
        self._perceptual += float(perceptual_distance(*(maps for maps, _ in found)).sum())
        for moments, (_, pooled) in zip(self._moments, found, strict=True):
            moments.add(pooled.double().cpu().numpy())

    def _images(self, pictures: NDArray[np.uint8]) -> torch.Tensor:
        """(N, H, W, 3) uint8 -> (N, 3, H, W) float in [0, 1] on the codec's device."""
        return torch.from_numpy(np.ascontiguousarray(pictures)).to(self._codec.device).permute(0, 3, 1, 2) / 255

    def merge(self, other: QualityMeter) -> None:
        """Adds what another meter of the same codec and network has measured."""
        self.pictures += other.pictures
        self._psnr += other._psnr
        self._ssim += other._ssim
        self._perceptual += other._perceptual
        self._lpips_sum += other._lpips_sum
        self._squared_error += other._squared_error
        self._values += other._values
        self._histogram += other._histogram
        for mine, theirs in zip(self._moments, other._moments, strict=True):
            mine.merge(theirs)

    def quality(self) -> TokenizerQuality:
        """The measures of all that was added.

        Raises:
            ValueError: if nothing was.
        """
        if not self.pictures:
            raise ValueError("no pictures were measured")
        gaussians = [moments.gaussian() for moments in self._moments if moments.count > 1]
        return TokenizerQuality(
            pictures=self.pictures,
            psnr=self._psnr / self.pictures,
            psnr_pooled=float(psnr(self._squared_error / self._values)),
            ssim=self._ssim / self.pictures,
            codes=len(self._histogram),
            codes_used=int(np.count_nonzero(self._histogram)),
            perplexity=perplexity(self._histogram),
            perceptual=self._perceptual / self.pictures if self._network is not None else None,
            frechet=frechet_distance(*gaussians[0], *gaussians[1]) if gaussians else None,
            lpips=self._lpips_sum / self.pictures if self._lpips is not None else None,
        )


def psnr(squared_error: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio in dB, of mean squared errors of values in 0 to 255."""
    return 10 * np.log10(PEAK**2 / np.maximum(squared_error, MIN_SQUARED_ERROR))


def ssim(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """Structural similarity of two pictures (Wang et al., 2004).

    Gaussian window of 11 with sigma 1.5, K1 0.01, K2 0.03, range 255, population covariance; the mean over the places
    where the window lies inside the picture, and over channels.

    Args:
        first, second: `(H, W, C)`, values in 0 to 255, H and W at least 11.

    Raises:
        ValueError: if the shapes differ or are smaller than the window.
    """
    if first.shape != second.shape or first.ndim != 3 or min(first.shape[:2]) < SSIM_WINDOW:
        raise ValueError(f"SSIM of {first.shape} and {second.shape}: one shape (H, W, C) of at least 11x11 is needed")
    a, b = first.astype(np.float64), second.astype(np.float64)
    mean_a, mean_b = _windowed(a), _windowed(b)
    means, product = mean_a * mean_a + mean_b * mean_b, mean_a * mean_b
    # Var[a] + Var[b] is all that the formula needs of the two variances.
    variances = _windowed(a * a + b * b) - means
    covariance = _windowed(a * b) - product
    similarity = (2 * product + SSIM_C1) * (2 * covariance + SSIM_C2)
    similarity /= (means + SSIM_C1) * (variances + SSIM_C2)
    return float(similarity.mean())


def _windowed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gaussian-weighted means at all places where the window lies inside."""
    radius = SSIM_WINDOW // 2
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / SSIM_SIGMA) ** 2)
    kernel /= kernel.sum()
    means = cv2.sepFilter2D(values, cv2.CV_64F, kernel, kernel).reshape(values.shape)
    return means[radius:-radius, radius:-radius]


class FeatureMoments:
    """Count, sum and sum of outer products of feature vectors, in float64."""

    def __init__(self, dimensions: int) -> None:
        self.count = 0
        self._sum = np.zeros(dimensions)
        self._products = np.zeros((dimensions, dimensions))

    def add(self, features: NDArray[np.float64]) -> None:
        """Adds `(N, D)` vectors."""
        self.count += len(features)
        self._sum += features.sum(axis=0)
        self._products += features.T @ features

    def merge(self, other: FeatureMoments) -> None:
        self.count += other.count
        self._sum += other._sum
        self._products += other._products

    def gaussian(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean `(D,)` and sample covariance `(D, D)`; needs two vectors. Of rank N - 1 at most."""
        if self.count < 2:
            raise ValueError(f"the covariance of {self.count} vectors is not defined")
        mean = self._sum / self.count
        return mean, (self._products - self.count * np.outer(mean, mean)) / (self.count - 1)


def frechet_distance(
    mean_a: NDArray[np.float64],
    covariance_a: NDArray[np.float64],
    mean_b: NDArray[np.float64],
    covariance_b: NDArray[np.float64],
) -> float:
    """The squared Fréchet distance of two Gaussians, |a - b|^2 + tr(A + B - 2 (A B)^(1/2)) (Dowson and Landau, 1982).

    The trace of the root is the sum of the singular values of `Fa^T Fb`, where `A = Fa Fa^T` and `B = Fb Fb^T`: no root
    is taken of the rounding errors around zero that fewer pictures than dimensions leave. `(D,)` and `(D, D)` float64.
    """
    product = _factor(covariance_a).T @ _factor(covariance_b)
    roots = float(np.linalg.svd(product, compute_uv=False).sum()) if product.size else 0.0
    difference = mean_a - mean_b
    distance = difference @ difference + np.trace(covariance_a) + np.trace(covariance_b) - 2 * roots
    return max(0.0, float(distance))


def _factor(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """`F (D, R)` with `F F^T` = covariance, R its numerical rank."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > max(0.0, values[-1]) * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter."""
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
