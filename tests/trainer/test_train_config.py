from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from uvd.trainer.config import TrainConfig

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("name", ["tiny", "lvm-300m", "lvm-600m", "lvm-1b", "lvm-3b"])
def test_shipped_configs_are_valid(name: str) -> None:
    config = TrainConfig(**yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()))
    assert config.size == name.removeprefix("lvm-")
    if name != "tiny":
        assert config.batch_tokens == 524_288
        assert config.context_length == 4096
        assert config.learning_rate * config.final_lr_fraction == pytest.approx(3e-5)


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(ValidationError, match="learning_rat"):
        TrainConfig(batch_tokens=2064, learning_rat=1.0)  # type: ignore[call-arg]


def test_every_field_is_documented() -> None:
    assert [name for name, field in TrainConfig.model_fields.items() if name != "size" and not field.description] == []


def test_batch_must_be_whole_micro_batches() -> None:
    with pytest.raises(ValidationError, match="multiple of context 2064 x micro_batch 2"):
        TrainConfig(size="tiny", batch_tokens=3 * 2064, micro_batch=2)
    assert TrainConfig(size="tiny", batch_tokens=4 * 2064, micro_batch=2).batch_rows == 4


@pytest.mark.parametrize("bad", [{"size": "2b"}, {"source_weights": {"video": -1.0}}, {"steps": 0}])
def test_values_out_of_range_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TrainConfig(batch_tokens=2064, **bad)  # type: ignore[arg-type]
