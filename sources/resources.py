"""What a job takes of a machine, as a config says it: Ray places the job where that much is free."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

GB = 10**9
Demand = dict[str, float]
"""As Ray counts: `CPU`, `GPU`, `memory` in bytes, and resources of one's own."""


class Resources(BaseModel):
    """Settings of a stage. They say where, not what: a dataset's bytes do not depend on them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_cpus: float | None = Field(None, ge=0)
    """Of one job; by default what its source says."""
    num_gpus: float = Field(0, ge=0)
    memory_gb: float | None = Field(None, gt=0)
    """That Ray keeps free for a job, in 10⁹ bytes; nothing enforces it."""
    custom: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Resources of one's own, such as `{render: 1}` on nodes started with `ray start --resources '{"render": 4}'`."""

    def demand(self, num_cpus: float) -> Demand:
        """Of one job, without what it takes none of; `num_cpus` is the default."""
        cpus = self.num_cpus if self.num_cpus is not None else num_cpus
        wanted = {"CPU": cpus, "GPU": self.num_gpus, "memory": (self.memory_gb or 0) * GB, **self.custom}
        return {name: amount for name, amount in wanted.items() if amount}


ORDINARY = Resources()
