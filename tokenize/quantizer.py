"""The codebook while it is trained: k-means start, two ways to follow the latents, revival of dead codes.

`EmaCodebook`: each code is the running mean of the latents that chose it (van den Oord et al., 2017, appendix A.1).
`LinearCodebook`: codes are fixed centres times one learned matrix (SimVQ, Zhu et al., 2024, arXiv 2411.02038), so all
of them move when the latents move and none is left behind. Deterministic on a CPU for a given seed and thread count.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uvd.tokenize.vqgan import nearest_codes

KMEANS_ROUNDS = 8
REVIVED_SHARE = 64
"""At most one in so many of a batch's latents becomes a code at once, or one batch would fill the codebook."""

Gather = Callable[[Tensor], Tensor]


class TrainedCodebook(nn.Module):
    """Keeps the model's `(K, D)` codes up to date in place.

    Its losses are squared distances in units of the latents' variance at the start, or a model with small latents would
    hardly feel them and drift away from its codes.

    Args:
        codes: the model's embedding.
        decay: of the running counts.
        revive_below: a code with a smaller running count is replaced.
        gather: makes the latents of all workers known to each, so that all keep the same codes.

    Attributes:
        used: codes chosen in the last step.
        perplexity: of the running counts.
    """

    counts: Tensor
    variance: Tensor

    def __init__(self, codes: Tensor, decay: float, revive_below: float, gather: Gather = lambda rows: rows) -> None:
        super().__init__()
        codes.requires_grad_(False)
        self._codes, self._decay, self._revive_below, self._gather = [codes], decay, revive_below, gather
        self.register_buffer("counts", torch.zeros(codes.shape[0], device=codes.device))
        self.register_buffer("variance", torch.ones((), device=codes.device))
        self.used = 0
        self.perplexity = 0.0

    @property
    def codes(self) -> Tensor:
        # In a list, because the module would otherwise claim the model's parameter as its own.
        return self._codes[0]

    @torch.no_grad()
    def start(self, latents: Tensor, batches: int, rng: np.random.Generator) -> None:
        """Clusters the `(N, D, h, w)` latents of several batches into the codebook by k-means (Lloyd's algorithm)."""
        flat = self._gather(_flatten(latents))
        self.variance.copy_(flat.var(dim=0).mean())
        centres = flat[_draw(len(flat), len(self.codes), rng).to(flat.device)]
        for _ in range(KMEANS_ROUNDS):
            counts, sums = self._tally(flat, nearest_codes(flat, centres))
            filled = counts > 0
            centres[filled] = sums[filled] / counts[filled, None]
            empty = int((~filled).sum())
            if empty:
                centres[~filled] = flat[_draw(len(flat), empty, rng).to(flat.device)]
        # As if every code had been chosen this often in every batch so far.
        self.counts.copy_((counts / batches).clamp_min(2 * self._revive_below))
        self._place_all(centres)

    def quantize(self, latents: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Quantizes `(N, D, h, w)` latents, then learns from them.

        Returns:
            the nearest codes, in the same shape, without gradient; and two scalars: the loss that pulls latents to
            codes (commitment) and the one that pulls codes to latents.
        """
        flat = _flatten(latents)
        with torch.no_grad():
            ids = nearest_codes(flat.detach(), self.codes)
            quantized = self.codes[ids]
        commitment = F.mse_loss(flat, quantized) / self.variance
        loss = self._code_loss(flat.detach(), ids) / self.variance
        with torch.no_grad():
            seen = self._gather(flat.detach())
            self._learn(seen, self._gather(ids), rng)
        shape = (latents.shape[0], latents.shape[2], latents.shape[3], latents.shape[1])
        return quantized.view(shape).permute(0, 3, 1, 2), commitment, loss

    def refresh(self, decay: float) -> None:
        """Called after an optimizer step; `decay` is that of the exported weights."""

    def averaged(self) -> Tensor:
        """The `(K, D)` codes that go with averaged weights."""
        return self.codes

    def _learn(self, flat: Tensor, ids: Tensor, rng: np.random.Generator) -> None:
        counts, sums = self._tally(flat, ids)
        self.counts.mul_(self._decay).add_(counts, alpha=1 - self._decay)
        self._follow(sums)
        dead = torch.nonzero(self.counts < self._revive_below).flatten()[: max(1, len(flat) // REVIVED_SHARE)]
        if len(dead):
            self.counts[dead] = 2 * self._revive_below
            self._replace(dead, flat[_draw(len(flat), len(dead), rng).to(flat.device)])
        shares = self.counts / self.counts.sum()
        self.used = int((counts > 0).sum())
        self.perplexity = float(torch.exp(-(shares * shares.clamp_min(1e-12).log()).sum()))

    def _tally(self, flat: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        counts = torch.bincount(ids, minlength=len(self.codes)).to(flat.dtype)
        sums = torch.zeros_like(self.codes).index_add_(0, ids, flat)
        return counts, sums

    def _code_loss(self, flat: Tensor, ids: Tensor) -> Tensor:
        return flat.new_zeros(())

    def _follow(self, sums: Tensor) -> None:
        """Moves the codes towards the sums of the latents that chose them in this step."""

    def _place_all(self, centres: Tensor) -> None:
        raise NotImplementedError

    def _replace(self, dead: Tensor, latents: Tensor) -> None:
        raise NotImplementedError


class EmaCodebook(TrainedCodebook):
    sums: Tensor

    def __init__(self, codes: Tensor, decay: float, revive_below: float, gather: Gather = lambda rows: rows) -> None:
        super().__init__(codes, decay, revive_below, gather)
        self.register_buffer("sums", torch.zeros_like(codes))

    def _place_all(self, centres: Tensor) -> None:
        self.sums.copy_(centres * self.counts[:, None])
        self.codes.copy_(centres)

    def _follow(self, sums: Tensor) -> None:
        self.sums.mul_(self._decay).add_(sums, alpha=1 - self._decay)
        self.codes.copy_(self.sums / self.counts.clamp_min(1e-6)[:, None])

    def _replace(self, dead: Tensor, latents: Tensor) -> None:
        self.sums[dead] = latents * self.counts[dead, None]
        self.codes[dead] = latents


class LinearCodebook(TrainedCodebook):
    centres: Tensor
    mean_matrix: Tensor
    mean_shift: Tensor

    def __init__(self, codes: Tensor, decay: float, revive_below: float, gather: Gather = lambda rows: rows) -> None:
        super().__init__(codes, decay, revive_below, gather)
        dimension = codes.shape[1]
        self.register_buffer("centres", torch.zeros_like(codes))
        self.matrix = nn.Parameter(torch.eye(dimension, device=codes.device))
        self.shift = nn.Parameter(torch.zeros(dimension, device=codes.device))
        self.register_buffer("mean_matrix", self.matrix.detach().clone())
        self.register_buffer("mean_shift", self.shift.detach().clone())

    def _place_all(self, centres: Tensor) -> None:
        self.centres.copy_(centres)
        self.codes.copy_(centres @ self.matrix + self.shift)

    @torch.no_grad()
    def refresh(self, decay: float) -> None:
        self.codes.copy_(self.centres @ self.matrix + self.shift)
        self.mean_matrix.lerp_(self.matrix, 1 - decay)
        self.mean_shift.lerp_(self.shift, 1 - decay)

    def averaged(self) -> Tensor:
        return self.centres @ self.mean_matrix + self.mean_shift

    def _code_loss(self, flat: Tensor, ids: Tensor) -> Tensor:
        return F.mse_loss(self.centres[ids] @ self.matrix + self.shift, flat)

    def _replace(self, dead: Tensor, latents: Tensor) -> None:
        self.centres[dead] = torch.linalg.solve(self.matrix.t(), (latents - self.shift).t()).t()
        self.codes[dead] = latents


def _flatten(latents: Tensor) -> Tensor:
    return latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1]).float()


def _draw(population: int, count: int, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.choice(population, count, replace=population < count))
