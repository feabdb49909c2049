"""Draws `docs/gallery/card.png`: a dataset card, light and dark, as headless Chromium shows it.

.venv/bin/python tests/support/card_picture.py demo/dataset docs/gallery/card.png
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from browser_support import browser
from PIL import Image

from uvd.manifests import Dataset
from uvd.pipeline.card.card import dataset_card

WIDTH, HEIGHT = 1000, 1650
DARK = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}


def main(dataset: str, out: Path) -> None:
    """Writes the card to a temporary file and photographs its top in light, its sequences in dark."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "card.html"
        page.write_text(dataset_card(Dataset.existing(dataset)), encoding="utf-8")
        (Path(folder) / "profile").mkdir()
        with browser(Path(folder) / "profile") as driver:
            driver.set_window_size(WIDTH, HEIGHT)
            driver.get(page.as_uri())
            shots = [driver.get_screenshot_as_png()]
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", DARK)
            driver.execute_script("document.getElementById('pictures').scrollIntoView()")
            shots.append(driver.get_screenshot_as_png())
    pictures = [Image.open(io.BytesIO(shot)).convert("RGB") for shot in shots]
    sheet = Image.new("RGB", (sum(picture.width for picture in pictures), max(picture.height for picture in pictures)))
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width
    sheet.save(out, format="PNG", optimize=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
