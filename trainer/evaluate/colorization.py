"""`colorization`: a photo in grey, and its colours.

LVM paper's comparison with visual prompting, by the protocol of Bar et al. (arXiv 2209.00647): 1,000 images of
ImageNet's validation set, an example pair of another one. Their mean squared error is that of values normalised by
ImageNet's mean and deviation; LPIPS is measured where the `lpips` package and its weights are installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from uvd.sequences import Resize, Seeds, fit
from uvd.tokenize.perceptual import LpipsLoss, lpips_at_hand
from uvd.trainer.evaluate.drawn_tasks import episode_sheet, score_episodes
from uvd.trainer.evaluate.photos import image_files, read_photo
from uvd.trainer.evaluate.prompting import DEFAULT_ASKING, Asking, Episode, EvaluationError, VisualModel, check_context
from uvd.trainer.evaluate.report import Report
from uvd.trainer.evaluate.scorers import IMAGENET_DEVIATION, mse

EPISODES = 1000
PROTOCOL = (
    "Photos chosen by the seed; grey is Pillow's luma (ITU-R 601) in three channels; examples are pairs of other "
    "photos. MSE: of values in [0, 1] over ImageNet's deviation of each channel, as in Bar et al.; MSE 01: without it; "
    "both averaged over photos. `query` is the grey photo as the answer."
)

Scores = tuple[float, float, float]


def colorization_episodes(
    folder: Path, examples: int = 1, episodes: int = EPISODES, seed: int = 0, resize: Resize = "center_crop"
) -> Iterator[Episode]:
    """Chooses up to `episodes` of a folder's images, and for each of them examples among all the others.

    Raises:
        EvaluationError: if there are not more images than examples, or one cannot be read.
    """
    files = image_files(folder)
    if len(files) <= examples:
        raise EvaluationError(f"{len(files)} images in {folder}: {examples} examples and a query need more")
    seeds = Seeds(seed, ("evaluate", "colorization"))
    for index, place in enumerate(seeds.generator("queries").permutation(len(files))[:episodes].tolist()):
        drawn = seeds.generator("examples", index).choice(len(files), examples + 1, replace=False)
        others = [int(other) for other in drawn if other != place][:examples]
        shown = [grey_pair(folder, files[other], resize) for other in others]
        asked, truth = grey_pair(folder, files[place], resize)
        yield Episode(f"photo/{index:05d}", np.concatenate([*shown, asked[None]]), truth, "photos")


def grey_pair(folder: Path, name: str, resize: Resize) -> NDArray[np.uint8]:
    """`(2, 256, 256, 3)` uint8 RGB: grey, colours."""
    photo = read_photo(folder, name)
    colours = fit(photo.shape[1], photo.shape[0], resize).image(photo)
    grey = np.asarray(Image.fromarray(colours).convert("L"))
    return np.stack([np.repeat(grey[:, :, None], 3, axis=2), colours])


class ColourScorer:
    """Both mean squared errors, and LPIPS if a network is given (NaN if not)."""

    def __init__(self, network: LpipsLoss | None = None) -> None:
        self.network = network

    def __call__(self, picture: NDArray[np.uint8], episode: Episode) -> Scores:
        truth = episode.truth
        return mse(picture, truth, IMAGENET_DEVIATION), mse(picture, truth), self._lpips(picture, truth)

    @torch.inference_mode()
    def _lpips(self, first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
        if self.network is None:
            return float("nan")
        pair = torch.from_numpy(np.stack([first, second])).permute(0, 3, 1, 2).float() / 255
        return float(self.network.distances(pair[:1], pair[1:])[0])


def summarize(scores: Sequence[Scores], _: Sequence[str]) -> dict[str, float]:
    normalised, plain, lpips = np.mean(scores, axis=0).tolist()
    return {"MSE": normalised, "MSE 01": plain, "LPIPS": lpips}


def evaluate_colorization(
    model: VisualModel,
    folder: str | Path,
    *,
    examples: int = 1,
    episodes: int = EPISODES,
    seed: int = 0,
    resize: Resize = "center_crop",
    asking: Asking = DEFAULT_ASKING,
    advance: Callable[[int], None] = lambda done: None,
) -> Report:
    """Measures photos of a folder, at any depth, such as ImageNet's `val`.

    Raises:
        EvaluationError: for files that cannot be read, or a prompt that does not fit the model's context.
    """
    check_context(model, 2 * examples + 2, f"{examples} examples, a query and its answer")
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise EvaluationError(f"no folder {root}")
    network = LpipsLoss() if lpips_at_hand() else None
    settings = {"images": str(root), "examples": examples, "episodes": episodes, "seed": seed, "resize": resize}
    report = Report("colorization", PROTOCOL, settings | {"lpips": network is not None}, axis="MSE", better="lower")
    if network is None:
        report.notes.append("LPIPS not measured: the package `lpips` or the weights of its trunk are not installed")
    drawn = colorization_episodes(root, examples, episodes, seed, resize)
    scorer = ColourScorer(network)
    rows, shown = score_episodes(model, drawn, scorer, summarize, "photos", asking, advance, with_query=True)
    report.rows = rows
    report.sheet = episode_sheet(shown, "colorization")
    return report
