from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests_support import smooth_photo

from uvd.tokenize.mobilenet import BLOCKS, NORM_EPS, FeatureNetError, load_mobilenet
from uvd.tokenize.perceptual import ContrastLoss, perceptual_distance, perceptual_loss


def torchvision_state() -> dict[str, torch.Tensor]:
    """Random weights under torchvision's names."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = {}

    def conv_norm(conv: str, norm: str, outputs: int, inputs: int, side: int) -> None:
        fan = inputs * side * side
        state[f"{conv}.weight"] = torch.randn(outputs, inputs, side, side, generator=generator) * (2 / fan) ** 0.5
        state[f"{norm}.weight"] = torch.rand(outputs, generator=generator) + 0.5
        state[f"{norm}.bias"] = torch.randn(outputs, generator=generator) * 0.1
        state[f"{norm}.running_mean"] = torch.randn(outputs, generator=generator) * 0.1
        state[f"{norm}.running_var"] = torch.rand(outputs, generator=generator) + 0.5

    conv_norm("features.0.0", "features.0.1", 32, 3, 3)
    width, index = 32, 1
    for expansion, channels, repeats, _ in BLOCKS:
        for _ in range(repeats):
            name, hidden, first = f"features.{index}.conv", width * expansion, 0
            if expansion != 1:
                conv_norm(f"{name}.0.0", f"{name}.0.1", hidden, width, 1)
                first = 1
            conv_norm(f"{name}.{first}.0", f"{name}.{first}.1", hidden, 1, 3)
            conv_norm(f"{name}.{first + 1}", f"{name}.{first + 2}", channels, hidden, 1)
            width, index = channels, index + 1
    conv_norm("features.18.0", "features.18.1", 1280, width, 1)
    state["classifier.1.weight"] = torch.zeros(1000, 1280)
    state["classifier.1.bias"] = torch.zeros(1000)
    return state


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "mobilenet_v2.pth"
    torch.save(torchvision_state(), file)
    return file


def images(*seeds: int, side: int = 64) -> torch.Tensor:
    pixels = [torch.from_numpy(smooth_photo(seed, side, side)).permute(2, 0, 1) for seed in seeds]
    return torch.stack(pixels).float() / 255


def normed(x: torch.Tensor, state: dict[str, torch.Tensor], conv: str, norm: str, **how: int) -> torch.Tensor:
    y = F.conv2d(x, state[f"{conv}.weight"], **how)
    parts = (state[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(y, *parts, eps=NORM_EPS)


def test_folded_norms_compute_what_the_separate_ones_do(weights):
    state, x = torchvision_state(), images(1, 2)
    mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    h = F.relu6(normed((x - mean) / deviation, state, "features.0.0", "features.0.1", stride=2, padding=1))
    h = F.relu6(normed(h, state, "features.1.conv.0.0", "features.1.conv.0.1", padding=1, groups=32))
    first = normed(h, state, "features.1.conv.1", "features.1.conv.2")
    assert torch.allclose(load_mobilenet(weights).features(x)[0], first, atol=1e-4)


def test_features_have_the_documented_shapes_and_both_ways_agree(weights):
    network, x = load_mobilenet(weights), images(1)
    shapes = [tuple(features.shape) for features in network.features(x)]
    assert shapes == [(1, 16, 32, 32), (1, 24, 16, 16), (1, 32, 8, 8), (1, 96, 4, 4), (1, 320, 2, 2)]
    maps, pooled = network.features_and_pooled(x)
    assert torch.equal(pooled, network.pooled(x))
    assert all(torch.equal(a, b) for a, b in zip(maps, network.features(x), strict=True))


@pytest.mark.parametrize("kind", ["mobilenet", "contrast"])
def test_a_perceptual_loss_is_zero_for_equal_pictures_and_grows_with_blur(kind, weights):
    loss = perceptual_loss(kind, weights)
    assert loss is not None
    x = images(1, 2)
    blurs = [loss(F.avg_pool2d(x, side, 1, side // 2), x).item() for side in (3, 5, 9)]
    assert loss(x, x).item() == pytest.approx(0, abs=1e-5)
    assert 0 < blurs[0] < blurs[1] < blurs[2]


@pytest.mark.parametrize("kind", ["mobilenet", "contrast"])
def test_a_perceptual_loss_pulls_a_picture_to_its_original(kind, weights):
    loss, x = perceptual_loss(kind, weights), images(3)
    assert loss is not None
    y = F.avg_pool2d(x, 5, 1, 2).requires_grad_()
    before = loss(y, x)
    (gradient,) = torch.autograd.grad(before, y)
    step = 1e-2 * gradient / gradient.abs().max()
    assert loss(y.detach() - step, x) < before


def test_contrast_does_not_care_for_brightness_but_for_structure():
    x = images(1)
    loss = ContrastLoss()
    assert loss(x + 0.1, x).item() == pytest.approx(0, abs=1e-4)
    assert loss(x.flip(3), x).item() > 0.5


def test_distances_are_per_picture():
    a, b = [torch.rand(2, 3, 4, 4)], [torch.rand(2, 3, 4, 4)]
    b[0][0] = a[0][0]
    distances = perceptual_distance(a, b)
    assert distances[0] == 0
    assert distances[1] > 0


def test_auto_takes_what_is_at_hand(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert perceptual_loss("none") is None
    assert perceptual_loss("auto").kind == "contrast"  # type: ignore[union-attr]
    assert perceptual_loss("auto", weights).kind == "mobilenet"  # type: ignore[union-attr]


def test_a_loss_that_cannot_be_had_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FeatureNetError, match="perceptual_weights"):
        perceptual_loss("mobilenet")
    with pytest.raises(FeatureNetError, match="hub cache"):
        perceptual_loss("lpips")


def test_other_files_are_refused(tmp_path, weights):
    truncated = tmp_path / "truncated.pth"
    truncated.write_bytes(weights.read_bytes()[:1000])
    other = tmp_path / "other.pth"
    torch.save({"features.0.0.weight": torch.zeros(1)}, other)
    for file, message in ((truncated, "cannot be read"), (other, "has no"), (tmp_path / "none.pth", "No such file")):
        with pytest.raises(FeatureNetError, match=message):
            load_mobilenet(file)


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path("touched"),))


def test_code_in_the_file_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.pth").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(FeatureNetError):
        load_mobilenet(tmp_path / "bad.pth")
    assert not (tmp_path / "touched").exists()
