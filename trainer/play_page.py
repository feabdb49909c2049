"""The page of `uvd play`: Gradio's components and what happens between them. The work itself is in `play`.

The page asks nothing of any other machine: its scripts and fonts come with Gradio; no analytics, no share link.
"""

from __future__ import annotations

import html
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from uvd.sequences.errors import UserError
from uvd.trainer.play import NEEDS, RANKING_COLUMNS, WITH_EXAMPLES, Play, Shown, StoppedError, Wish, prompt_preview
from uvd.trainer.play_heat import SIDE
from uvd.trainer.prompt import Question
from uvd.trainer.prompt_forms import FORMS
from uvd.trainer.sampling import PromptError, Sampling

MAX_CANDIDATES = 16
MAX_STEPS = 16
MAX_SEED = 2**31
PROGRESS_EVERY = 16
"""Forward passes between two signs of life: a message each would cost more than the passes of a small model."""
HEADING = (
    "Drop pictures, choose a form, predict. Grey frames are given, red ones predicted. The **perplexity** of a picture "
    "says between how many codes the model wavered at each of its 256 tokens, in the mean; a cell of the heat map is "
    "1/p of one token."
)
PRIVATE: dict[str, Any] = {"api_visibility": "private"}
QUIET: dict[str, Any] = {"show_progress": "hidden", **PRIVATE}
PROGRESS = gr.Progress()
Files = list[str] | None
Outputs = tuple[Any, ...]


class Runs:
    """Which session's prediction runs, and whether it is to stop. One runs at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._session: str | None = None
        self._stop = False

    def begin(self, session: str | None) -> None:
        with self._lock:
            self._session, self._stop = session, False

    def end(self) -> None:
        with self._lock:
            self._session = None

    def stop(self, session: str | None = None) -> bool:
        """Stops the run if it is this session's; any, without one. Whether there was something to stop."""
        with self._lock:
            mine = self._session is not None and session in (None, self._session)
            self._stop = self._stop or mine
            return mine

    def check(self) -> None:
        """Raises `StoppedError` if the run is to stop."""
        if self._stop:
            raise StoppedError("Stopped.")


