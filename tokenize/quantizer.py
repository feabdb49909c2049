"""The codebook while it is trained: k-means start, running means, revival of dead codes.

Each code is the running mean of the latents that chose it (van den Oord et al., 2017, appendix A.1), so it needs no
gradient. Everything is deterministic on a CPU for a given seed and thread count.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from uvd.tokenize.vqgan import nearest_codes

KMEANS_ROUNDS = 8


class TrainedCodebook:
    """Updates a `(K, D)` codebook in place.

    Args:
        codes: the model's embedding, kept up to date in place.
        decay: of the running counts and sums.
        revive_below: a code with a smaller running count is replaced.
    """

    def __init__(self, codes: Tensor, decay: float, revive_below: float) -> None:
        codes.requires_grad_(False)
        self.codes, self._decay, self._revive_below = codes, decay, revive_below
        self._counts = torch.zeros(codes.shape[0], device=codes.device)
        self._sums = torch.zeros_like(codes)
        self.used = 0
        self.perplexity = 0.0

    @torch.no_grad()
    def start(self, latents: Tensor, batches: int, rng: np.random.Generator) -> None:
        """Clusters the `(N, D, h, w)` latents of several batches into the codebook by k-means (Lloyd's algorithm)."""
        flat = _flatten(latents)
        self.codes.copy_(flat[_draw(len(flat), len(self.codes), rng).to(flat.device)])
        for _ in range(KMEANS_ROUNDS):
            ids = nearest_codes(flat, self.codes)
            counts, sums = self._tally(flat, ids)
            filled = counts > 0
            self.codes[filled] = sums[filled] / counts[filled, None]
            empty = int((~filled).sum())
            if empty:
                self.codes[~filled] = flat[_draw(len(flat), empty, rng).to(flat.device)]
        # As if every code had been chosen this often in every batch so far.
        self._counts.copy_((counts / batches).clamp_min(2 * self._revive_below))
        self._sums.copy_(self.codes * self._counts[:, None])

    def quantize(self, latents: Tensor, rng: np.random.Generator) -> Tensor:
        """The nearest codes of `(N, D, h, w)` latents, in the same shape, without gradient; then learns from them."""
        with torch.no_grad():
            flat = _flatten(latents)
            ids = nearest_codes(flat, self.codes)
            quantized = self.codes[ids]
            self._learn(flat, ids, rng)
            shape = (latents.shape[0], latents.shape[2], latents.shape[3], latents.shape[1])
            return quantized.view(shape).permute(0, 3, 1, 2)

    def _learn(self, flat: Tensor, ids: Tensor, rng: np.random.Generator) -> None:
        counts, sums = self._tally(flat, ids)
        self._counts.mul_(self._decay).add_(counts, alpha=1 - self._decay)
        self._sums.mul_(self._decay).add_(sums, alpha=1 - self._decay)
        dead = torch.nonzero(self._counts < self._revive_below).flatten()
        # At most a small share of the batch's latents become codes at once, or one batch would fill the codebook.
        dead = dead[: max(1, len(flat) // 64)]
        if len(dead):
            self._counts[dead] = 2 * self._revive_below
            self._sums[dead] = flat[_draw(len(flat), len(dead), rng).to(flat.device)] * self._counts[dead, None]
        self.codes.copy_(self._sums / self._counts.clamp_min(1e-6)[:, None])
        shares = self._counts / self._counts.sum()
        self.used = int((counts > 0).sum())
        self.perplexity = float(torch.exp(-(shares * shares.clamp_min(1e-12).log()).sum()))

    def _tally(self, flat: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        counts = torch.bincount(ids, minlength=len(self.codes)).to(flat.dtype)
        sums = torch.zeros_like(self.codes).index_add_(0, ids, flat)
        return counts, sums

    def state(self) -> dict[str, Tensor]:
        return {"counts": self._counts, "sums": self._sums}

    def load(self, state: dict[str, Tensor]) -> None:
        self._counts.copy_(state["counts"])
        self._sums.copy_(state["sums"])


def _flatten(latents: Tensor) -> Tensor:
    return latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1]).float()


def _draw(population: int, count: int, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.choice(population, count, replace=population < count))
