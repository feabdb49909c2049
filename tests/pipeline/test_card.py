"""The dataset card: complete, safe, the same each time, and working in a browser without a network."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from browser_support import browser, console_errors, needs_chromium, requested_hosts, wait_for
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select
from tests_support import write_photo
from typer.testing import CliRunner

from uvd.manifests.dataset import Dataset
from uvd.manifests.token_shard import TokenShardWriter
from uvd.pipeline.card import gallery
from uvd.pipeline.card.card import dataset_card, show_number, web_link
from uvd.pipeline.card.charts import bars, codebook
from uvd.pipeline.cli import app
from uvd.pipeline.config import config_entry
from uvd.pipeline.ingest import make_shard, plan
from uvd.sources.images import ImagesConfig

HOSTILE = "<script>alert(1)<script>.jpg"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Two sources of photos, one of pairs; a hostile file name; tokens of made-up codes."""
    folder = tmp_path_factory.mktemp("card")
    opened = Dataset(str(folder / "dataset"))
    opened.declare("tokens", "made-up/images", {"fingerprint": "t"})
    for name, more in (("images", {"derive": ("grey",), "layouts": {"pairs": 1.0}}), ("plain", {"name": "plain"})):
        for seed in range(6):
            write_photo(folder / name / f"{seed}.jpg", seed)
        (folder / name / HOSTILE).write_bytes(b"no picture")
        config = ImagesConfig(dataset=f"photos-{name}", input=folder / name, **more)
        entry = config_entry(config)
        opened.declare("sequences", name, entry)
        for job in plan(opened, config, entry["fingerprint"]):
            make_shard(job)
    rng = np.random.default_rng(0)
    for shard in opened.shards("sequences/images"):
        with TokenShardWriter(opened, "made-up", "images", shard.number) as writer:
            rows = opened.manifest(shard).to_pylist()
            for row in rows:
                writer.add(row, rng.integers(0, 4000, (row["num_images"], 256)).astype(np.uint16))
            writer.commit(len(rows), "t", {"tokenizer": "made-up", "tokenizer_fingerprint": "t"})
    return opened


@pytest.fixture(scope="module")
def page(dataset: Dataset) -> str:
    return dataset_card(dataset)


def test_it_says_what_the_statistics_say(page: str) -> None:
    for title in ("Kinds of data beside UVDv1", "Codebook use", "Planned inputs = used + rejected", "not_image"):
        assert title in page
    assert page.count("<figure") == 6
    assert len(re.findall(r'<li class="strip"', page)) >= 5
    assert "&#34;derive&#34;" in page


def test_it_is_the_same_each_time_and_another_seed_shows_others(dataset: Dataset, page: str) -> None:
    assert dataset_card(dataset) == page
    assert dataset_card(dataset, seed=1) != page


def test_names_from_outside_are_text(page: str) -> None:
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;script&gt;.jpg" in page


@pytest.mark.parametrize(
    ("origin", "linked"),
    [
        ("https://a.org/b.jpg?c=d", True),
        ("http://a.org", True),
        ("javascript:alert(1)", False),
        ("data:text/html,x", False),
        ("photos/a.jpg", False),
        ("http://[", False),
        ("https://a.org/" + "x" * 3000, False),
    ],
)
def test_only_web_addresses_are_links(origin: str, linked: bool) -> None:
    assert web_link(origin) == (origin if linked else None)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (12345, "12,345"), (2.5, "2.50"), (3.0, "3"), (12_300_000, "12.30 M"), (True, "True"), (None, "")],
)
def test_numbers_are_for_people(value: object, shown: str) -> None:
    assert show_number(value) == shown


def test_its_size_is_bounded_by_the_number_of_strips(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "MAX_STRIPS", 3)
    strips = gallery.draw_gallery(dataset, 0).strips
    assert [strip.source for strip in strips] == ["images", "images", "plain"] or len(strips) == 3
    assert {strip.source for strip in strips} == {"images", "plain"}
    assert max(len(strip.image) for strip in strips) * 96 < 9_000_000


