"""`uvd play` from end to end: the command serves, headless Chromium uploads and predicts, Ctrl-C ends it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from browser_support import browser, console_errors, needs_chromium, requested_hosts, wait_for
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from tests_support import write_photo
from transformers import LlamaConfig, LlamaForCausalLM

from uvd.manifests.dataset import Dataset
from uvd.pipeline.config import config_entry
from uvd.pipeline.ingest import make_shard, plan
from uvd.sources.images import ImagesConfig

WATCHED = """
import json, sys
log = open(sys.argv.pop(1), "a", buffering=1)
def watch(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        log.write(json.dumps(arguments[1][0]) + "\\n")
sys.addaudithook(watch)
from uvd.pipeline.cli import main
main()
"""
"""The command line, writing down every address that the server itself connects to."""


@dataclass
class Served:
    address: str
    process: subprocess.Popen[str]
    connections: Path
    temporary: Path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    files = [tmp_path_factory.mktemp("photos") / f"{seed}.jpg" for seed in range(2)]
    for seed, file in enumerate(files):
        write_photo(file, seed)
    return files


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, photos: list[Path]) -> Iterator[Served]:
    """A random model and a dataset of pairs, served to the last test, which ends it."""
    tmp_path = tmp_path_factory.mktemp("play")
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=8292, max_position_embeddings=1025, **shape)).save_pretrained(
        tmp_path / "model"
    )
    config = ImagesConfig(dataset="photos", input=photos[0].parent, derive=("grey",), layouts={"pairs": 1.0})
    dataset, entry = Dataset(str(tmp_path / "dataset")), config_entry(config)
    dataset.declare("sequences", "images", entry)
    for job in plan(dataset, config, entry["fingerprint"]):
        make_shard(job)
    temporary, connections = tmp_path / "temporary", tmp_path / "connections.jsonl"
    temporary.mkdir()
    connections.touch()
    command = [sys.executable, "-c", WATCHED, connections, "play", "--model", tmp_path / "model"]
    options = ["--dataset", dataset.uri, "--port", "0", "--no-browser", "--device", "cpu"]
    process = subprocess.Popen(
        [*map(str, command), *options],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(temporary), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    said = ""
    try:
        for line in process.stderr:
            said += line
            if found := re.search(r"the page is at (http://\S+)", said):
                break
        else:
            pytest.fail(f"no address: {said}")
        yield Served(found[1], process, connections, temporary)
    finally:
        process.kill()
        process.communicate()


def choose(driver: WebDriver, selector: str, option: str) -> None:
    wait_for(driver, f"{selector} input").click()
    wait_for(driver, "[role=option]", option).click()


def status_of(url: str, host: str | None = None) -> int:
    request = urllib.request.Request(url, headers={"Host": host} if host else {})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@needs_chromium
def test_pictures_go_in_and_a_prediction_comes_out(served: Served, photos: list[Path], tmp_path: Path) -> None:
    not_one = tmp_path / "not-one.png"
    not_one.write_text("<html>")
    with browser(tmp_path / "profile") as driver:
        driver.get(served.address)
        choose(driver, "#form", "rotation")
        upload = wait_for(driver, "#images").find_element(By.CSS_SELECTOR, "input[type=file]")
        upload.send_keys(str(photos[0]))
        wait_for(driver, "#status", "one view does not show a direction")
        for file in (not_one, photos[1]):
            driver.find_element(By.CSS_SELECTOR, "#images input[type=file]").send_keys(str(file))
            if file == not_one:
                wait_for(driver, "#status", "not-one.png: ")
                driver.find_elements(By.CSS_SELECTOR, "#images [aria-label*='emove']")[-1].click()
                wait_for(driver, "#status", "one view")
        wait_for(driver, "#status", "2 pictures given, 1 to predict")
        driver.find_element(By.CSS_SELECTOR, "#predict").click()
        wait_for(driver, "#status", "Done. Best: #1")
        heat = wait_for(driver, "#heat img")
        assert int(heat.get_attribute("naturalWidth") or 0) == 8 + 2 * 264
        wait_for(driver, "#ranking", "#1")
        assert "30°" in (wait_for(driver, "#choice input").get_attribute("value") or "")
        assert float(wait_for(driver, "#numbers [data-row='15'][data-col='15']").text) > 1000  # a random model guesses

        next(tab for tab in driver.find_elements(By.CSS_SELECTOR, "[role=tab]") if tab.text == "Dataset").click()
        wait_for(driver, "#random").click()
        wait_for(driver, "#status p:empty")
        driver.find_element(By.CSS_SELECTOR, "#predict-key").click()
        wait_for(driver, "#ranking", "truth")

        assert console_errors(driver) == []
        assert requested_hosts(driver) == {"127.0.0.1"}


def test_files_and_names_that_are_not_its_own_are_refused_and_ctrl_c_leaves_nothing(served: Served) -> None:
    assert status_of(served.address) == 200
    assert status_of(f"{served.address}gradio_api/file=/etc/passwd") == 403
    assert status_of(f"{served.address}gradio_api/file={served.connections}") == 403
    assert status_of(served.address, host="rebound.example.org") == 400
    assert status_of(f"{served.address}docs") == 404
    assert len(list(served.temporary.glob("uvd-play-*"))) == 1
    served.process.send_signal(signal.SIGINT)
    _, rest = served.process.communicate(timeout=60)
    assert (served.process.returncode, "Traceback" in rest) == (0, False)
    assert list(served.temporary.glob("uvd-play-*")) == []
    addresses = {json.loads(line) for line in served.connections.read_text().splitlines()}
    assert addresses <= {"127.0.0.1", "::1"}
