"""The loss of next-token prediction, token by token, so that it can be told apart by source."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from uvd.trainer.config import TrainConfig
from uvd.trainer.data import IGNORE, documents
from uvd.trainer.parallel import forward_precision


def token_losses(
    model: torch.nn.Module, inputs: torch.Tensor, labels: torch.Tensor, config: TrainConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs the model.

    Args:
        inputs, labels: `(rows, context)` int64, see `Batch.tensors`.

    Returns:
        Cross entropy of each position in nats, `(rows, context)` float32, 0 where the label is `IGNORE`; and the
        z-loss, z_loss x log²(sum of exp of the logits) summed over the labelled positions, which keeps the logits from
        drifting (PaLM, arXiv 2204.02311, section 5): a scalar, 0 if it is off.
    """
    # Positions that start again with each document are what SDPA masks by; without them all of a row is seen.
    positions = documents(inputs)[1] if config.mask_documents else None
    with forward_precision(model, config, inputs.device):
        logits = model(input_ids=inputs, position_ids=positions, use_cache=False).logits
    logits = logits.float()
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="none")
    if not config.z_loss:
        return losses.view_as(labels), losses.new_zeros(())
    drift = logits.logsumexp(-1).square().masked_fill(labels == IGNORE, 0.0)
    return losses.view_as(labels), config.z_loss * drift.sum()


class SourceLosses:
    """Sums of losses by source.

    Attributes:
        names: of the sources.
        sums: `(2, sources)` float64: nats, and how many tokens; of this worker alone.
    """

    def __init__(self, names: tuple[str, ...], device: torch.device) -> None:
        self.names = names
        self.sums = torch.zeros(2, len(names), dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, losses: torch.Tensor, labels: torch.Tensor, sources: torch.Tensor) -> None:
        """Adds positions: each argument `(rows, context)`; `sources` are places in `names`."""
        # Nothing here waits for a GPU: positions without a label add zero.
        place = sources.flatten()
        self.sums[0].index_add_(0, place, losses.flatten().double())
        self.sums[1].index_add_(0, place, (labels != IGNORE).flatten().double())

    def means(self) -> dict[str, float]:
        """Mean loss of each source of which there were tokens; the sums must be those of all workers by now."""
        nats, tokens = self.sums.tolist()
        return {name: nats[place] / tokens[place] for place, name in enumerate(self.names) if tokens[place]}
