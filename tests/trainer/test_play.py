"""`uvd play` without a browser: prompts from files, the prompter's numbers, readable errors, safe serving."""

from __future__ import annotations

import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest
from tests_support import write_photo

from uvd.manifests.dataset import Dataset, DatasetError
from uvd.pipeline.showing import read_pictures
from uvd.tokenize.tokenizer import load_tokenizer
from uvd.trainer.model import build_model
from uvd.trainer.play import NEEDS, Play, StoppedError, Wish, prompt_preview
from uvd.trainer.play_heat import CHANCE, heat_map, heat_sheet
from uvd.trainer.play_page import Page, Runs, said
from uvd.trainer.play_server import ServeError, app_settings, free_port, is_loopback, upload_folder
from uvd.trainer.prompt_forms import FORMS
from uvd.trainer.prompter import Prompter
from uvd.trainer.sampling import PromptError, Sampling

DARK, BRIGHT = (68, 1, 84), (253, 231, 37)
"""The ends of viridis."""


@pytest.fixture
def play(micro: str) -> Play:
    model = build_model(micro, context=1025).eval()
    return Play(Prompter(model, load_tokenizer("uvd-small", "cpu"), batch_size=1), read_pictures)


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    files = [tmp_path / "uploads" / f"{seed}.jpg" for seed in range(5)]
    for seed, file in enumerate(files):
        write_photo(file, seed)
    return files


@pytest.fixture
def ask() -> SimpleNamespace:
    return SimpleNamespace(session_hash="mine")


def ignore(done: int, total: int) -> None:
    pass


def silent(*_: Any, **__: Any) -> None:
    pass


def test_numbers_are_those_of_the_prompter(play: Play, photos: list[Path]) -> None:
    asked = play.ask(play.prompt("analogy", photos[2:3], photos[:2], 2, None))
    sampling = Sampling(temperature=0.9, top_k=500)
    seen: list[tuple[int, int]] = []
    shown = play.predict(asked, Wish(2, sampling, seed=7), lambda *at: seen.append(at), "title")
    drawn = play.prompter.sample([asked.ids] * 2, 1, sampling, [7, 8])
    order = np.argsort(drawn.perplexities())
    assert [row[1] for row in shown.ranking] == [str(7 + row) for row in order]
    assert [row[2] for row in shown.ranking] == [f"{drawn.perplexities()[row]:,.2f}" for row in order]
    assert len(shown.tokens) == 2
    for row, cells in zip(order, shown.tokens.values(), strict=True):
        assert cells.shape == (16, 16)
        assert cells.tobytes() == np.exp(drawn.losses[row, 0]).reshape(16, 16).tobytes()
        given = play.prompter.answer_losses([asked.ids], drawn.ids[row])
        assert np.log(cells).reshape(-1) == pytest.approx(given[0], abs=1e-4)
    assert seen == [(done, 512) for done in range(512)]
    assert (shown.heat[8:264, 272:528] == heat_map(drawn.losses[order[0], 0])).all()
    assert (shown.sheet == (214, 40, 40)).all(axis=2).sum() == 2 * 4 * 4 * 260


def test_a_heat_map_has_each_token_at_its_place() -> None:
    losses = np.zeros(256)
    losses[16 * 3 + 5], losses[255] = CHANCE, 50.0
    picture = heat_map(losses)
    assert picture.shape == (256, 256, 3)
    bright = (picture == BRIGHT).all(axis=2)
    expected = np.zeros((256, 256), bool)
    expected[48:64, 80:96] = expected[240:, 240:] = True
    assert (bright == expected).all()
    assert ((picture == DARK).all(axis=2) == ~expected).all()
    halves = heat_map(np.full(256, CHANCE / 2))[0, 0].tolist()
    assert halves not in (list(DARK), list(BRIGHT))


def test_a_heat_sheet_ends_with_its_legend() -> None:
    picture = np.full((256, 256, 3), 9, np.uint8)
    sheet = heat_sheet([picture] * 4, [np.zeros(256)] * 4, ["a", "b", "c", "d"])
    assert sheet.shape[1] == 8 + 6 * 264
    bar = sheet[-64:][18 + 8]
    assert (bar[24] == DARK).all()
    assert (bar[24 + 419] == BRIGHT).all()


