"""`uvd eval TASK --model M --tokenizer T`: a transformer measured by prompts; protocols are in docs/evaluation.md."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from uvd.manifests.dataset import Dataset
from uvd.pipeline.cli_data import DatasetOption
from uvd.pipeline.cli_tokenizer import TokenizerOption
from uvd.pipeline.config import ConfigError
from uvd.pipeline.measuring import Advance, measure_model

if TYPE_CHECKING:
    from uvd.sequences import Resize
    from uvd.trainer.evaluate.prompting import Asking
    from uvd.trainer.evaluate.report import Report
    from uvd.trainer.prompter import Prompter

ModelOption = Annotated[Path, typer.Option(help="Run of `uvd train`, checkpoint, or Hugging Face folder.")]
OutOption = Annotated[Path | None, typer.Option(help="Folder for TASK.json, TASK.png (chart), TASK-sheet.png.")]
FormatOption = Annotated[str, typer.Option("--format", help="table or json, on standard output.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
PrecisionOption = Annotated[str, typer.Option(help="fp32 or bf16, of the transformer.")]
SeedOption = Annotated[int, typer.Option(help="Of the choice of episodes, and of drawing.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Episodes handed to the model together.")]
EpisodesOption = Annotated[int, typer.Option(min=1, help="Episodes of each role, fold or class.")]
ExamplesOption = Annotated[int, typer.Option(min=1, help="Example pairs before the query: k of k-shot.")]
SplitOption = Annotated[list[str] | None, typer.Option(help="val, test, train; repeatable; val and test by default.")]
SourceOption = Annotated[list[str] | None, typer.Option(help="Source of the dataset, repeatable; all by default.")]
FoldOption = Annotated[list[int] | None, typer.Option(help="0 to 3, repeatable; all four by default.")]
ResizeOption = Annotated[str, typer.Option(help="stretch or center_crop, of photos to 256x256.")]
TemperatureOption = Annotated[float, typer.Option(help="0 takes the likeliest token each time.")]
TopPOption = Annotated[float, typer.Option(help="Draw from the smallest set of this probability.")]
TopKOption = Annotated[int, typer.Option(help="Draw from so many likeliest tokens; 0 for all.")]
PascalOption = Annotated[Path, typer.Option(help="VOCdevkit/VOC2012, with JPEGImages, masks or XML, and ImageSets.")]

RESIZES = ("stretch", "center_crop")


def perplexity(
    dataset: DatasetOption,
    model: ModelOption,
    tokenizer: TokenizerOption = "uvd-small",
    role: Annotated[list[str] | None, typer.Option(help="Annotation, repeatable; see below for the default.")] = None,
    examples: Annotated[int, typer.Option(min=0, help="Example pairs before the query.")] = 5,
    episodes: EpisodesOption = 1000,
    split: SplitOption = None,
    source: SourceOption = None,
    seed: SeedOption = 0,
    batch: BatchOption = 8,
    out: OutOption = None,
    format: FormatOption = "table",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "fp32",
) -> None:
    """Perplexity of true annotations after example pairs, on `pairs` sequences of the dataset's held-out splits.

    Roles are the paper's four (segmentation, depth, normals, edges) as far as the dataset has them, or else all it has.

    Example:

        uvd eval perplexity --dataset ~/uvd-data --model runs/tiny --examples 3 --role segmentation --role grey
    """

    def measure(prompter: Prompter, advance: Advance) -> Report:
        from uvd.trainer.evaluate.dataset_episodes import HELD_OUT
        from uvd.trainer.evaluate.perplexity import evaluate_perplexity

        return evaluate_perplexity(
            prompter,
            Dataset.existing(dataset),
            roles=role or (),
            examples=examples,
            episodes=episodes,
            splits=split or HELD_OUT,
            sources=source or (),
            seed=seed,
            batch=batch,
            advance=advance,
        )

    measure_model(measure, model, tokenizer, device, precision, out, format)


def frames(
    dataset: DatasetOption,
    model: ModelOption,
    tokenizer: TokenizerOption = "uvd-small",
    context_frames: Annotated[
        int | None, typer.Option(min=1, max=15, help="Longest context; default 15, or what the model's context holds.")
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Windows to measure, chosen by the seed.")] = 1000,
    split: SplitOption = None,
    source: SourceOption = None,
    seed: SeedOption = 0,
    batch: BatchOption = 8,
    out: OutOption = None,
    format: FormatOption = "table",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "fp32",
) -> None:
    """Perplexity of the next frame after 1 to 15 frames, on `frames` sequences of the dataset's held-out splits.

    Example:

        uvd eval frames --dataset ~/uvd-data --model runs/300m --out results
    """

    def measure(prompter: Prompter, advance: Advance) -> Report:
        from uvd.trainer.evaluate.dataset_episodes import HELD_OUT
        from uvd.trainer.evaluate.frames import evaluate_frames

        return evaluate_frames(
            prompter,
            Dataset.existing(dataset),
            context_frames=context_frames,
            episodes=episodes,
            splits=split or HELD_OUT,
            sources=source or (),
            seed=seed,
            batch=batch,
            advance=advance,
        )

    measure_model(measure, model, tokenizer, device, precision, out, format)


def segmentation(
    pascal: PascalOption,
    model: ModelOption,
    tokenizer: TokenizerOption = "uvd-small",
    lists: Annotated[Path | None, typer.Option(help="Folder of the published fold0.txt … of Pascal-5i.")] = None,
    fold: FoldOption = None,
    examples: ExamplesOption = 1,
    episodes: EpisodesOption = 1000,
    resize: ResizeOption = "stretch",
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = 0,
    seed: SeedOption = 0,
    batch: BatchOption = 8,
    out: OutOption = None,
    format: FormatOption = "table",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "fp32",
) -> None:
    """Foreground segmentation of Pascal-5i: mIoU of each fold.

    Example:

        uvd eval segmentation --pascal VOCdevkit/VOC2012 --model runs/300m --examples 5 --out results
    """
    asking, size = _asking(temperature, top_p, top_k, seed, batch), _resize(resize)

    def measure(prompter: Prompter, advance: Advance) -> Report:
        from uvd.trainer.evaluate.segmentation import evaluate_segmentation

        return evaluate_segmentation(
            prompter,
            pascal,
            folds=fold or range(4),
            examples=examples,
            episodes=episodes,
            seed=seed,
            resize=size,
            lists=lists,
            asking=asking,
            advance=advance,
        )

    measure_model(measure, model, tokenizer, device, precision, out, format, asking)


def detection(
    pascal: PascalOption,
    model: ModelOption,
    tokenizer: TokenizerOption = "uvd-small",
    fold: FoldOption = None,
    examples: ExamplesOption = 1,
    episodes: EpisodesOption = 1000,
    resize: ResizeOption = "stretch",
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = 0,
    seed: SeedOption = 0,
    batch: BatchOption = 8,
    out: OutOption = None,
    format: FormatOption = "table",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "fp32",
) -> None:
    """Boxes of single small objects in Pascal VOC, drawn as filled rectangles: mIoU of each fold.

    Example:

        uvd eval detection --pascal VOCdevkit/VOC2012 --model runs/300m --fold 0 --out results
    """
    asking, size = _asking(temperature, top_p, top_k, seed, batch), _resize(resize)

    def measure(prompter: Prompter, advance: Advance) -> Report:
        from uvd.trainer.evaluate.detection import evaluate_detection

        return evaluate_detection(
            prompter,
            pascal,
            folds=fold or range(4),
            examples=examples,
            episodes=episodes,
            seed=seed,
            resize=size,
            asking=asking,
            advance=advance,
        )

    measure_model(measure, model, tokenizer, device, precision, out, format, asking)


def colorization(
    images: Annotated[Path, typer.Option(help="Folder of photos, at any depth, such as ImageNet's val.")],
    model: ModelOption,
    tokenizer: TokenizerOption = "uvd-small",
    examples: ExamplesOption = 1,
    episodes: Annotated[int, typer.Option(min=1, help="Photos to measure, chosen by the seed.")] = 1000,
    resize: ResizeOption = "center_crop",
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = 0,
    seed: SeedOption = 0,
    batch: BatchOption = 8,
    out: OutOption = None,
    format: FormatOption = "table",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "fp32",
) -> None:
    """Colours of grey photos: mean squared error, and LPIPS where it is installed.

    Example:

        uvd eval colorization --images imagenet/val --model runs/300m --out results
    """
    asking, size = _asking(temperature, top_p, top_k, seed, batch), _resize(resize)

    def measure(prompter: Prompter, advance: Advance) -> Report:
        from uvd.trainer.evaluate.colorization import evaluate_colorization

        return evaluate_colorization(
            prompter,
            images,
            examples=examples,
            episodes=episodes,
            seed=seed,
            resize=size,
            asking=asking,
            advance=advance,
        )

    measure_model(measure, model, tokenizer, device, precision, out, format, asking)


def keypoints(
    pascal3d: Annotated[Path, typer.Option(help="PASCAL3D+_release1.1, with Annotations and Images.")],
    model: ModelOption,
    tokenizer: TokenizerOption = "uvd-small",
    name: Annotated[list[str] | None, typer.Option("--class", help="Class, repeatable; all by default.")] = None,
    subset: Annotated[str, typer.Option(help="pascal or imagenet.")] = "pascal",
    examples: ExamplesOption = 3,
    episodes: EpisodesOption = 1000,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = 0,
    seed: SeedOption = 0,
    batch: BatchOption = 8,
    out: OutOption = None,
    format: FormatOption = "table",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "fp32",
) -> None:
    """Keypoints of Pascal 3D+ as coloured dots: PCK@0.1 of each class.

    Example:

        uvd eval keypoints --pascal3d PASCAL3D+_release1.1 --class car --model runs/300m --out results
    """
    asking = _asking(temperature, top_p, top_k, seed, batch)

    def measure(prompter: Prompter, advance: Advance) -> Report:
        from uvd.trainer.evaluate.keypoints import evaluate_keypoints

        return evaluate_keypoints(
            prompter,
            pascal3d,
            classes=name or (),
            subset=subset,
            examples=examples,
            episodes=episodes,
            seed=seed,
            asking=asking,
            advance=advance,
        )

    measure_model(measure, model, tokenizer, device, precision, out, format, asking)


def raven(
    model: ModelOption,
    tokenizer: TokenizerOption = "uvd-small",
    form: Annotated[
        list[str] | None,
        typer.Option(help="matrix, sequence, counting or series, repeatable; all that fit the context by default."),
    ] = None,
    puzzles: Annotated[int, typer.Option(min=1, help="Puzzles of each form.")] = 200,
    examples: Annotated[int, typer.Option(min=0, help="Solved matrices before the one that is asked for.")] = 3,
    seed: SeedOption = 0,
    out: OutOption = None,
    format: FormatOption = "table",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "fp32",
) -> None:
    """Puzzles in the style of Raven's matrices, counting and simple series: the answer chosen among 8 by perplexity.

    Example:

        uvd eval raven --model runs/tiny --form counting --puzzles 50 --out results
    """

    def measure(prompter: Prompter, advance: Advance) -> Report:
        from uvd.trainer.evaluate.raven import evaluate_raven

        return evaluate_raven(
            prompter, forms=form or (), puzzles=puzzles, examples=examples, seed=seed, advance=advance
        )

    measure_model(measure, model, tokenizer, device, precision, out, format)


def _asking(temperature: float, top_p: float, top_k: int, seed: int, batch: int) -> Asking:
    from uvd.trainer.evaluate.prompting import Asking
    from uvd.trainer.sampling import Sampling

    return Asking(Sampling(temperature, top_k, top_p), seed, batch)


def _resize(name: str) -> Resize:
    if name not in RESIZES:
        raise ConfigError(f"--resize {name}: expected {' or '.join(RESIZES)}")
    return cast("Resize", name)


def register(app: typer.Typer) -> None:
    for command in (perplexity, frames, segmentation, detection, colorization, keypoints, raven):
        app.command()(command)
