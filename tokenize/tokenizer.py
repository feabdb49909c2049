"""Loading and using a tokenizer: images in, token ids out, and back.

`load_tokenizer` takes the name of an embedded tokenizer or a folder with `config.json` and weights. Encoding always
runs one batch shape and one thread count, the last batch padded, because convolutions may differ in the last bit with
either and a near-tie in the codebook would then flip an id.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from uvd.manifests.tokens import BOS, CODEBOOK_SIZE, EOS, PAD, VOCAB_SIZE
from uvd.sequences import IMAGE_SIZE
from uvd.tokenize.state_dicts import TokenizerError, load_weights, read_weights, weights_file
from uvd.tokenize.vqgan import VQGAN, VQGANConfig, VQGANError

WEIGHTS = Path(__file__).parent / "weights"
PREPROCESSING = "RGB uint8 / 255, range [0, 1], no mean or deviation"
CPU_BATCH, GPU_BATCH = 8, 64
Precision = Literal["fp32", "bf16"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Ids of a tokenizer: `codes` for pictures, then the special ones of the framing."""

    codes: int
    bos: int = BOS
    eos: int = EOS
    pad: int = PAD
    size: int = VOCAB_SIZE


@dataclass(frozen=True, slots=True)
class Numerics:
    """How a tokenizer computes. Precision is part of its fingerprint; the rest is recorded with the tokens.

    Attributes:
        batch_size: images a forward pass; None for 8 on a CPU and 64 on a GPU.
        num_threads: CPU threads.
        precision: `fp32`, or `bf16` for the encoder's convolutions; the codebook is always searched in fp32.
        compiled: run the encoder through torch.compile.
    """

    batch_size: int | None = None
    num_threads: int = 1
    precision: Precision = "fp32"
    compiled: bool = False


class LaunchedBatch:
    """A batch on its way through the model."""

    def __init__(self, parts: list[tuple[torch.Tensor, torch.Tensor]], finished: torch.cuda.Event | None) -> None:
        self._parts, self._finished = parts, finished

    def wait(self) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        """Waits for the device: ids `(N, H/16 * W/16)`, and `(N,)` whether the picture's latents are numbers."""
        if self._finished is not None:
            self._finished.synchronize()
        ids, finite = (np.concatenate([part[which].numpy() for part in self._parts]) for which in (0, 1))
        return ids.view(np.uint16), finite


