"""Conversion of checkpoints; the forward pass of taming-transformers is written here anew, from the published facts."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
import zipfile
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from uvd.pipeline.cli import app
from uvd.tokenize import convert
from uvd.tokenize.convert import check_picture, convert_checkpoint, read_model_config
from uvd.tokenize.tokenizer import TokenizerError, load_tokenizer
from uvd.tokenize.vqgan import VQGAN, VQGANConfig

FIXTURE = Path(__file__).parents[1] / "data" / "muse-vqgan"
NUM_LEVELS, WIDTHS, Z, EMBED, CODES = 4, (32, 32, 32, 64), 8, 6, 96


def taming_yaml(blocks: int = 1) -> dict[str, Any]:
    return {
        "model": {
            "base_learning_rate": 4.5e-6,
            "target": "taming.models.vqgan.VQModel",
            "params": {
                "embed_dim": EMBED,
                "n_embed": CODES,
                "ddconfig": {
                    "double_z": False,
                    "z_channels": Z,
                    "resolution": 32,
                    "in_channels": 3,
                    "out_ch": 3,
                    "ch": 32,
                    "ch_mult": [1, 1, 1, 2],
                    "num_res_blocks": blocks,
                    "attn_resolutions": [4],
                    "dropout": 0.0,
                },
                "lossconfig": {"target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator"},
            },
        },
        "data": {"target": "main.DataModuleFromConfig"},
    }


class TamingModel:
    """Random weights under taming's names, and the forward pass that taming gives them."""

    def __init__(self, blocks: int, pictures: Tensor) -> None:
        self.generator = torch.Generator().manual_seed(blocks)
        self.blocks = blocks
        self.state: dict[str, Tensor] = {}
        self._encoder()
        self._decoder()
        self._conv("quant_conv", Z, EMBED, 1)
        self._conv("post_quant_conv", EMBED, Z, 1)
        # Codes of the latents' own scale, so that no latent is nearly as close to a second code.
        latents = self.latents(pictures)
        mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        self.state["quantize.embedding.weight"] = mean + deviation * self._random(CODES, EMBED)

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def _conv(self, name: str, inputs: int, outputs: int, kernel: int) -> None:
        self.state[f"{name}.weight"] = self._random(outputs, inputs, kernel, kernel) * (inputs * kernel**2) ** -0.5
        self.state[f"{name}.bias"] = 0.2 * self._random(outputs)

    def _norm(self, name: str, channels: int) -> None:
        self.state[f"{name}.weight"] = 1 + 0.3 * self._random(channels)
        self.state[f"{name}.bias"] = 0.3 * self._random(channels)

    def _block(self, name: str, inputs: int, outputs: int) -> None:
        self._norm(f"{name}.norm1", inputs)
        self._conv(f"{name}.conv1", inputs, outputs, 3)
        self._norm(f"{name}.norm2", outputs)
        self._conv(f"{name}.conv2", outputs, outputs, 3)
        if inputs != outputs:
            self._conv(f"{name}.nin_shortcut", inputs, outputs, 1)

    def _attention(self, name: str, channels: int) -> None:
        self._norm(f"{name}.norm", channels)
        for part in ("q", "k", "v", "proj_out"):
            self._conv(f"{name}.{part}", channels, channels, 1)

    def _middle(self, name: str, channels: int) -> None:
        self._block(f"{name}.block_1", channels, channels)
        self._attention(f"{name}.attn_1", channels)
        self._block(f"{name}.block_2", channels, channels)

    def _encoder(self) -> None:
        self._conv("encoder.conv_in", 3, 32, 3)
        width = 32
        for level in range(NUM_LEVELS):
            for index in range(self.blocks):
                self._block(f"encoder.down.{level}.block.{index}", width, WIDTHS[level])
                width = WIDTHS[level]
                if level == 3:
                    self._attention(f"encoder.down.{level}.attn.{index}", width)
            if level < 3:
                self._conv(f"encoder.down.{level}.downsample.conv", width, width, 3)
        self._middle("encoder.mid", width)
        self._norm("encoder.norm_out", width)
        self._conv("encoder.conv_out", width, Z, 3)

    def _decoder(self) -> None:
        width = WIDTHS[-1]
        self._conv("decoder.conv_in", Z, width, 3)
        self._middle("decoder.mid", width)
        for level in reversed(range(NUM_LEVELS)):
            for index in range(self.blocks + 1):
                self._block(f"decoder.up.{level}.block.{index}", width, WIDTHS[level])
                width = WIDTHS[level]
                if level == 3:
                    self._attention(f"decoder.up.{level}.attn.{index}", width)
            if level > 0:
                self._conv(f"decoder.up.{level}.upsample.conv", width, width, 3)
        self._norm("decoder.norm_out", width)
        self._conv("decoder.conv_out", width, 3, 3)

    def conv(self, name: str, x: Tensor, **options: int) -> Tensor:
        return F.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], **options)

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.group_norm(x, 32, self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps=1e-6)

    def block(self, name: str, x: Tensor) -> Tensor:
        h = x
        for part in ("1", "2"):
            h = self.norm(f"{name}.norm{part}", h)
            h = self.conv(f"{name}.conv{part}", h * torch.sigmoid(h), padding=1)
        return h + (self.conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in self.state else x)

    def attention(self, name: str, x: Tensor) -> Tensor:
        h = self.norm(f"{name}.norm", x)
        q, k, v = (self.conv(f"{name}.{part}", h).flatten(2) for part in "qkv")
        weights = torch.softmax(torch.einsum("ncq,nck->nqk", q, k) / x.shape[1] ** 0.5, dim=2)
        return x + self.conv(f"{name}.proj_out", torch.einsum("nqk,nck->ncq", weights, v).reshape(x.shape))

    def middle(self, name: str, x: Tensor) -> Tensor:
        x = self.attention(f"{name}.attn_1", self.block(f"{name}.block_1", x))
        return self.block(f"{name}.block_2", x)

    def stage(self, name: str, x: Tensor, num_blocks: int) -> Tensor:
        for index in range(num_blocks):
            x = self.block(f"{name}.block.{index}", x)
            if f"{name}.attn.{index}.q.weight" in self.state:
                x = self.attention(f"{name}.attn.{index}", x)
        return x

    def latents(self, pictures: Tensor) -> Tensor:
        """Pictures in [-1, 1]."""
        x = self.conv("encoder.conv_in", pictures, padding=1)
        for level in range(NUM_LEVELS):
            x = self.stage(f"encoder.down.{level}", x, self.blocks)
            if level < 3:
                x = self.conv(f"encoder.down.{level}.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2)
        x = self.norm("encoder.norm_out", self.middle("encoder.mid", x))
        return self.conv("quant_conv", self.conv("encoder.conv_out", x * torch.sigmoid(x), padding=1))

    def encode(self, pictures: Tensor) -> Tensor:
        latents = self.latents(pictures).permute(0, 2, 3, 1).flatten(1, 2)
        codes = self.state["quantize.embedding.weight"]
        return torch.cdist(latents.double(), codes.double().expand(len(latents), -1, -1)).argmin(2)

    def decode(self, ids: Tensor, side: int) -> Tensor:
        """Pictures around [-1, 1]."""
        z = self.state["quantize.embedding.weight"][ids].transpose(1, 2).unflatten(2, (side, side))
        x = self.conv("decoder.conv_in", self.conv("post_quant_conv", z), padding=1)
        x = self.middle("decoder.mid", x)
        for level in reversed(range(NUM_LEVELS)):
            x = self.stage(f"decoder.up.{level}", x, self.blocks + 1)
            if level > 0:
                x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
                x = self.conv(f"decoder.up.{level}.upsample.conv", x, padding=1)
        x = self.norm("decoder.norm_out", x)
        return self.conv("decoder.conv_out", x * torch.sigmoid(x), padding=1)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Four smooth pictures with hard edges, `(4, 64, 64, 3)` uint8; black and white at the border too."""
    rng = np.random.default_rng(3)
    images = np.empty((4, 64, 64, 3), np.uint8)
    y, x = np.mgrid[:64, :64]
    for image in images:
        for channel in range(3):
            slope = rng.uniform(-2, 2, 2)
            image[..., channel] = np.clip(rng.integers(0, 256) + slope[0] * x + slope[1] * y, 0, 255)
        image[rng.integers(0, 32) :, rng.integers(0, 32) :] //= 2
    return images


def symmetric(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images / 127.5 - 1).float().permute(0, 3, 1, 2)


@pytest.fixture(scope="module", params=[1, 2])
def taming(request, images) -> TamingModel:
    return TamingModel(request.param, symmetric(images))


@pytest.fixture(scope="module")
def weights(images) -> dict[str, Tensor]:
    return TamingModel(1, symmetric(images)).state


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "model.yaml"
    path.write_text(yaml.safe_dump(taming_yaml()))
    return path


@pytest.fixture
def checkpoint(tmp_path: Path, weights: dict[str, Tensor]) -> Path:
    path = tmp_path / "last.ckpt"
    torch.save({"epoch": 3, "state_dict": weights}, path)
    return path


def refusal(checkpoint: Path, config: Path | None, **options: Any) -> str:
    """Message of a refused conversion, which must leave nothing behind."""
    before = sorted(checkpoint.parent.iterdir())
    with pytest.raises(TokenizerError) as error:
        convert_checkpoint(checkpoint, checkpoint.parent / "out", config=config, **options)
    assert sorted(checkpoint.parent.iterdir()) == before
    return str(error.value)


def test_ids_and_pictures_are_those_of_taming(taming, images, tmp_path):
    loss = {"loss.discriminator.main.0.weight": torch.zeros(4, 3, 4, 4), "loss.perceptual_loss.count": torch.tensor(1)}
    torch.save({"state_dict": taming.state | loss, "optimizer_states": [{"lr": 1.0}]}, tmp_path / "last.ckpt")
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(taming_yaml(taming.blocks)))
    done = convert_checkpoint(tmp_path / "last.ckpt", tmp_path / "out", config=tmp_path / "model.yaml")
    assert done.dropped == 2
    assert done.parameters == sum(value.numel() for value in taming.state.values())
    assert done.tokens_per_image == 1024
    assert done.changed_ids is None

    ours = load_tokenizer(tmp_path / "out", "cpu", batch_size=2)
    assert ours.fingerprint == done.fingerprint
    expected = taming.encode(symmetric(images))
    assert len(expected.unique()) > 20
    ids = ours.encode(images)
    assert np.array_equal(ids, expected)
    decoded = ((taming.decode(expected, 8).clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    assert np.abs(ours.decode(ids) - decoded).max() <= 0.51  # ours are rounded
    assert decoded.std() > 20


@pytest.mark.parametrize("change", [{"pixel_range": "unit"}, {"lone_attention": False}, {"no_attn_mid_block": True}])
def test_each_difference_of_the_families_changes_ids(change, weights, images):
    # So that the test above would notice if the conversion did not record it.
    config = convert.taming_config(taming_yaml())
    pictures = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255)
    found = []
    for variant in (config, config.model_copy(update=change)):
        model = VQGAN(variant).eval()
        model.load_state_dict(weights, strict=False)
        with torch.inference_mode():
            found.append(model.encode(pictures))
    assert (found[0] != found[1]).float().mean() > 0.05


def test_keys_that_published_configs_lack_are_written_only_when_they_matter():
    published = VQGANConfig.from_file(FIXTURE / "config.json")
    assert not {"pixel_range", "lone_attention"} & json.loads(published.to_json()).keys()
    converted = convert.taming_config(taming_yaml())
    assert json.loads(converted.to_json())["pixel_range"] == "symmetric"
    assert VQGANConfig.from_dict(json.loads(converted.to_json())) == converted


def test_a_folder_with_a_bin_file_becomes_safetensors_of_the_same_ids(tmp_path):
    folder = tmp_path / "published"
    folder.mkdir()
    shutil.copyfile(FIXTURE / "config.json", folder / "config.json")
    torch.save(load_file(FIXTURE / "model.safetensors"), folder / "pytorch_model.bin")
    convert_checkpoint(folder, tmp_path / "out")
    with np.load(FIXTURE / "golden.npz", allow_pickle=False) as golden:
        ids = load_tokenizer(tmp_path / "out", "cpu", batch_size=2).encode(golden["images"])
        assert np.array_equal(ids, golden["token_ids"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert len(modes) == 1


def test_fp16_is_half_the_size_and_says_what_it_changes(tmp_path, weights, config):
    torch.save(weights, tmp_path / "state.pt")  # bare, without the key state_dict
    done = convert_checkpoint(tmp_path / "state.pt", tmp_path / "out", config=config, half=True)
    assert {value.dtype for value in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.float16}
    exact = VQGAN(read_model_config(config)).eval()
    exact.load_state_dict(weights)
    with torch.inference_mode():
        ids = exact.encode(torch.from_numpy(check_picture()).permute(0, 3, 1, 2).float().div(255)).numpy()
    written = load_tokenizer(tmp_path / "out", "cpu", batch_size=1)
    assert written.fingerprint == done.fingerprint
    assert done.changed_ids == pytest.approx(100 * np.mean(written.encode(check_picture()) != ids), abs=0.2)
    assert 0 < done.changed_ids < 20


def test_weights_beyond_fp16_need_fp32(tmp_path, weights, config):
    torch.save(weights | {"quant_conv.bias": torch.full((EMBED,), 1e6)}, tmp_path / "state.pt")
    assert "quant_conv.bias do not fit fp16" in refusal(tmp_path / "state.pt", config, half=True)


def test_classes_of_lightnings_callbacks_are_no_obstacle(tmp_path, weights, config, monkeypatch):
    names = ["pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.callbacks.model_checkpoint"]
    kind = type("ModelCheckpoint", (), {"__module__": names[-1]})
    with monkeypatch.context() as patched:
        for name in names:
            patched.setitem(sys.modules, name, ModuleType(name))
        sys.modules[names[-1]].ModelCheckpoint = kind  # type: ignore[attr-defined]
        state = {"callbacks": {kind: {"best_model_path": "a.ckpt"}}, "state_dict": weights}
        torch.save(state, tmp_path / "last.ckpt")
    assert names[-1] not in sys.modules
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "last.ckpt", weights_only=True)
    allowed = torch.serialization.get_safe_globals()
    convert_checkpoint(tmp_path / "last.ckpt", tmp_path / "out", config=config)
    assert torch.serialization.get_safe_globals() == allowed


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("form", ["zip", "legacy", "plain"])
def test_code_in_a_checkpoint_is_not_run(tmp_path, weights, config, form):
    path, proof = tmp_path / "last.ckpt", tmp_path / "proof"
    content = {"callbacks": Touch(proof), "state_dict": weights}
    if form == "plain":
        path.write_bytes(pickle.dumps(content["callbacks"], protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    message = refusal(path, config)
    assert "never unpickles code" in message
    assert "weights_only" not in message
    assert not proof.exists()
    pickle.loads(pickle.dumps(content["callbacks"]))
    assert proof.exists()  # the file would have done it


def test_a_checkpoint_of_the_old_format_is_read(tmp_path, weights, config):
    torch.save({"state_dict": weights}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    convert_checkpoint(tmp_path / "old.ckpt", tmp_path / "out", config=config)


@pytest.mark.parametrize("kept", [0, 3, 1000, 0.5, 0.999])
def test_a_truncated_checkpoint_is_one_clear_error(checkpoint, config, kept):
    data = checkpoint.read_bytes()
    checkpoint.write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
    message = refusal(checkpoint, config)
    assert "last.ckpt" in message
    assert len(message.splitlines()) == 1
    assert any(cause in message for cause in ("is empty", "is cut off", "is no torch file"))


def test_a_compressed_archive_is_refused_unread(checkpoint, config):
    with zipfile.ZipFile(checkpoint) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(checkpoint, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    assert "compressed" in refusal(checkpoint, config)


def test_large_files_and_small_files_with_large_tensors_are_refused(checkpoint, config, weights, monkeypatch):
    torch.save({key: torch.zeros(1).expand(value.shape) for key, value in weights.items()}, checkpoint)
    assert "too small" in refusal(checkpoint, config)
    monkeypatch.setattr(convert, "MAX_CHECKPOINT_BYTES", 1000)
    assert "larger than" in refusal(checkpoint, config)


def test_tensors_that_do_not_fit_are_named(checkpoint, config, weights):
    changed = dict(weights)
    del changed["encoder.mid.attn_1.q.weight"]
    changed["encoder.down.0.attn.0.q.weight"] = torch.zeros(1)
    changed["quantize.embedding.weight"] = torch.zeros(CODES, EMBED + 1)
    torch.save({"state_dict": changed}, checkpoint)
    message = refusal(checkpoint, config)
    assert "1 missing: encoder.mid.attn_1.q.weight" in message
    assert "1 extra: encoder.down.0.attn.0.q.weight" in message
    assert f"1 misshaped: quantize.embedding.weight ({CODES}, {EMBED + 1}) instead of ({CODES}, {EMBED})" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(checkpoint, config, weights, value):
    torch.save(weights | {"decoder.conv_out.bias": torch.tensor([0, value, 0])}, checkpoint)
    assert "decoder.conv_out.bias" in refusal(checkpoint, config)


@pytest.mark.parametrize(
    "content",
    [[1, 2], {"state_dict": {"a": 1}}, {"a": torch.ones(2, dtype=torch.int64)}, {1: torch.ones(1)}, {"state_dict": []}],
)
def test_what_is_no_state_dict_is_refused(checkpoint, config, content):
    torch.save(content, checkpoint)
    assert "not a state dict of tensors" in refusal(checkpoint, config)


@pytest.mark.parametrize("layout", ["sparse", "meta"])
def test_only_ordinary_tensors_are_taken(checkpoint, config, weights, layout):
    bias = weights["quant_conv.bias"]
    odd = bias.to_sparse() if layout == "sparse" else bias.to("meta")
    torch.save(weights | {"quant_conv.bias": odd}, checkpoint)
    assert "not a state dict of tensors" in refusal(checkpoint, config)


def test_other_quantizers_are_refused_by_their_tensors(checkpoint, config, weights):
    torch.save(weights | {"quantize.embed.weight": torch.zeros(CODES, EMBED)}, checkpoint)
    assert "Gumbel" in refusal(checkpoint, config)
    torch.save({"state_dict": weights | {"quantize.used": torch.zeros(4)}}, checkpoint)
    assert "remap" in refusal(checkpoint, config)


DDCONFIG = ("params", "ddconfig")


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        (("target",), "taming.models.vqgan.GumbelVQ", "Gumbel"),
        (("params", "remap"), "data/used.npy", "remap"),
        (("params", "use_ema"), True, "use_ema"),
        (("params", "n_embed"), 16384, "16384 codes do not fit the vocabulary's 8192"),
        (("params", "embed_dim"), None, "embed_dim"),
        (("params", "ddconfig"), None, "ddconfig is missing"),
        ((*DDCONFIG, "double_z"), True, "KL autoencoder"),
        ((*DDCONFIG, "double_z"), None, "KL autoencoder"),
        ((*DDCONFIG, "in_channels"), 182, "in_channels"),
        ((*DDCONFIG, "out_ch"), 1, "out_ch"),
        ((*DDCONFIG, "attn_type"), "none", "attn_type"),
        ((*DDCONFIG, "use_skips"), True, "use_skips"),
        ((*DDCONFIG, "ch"), 48, "48 channels does not divide into 32 groups"),
        ((*DDCONFIG, "resolution"), 30, "resolution 30"),
        ((*DDCONFIG, "ch_mult"), "${oc.env:X}", "ch_mult"),
    ],
)
def test_configs_of_other_models_are_refused_by_name(checkpoint, config, place, value, named):
    content = deepcopy(taming_yaml())
    parent = content["model"]
    for key in place[:-1]:
        parent = parent[key]
    if value is None:
        del parent[place[-1]]
    else:
        parent[place[-1]] = value
    config.write_text(yaml.safe_dump(content))
    message = refusal(checkpoint, config)
    assert named in message
    assert "model.yaml" in message


@pytest.mark.parametrize(
    "text", ["", "[1]", "a: [", "{" * 5000, "\x00", "!!python/object/apply:os.system ['touch x']", "1: 2", "model: 3"]
)
def test_configs_that_are_none(checkpoint, config, text):
    config.write_text(text)
    assert "model.yaml" in refusal(checkpoint, config)


def test_missing_files_are_named(checkpoint, config, tmp_path):
    assert "give --config" in refusal(checkpoint, None)
    assert "no.yaml" in refusal(checkpoint, tmp_path / "no.yaml")
    assert "no.ckpt" in refusal(tmp_path / "no.ckpt", config)


def test_nothing_is_written_over(checkpoint, config, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    for out in (tmp_path / "full", config):
        with pytest.raises(TokenizerError, match="choose another"):
            convert_checkpoint(checkpoint, out, config=config)
    assert (tmp_path / "full" / "mine.txt").read_text() == "x"


def test_the_command_says_what_it_did(checkpoint, config, weights, tmp_path):
    torch.save({"state_dict": weights | {"loss.logvar": torch.zeros(1)}}, checkpoint)
    (tmp_path / "out").mkdir()  # an empty folder is as good as none
    arguments = ["tokenizer", "convert", "--checkpoint", str(checkpoint), "--config", str(config)]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0
    assert "left out 1 tensors" in result.output
    assert "1024 tokens an image" in result.output
    assert load_tokenizer(tmp_path / "out", "cpu").fingerprint in result.output
    assert "uvd tokenizer convert --checkpoint" in CliRunner().invoke(app, ["tokenizer", "convert", "--help"]).output
