"""A small tokenized dataset, made with the project's own writer, and a model size that takes milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from uvd.manifests.dataset import Dataset
from uvd.manifests.token_shard import TokenShardWriter
from uvd.trainer import model as models

MakeDataset = Callable[..., str]


def codes(seed: int, images: int, ids: int = 8192) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).integers(0, ids, (images, 256)).astype(np.uint16)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def micro(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(models.SIZES, "micro", models.ModelSize(32, 64, 2, 2, context=600))
    return "micro"


@pytest.fixture
def make_dataset(tmp_path: Path) -> MakeDataset:
    def make(
        splits: list[str] | None = None,
        *,
        name: str = "data",
        fingerprint: str = "f" * 64,
        tokenizer: str = "uvd-test",
        sources: tuple[str, ...] = ("images", "video"),
        images: int = 2,
        ids: int = 8192,
    ) -> str:
        uri = str(tmp_path / name)
        dataset = Dataset(uri)
        for number, source in enumerate(sources):
            dataset.declare("tokens", f"{tokenizer}/{source}", {"fingerprint": fingerprint})
            for shard in range(2):
                with TokenShardWriter(dataset, tokenizer, source, shard) as writer:
                    for index, split in enumerate(splits or ["train"] * 5 + ["val"]):
                        row = {
                            "key": f"{source}-{shard:06d}-{index:06d}",
                            "source": source,
                            "dataset": "made-up",
                            "layout": "frames",
                            "split": split,
                            "num_images": images,
                            "roles": ["frame"] * images,
                        }
                        writer.add(row, codes(100 * number + 10 * shard + index, images, ids))
                    writer.commit(
                        index + 1, fingerprint, {"tokenizer": tokenizer, "tokenizer_fingerprint": fingerprint}
                    )
        return uri

    return make