class Tokenizer:
    """A VQGAN on one device.

    Attributes:
        name: what datasets call it.
        fingerprint: sha256 over weights, config, preprocessing and precision: ids of different fingerprints do not mix.
        batch_size: images a forward pass; halved for good when the device's memory does not hold it.
        halvings: how often that was.
    """

    def __init__(self, name: str, model: VQGAN, fingerprint: str, device: str, numerics: Numerics = Numerics()) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self.numerics = numerics
        self.device = torch.device(device)
        self.batch_size = numerics.batch_size or (GPU_BATCH if self.device.type == "cuda" else CPU_BATCH)
        self.halvings = 0
        self.model = model.to(self.device, memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]
        self._latents: Callable[[torch.Tensor], torch.Tensor] = self.model.latents
        if numerics.compiled:
            # Every batch has the same shape, so there is one graph.
            self._latents = torch.compile(self.model.latents, dynamic=False)
        self._copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    @property
    def vocab(self) -> Vocabulary:
        return Vocabulary(codes=self.model.config.num_embeddings)

    @property
    def stride(self) -> int:
        """Pixels a side that one token stands for: 16."""
        return self.model.config.downsampling

    @property
    def tokens_per_image(self) -> int:
        """Of an image of 256x256: 256."""
        return (IMAGE_SIZE // self.stride) ** 2

    def pinned(self) -> bool:
        """Whether batches should lie in pinned memory, which a GPU copies without the CPU."""
        return self._copies is not None

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.uint16]:
        """Turns pictures into ids.

        Args:
            images: `(N, H, W, 3)` uint8 RGB; H and W multiples of 16.

        Returns:
            `(N, H/16 * W/16)` uint16, in raster order.

        Raises:
            TokenizerError: for another shape or type, or if the model gives no numbers (NaN).
        """
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise TokenizerError(f"expected (N, H, W, 3) uint8 images, got {images.dtype} {images.shape}")
        if images.shape[1] % self.stride or images.shape[2] % self.stride:
            raise TokenizerError(f"sides {images.shape[1:3]} are not multiples of {self.stride}")
        tokens = (images.shape[1] // self.stride) * (images.shape[2] // self.stride)
        ids = np.empty((len(images), tokens), np.uint16)
        step = self.batch_size  # `launch` may halve it on the way
        for start in range(0, len(images), step):
            # A copy, because torch refuses the strides that a flipped or cropped array may have.
            part = torch.from_numpy(images[start : start + step].copy())
            ids[start : start + len(part)], finite = self.launch(part).wait()
            if not finite.all():
                raise TokenizerError(f"tokenizer {self.name}: the encoder gave NaN or infinite latents")
        return ids

    def launch(self, images: torch.Tensor) -> LaunchedBatch:
        """Starts encoding; on a GPU it returns before the device is done.

        Args:
            images: `(N, H, W, 3)` uint8 RGB on the CPU, left alone until the result is waited for. Runs in batches of
                `batch_size`, the last one padded.

        Raises:
            TokenizerError: if the device's memory does not hold even one image.
        """
        with self.inference():
            while True:
                try:
                    parts = [self._encode(part) for part in images.split(self.batch_size)]
                    break
                except torch.OutOfMemoryError as error:
                    self._halve_batch(error)
            finished = None
            if self._copies is not None:
                finished = torch.cuda.Event()
                finished.record(torch.cuda.current_stream(self.device))
            return LaunchedBatch(parts, finished)

    def decode(self, ids: NDArray[np.uint16]) -> NDArray[np.uint8]:
        """Turns ids of square pictures back into pictures.

        Args:
            ids: `(N, T)` in [0, codes), T a square number.

        Returns:
            `(N, 16 sqrt(T), 16 sqrt(T), 3)` uint8 RGB.
        """
        side = round(float(ids.shape[1]) ** 0.5)
        if side * side != ids.shape[1]:
            raise TokenizerError(f"{ids.shape[1]} ids are not a square picture")
        if ids.size and int(ids.max()) >= self.vocab.codes:
            raise TokenizerError(f"id {int(ids.max())} is not a code below {self.vocab.codes}")
        pictures = np.empty((len(ids), side * self.stride, side * self.stride, 3), np.uint8)
        with self.inference():
            for start in range(0, len(ids), self.batch_size):
                part = torch.from_numpy(ids[start : start + self.batch_size].astype(np.int64))
                decoded = self.model.decode(self._padded(part).to(self.device), side, side).mul(255).round()
                rows = decoded.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
                pictures[start : start + len(part)] = rows[: len(part)]
        return pictures

    def _padded(self, part: torch.Tensor) -> torch.Tensor:
        if len(part) == self.batch_size:
            return part
        return torch.cat([part, part.new_zeros((self.batch_size - len(part), *part.shape[1:]))])

    def _encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids (as int16; NumPy views them as uint16) and whether they are good, on the CPU once the device is done."""
        ids, finite = self.encode_on_device(self._on_device(self._padded(images)))
        return self._to_host(ids[: len(images)]), self._to_host(finite[: len(images)])

    def encode_on_device(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The model alone, without copies and padding, in the caller's inference mode.

        Args:
            pixels: `(N, H, W, 3)` uint8 RGB on the device.

        Returns:
            ids `(N, H/16 * W/16)` int16, and `(N,)` bool whether the picture's latents are numbers; on the device.
        """
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.numerics.precision == "bf16"):
            # (N, H, W, 3) seen as (N, 3, H, W) is channels_last already: no copy.
            latents = self._latents(pixels.permute(0, 3, 1, 2).float().div(255))
        latents = latents.float()
        finite = torch.isfinite(latents).flatten(1).all(dim=1)
        return self.model.quantize.ids(latents).to(torch.int16), finite

    def _on_device(self, images: torch.Tensor) -> torch.Tensor:
        """Copied on a stream of its own, so that the copy overlaps with the batch before."""
        if self._copies is None:
            return images
        with torch.cuda.stream(self._copies):
            moved = images.to(self.device, non_blocking=True)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._copies)
        moved.record_stream(current)
        return moved

    def _to_host(self, values: torch.Tensor) -> torch.Tensor:
        if self._copies is None:
            return values
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        return host.copy_(values, non_blocking=True)

    def _halve_batch(self, error: torch.OutOfMemoryError) -> None:
        if self.batch_size == 1:
            raise TokenizerError(
                f"tokenizer {self.name}: {self.device} has no memory for one image: {error}"
            ) from error
        self.batch_size //= 2
        self.halvings += 1
        log.warning("%s is out of memory; going on with batches of %d images", self.device, self.batch_size)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Fixed thread count on CPU; on GPU full fp32 (no TF32) and deterministic kernels; no gradients."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self.numerics.num_threads)
        exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        try:
            with exact, torch.inference_mode():
                yield
        finally:
            torch.set_num_threads(threads)


