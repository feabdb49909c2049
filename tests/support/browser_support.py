"""A headless Chromium for tests of pages: start it, and see what a page logged and asked for."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_chromium = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER), reason="no chromium and chromedriver: apt-get install chromium chromium-driver"
)
SWITCHES = (
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1500,1400",
)
PATIENCE = 60
"""Seconds until something must have appeared; a busy machine takes a few."""


@contextmanager
def browser(profile: Path) -> Iterator[WebDriver]:
    """A new browser with an empty profile in `profile`, which must be an empty folder."""
    assert CHROMIUM is not None
    assert CHROMEDRIVER is not None
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in (*SWITCHES, f"--user-data-dir={profile}"):
        options.add_argument(switch)
    if os.geteuid() == 0:
        # Chromium refuses to start as root with its sandbox.
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(CHROMEDRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def wait_for(driver: WebDriver, selector: str, containing: str = "") -> WebElement:
    """The first element of a CSS selector, once it is there and its text contains this."""

    def found(_: WebDriver) -> WebElement | None:
        for element in driver.find_elements(By.CSS_SELECTOR, selector):
            if containing in (element.text or ""):
                return element
        return None

    # A page that draws itself anew may take an element away between the look and the question.
    waiting = WebDriverWait(driver, PATIENCE, ignored_exceptions=(StaleElementReferenceException,))
    return waiting.until(found, f"{selector} with {containing!r}")


def console_errors(driver: WebDriver) -> list[str]:
    """Severe messages of the console since the last call."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def requested_hosts(driver: WebDriver) -> set[str]:
    """Hosts of all requests and web sockets since the last call, by the network log."""
    events: list[dict[str, Any]] = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    urls += [event["params"]["url"] for event in events if event["method"] == "Network.webSocketCreated"]
    return {str(urlsplit(url).hostname) for url in urls if urlsplit(url).scheme in ("http", "https", "ws", "wss")}
