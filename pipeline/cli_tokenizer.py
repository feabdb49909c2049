"""`uvd tokenizer train|convert|info|reconstruct`: the commands about one tokenizer, without a dataset's tokens."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from uvd.pipeline.cli_data import AddressOption, SetOption
from uvd.pipeline.cli_samples import tokenizer_samples
from uvd.pipeline.config import ConfigError, override, read_yaml, validate
from uvd.pipeline.ray_runtime import LOCAL

if TYPE_CHECKING:
    from uvd.tokenize.tokenizer import Tokenizer

tokenizer_app = typer.Typer(help="Train, convert, inspect and try tokenizers.", no_args_is_help=True)
ImagesOption = Annotated[list[Path], typer.Option(help="Image files, in order; repeatable.")]
TokenizerOption = Annotated[str, typer.Option(help="Embedded tokenizer by name, or a folder.")]


@tokenizer_app.command("train")
def train_tokenizer(
    out: Annotated[Path, typer.Option(help="Folder of the run; becomes a tokenizer folder.")],
    dataset: Annotated[str | None, typer.Option(help="Dataset whose image shards are the pictures.")] = None,
    pool: Annotated[Path | None, typer.Option(help="Pictures instead: `.npy`, (N, 256, 256, 3) uint8 RGB.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file; see configs/uvd-small.yaml.")] = None,
    heldout: Annotated[Path | None, typer.Option(help="Pictures to measure on, such a file.")] = None,
    settings: SetOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last saved state.")] = False,
    address: AddressOption = LOCAL,
) -> None:
    """Train a VQGAN tokenizer on the pictures of a dataset's image shards, or of a file.

    Writes `training.jsonl`, TensorBoard events, sheets of reconstructions and the tokenizer itself.

    Examples:

        uvd tokenizer train --dataset ~/uvd-data --config configs/uvd-small.yaml --out runs/tokenizer

        uvd tokenizer train --dataset s3://bucket/uvd --out /shared/run --set num_workers=8 --set device=cuda
    """
    from uvd.pipeline.ray_runtime import ray_runtime
    from uvd.pipeline.tokenizing import ALLOCATOR
    from uvd.tokenize.training_config import TokenizerTrainConfig
    from uvd.tokenize.training_worker import progress_line, train_on_workers

    content = override(read_yaml(config) if config else {}, settings or [])
    parsed = validate(TokenizerTrainConfig, content, str(config or "--set"))
    console = Console(stderr=True)
    if (dataset is None) == (pool is None):
        raise ConfigError("give either --dataset or --pool")

    def show(record: dict[str, Any]) -> None:
        console.print(progress_line(record, parsed.steps), markup=False, highlight=False, soft_wrap=True)

    environment = {**ALLOCATOR, "OMP_NUM_THREADS": str(parsed.num_threads)}
    with ray_runtime(address, environment=environment):
        train_on_workers(parsed, out, dataset=dataset, pool=pool, heldout=heldout, resume=resume, on_progress=show)
    console.print(f"the tokenizer is in {out}; try `uvd tokenizer reconstruct --tokenizer {out}`", markup=False)


@tokenizer_app.command("convert")
def convert(
    checkpoint: Annotated[Path, typer.Option(help="`.ckpt` or state dict file, or a folder of a tokenizer.")],
    out: Annotated[Path, typer.Option(help="Folder to write: config.json and model.safetensors.")],
    config: Annotated[
        Path | None, typer.Option(help="The model's taming YAML or config.json; default: config.json beside the file.")
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Store fp16, half the size; a few ids may change.")] = False,
) -> None:
    """Turn a checkpoint of taming-transformers or open-muse into a tokenizer folder, and check it.

    Example:

        uvd tokenizer convert --checkpoint last.ckpt --config model.yaml --out tokenizers/imagenet-f16
    """
    from uvd.manifests.tokens import TOKENS_PER_IMAGE
    from uvd.tokenize.convert import LOW_PSNR, convert_checkpoint

    done = convert_checkpoint(checkpoint, out, config=config, half=half)
    lines = [f"wrote {out}: {done.parameters:,} parameters in {'fp16' if half else 'fp32'}"]
    if done.dropped:
        lines.append(f"left out {done.dropped} tensors that only training needs (loss.*)")
    doubt = "" if done.psnr >= LOW_PSNR else "; that is little: do weights and config belong together?"
    lines.append(f"a drawn picture comes back at {done.psnr:.1f} dB PSNR{doubt}")
    if done.changed_ids is not None:
        lines.append(f"fp16 weights change {done.changed_ids:.1f} % of its ids")
    if done.tokens_per_image != TOKENS_PER_IMAGE:
        lines.append(
            f"note: {done.tokens_per_image} tokens an image; datasets hold {TOKENS_PER_IMAGE}, so `uvd tokenize` "
            "cannot use this tokenizer"
        )
    lines.append(f"fingerprint {done.fingerprint}; try `uvd tokenizer reconstruct --tokenizer {out}`")
    Console(stderr=True).print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


@tokenizer_app.command("info")
def tokenizer_info(
    tokenizer: Annotated[str, typer.Argument(help="Embedded tokenizer by name, or a folder.")] = "uvd-small",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a tokenizer's vocabulary, size, cost and fingerprint.

    Example:

        uvd tokenizer info uvd-small --json
    """
    from uvd.tokenize.tokenizer import load_tokenizer

    facts = _facts(load_tokenizer(tokenizer, device="cpu"))
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    parameters, gflops, codes = facts["parameters"], facts["gflops_per_image"], facts["vocabulary"]
    special = ", ".join(f"{name.upper()} {codes[name]}" for name in ("bos", "eos", "pad"))
    print(f"name           {facts['name']}")
    print(f"one token      {facts['stride']}x{facts['stride']} pixels; {facts['tokens_per_image']} an image of 256x256")
    print(f"codes          {codes['codes']}, then {special} (vocabulary {codes['size']})")
    print("parameters     " + ", ".join(f"{part} {number:,}" for part, number in parameters.items()))
    print("GFLOPs/image   " + ", ".join(f"{part} {number:.2f}" for part, number in gflops.items()))
    print(f"precision      {facts['precision']}")
    print(f"preprocessing  {facts['preprocessing']}")
    print(f"fingerprint    {facts['fingerprint']}")


