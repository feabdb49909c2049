"""HED: its arithmetic, the three kinds of weights that it reads, and the files that it refuses."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from uvd.renderers.estimators.base import EstimatorFilesError, View
from uvd.renderers.estimators.config import EdgesSettings
from uvd.renderers.estimators.edges import EdgeEstimator
from uvd.renderers.estimators.hed import HED, MEAN_BGR, convert_hed, from_keras, keras_names, load_hed

PORT_STAGES = ("One", "Two", "Thr", "Fou", "Fiv")


@pytest.fixture(scope="module")
def hed() -> HED:
    """Seeded weights whose edges are neither all black nor all white."""
    torch.manual_seed(0)
    network = HED().eval()
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
        elif name.startswith("stages"):
            torch.nn.init.normal_(parameter, std=(2 / parameter[0].numel()) ** 0.5)
        else:
            torch.nn.init.normal_(parameter, std=0.03 / parameter[0].numel() ** 0.5)
    torch.nn.init.constant_(network.fuse.weight, 0.2)
    return network


@pytest.fixture(scope="module")
def weights(hed: HED, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hed") / "hed.safetensors"
    save_file(hed.state_dict(), path)
    return path


def port_state(hed: HED, prefix: str) -> dict[str, torch.Tensor]:
    """The weights by the names of the PyTorch port, written out stage by stage."""
    state = {}
    for number, (name, stage, side) in enumerate(zip(PORT_STAGES, hed.stages, hed.sides, strict=True)):
        for place, convolution in enumerate(stage):
            at = 2 * place + (1 if number else 0)
            state[f"{prefix}Vgg{name}.{at}.weight"] = convolution.weight.data
            state[f"{prefix}Vgg{name}.{at}.bias"] = convolution.bias.data
        state[f"{prefix}Score{name}.weight"] = side.weight.data
        state[f"{prefix}Score{name}.bias"] = side.bias.data
    state[f"{prefix}Combine.0.weight"] = hed.fuse.weight.data
    state[f"{prefix}Combine.0.bias"] = hed.fuse.bias.data
    return state


def same(a: HED, b: HED) -> bool:
    return all(torch.equal(a.state_dict()[name], value) for name, value in b.state_dict().items())


def test_forward_pass_is_the_papers(hed: HED) -> None:
    """Written out from the paper's figure, on a size that no pooling divides."""
    images = torch.randint(0, 256, (1, 3, 37, 50), generator=torch.Generator().manual_seed(1)).float()
    with torch.no_grad():
        now = images[:, [2, 1, 0]] - torch.tensor(MEAN_BGR).reshape(1, 3, 1, 1)
        sides = []
        for stage, side in zip(hed.stages, hed.sides, strict=True):
            if sides:
                now = F.max_pool2d(now, 2, 2, ceil_mode=True)
            for convolution in stage:
                now = F.relu(F.conv2d(now, convolution.weight, convolution.bias, padding=1))
            answer = F.conv2d(now, side.weight, side.bias)
            sides.append(F.interpolate(answer, size=(37, 50), mode="bilinear"))
        fused = torch.sigmoid(F.conv2d(torch.cat(sides, 1), hed.fuse.weight, hed.fuse.bias))
        torch.testing.assert_close(hed(images), fused)
    assert 0.01 < fused.std() < 0.5


@pytest.mark.parametrize("prefix", ["net", "module"])
def test_names_of_the_pytorch_port_are_read(hed: HED, tmp_path: Path, prefix: str) -> None:
    torch.save(port_state(hed, prefix), tmp_path / "network-bsds500.pth")
    assert same(load_hed(tmp_path / "network-bsds500.pth"), hed)


def test_arrays_of_keras_are_turned_the_right_way(hed: HED) -> None:
    arrays = {}
    for path, name in keras_names().items():
        array = hed.state_dict()[name].numpy()
        arrays[path] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    assert arrays["block3/layers/conv2d_2/vars/0"].shape == (3, 3, 256, 256)
    assert arrays["dsn4/vars/0"].shape == (1, 1, 512, 1)
    state = from_keras(arrays)
    assert all(torch.equal(state[name], value) for name, value in hed.state_dict().items())


def test_weights_of_keras_without_h5py_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "hed.weights.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(EstimatorFilesError, match="pip install h5py"):
        load_hed(tmp_path / "hed.weights.h5")


def test_converted_weights_are_the_same(hed: HED, tmp_path: Path) -> None:
    torch.save(port_state(hed, "net"), tmp_path / "hed.pth")
    convert_hed(tmp_path / "hed.pth", tmp_path / "hed.safetensors")
    assert same(load_hed(tmp_path / "hed.safetensors"), hed)


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('code of a pickle was run')",))


def test_damaged_and_foreign_files_are_refused(hed: HED, weights: Path, tmp_path: Path) -> None:
    def refuses(name: str, message: str) -> None:
        with pytest.raises(EstimatorFilesError, match=message):
            load_hed(tmp_path / name)

    refuses("missing.safetensors", "no such file")
    refuses("hed.caffemodel", "weights of HED are")
    (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes()[:1000])
    refuses("cut.safetensors", "cannot be read")
    (tmp_path / "harmful.pth").write_bytes(pickle.dumps(Harmful()))
    refuses("harmful.pth", "cannot be read")
    torch.save(Harmful(), tmp_path / "harmful.pt")
    refuses("harmful.pt", "cannot be read")
    torch.save([1, 2], tmp_path / "list.pth")
    refuses("list.pth", "no mapping")
    state = dict(hed.state_dict())
    save_file({**state, "fuse.bias": torch.full((1,), torch.nan)}, tmp_path / "nan.safetensors")
    refuses("nan.safetensors", "fuse.bias has numbers that are not finite")
    save_file({**state, "fuse.weight": torch.zeros(1, 4, 1, 1)}, tmp_path / "shape.safetensors")
    refuses("shape.safetensors", r"fuse.weight is \(1, 4, 1, 1\)")
    state.pop("stages.2.1.bias")
    save_file(state, tmp_path / "lacks.safetensors")
    refuses("lacks.safetensors", "lacks stages.2.1.bias")
    with (tmp_path / "huge.safetensors").open("wb") as file:
        file.truncate(300 << 20)
    refuses("huge.safetensors", "bytes")


def test_edges_do_not_depend_on_neighbours(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EdgeEstimator, "side", 64)
    rng = np.random.default_rng(0)
    views = [View(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(4)]
    estimator = EdgeEstimator(EdgesSettings(weights=weights), "cpu", 3)
    together = [found["edges"] for found in estimator.estimate(views)]
    assert {(edges.shape, edges.dtype.name) for edges in together} == {((256, 256, 3), "uint8")}
    assert len({edges.tobytes() for edges in together}) == 4
    for view, edges in zip(views, together, strict=True):
        (alone,) = estimator.estimate([view])
        np.testing.assert_array_equal(alone["edges"], edges)
    assert np.array_equal(together[0][..., 0], together[0][..., 2])
