"""What a training run is: one flat YAML file, read into `TrainConfig`; unknown keys are refused.

Defaults are the recipe of LVM's released models (AdamW 0.9/0.95, weight decay 0.1, clip 1.0, cosine to a tenth).
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from uvd.manifests.tokens import TOKENS_PER_IMAGE
from uvd.trainer.model import SIZES


class TrainConfig(BaseModel):
    """Settings of `uvd train`. The run ends at `steps` or `max_minutes`, whichever comes first."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    size: str = "tiny"
    """Model size: atto, femto, pico, tiny (for a CPU), 100m, 300m, 600m, 1b, 3b, 7b."""
    context: int | None = Field(None, ge=16, le=1 << 20)
    """Context length in tokens, instead of the size's own (4096; tiny: 2064 = 8 images and some room)."""
    tokenizer: str | None = None
    """Which tokens of the dataset to train on; needed only if it was tokenized by several tokenizers."""
    source_weights: dict[str, float] = Field(default_factory=dict)
    """How often an epoch shows a sequence of a source: 1 (the default) once, 2 twice, 0.5 with that chance, 0 never."""
    packing: Literal["concat", "aligned"] = "concat"
    """concat: one sequence after another, cut at the context length, as in the paper; aligned: rows of whole sequences,
    or of whole images of one longer than the context, and padding."""
    mask_documents: bool = False
    """Whether attention stays within each sequence, and positions begin anew with it; the paper's crosses sequences."""
    buffer_tokens: int = Field(1 << 27, ge=1 << 16)
    """Tokens that are shuffled among themselves: 2 bytes each, twice, since the next are read ahead (512 MiB)."""
    duplicates: str | None = None
    """Name of a pass of `uvd dedup`: sequences of which it marked every picture (against a set: any) are left out."""
    seed: int = Field(0, ge=0)
    """Seed of the initial weights and of the order of the data."""

    epochs: float = Field(1.0, gt=0)
    """Length of the run as a multiple of the training split (the paper: one epoch). Unused if `steps` is given."""
    steps: int | None = Field(None, ge=1)
    """Length of the run in optimizer steps."""
    max_minutes: float | None = Field(None, gt=0)
    """Time budget. The learning rate then follows the share of time or of steps used up, whichever is larger."""

    batch_tokens: int = Field(524_288, ge=16)
    """Tokens of one optimizer step over all workers: a multiple of context x micro_batch x num_workers."""
    micro_batch: int = Field(1, ge=1)
    """Chunks of one context length that go through the model at a time on each worker; the rest is accumulated."""
    learning_rate: float = Field(1.5e-4, gt=0)
    """Peak learning rate, reached after the warm-up."""
    final_lr_fraction: float = Field(0.1, ge=0, le=1)
    """Learning rate at the end as a share of the peak (cosine)."""
    warmup_steps: int = Field(2000, ge=0)
    """Steps of linear warm-up."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates."""
    weight_decay: float = Field(0.1, ge=0)
    """AdamW's weight decay, on matrices only, not on the norms' gains."""
    clip_norm: float = Field(1.0, gt=0)
    """Largest norm of the gradient."""
    z_loss: float = Field(0.0, ge=0)
    """Weight of log² of the softmax's denominator beside the loss: 1e-4 keeps the logits of long bf16 runs small."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Autocast of the forward pass: auto is bf16 on a GPU and fp32 on a CPU. Weights and AdamW state are float32."""
    compile: bool = False
    """Whether each layer goes through torch.compile: a slow start, then faster steps; needs a C++ compiler."""
    activation_checkpointing: bool = False
    """Whether the backward pass computes each layer again instead of keeping its activations: a third more work."""

    val_every: int = Field(500, ge=0)
    """Steps between two measurements of the loss on the `val` split; 0 for none."""
    val_tokens: int = Field(262_144, ge=2)
    """At most so many tokens of the `val` split are used: always the same ones, a seeded sample of its sequences."""
    checkpoint_every: int = Field(500, ge=0)
    """Steps between two checkpoints; 0 for only one at the end."""
    keep_checkpoints: int = Field(2, ge=1)
    """How many checkpoints are kept; the oldest go first."""
    log_every: int = Field(10, ge=1)
    """Steps between two lines of the log; each line averages the steps since the line before."""

    num_workers: int = Field(1, ge=1)
    """Ray Train workers: one a GPU, or one on a CPU machine. With several, FSDP2 shards the model over them."""
    max_restarts: int = Field(3, ge=0)
    """How often in a row lost workers are replaced without a new checkpoint in between, before the run gives up."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model lives: auto takes a GPU if the worker sees one."""
    num_threads: int = Field(2, ge=1)
    """CPU threads of a worker. On a CPU the last bits of the weights depend on it."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.size not in SIZES:
            raise ValueError(f"size {self.size!r} is not one of {', '.join(SIZES)}")
        unit = self.context_length * self.micro_batch * self.num_workers
        if self.batch_tokens % unit:
            raise ValueError(
                f"batch_tokens {self.batch_tokens} is not a multiple of context {self.context_length} x micro_batch "
                f"{self.micro_batch} x num_workers {self.num_workers} = {unit}"
            )
        if self.packing == "aligned" and self.context_length < TOKENS_PER_IMAGE:
            raise ValueError(f"packing aligned needs a context of an image, {TOKENS_PER_IMAGE}, or more")
        if any(weight < 0 for weight in self.source_weights.values()):
            raise ValueError(f"source_weights must not be negative: {self.source_weights}")
        return self

    @property
    def context_length(self) -> int:
        return self.context or SIZES[self.size].context

    @property
    def batch_rows(self) -> int:
        """Chunks of one context length in an optimizer step, over all workers."""
        return self.batch_tokens // self.context_length