def _facts(tokenizer: Tokenizer) -> dict[str, Any]:
    """What `info` shows. Encoder and decoder count with the 1x1 convolution between them and the codebook."""
    from uvd.tokenize.flops import decoder_flops, encoder_flops
    from uvd.tokenize.state_dicts import DECODER_KEYS
    from uvd.tokenize.tokenizer import PREPROCESSING

    model, config = tokenizer.model, tokenizer.model.config
    sizes = {"encoder": 0, "decoder": 0, "codebook": 0}
    for name, value in model.named_parameters():
        part = "codebook" if name.startswith("quantize.") else "decoder" if name.startswith(DECODER_KEYS) else "encoder"
        sizes[part] += value.numel()
    scaled = ", scaled to [-1, 1] by the model" if config.pixel_range == "symmetric" else ""
    return {
        "name": tokenizer.name,
        "stride": tokenizer.stride,
        "tokens_per_image": tokenizer.tokens_per_image,
        "vocabulary": asdict(tokenizer.vocab),
        "parameters": {**sizes, "all": sum(sizes.values())},
        "gflops_per_image": {"encoder": encoder_flops(config) / 1e9, "decoder": decoder_flops(config) / 1e9},
        "precision": tokenizer.numerics.precision,
        "preprocessing": PREPROCESSING + scaled,
        "fingerprint": tokenizer.fingerprint,
    }


@tokenizer_app.command("reconstruct")
def reconstruct(
    images: ImagesOption,
    out: Annotated[Path, typer.Option(help="PNG to write.")],
    tokenizer: TokenizerOption = "uvd-small",
) -> None:
    """Draw originals, their reconstructions from tokens, and the error.

    Example:

        uvd tokenizer reconstruct --images cat.jpg --images dog.jpg --out sheet.png
    """
    from uvd.manifests.sheet import save_png
    from uvd.pipeline.showing import read_pictures, reconstruction_sheet
    from uvd.tokenize.tokenizer import load_tokenizer

    sheet, psnr = reconstruction_sheet(load_tokenizer(tokenizer), read_pictures(images))
    save_png(sheet, str(out))
    Console(stderr=True).print(f"wrote {out}; PSNR {psnr:.2f} dB", markup=False)


tokenizer_app.command("samples")(tokenizer_samples)


def register(app: typer.Typer) -> None:
    app.add_typer(tokenizer_app, name="tokenizer")