def test_every_form_says_what_it_needs() -> None:
    assert tuple(NEEDS) == FORMS


def test_forms_from_files(play: Play, photos: list[Path]) -> None:
    chained = play.prompt("composed", photos[3:4], photos[:3], 3, None)
    assert (len(chained.images), chained.steps, chained.period) == (4, 2, 3)
    assert (chained.images[1] == read_pictures(photos[1:2])[0]).all()
    assert prompt_preview(chained).shape == (8 + 26 + 256 + 18 + 8, 8 + 4 * 264, 3)
    grouped = play.prompt("category", photos[4:], photos[:4], 4, None)
    assert grouped.labels[-4:] == ("class 2",) * 4
    # Examples that were dropped for another form stay out of one that has none.
    assert len(play.prompt("sequential", photos[:2], photos[2:], 4, 3).images) == 2


@pytest.mark.parametrize(
    ("form", "images", "examples", "group", "steps", "message"),
    [
        ("sequential", 0, 0, 4, None, "no pictures yet. Frames of a video"),
        ("analogy", 1, 3, 4, None, "3 example pictures do not make whole groups of 2"),
        ("analogy", 2, 2, 4, None, "the query is one picture, not 2"),
        ("analogy", 1, 2, 4, 3, "ask for 1 pictures, not for 3"),
        ("composed", 1, 2, 2, None, "3 pictures or more"),
        ("rotation", 1, 0, 4, None, "one view does not show a direction"),
        ("sequential", 65, 0, 4, None, "at most 64"),
        ("other", 1, 0, 4, None, "unknown form"),
    ],
)
def test_pictures_that_make_no_prompt(
    play: Play, photos: list[Path], form: str, images: int, examples: int, group: int, steps: int | None, message: str
) -> None:
    with pytest.raises(PromptError, match=message):
        play.prompt(form, (photos * 13)[:images], (photos * 13)[:examples], group, steps)