class Page:
    """The app: `blocks` is what Gradio serves.

    Args:
        play: the model, and the dataset if there is one.
        title: of the page and its sheets: the model's name.
        suffixes: of image files, such as `.png`.
    """

    def __init__(self, play: Play, title: str, suffixes: Sequence[str]) -> None:
        self.play = play
        self.title = title
        self.runs = Runs()
        self._suffixes = sorted(suffixes)
        # Blocks' own switch leaves some reports of errors on.
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        with gr.Blocks(title=f"uvd play: {title}", analytics_enabled=False, fill_width=True) as self.blocks:
            self._lay_out()
            self.blocks.unload(self.leave)

    def _lay_out(self) -> None:
        """Inputs on the left, results on the right."""
        prompter = self.play.prompter
        model = f"{self.title} · {prompter.tokenizer.name} · {prompter.device}"
        gr.Markdown("# uvd play")
        gr.HTML(f"<p>{html.escape(model)} · at most {prompter.context_images} pictures, predicted ones too</p>")
        gr.Markdown(HEADING)
        of_key = None
        with gr.Row():
            with gr.Column(scale=1, min_width=340):
                with gr.Tabs():
                    with gr.Tab("Pictures"):
                        of_files, predict_files = self._file_inputs()
                    if self.play.dataset is not None:
                        with gr.Tab("Dataset"):
                            of_key, random_key, predict_key = self._dataset_inputs()
                stop = gr.Button("Stop", elem_id="stop")
                wish = self._wish_inputs()
            with gr.Column(scale=3, min_width=480):
                results = self._results()
        status, sheet = results[:2]
        running = {"concurrency_limit": 1, "concurrency_id": "model", "show_progress_on": [sheet], **PRIVATE}
        predict_files.click(self.predict_files, [*of_files, *wish], results, **running)
        self._connect_files(of_files, wish[0], status, sheet)
        stop.click(self.stop, None, [status], queue=False, **QUIET)
        if of_key is not None:
            predict_key.click(self.predict_key, [*of_key, *wish], results, **running)
            random_key.click(self.random_key, None, [of_key[0], status], **QUIET)

    def _connect_files(self, of_files: list[Any], steps: Any, status: Any, sheet: Any) -> None:
        """A form shows what it needs; every change shows the prompt."""
        form, _, examples, group = of_files
        form.change(self.choose_form, [form], [examples, group, form], **QUIET)
        for part in (*of_files, steps):
            part.change(self.preview, [*of_files, steps], [status, sheet], **QUIET)

    def _results(self) -> list[Any]:
        """Status, sheet, heat map, ranking, choice of a picture, its numbers, the numbers of all."""
        # A label would lie over the sheet's own title; Gradio's share button, left out, would upload the picture.
        picture: dict[str, Any] = {"show_label": False, "format": "png", "buttons": ["download", "fullscreen"]}
        status = gr.HTML(said("Nothing predicted yet."), elem_id="status")
        sheet = gr.Image(label="Prompt and predictions", interactive=False, elem_id="sheet", **picture)
        heat = gr.Image(label="Perplexity of each token", interactive=False, elem_id="heat", **picture)
        ranking = gr.Dataframe(
            headers=list(RANKING_COLUMNS), label="Ranking", interactive=False, wrap=True, elem_id="ranking"
        )
        choice = gr.Dropdown([], label="1/p of the tokens of", elem_id="choice")
        numbers = gr.Dataframe(
            headers=[str(column) for column in range(SIDE)],
            column_widths=[f"{100 / SIDE}%"] * SIDE,
            max_height=900,
            show_label=False,
            interactive=False,
            elem_id="numbers",
        )
        tokens = gr.State({})
        choice.change(self.choose, [tokens, choice], [numbers], **QUIET)
        return [status, sheet, heat, ranking, choice, numbers, tokens]

    def _file_inputs(self) -> tuple[list[Any], Any]:
        """Form, images, examples and group; and the button."""
        form = gr.Dropdown(list(FORMS), value=FORMS[0], label="Form", info=NEEDS[FORMS[0]], elem_id="form")
        dropping: dict[str, Any] = {"file_count": "multiple", "file_types": self._suffixes, "allow_reordering": True}
        images = gr.File(label="Pictures in order", elem_id="images", height=160, **dropping)
        examples = gr.File(
            label="Example pictures, one group after another", visible=False, elem_id="examples", height=160, **dropping
        )
        group = gr.Slider(1, 16, value=4, step=1, label="Pictures in a group", visible=False, elem_id="group")
        return [form, images, examples, group], gr.Button("Predict", variant="primary", elem_id="predict")

    def _dataset_inputs(self) -> tuple[list[Any], Any, Any]:
        """Key and context; the button for a random key, and the one to predict."""
        key = gr.Textbox(label="Key of a sequence", placeholder="video-000000-000003", max_length=200, elem_id="key")
        random_key = gr.Button("Random sequence", elem_id="random")
        context = gr.Slider(0, 16, value=0, step=1, label="Pictures in the prompt", info="0: all but the predicted")
        return [key, context], random_key, gr.Button("Predict", variant="primary", elem_id="predict-key")

    def _wish_inputs(self) -> list[Any]:
        """In the order of `_wish`, after the steps."""
        with gr.Accordion("Settings", open=True):
            steps = gr.Slider(0, MAX_STEPS, value=0, step=1, label="Pictures to predict", info="0: as the form asks")
            candidates = gr.Slider(1, MAX_CANDIDATES, value=1, step=1, label="Candidates", elem_id="candidates")
            temperature = gr.Slider(0, 2, value=1, step=0.05, label="Temperature", info="0 takes the likeliest token")
            top_p = gr.Slider(0.05, 1, value=1, step=0.05, label="Top-p")
            top_k = gr.Slider(0, 8192, value=0, step=1, label="Top-k", info="0: all")
            seed = gr.Number(0, precision=0, minimum=0, maximum=MAX_SEED, label="Seed of the first candidate")
            window = gr.Checkbox(False, label="Window: drop the oldest pictures if they do not fit")
        return [steps, candidates, temperature, top_p, top_k, seed, window]

    def choose_form(self, form: str) -> Outputs:
        """What a form needs is shown: its examples, the size of its groups, its sentence."""
        groups = {"composed": ("Pictures in a chain", 3), "category": ("Pictures in a group", 4)}
        label, size = groups.get(form, groups["category"])
        return (
            gr.update(visible=form in WITH_EXAMPLES),
            gr.update(visible=form in groups, label=label, value=size),
            gr.update(info=NEEDS[form]),
        )

    def preview(self, form: str, images: Files, examples: Files, group: float, steps: float) -> Outputs:
        """The prompt as it stands, or what it lacks."""
        try:
            prompt = self.play.prompt(form, paths(images), paths(examples), int(group), int(steps) or None)
        except UserError as error:
            return said(str(error)), None
        return said(f"{len(prompt.images)} pictures given, {prompt.steps} to predict."), prompt_preview(prompt)

    def predict_files(self, request: gr.Request, progress: gr.Progress = PROGRESS, *values: Any) -> Outputs:
        """Values of `_file_inputs`, then of `_wish_inputs`."""
        form, images, examples, group, steps, *wish = values

        def ask() -> Question:
            prompt = self.play.prompt(form, paths(images), paths(examples), int(group), int(steps) or None)
            return self.play.ask(prompt)

        return self._predict(request.session_hash, progress, ask, wish)

    def predict_key(self, request: gr.Request, progress: gr.Progress = PROGRESS, *values: Any) -> Outputs:
        """Values of `_dataset_inputs`, then of `_wish_inputs`."""
        key, context, steps, *wish = values
        return self._predict(
            request.session_hash,
            progress,
            lambda: self.play.ask_dataset(key, int(context) or None, int(steps) or None),
            wish,
        )

    def _predict(
        self, session: str | None, progress: Callable[..., Any], ask: Callable[[], Question], wish: Sequence[Any]
    ) -> Outputs:
        def on_progress(done: int, total: int) -> None:
            self.runs.check()
            if done % PROGRESS_EVERY == 0:
                progress((done, total), desc="predicting", unit="tokens")

        self.runs.begin(session)
        try:
            shown = self.play.predict(ask(), a_wish(*wish), on_progress, self.title)
        except UserError as error:
            return said(str(error), wrong=True), None, None, None, no_choice(), None, {}
        finally:
            self.runs.end()
        return results_of(shown)

    def choose(self, tokens: dict[str, list[list[str]]], name: str | None) -> list[list[str]] | None:
        """The numbers of one picture."""
        return tokens.get(name or "")

    def random_key(self) -> Outputs:
        try:
            return self.play.random_key(), said("")
        except UserError as error:
            return "", said(str(error), wrong=True)

    def stop(self, request: gr.Request) -> Any:
        """The prediction that is stopped says so itself."""
        return gr.skip() if self.runs.stop(request.session_hash) else said("No prediction of yours is running.")

    def leave(self, request: gr.Request) -> None:
        """A closed tab needs no answer."""
        self.runs.stop(request.session_hash)


