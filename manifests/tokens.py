"""Token ids and framing: `[BOS] 256·n codes [EOS]` a visual sequence of n images.

The numbers are those of LVM's released configs: 8192 codes, special tokens from 8192 on, vocabulary 8292.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CODEBOOK_SIZE = 8192
BOS = 8192
EOS = 8193
PAD = 8194
VOCAB_SIZE = 8292
TOKENS_PER_IMAGE = 256


class TokenFramingError(ValueError):
    """Token ids that are not one framed visual sequence."""


def frame(codes: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Frames the codes of one sequence, `(n, 256)` uint16 in [0, 8192), as `(256 n + 2,)` uint16."""
    framed = np.empty(codes.size + 2, np.uint16)
    framed[0], framed[-1] = BOS, EOS
    framed[1:-1] = codes.reshape(-1)
    return framed


def unframe(tokens: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """The `(n, 256)` codes of one framed sequence.

    Raises:
        TokenFramingError: unless the tokens are BOS, a positive multiple of 256 codes, EOS.
    """
    body = tokens[1:-1]
    if len(tokens) < 2 + TOKENS_PER_IMAGE or tokens[0] != BOS or tokens[-1] != EOS:
        raise TokenFramingError(f"{len(tokens)} tokens are not framed by BOS {BOS} and EOS {EOS}")
    if len(body) % TOKENS_PER_IMAGE:
        raise TokenFramingError(f"{len(body)} codes are not a multiple of {TOKENS_PER_IMAGE}")
    if int(body.max()) >= CODEBOOK_SIZE:
        raise TokenFramingError(f"id {int(body.max())} inside a sequence is not a code below {CODEBOOK_SIZE}")
    return body.reshape(-1, TOKENS_PER_IMAGE)


def perplexity(histogram: NDArray[np.int64]) -> float:
    """exp of the entropy (nats) of counts, of which at least one is above 0."""
    share = histogram[histogram > 0] / histogram.sum()
    return float(np.exp(-(share * np.log(share)).sum()))
