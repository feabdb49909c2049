from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from uvd.tokenize.training_drawings import DRAWINGS
from uvd.tokenize.training_samples import build_pools, pasted, photo_crops, replacing, write_npy


def photo(seed: int, width: int = 320, height: int = 240) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("draw", DRAWINGS, ids=lambda draw: draw.__name__)
def test_drawings_are_new_pictures_of_the_right_form(draw):
    background = photo(0, 256, 256)
    kept = background.copy()
    first = draw(background, np.random.default_rng(3))
    assert first.shape == (256, 256, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(background, kept)
    assert np.array_equal(first, draw(background, np.random.default_rng(3)))


def test_crops_and_cutouts_stay_inside():
    rng = np.random.default_rng(0)
    for image in (photo(1, 1000, 161), photo(1, 145, 900)):
        assert all(crop.shape == (256, 256, 3) for crop in photo_crops(image, rng))
    cutout = np.zeros((300, 20, 4), np.uint8)
    cutout[:, 5:15] = (255, 0, 0, 255)
    for _ in range(20):
        out = pasted(cutout, np.zeros((256, 256, 3), np.uint8), rng)
        assert out[..., 0].max() >= 250
        assert out[..., 1].max() == 0


@pytest.fixture
def samples(tmp_path):
    folder = tmp_path / "samples" / "gcompris" / "resource" / "photos"
    folder.mkdir(parents=True)
    for seed in range(24):
        Image.fromarray(photo(seed)).save(folder / f"{seed}.webp", quality=90)
    (folder / "broken.webp").write_bytes(b"RIFF\0\0\0\0WEBP")
    Image.fromarray(photo(0, 20, 20)).save(folder / "tiny.webp")
    return tmp_path / "samples"


def test_no_held_out_photo_nor_a_copy_of_it_is_trained_on(samples, tmp_path):
    build_pools(samples, tmp_path / "a")
    heldout = np.load(tmp_path / "a" / "heldout.npy", allow_pickle=False)
    folder = samples / "gcompris" / "resource" / "photos"
    for seed in range(24):  # a smaller copy of every photo, under another name
        Image.fromarray(photo(seed, 256, 192)).save(folder / f"copy-of-{seed}.webp", quality=90)
    build_pools(samples, tmp_path / "b")
    train = np.load(tmp_path / "b" / "train.npy", allow_pickle=False)
    groups = json.loads((tmp_path / "b" / "groups.json").read_text())["train"]
    photos = train[[not group.startswith("drawn") for group in groups]]
    assert len(heldout) >= 2
    means = photos.reshape(len(photos), -1).astype(np.float32)
    for held in heldout[::2]:  # every first of a pair is the centred square
        nearest = np.abs(means - held.reshape(-1).astype(np.float32)).mean(axis=1).min()
        assert nearest > 3


def test_pools_are_a_function_of_the_seed(samples, tmp_path):
    counts = [build_pools(samples, tmp_path / name, seed=5) for name in ("a", "b")]
    assert counts[0] == counts[1]
    for name in ("train.npy", "heldout.npy", "groups.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_pools_are_written_as_numpy_would(tmp_path):
    pictures = [photo(seed, 256, 256) for seed in range(3)]
    np.save(tmp_path / "numpy.npy", np.stack(pictures), allow_pickle=False)
    with replacing(tmp_path / "ours.npy") as file:
        write_npy(file, pictures)
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "numpy.npy").read_bytes()


def test_a_pool_is_there_whole_or_as_it_was(tmp_path):
    (tmp_path / "train.npy").write_bytes(b"as it was")

    def stopped():
        with replacing(tmp_path / "train.npy") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert (tmp_path / "train.npy").read_bytes() == b"as it was"
