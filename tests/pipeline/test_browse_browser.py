"""`uvd browse` from end to end: the command serves, headless Chromium looks through a dataset, Ctrl-C ends it."""

from __future__ import annotations

import io
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from browse_support import write_dataset, write_tokens
from browser_support import browser, console_errors, needs_chromium, requested_hosts, wait_for
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import Select, WebDriverWait
from tests_support import dataset_bytes

from uvd.manifests import Dataset
from uvd.manifests.dataset import Shard
from uvd.manifests.find import find_tokens
from uvd.manifests.token_shard import read_tokens
from uvd.manifests.tokens import unframe
from uvd.tokenize.tokenizer import Tokenizer, load_tokenizer


@dataclass
class Served:
    address: str
    process: subprocess.Popen[str]
    dataset: Dataset
    tokenizer: Tokenizer
    content: dict[str, bytes]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A dataset of which the pairs of shard 0 are tokenized, served to the last test, which ends it."""
    tmp_path = tmp_path_factory.mktemp("browse")
    dataset, tokenizer = write_dataset(str(tmp_path / "dataset")), load_tokenizer("uvd-small", "cpu")
    write_tokens(dataset, Shard("sequences/pairs", 0), tokenizer)
    content = dataset_bytes(Path(dataset.uri))
    command = [
        sys.executable,
        "-m",
        "uvd.pipeline.cli",
        "browse",
        "--dataset",
        dataset.uri,
        "--port",
        "0",
        "--no-browser",
    ]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    said = ""
    try:
        for line in process.stderr:
            said += line
            if found := re.search(r"the pages are at (http://\S+)", said):
                break
        else:
            pytest.fail(f"no address: {said}")
        yield Served(found[1], process, dataset, tokenizer, content)
    finally:
        process.kill()
        process.communicate()


def shown(driver: WebDriver, selector: str, least: int = 1) -> list[int]:
    """Widths in pixels of the pictures of a selector, once `least` are there and all in sight are drawn."""
    script = (
        "return [...document.querySelectorAll(arguments[0])]"
        ".filter(image => image.getBoundingClientRect().top < innerHeight).map(image => image.naturalWidth)"
    )

    def drawn(_: WebDriver) -> list[int] | None:
        widths: list[int] = driver.execute_script(script, selector)
        return widths if len(widths) >= least and all(widths) else None

    return WebDriverWait(driver, 60).until(drawn, selector)


def keys(driver: WebDriver) -> list[str]:
    return [link.text for link in driver.find_elements(By.CSS_SELECTOR, ".cards .name a")]


@needs_chromium
def test_a_person_looks_through_a_dataset(served: Served, tmp_path: Path) -> None:
    with browser(tmp_path / "profile") as driver:
        driver.get(served.address)
        wait_for(driver, "#main", "laion-000000-000000")
        Select(driver.find_element(By.CSS_SELECTOR, "[name=source]")).select_by_visible_text("pairs")
        wait_for(driver, ".cards", "pairs-000009-000003")
        assert len(keys(driver)) == 8
        role = driver.find_element(By.CSS_SELECTOR, "[name=role]")
        role.send_keys("boxes\n")
        wait_for(driver, ".status", "4 of 8 sequences")
        assert set(shown(driver, ".cards img", 8)) == {256}
        assert driver.current_url.partition("?")[2] == "source=pairs&role=boxes&size=24"

        driver.get(f"{served.address}?size=12")
        wait_for(driver, ".status", "21 of 21")
        first = keys(driver)
        wait_for(driver, "#next").click()
        wait_for(driver, ".cards", "video-b-000001-000000")
        assert len(first) + len(keys(driver)) == len({*first, *keys(driver)}) == 21

        driver.find_element(By.CSS_SELECTOR, "#q").send_keys("pairs-000000-000001\n")
        wait_for(driver, "h1", "pairs-000000-000001")
        assert driver.find_elements(By.CSS_SELECTOR, ".decoded") == []
        driver.find_element(By.CSS_SELECTOR, "#decode").click()
        assert shown(driver, ".pictures .decoded", 4) == [256] * 4
        next(
            link for link in driver.find_elements(By.CSS_SELECTOR, ".pictures a") if link.text == "look-alikes"
        ).click()
        wait_for(driver, ".status", "of 21 sequences searched")
        assert len(shown(driver, ".near img", 4)) >= 4

        driver.find_element(By.TAG_NAME, "body").send_keys("r")
        wait_for(driver, ".status", "12 of 21 sequences, drawn by seed")
        assert len(set(keys(driver))) == 12
        address, drawn = driver.current_url, keys(driver)
        driver.get(address)
        assert keys(driver) == drawn
        assert console_errors(driver) == []

        driver.find_element(By.CSS_SELECTOR, "#q").send_keys("pairs-000000-000099\n")
        wait_for(driver, "[role=alert]", "pairs-000000-000003")
        driver.set_window_size(420, 900)
        driver.get(f"{served.address}?decoded=1&source=pairs")
        wait_for(driver, ".status", "8 of 8")
        assert len(driver.find_elements(By.CSS_SELECTOR, ".decoded")) == 3 * 4 + 3
        assert "not tokenized" in wait_for(driver, ".card:last-child .facts").text
        width, room = driver.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert width <= room
        assert requested_hosts(driver) == {"127.0.0.1"}


def test_decoded_pictures_are_the_tokenizers_and_ctrl_c_ends_it(served: Served) -> None:
    with urllib.request.urlopen(f"{served.address}decoded/pairs-000000-000003/2", timeout=60) as answer:
        pixels = np.asarray(Image.open(io.BytesIO(answer.read())))
    shard, row = find_tokens(served.dataset, "pairs-000000-000003", "uvd-small")
    expected = served.tokenizer.decode(unframe(read_tokens(served.dataset, shard, row)))[2]
    assert np.abs(pixels.astype(int) - expected).max() <= 1
    served.process.send_signal(signal.SIGINT)
    _, rest = served.process.communicate(timeout=60)
    assert (served.process.returncode, rest) == (0, "")
    assert dataset_bytes(Path(served.dataset.uri)) == served.content