def results_of(shown: Shown) -> Outputs:
    """Values of status, sheet, heat map, ranking, choice, numbers and tokens."""
    tokens = {name: [[_short(value) for value in row] for row in cells] for name, cells in shown.tokens.items()}
    first = next(iter(tokens))
    done = said(f"Done. Best: {shown.ranking[0][0]}, perplexity {shown.ranking[0][2]}.")
    choice = gr.update(choices=list(tokens), value=first)
    return done, shown.sheet, shown.heat, shown.ranking, choice, tokens[first], tokens


def _short(value: float) -> str:
    """So that 16 of them fit beside one another."""
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def a_wish(candidates: float, temperature: float, top_p: float, top_k: float, seed: int | None, window: bool) -> Wish:
    """What the settings ask for.

    Raises:
        PromptError: for values out of range.
    """
    if seed is None:
        raise PromptError("no seed: give a whole number")
    return Wish(int(candidates), Sampling(temperature, int(top_k), top_p), seed, window)


def said(text: str, *, wrong: bool = False) -> str:
    """A message as HTML; its text may hold file names of strangers, so it is escaped."""
    style = ' style="color: #d62828; font-weight: 600"' if wrong else ""
    return f'<p role="{"alert" if wrong else "status"}"{style}>{html.escape(text)}</p>'


def no_choice() -> Any:
    return gr.update(choices=[], value=None)


def paths(files: Files) -> list[Path]:
    return [Path(file) for file in files or []]