def png_of(width: int, height: int) -> bytes:
    """A PNG that promises more pixels than it has."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("content", [b"<html>", b"", png_of(100_000, 100_000), png_of(64, 64)])
def test_a_bad_upload_is_named_without_its_folder(play: Play, photos: list[Path], content: bytes) -> None:
    bad = photos[0].with_name("bad.png")
    bad.write_bytes(content)
    with pytest.raises(PromptError, match=r"^bad\.png: ") as caught:
        play.prompt("sequential", [photos[0], bad], (), 4, None)
    assert "uploads" not in str(caught.value)


def test_what_the_page_shows_of_a_prediction(play: Play, photos: list[Path], ask: Any) -> None:
    page = Page(play, "tiny", [".jpg"])
    files = [str(file) for file in photos[:2]]
    out = page.predict_files(ask, silent, "sequential", files, None, 4, 0, 1, 1.0, 1.0, 0, 3, False)
    status, sheet, heat, ranking, choice, numbers, tokens = out
    assert "Done. Best: #1" in status
    assert sheet.shape[2] == heat.shape[2] == 3
    assert ranking[0][:2] == ["#1", "3"]
    assert choice["choices"] == list(tokens)
    assert page.choose(tokens, choice["value"]) == numbers
    assert [len(row) for row in numbers] == [16] * 16
    assert page.choose(tokens, None) is None
    assert page.preview("sequential", files, None, 4, 2)[0] == said("2 pictures given, 2 to predict.")


def test_errors_are_messages_and_take_old_results_away(play: Play, photos: list[Path], ask: Any) -> None:
    page = Page(play, "tiny", [".jpg"])
    hostile = photos[0].with_name("<img src=x onerror=alert(1)>.png")
    hostile.write_bytes(b"")
    four, fits = [str(file) for file in photos[:4]], [str(photos[0])]
    for files, settings, message in (
        (four, (1, 1.0, 1.0, 0, 0, False), "at most 4 images"),
        (fits, (2, 0.0, 1.0, 0, 0, False), "at temperature 0 all candidates are the same"),
        (fits, (1, 1.0, 1.0, 0, None, False), "no seed"),
        ([str(hostile)], (1, 1.0, 1.0, 0, 0, False), "&lt;img src=x onerror=alert(1)&gt;.png"),
    ):
        status, *rest = page.predict_files(ask, silent, "sequential", files, None, 4, 0, *settings)
        assert message in status
        assert 'role="alert"' in status
        assert "<img" not in status
        assert rest[:3] == [None, None, None]
    assert not page.runs.stop("mine")


def test_a_window_makes_a_long_prompt_fit(play: Play, photos: list[Path], ask: Any) -> None:
    page = Page(play, "tiny", [".jpg"])
    files = [str(file) for file in photos]
    out = page.predict_files(ask, silent, "sequential", files, None, 4, 1, 1, 1.0, 1.0, 0, 0, True)
    assert "Done" in out[0]


def test_a_session_stops_its_own_prediction_and_no_other(play: Play, photos: list[Path], ask: Any) -> None:
    page = Page(play, "tiny", [".jpg"])
    answers: list[Any] = []

    def progress(at: tuple[int, int], **_: Any) -> None:
        stranger = SimpleNamespace(session_hash="other")
        answers.append(page.stop(ask if at[0] == 64 else stranger))

    out = page.predict_files(ask, progress, "sequential", [str(photos[0])], None, 4, 0, 1, 1.0, 1.0, 0, 0, False)
    assert "Stopped." in out[0]
    # Told at every 16th pass: by a stranger at 0, 16, 32, 48, then by the session itself.
    assert len(answers) == 5
    assert answers[:4] == [said("No prediction of yours is running.")] * 4
    assert answers[4] == gr.skip()
    assert not play.prompter.model._forward_pre_hooks
    runs = Runs()
    runs.begin("next")
    runs.check()
    assert runs.stop()
    with pytest.raises(StoppedError):
        runs.check()


def test_sequences_of_a_dataset(play: Play, make_dataset: Callable[..., str], ask: Any) -> None:
    tokenizer = play.prompter.tokenizer
    with pytest.raises(DatasetError, match="start with --dataset"):
        play.random_key()
    play.dataset = Dataset(make_dataset(tokenizer=tokenizer.name, fingerprint=tokenizer.fingerprint, images=3))
    page = Page(play, "tiny", [".jpg"])
    key, _ = page.random_key()
    status, _, _, ranking, choice, _, _ = page.predict_key(ask, silent, key, 1, 2, 1, 1.0, 1.0, 0, 0, False)
    assert "Done" in status
    assert [row[0] for row in ranking] == ["#1", "truth"]
    assert [name.split(":")[0] for name in choice["choices"]] == ["#1", "#1", "truth", "truth"]
    for wrong, message in (("", "no key yet"), ("video-000000-000099", "no tokens of")):
        assert message in page.predict_key(ask, silent, wrong, 0, 0, 1, 1.0, 1.0, 0, 0, False)[0]
    play.dataset = Dataset(make_dataset(name="other", fingerprint="0" * 64))
    assert "no sequences that this tokenizer can read" in page.random_key()[1]


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(ServeError, match=f":{taken} .*--port"):
            free_port("127.0.0.1", taken)
    assert free_port("127.0.0.1", 0) > 0
    with pytest.raises(ServeError, match=r"203\.0\.113\.7"):
        free_port("203.0.113.7", 0)


def test_a_loopback_address_answers_to_its_own_names_alone() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "example.org")] == [
        *[True] * 3,
        *[False] * 2,
    ]
    assert "*" not in app_settings("127.0.0.1")["middleware"][0].kwargs["allowed_hosts"]


def test_uploads_are_deleted_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", "before")
    with upload_folder() as folder:
        (folder / "upload").mkdir()
        (folder / "upload/photo.jpg").write_bytes(b"x")
    assert not folder.exists()
