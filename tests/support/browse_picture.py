"""Draws `docs/gallery/browse.png`: pages of `uvd browse` over a tokenized dataset, as headless Chromium shows them.

    .venv/bin/python tests/support/browse_picture.py demo/dataset docs/gallery/browse.png

The dataset is the demo's; two pages are put below each other: random sequences beside their decoded tokens, and one
sequence.
"""

from __future__ import annotations

import io
import sys
import tempfile
import threading
from pathlib import Path

import uvicorn
from browser_support import browser
from PIL import Image
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

from uvd.manifests import Dataset
from uvd.pipeline.browse.app import Browser
from uvd.trainer.play_server import free_port

PAGES = (("random?seed=3&decoded=1", 1000), ("sequence/annotated-000000-000004?decoded=1", 530))
"""Address, and height in pixels."""
WIDTH = 1400
PATIENCE = 120
ALL_DRAWN = (
    "return [...document.images].filter(image => image.getBoundingClientRect().top < innerHeight)"
    ".every(image => image.complete && image.naturalWidth)"
)


def main(dataset: str, out: Path) -> None:
    """Serves the dataset, photographs the pages and writes the picture."""
    port = free_port("127.0.0.1", 0)
    pages = Browser(Dataset.existing(dataset))
    pages.catalog.prepare()
    server = uvicorn.Server(uvicorn.Config(pages.app(["127.0.0.1"]), port=port, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        with tempfile.TemporaryDirectory() as profile, browser(Path(profile)) as driver:
            shots = [shot(driver, f"http://127.0.0.1:{port}/{address}", height) for address, height in PAGES]
    finally:
        server.should_exit = True
        thread.join()
    sheet = Image.new("RGB", (max(one.width for one in shots), sum(one.height for one in shots)))
    top = 0
    for one in shots:
        sheet.paste(one, (0, top))
        top += one.height
    sheet.save(out, format="PNG", optimize=True)


def shot(driver: WebDriver, address: str, height: int) -> Image.Image:
    """A page from its top to `height`, once all pictures that are in sight are drawn."""
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": WIDTH, "height": height, "deviceScaleFactor": 1, "mobile": False},
    )
    driver.get(address)
    # Neither scroll bars nor the path of somebody's dataset.
    driver.execute_script("document.documentElement.style.overflow = 'hidden'")
    driver.execute_script("document.querySelector('.dataset').textContent = 'demo/dataset'")
    WebDriverWait(driver, PATIENCE).until(lambda _: driver.execute_script(ALL_DRAWN))
    return Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
