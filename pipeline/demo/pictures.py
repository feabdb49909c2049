"""The demo's pictures: contact sheets by source and layout, reconstructions, predictions, and a page with all."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uvd.manifests.dataset import Dataset
from uvd.manifests.find import find_sequence
from uvd.manifests.image_shard import read_sequence
from uvd.manifests.sheet import save_png
from uvd.manifests.stats import query
from uvd.pipeline.showing import reconstruction_sheet, sequence_sheet
from uvd.tokenize.tokenizer import Tokenizer, load_tokenizer
from uvd.trainer.prompt import load_model, predict_images, prompt_sheet

PAIRS_SHOWN = 4
FRAMES_SHOWN = 7
TEMPERATURE = 0.7
NOTE = "(red: predicted by a model that learned for minutes; then the truth)"
ANNOTATIONS = ("grey", "segmentation", "boxes", "pose")


@dataclass(frozen=True, slots=True)
class Drawn:
    """A picture of the demo and what it shows."""

    path: Path
    caption: str


def draw_pictures(dataset: Dataset, model: Path, tokenizer_name: str, out: Path) -> list[Drawn]:
    """Draws all pictures of the demo into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(tokenizer_name, device="cpu")
    drawn = [
        *_sequences(dataset, out),
        _reconstructions(dataset, tokenizer, out),
        *_predictions(dataset, model, tokenizer, out),
    ]
    return drawn


def _save(pixels: NDArray[np.uint8], path: Path, caption: str) -> Drawn:
    save_png(pixels, str(path))
    return Drawn(path, caption)


def _rows(dataset: Dataset, sql: str) -> list[dict[str, Any]]:
    return query(dataset, sql).to_pylist()


def _sequences(dataset: Dataset, out: Path) -> list[Drawn]:
    """The longest sequence of each source, layout and set of roles (the first by key among equals)."""
    rows = _rows(
        dataset,
        "select source, layout, list_sort(list_distinct(roles)) kinds, "
        "first(key order by num_images desc, key) as key from sequences "
        "group by source, layout, kinds order by source, layout, kinds",
    )
    seen: dict[str, int] = {}
    drawn = []
    for row in rows:
        name = f"{row['source']}-{row['layout']}"
        seen[name] = seen.get(name, 0) + 1
        if row["layout"] == "tuples" and seen[name] > 3:
            continue
        kinds = ", ".join(row["kinds"])
        path = out / (f"{name}.png" if len(row["kinds"]) == 1 else f"{name}-{'-'.join(row['kinds'])}.png")
        drawn.append(_save(sequence_sheet(dataset, row["key"]), path, f"{row['source']}, {row['layout']}: {kinds}"))
    return drawn


def _pictures(dataset: Dataset, key: str) -> NDArray[np.uint8]:
    shard, row = find_sequence(dataset, key)
    return read_sequence(dataset, shard, row).pictures()


def _reconstructions(dataset: Dataset, tokenizer: Tokenizer, out: Path) -> Drawn:
    keys = [
        row["key"]
        for row in _rows(
            dataset,
            "select key from sequences where layout = 'single' "
            "and not regexp_matches(origins[1], '-[0-9]{4}.jpg$') order by md5(origins[1]) limit 8",
        )
    ]
    sheet, psnr = reconstruction_sheet(tokenizer, np.concatenate([_pictures(dataset, key) for key in keys]))
    return _save(sheet, out / "tokenizer.png", f"{tokenizer.name}: originals, reconstructions ({psnr:.1f} dB), errors")


def _predictions(dataset: Dataset, model: Path, tokenizer: Tokenizer, out: Path) -> list[Drawn]:
    """The next frame of a held-out video and annotations of held-out images, with the truth beside them."""
    transformer = load_model(model, tokenizer_fingerprint=tokenizer.fingerprint)

    def predict(pictures: NDArray[np.uint8], context: int, path: Path, title: str) -> Drawn:
        predicted = predict_images(transformer, tokenizer, pictures[:context], 1, temperature=TEMPERATURE)
        truth = pictures[context : context + 1]
        sheet = prompt_sheet(pictures[:context], predicted, truth, title=title, columns=9)
        return _save(sheet, path, title)

    drawn = []
    videos = _rows(
        dataset,
        f"select key from sequences where layout = 'frames' and split = 'val' and num_images > {FRAMES_SHOWN} "
        "order by key limit 1",
    )
    for row in videos:
        title = f"{row['key']}: next frame of a held-out video {NOTE}"
        drawn.append(predict(_pictures(dataset, row["key"]), FRAMES_SHOWN, out / "predicted-frame.png", title))
    for role in ANNOTATIONS:
        pairs = _rows(
            dataset,
            "select key from sequences where layout = 'pairs' and split = 'val' and "
            f"num_images >= {2 * PAIRS_SHOWN} and roles[2] = '{role}' order by key limit 1",
        )
        for row in pairs:
            title = f"{row['key']}: {role} of a held-out image after {PAIRS_SHOWN - 1} pairs {NOTE}"
            pictures = _pictures(dataset, row["key"])
            drawn.append(predict(pictures, 2 * PAIRS_SHOWN - 1, out / f"predicted-{role}.png", title))
    return drawn


def write_index(out: Path, drawn: list[Drawn], dataset: Dataset) -> Path:
    """Writes `index.html`, which shows all pictures with their captions."""
    figures = "\n".join(
        f'<figure><a href="{html.escape(picture.path.name)}"><img src="{html.escape(picture.path.name)}" '
        f'alt="{html.escape(picture.caption)}"></a><figcaption>{html.escape(picture.caption)}</figcaption></figure>'
        for picture in drawn
    )
    page = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>uvd demo</title>
<style>
:root {{ color-scheme: light dark; font-family: system-ui, sans-serif; }}
body {{ max-width: 80rem; margin: 2rem auto; padding: 0 1rem; }}
img {{ max-width: 100%; background: white; }}
figure {{ margin: 2rem 0; }}
</style>
<h1>uvd demo</h1>
<p>Made by <code>make demo</code> from {html.escape(", ".join(dataset.sources()))}.</p>
{figures}
</html>
"""
    path = out / "index.html"
    path.write_text(page)
    return path