def test_a_damaged_sequence_is_named_and_costs_nothing_else(dataset: Dataset, tmp_path: Path) -> None:
    shutil.copytree(dataset.uri, tmp_path / "damaged")
    damaged = Dataset(str(tmp_path / "damaged"))
    shard = damaged.shards("sequences/plain")[0]
    tar = tmp_path / "damaged" / shard.tar
    tar.write_bytes(bytes(tar.stat().st_size))
    found = dataset_card(damaged)
    assert "Could not be read" in found
    assert "plain-000000-" in found.partition("Could not be read")[2]
    assert 'data-source="images"' in found
    assert 'data-source="plain"' not in found


def test_an_empty_dataset_has_a_card_too(tmp_path: Path) -> None:
    empty = Dataset(str(tmp_path / "empty"))
    empty.declare("sequences", "images", {"fingerprint": "f"})
    assert "There are no pictures to show" in dataset_card(empty)


def test_charts_have_words_for_those_who_do_not_see_them() -> None:
    chart = bars("a", "A", {"x": 1.0, "y": 2.5}, beside={"x": 88.5}, unit="percent")
    assert chart is not None
    assert chart.said == "percent: x 1 (UVDv1 88.50); y 2.50 (UVDv1 0)."
    assert 'aria-labelledby="a-said"' in chart.svg
    assert "var(--accent)" in chart.svg
    many = bars("b", "B", {str(number): 1.0 for number in range(20)}, unit="images")
    assert many is not None
    assert "and 6 more" in many.said
    assert bars("c", "C", {}) is None
    assert codebook("d", "D", np.zeros(8192, np.int64)) is None


def test_the_code_of_the_card_runs(page: str) -> None:
    blocks = [html.unescape(code) for code in re.findall(r"<pre><code>(.*?)</code></pre>", page, re.DOTALL)]
    assert len(blocks) == 4
    for code in blocks:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{code}\n{done.stderr}"
        assert done.stdout.strip()


def test_the_command_writes_it(dataset: Dataset, page: str, tmp_path: Path) -> None:
    out = tmp_path / "pages" / "card.html"
    done = CliRunner().invoke(app, ["stats", "--dataset", dataset.uri, "--format", "html", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert out.read_text(encoding="utf-8") == page
    assert (
        CliRunner().invoke(app, ["stats", "--dataset", dataset.uri, "--format", "html", "--by", "role"]).exit_code != 0
    )


@needs_chromium
def test_in_a_browser_charts_are_drawn_and_filters_work(page: str, tmp_path: Path) -> None:
    file = tmp_path / "card.html"
    file.write_text(page, encoding="utf-8")
    (tmp_path / "profile").mkdir()
    with browser(tmp_path / "profile") as driver:
        driver.get(file.as_uri())
        charts = driver.find_elements(By.CSS_SELECTOR, "figure svg.chart")
        assert len(charts) == 6
        for chart in charts:
            assert chart.size["width"] > 200
            assert chart.size["height"] > 60
            assert len(chart.find_elements(By.CSS_SELECTOR, "path")) > 3
        strips = driver.find_elements(By.CSS_SELECTOR, ".strip")
        assert all(strip.is_displayed() for strip in strips)
        Select(driver.find_element(By.NAME, "source")).select_by_visible_text("plain")
        shown = [strip for strip in strips if strip.is_displayed()]
        assert shown
        assert {strip.get_attribute("data-source") for strip in shown} == {"plain"}
        assert driver.find_element(By.ID, "shown").text == f"{len(shown)} of {len(strips)}"
        Select(driver.find_element(By.NAME, "role")).select_by_visible_text("grey")
        assert not any(strip.is_displayed() for strip in strips)
        driver.find_element(By.CSS_SELECTOR, "button[type=reset]").click()
        wait_for(driver, "#shown", f"{len(strips)} of {len(strips)}")
        assert all(strip.is_displayed() for strip in strips)
        image = strips[0].find_element(By.TAG_NAME, "img")
        driver.execute_script("arguments[0].scrollIntoView()", image)
        assert driver.execute_script("return arguments[0].naturalWidth", image) > 100
        assert console_errors(driver) == []
        assert requested_hosts(driver) == set()
