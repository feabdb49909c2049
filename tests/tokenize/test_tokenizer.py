from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from uvd.tokenize.tokenizer import Tokenizer, TokenizerError, load_tokenizer

FIXTURE = Path(__file__).parents[1] / "data" / "muse-vqgan"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(FIXTURE, "cpu", batch_size=2)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(FIXTURE / "golden.npz", allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(FIXTURE / name, tmp_path / name)
    return tmp_path


def noise(number: int, side: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (number, side, side, 3), np.uint8)


def test_round_trip_equals_the_original_code(tokenizer, golden):
    ids = tokenizer.encode(golden["images"])
    assert ids.dtype == np.uint16
    assert np.array_equal(ids, golden["token_ids"])
    decoded = tokenizer.decode(ids)
    assert decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - golden["reconstruction"]).max() <= 1


def test_ids_do_not_depend_on_how_images_are_batched(tokenizer):
    images = noise(5)
    together = tokenizer.encode(images)
    assert together.shape == (5, 16)
    for index in range(5):
        assert np.array_equal(tokenizer.encode(images[index : index + 1])[0], together[index])
    assert np.array_equal(tokenizer.encode(images[::-1]), together[::-1])


def test_encoding_leaves_the_process_thread_count_alone(tokenizer):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        tokenizer.encode(noise(1))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_without_decoder_the_ids_are_the_same(golden):
    encoder = load_tokenizer(FIXTURE, "cpu", batch_size=2, encoder_only=True)
    assert np.array_equal(encoder.encode(golden["images"][:2]), golden["token_ids"][:2])


def test_vocabulary_is_that_of_the_released_models(tokenizer):
    vocab = tokenizer.vocab
    assert (vocab.bos, vocab.eos, vocab.pad, vocab.size) == (8192, 8193, 8194, 8292)
    assert vocab.codes == 1024


def test_nothing_in_nothing_out(tokenizer):
    assert tokenizer.encode(np.zeros((0, 256, 256, 3), np.uint8)).shape == (0, 256)
    assert tokenizer.decode(np.zeros((0, 256), np.uint16)).shape == (0, 256, 256, 3)


@pytest.mark.parametrize("shape", [(64, 64, 3), (1, 3, 64, 64), (1, 60, 64, 3)])
def test_images_of_another_shape_are_refused(tokenizer, shape):
    with pytest.raises(TokenizerError):
        tokenizer.encode(np.zeros(shape, np.uint8))


def test_floats_are_refused(tokenizer):
    with pytest.raises(TokenizerError, match="float32"):
        tokenizer.encode(np.zeros((1, 64, 64, 3), np.float32))


def test_ids_that_are_no_code_are_refused(tokenizer):
    with pytest.raises(TokenizerError, match="1024"):
        tokenizer.decode(np.full((1, 256), 1024, np.uint16))
    with pytest.raises(TokenizerError, match="square"):
        tokenizer.decode(np.zeros((1, 255), np.uint16))


def test_nan_latents_are_an_error(folder):
    state = load_file(folder / "model.safetensors")
    state["encoder.conv_out.bias"][3] = float("nan")
    save_file(state, folder / "model.safetensors")
    with pytest.raises(TokenizerError, match="NaN"):
        load_tokenizer(folder, "cpu", batch_size=1).encode(noise(1))


def test_bin_files_load_and_fp16_is_widened(folder):
    state = {name: value.half() for name, value in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    loaded = load_tokenizer(folder, "cpu", batch_size=1)
    assert loaded.model.quantize.embedding.weight.dtype == torch.float32
    assert loaded.encode(noise(1)).max() < 1024


def test_a_bin_file_with_code_in_it_is_not_run(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Path("x")}, folder / "pytorch_model.bin")
    with pytest.raises(TokenizerError, match=r"pytorch_model\.bin"):
        load_tokenizer(folder, "cpu")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("kept", [0, 100, 3_000_000])
def test_a_truncated_file_is_one_clear_error(folder, name, kept):
    data = (folder / "model.safetensors").read_bytes()
    if name == "pytorch_model.bin":
        torch.save(load_file(folder / "model.safetensors"), folder / name)
        data = (folder / name).read_bytes()
        (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(data[:kept])
    with pytest.raises(TokenizerError, match=name):
        load_tokenizer(folder, "cpu")


def test_weights_that_do_not_fit_are_named(folder):
    state = load_file(folder / "model.safetensors")
    del state["encoder.conv_in.bias"]
    state["encoder.extra"] = torch.zeros(1)
    state["quant_conv.bias"] = torch.zeros(7)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(TokenizerError) as error:
        load_tokenizer(folder, "cpu")
    message = str(error.value)
    assert "1 missing: encoder.conv_in.bias" in message
    assert "1 extra: encoder.extra" in message
    assert "1 misshaped: quant_conv.bias (7,) instead of (32,)" in message


@pytest.mark.parametrize("removed", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, removed):
    (folder / removed).unlink()
    with pytest.raises(TokenizerError, match=removed):
        load_tokenizer(folder, "cpu")


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(TokenizerError, match="no tokenizer 'uvd-smal'"):
        load_tokenizer("uvd-smal")


def test_the_fingerprint_follows_weights_and_config(folder, tokenizer):
    assert load_tokenizer(folder, "cpu").fingerprint == tokenizer.fingerprint
    state = load_file(folder / "model.safetensors")
    state["quant_conv.bias"][0] += 1
    save_file(state, folder / "model.safetensors")
    changed = load_tokenizer(folder, "cpu").fingerprint
    assert changed != tokenizer.fingerprint
    text = (folder / "config.json").read_text().replace('"resolution": 256', '"resolution": 512')
    (folder / "config.json").write_text(text)
    assert load_tokenizer(folder, "cpu").fingerprint not in {changed, tokenizer.fingerprint}