def load_tokenizer(
    name_or_dir: str | Path,
    device: str = "auto",
    *,
    batch_size: int | None = None,
    num_threads: int = 1,
    precision: Precision = "fp32",
    compiled: bool = False,
    encoder_only: bool = False,
) -> Tokenizer:
    """Loads a tokenizer.

    Args:
        name_or_dir: name of an embedded tokenizer (`uvd-small`), or a folder with `config.json` and
            `model.safetensors` or `pytorch_model.bin`.
        device: `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`.
        batch_size: images a forward pass; 8 on CPU and 64 on GPU by default.
        num_threads: CPU threads.
        precision: `fp32` or `bf16`; see Numerics.
        compiled: run the encoder through torch.compile.
        encoder_only: leave the decoder out of memory.

    Raises:
        TokenizerError: no such tokenizer, or its files are damaged or do not fit together.
    """
    folder = find_folder(name_or_dir)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        config = VQGANConfig.from_file(folder / "config.json")
        model = VQGAN(config, with_decoder=not encoder_only)
    except VQGANError as error:
        raise TokenizerError(str(error)) from error
    if config.num_embeddings > CODEBOOK_SIZE:
        raise TokenizerError(f"{folder}: {config.num_embeddings} codes do not fit the vocabulary's {CODEBOOK_SIZE}")
    file = weights_file(folder)
    load_weights(model, read_weights(file), file)
    numerics = Numerics(batch_size, num_threads, precision, compiled)
    return Tokenizer(folder.name, model, _fingerprint(config, file, precision), device, numerics)


def load_matching(name_or_dir: str | Path, fingerprint: str | None, device: str = "auto") -> Tokenizer:
    """The tokenizer in the precision that a fingerprint stands for; in fp32 if it is none of its own."""
    exact = load_tokenizer(name_or_dir, device)
    if fingerprint in (None, exact.fingerprint):
        return exact
    rounded = load_tokenizer(name_or_dir, device, precision="bf16")
    return rounded if rounded.fingerprint == fingerprint else exact


def find_folder(name_or_dir: str | Path) -> Path:
    """The folder of a tokenizer: an existing path, or an embedded one by name."""
    path = Path(name_or_dir).expanduser()
    embedded = WEIGHTS / str(name_or_dir)
    # A plain name is looked up among the embedded ones first: a run's folder may well be called `uvd-small` too.
    if "/" not in str(name_or_dir) and embedded.is_dir() and not (path / "config.json").exists():
        return embedded
    if path.is_dir():
        return path.resolve()
    names = sorted(folder.name for folder in WEIGHTS.iterdir() if folder.is_dir()) if WEIGHTS.is_dir() else []
    raise TokenizerError(f"no tokenizer {str(name_or_dir)!r}: neither a folder nor one of {', '.join(names) or 'none'}")


def _fingerprint(config: VQGANConfig, file: Path, precision: Precision) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    identity = [digest.hexdigest(), json.loads(config.to_json()), PREPROCESSING, precision]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
