"""Comparisons of models that are trained with one budget, the curve of example pairs, and charts of several runs."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluate_support import FakeModel
from PIL import Image
from typer.testing import CliRunner

from uvd.manifests.dataset import Dataset
from uvd.manifests.image_shard import ImageShardWriter
from uvd.pipeline import cli_scaling
from uvd.pipeline.cli import app
from uvd.pipeline.config import ConfigError
from uvd.sequences import Picture, VisualSequence
from uvd.tokenize.training_log import read_log
from uvd.trainer import model as models
from uvd.trainer.config import TrainConfig
from uvd.trainer.evaluate.chart import COLOURS, Curve, line_chart, log_ticks
from uvd.trainer.evaluate.comparison import (
    ComparisonError,
    Tasks,
    Variant,
    compare,
    size_variants,
    subset_variants,
    token_sources,
)
from uvd.trainer.evaluate.context import context_rows, evaluate_context
from uvd.trainer.evaluate.dataset_episodes import DatasetPictures, pair_episodes, pairs_by_role
from uvd.trainer.evaluate.perplexity import evaluate_perplexity
from uvd.trainer.evaluate.prompting import EvaluationError
from uvd.trainer.plotting import PlotError, loss_chart, read_runs
from uvd.trainer.train import train

CONTEXT = 1026
HELD_OUT_PHOTOS = 12


class LearnsFromExamples(FakeModel):
    """Perplexity falls with the length of the prompt and depends on the query: 120 / (images shown) + its number."""

    def perplexity(self, prompts, answers):
        return np.array([120 / len(prompt) + self.number(prompt[-1]) for prompt in prompts])


def pairs_sequence(role: str, photos: range, split: str) -> VisualSequence:
    pictures = []
    for photo in photos:
        for name, tint in (("image", 0), (role, 200)):
            pixels = np.full((256, 256, 3), (photo, tint, 7), np.uint8)
            pictures.append(Picture(name, pixels, f"photo-{photo:03d}.jpg", (300, 300), drawn=True))
    return VisualSequence(tuple(pictures), "pairs", "made-up", split, frozenset(photos))


def add_pairs(dataset: Dataset) -> Dataset:
    """Depth of 12 held-out photos and of 8 for training, edges of 3 held-out ones."""
    sequences = [
        pairs_sequence("depth", range(8), "val"),
        pairs_sequence("depth", range(8, HELD_OUT_PHOTOS), "test"),
        pairs_sequence("edges", range(3), "val"),
        pairs_sequence("depth", range(20, 28), "train"),
    ]
    dataset.declare("sequences", "annotated", {"fingerprint": "f" * 64})
    with ImageShardWriter(dataset, "annotated", 0) as writer:
        for number, sequence in enumerate(sequences):
            writer.add(replace(sequence, inputs=frozenset({number})))
        writer.commit(len(sequences), [], "f" * 64)
    return dataset


@pytest.fixture
def pairs(tmp_path: Path) -> Dataset:
    return add_pairs(Dataset(str(tmp_path / "pairs")))


@pytest.fixture
def milli(micro: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A size beside `micro`, twice as wide."""
    monkeypatch.setitem(models.SIZES, "milli", models.ModelSize(64, 96, 1, 2, context=600))
    return "milli"


def config(**more: Any) -> TrainConfig:
    values: dict[str, Any] = {"size": "micro", "context": CONTEXT, "batch_tokens": CONTEXT, "steps": 3}
    values |= {"warmup_steps": 1, "learning_rate": 1e-3, "val_every": 2, "checkpoint_every": 1, "log_every": 1}
    return TrainConfig(**(values | {"num_threads": 1} | more))


def run_all(variants: list[Variant], data: str, out: Path, model: Any = None, **more: Any):
    tasks = Tasks(pairs=(0, 1), episodes=4)
    return compare("scaling", variants, Dataset(data), out, tasks, lambda run: model, use_ray=False, **more)


# --- comparisons ------------------------------------------------------------------------------------------------------
def test_models_get_equal_budgets_and_finished_ones_are_kept(milli, make_dataset, tmp_path):
    data, out = make_dataset(), tmp_path / "out"
    seen: list[str] = []
    variants = size_variants(config(), ["micro", "milli"])
    report = run_all(variants, data, out, on_progress=lambda name, record: seen.append(name))
    assert report.failures == {}
    assert not report.has_pairs
    assert [model.tokens for model in report.models] == [3 * CONTEXT] * 2
    assert [model.val_loss for model in report.models] == pytest.approx([math.log(8292)] * 2, abs=0.3)
    assert report.models[0].parameters - report.models[0].embeddings < report.models[0].embeddings == 2 * 8292 * 32
    assert set(seen) == {"micro", "milli"}
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    seen.clear()
    again = run_all(variants, data, out, on_progress=lambda name, record: seen.append(name))
    assert seen == []
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before
    assert again.as_json() == report.as_json()


def test_a_begun_run_goes_on_to_the_same_end(milli, make_dataset, tmp_path):
    class StopHere(BaseException):
        pass

    def stop(name: str, record: dict[str, Any]) -> None:
        if (name, record["step"]) == ("milli", 3):
            raise StopHere

    data, variants = make_dataset(), size_variants(config(), ["micro", "milli"])
    whole = run_all(variants, data, tmp_path / "whole")
    with pytest.raises(StopHere):
        run_all(variants, data, tmp_path / "parts", on_progress=stop)
    seen: list[tuple[str, int]] = []
    parts = run_all(
        variants, data, tmp_path / "parts", on_progress=lambda name, record: seen.append((name, record["step"]))
    )
    assert seen == [("milli", 3)]
    assert [model.val_loss for model in parts.models] == [model.val_loss for model in whole.models]


def test_other_settings_or_data_are_refused_before_training(milli, make_dataset, tmp_path):
    data, out = make_dataset(), tmp_path / "out"
    run_all(size_variants(config(), ["micro", "milli"]), data, out)
    shutil.rmtree(out / "micro")
    with pytest.raises(ComparisonError, match=r"milli was trained with other.*learning_rate: 0.001 → 0.002"):
        run_all(size_variants(config(learning_rate=2e-3), ["micro", "milli"]), data, out)
    assert not (out / "micro/log.jsonl").exists()
    shutil.rmtree(out / "micro")
    with pytest.raises(ComparisonError, match=r"digests\.train"):
        run_all(size_variants(config(), ["micro", "milli"]), make_dataset(["train"] * 7 + ["val"], name="more"), out)
    train(config(), data, tmp_path / "other/micro", use_ray=False)
    with pytest.raises(ComparisonError, match="no run of a comparison"):
        run_all(size_variants(config(), ["micro", "milli"]), data, tmp_path / "other")


def test_unequal_budgets_are_refused(milli, make_dataset, tmp_path):
    data = make_dataset()
    for wrong, message in (
        ({"steps": None}, "set steps"),
        ({"max_minutes": 1.0}, "not max_minutes"),
        ({"val_every": 0}, "val_every is 0"),
    ):
        with pytest.raises(ComparisonError, match=message):
            run_all(size_variants(config(**wrong), ["micro", "milli"]), data, tmp_path / "out")
    with pytest.raises(ComparisonError, match="two models or more"):
        run_all(size_variants(config(), ["micro"]), data, tmp_path / "out")
    with pytest.raises(ComparisonError, match="context of 1026 tokens and other one of 513"):
        run_all([Variant("micro", config()), Variant("other", config(context=513))], data, tmp_path / "out")
    with pytest.raises(ComparisonError, match="no tokens of a val split"):
        run_all(
            size_variants(config(), ["micro", "milli"]), make_dataset(["train"] * 3, name="train"), tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


def test_a_failed_model_is_named_and_the_others_are_measured(milli, make_dataset, tmp_path):
    variants = [Variant("wild", config(learning_rate=1e30, warmup_steps=0, steps=3)), Variant("micro", config())]
    report = run_all(variants, make_dataset(), tmp_path / "out")
    assert list(report.failures) == ["wild"]
    assert "NonFiniteLossError" in report.failures["wild"]
    assert [model.name for model in report.models] == ["micro"]
    assert "FAILED, not in the tables: wild" in report.as_markdown()
    assert "| wild" not in report.as_markdown()


def test_the_learning_rate_can_follow_the_width(milli):
    fixed, by_width = (size_variants(config(), ["micro", "milli"], by_width=rule) for rule in (False, True))
    assert [variant.config.learning_rate for variant in fixed] == [1e-3, 1e-3]
    assert [variant.config.learning_rate for variant in by_width] == [1e-3, 5e-4]


def test_subsets_keep_the_sources_they_name(micro, make_dataset, tmp_path):
    data = make_dataset()
    assert token_sources(Dataset(data), None) == ["images", "video"]
    variants = subset_variants(config(), {"all": (), "video": ("video",)}, ["images", "video"])
    assert [variant.config.source_weights for variant in variants] == [{}, {"images": 0.0}]
    with pytest.raises(ComparisonError, match="no source 'laion' among the tokens; there are images, video"):
        subset_variants(config(), {"web": ("laion",)}, ["images", "video"])
    report = run_all(variants, data, tmp_path / "out")
    assert [model.tokens for model in report.models] == [3 * CONTEXT] * 2
    # Half the data: the same tokens are more epochs, and the held-out split is that of all sources.
    assert report.models[0].train_loss != report.models[1].train_loss


def test_tables_and_charts_of_tasks(milli, make_dataset, tmp_path):
    dataset = add_pairs(Dataset(make_dataset()))
    report = run_all(size_variants(config(), ["micro", "milli"]), dataset.uri, tmp_path / "out", LearnsFromExamples())
    assert report.has_pairs
    assert report.roles() == ["depth", "edges"]
    gain = "micro: the most examples lower the perplexity of depth, edges, raise that of nothing"
    assert any(note.startswith(gain) for note in report.notes())
    written = {path.name for path in report.save(tmp_path / "report")}
    assert written == {"scaling.json", "scaling.md", "scaling-loss.png", "scaling-tasks.png", "scaling-pairs.png"}
    result = json.loads((tmp_path / "report/scaling.json").read_text())
    assert list(result["models"]) == ["micro", "milli"]
    assert result["models"]["milli"]["config"]["steps"] == 3
    rows = result["models"]["micro"]["tasks"]["rows"]
    assert [row["predictor"] for row in rows] == ["0 pairs", "1 pair"] * 2
    assert (tmp_path / "out/milli/context.json").exists()
    with pytest.raises(ComparisonError, match="are 6 images; a context of 1026 tokens holds 4"):
        compare("scaling", size_variants(config(), ["micro", "milli"]), dataset, tmp_path, Tasks(pairs=(2,)), FakeModel)


def test_notes_say_when_larger_is_not_better(milli, make_dataset, tmp_path):
    report = run_all(size_variants(config(), ["micro", "milli"]), make_dataset(), tmp_path / "out")
    small, large = report.models
    report.models = [replace(small, val_loss=3.0, train_loss=3.0), replace(large, val_loss=3.1, train_loss=2.9)]
    assert report.notes()[1:] == [
        "train loss falls with every larger model.",
        "val loss does NOT fall with every larger model.",
    ]


# --- example pairs ----------------------------------------------------------------------------------------------------
def test_episodes_are_held_out_and_the_same_for_every_number_of_pairs(pairs):
    class Remembers(LearnsFromExamples):
        prompts: list[list[int]] = []

        def perplexity(self, prompts, answers):
            self.prompts += [[int(self.pictures[self.number(row)][0, 0, 0]) for row in prompt] for prompt in prompts]
            return super().perplexity(prompts, answers)

    model = Remembers()
    report = evaluate_context(model, pairs, roles=["depth"], pairs=(4, 0, 1), episodes=HELD_OUT_PHOTOS, seed=3, batch=1)
    by_length = {length: [row for row in model.prompts if len(row) == length] for length in (1, 3, 9)}
    assert {length: len(found) for length, found in by_length.items()} == dict.fromkeys((1, 3, 9), HELD_OUT_PHOTOS)
    for none, one, four in zip(*by_length.values(), strict=True):
        assert four[-3:] == one
        assert one[-1:] == none
        assert max(four) < HELD_OUT_PHOTOS
        assert len(set(four)) == 5
    again = evaluate_context(
        LearnsFromExamples(), pairs, roles=["depth"], pairs=(0, 1, 4), episodes=HELD_OUT_PHOTOS, seed=3, batch=1
    )
    assert again.as_json() == report.as_json()


def test_the_longest_prompt_is_that_of_perplexity(pairs):
    context = evaluate_context(LearnsFromExamples(), pairs, roles=["depth"], pairs=(0, 3), episodes=7)
    drawn = pair_episodes(DatasetPictures(pairs), "depth", pairs_by_role(pairs)["depth"], 3, 7, seed=0)
    model = LearnsFromExamples()
    numbers = [model.encode(episode.prompt)[-1] for episode in drawn]
    assert len(numbers) == 7
    perplexity = evaluate_perplexity(LearnsFromExamples(), pairs, roles=["depth"], examples=3, episodes=7)
    by_name = {row.predictor: row.measures["perplexity"] for row in perplexity.rows}
    assert [row.measures["perplexity"] for row in context.rows][1] == pytest.approx(by_name["model"], rel=0.05)


def test_roles_without_enough_pairs_are_noted_or_refused(pairs):
    report = evaluate_context(FakeModel(), pairs, pairs=(0, 4), episodes=2)
    assert {row.group for row in report.rows} == {"depth"}
    assert report.notes == ["edges: left out, a held-out query has at most 2 examples"]
    with pytest.raises(EvaluationError, match="4 example pairs: edges: left out"):
        evaluate_context(FakeModel(), pairs, roles=["edges"], pairs=(4,))
    with pytest.raises(EvaluationError, match=r"no pairs of pose.*there are depth, edges"):
        evaluate_context(FakeModel(), pairs, roles=["pose"])
    with pytest.raises(EvaluationError, match=r"needs 10 images of context.*holds 8"):
        evaluate_context(FakeModel(context_images=8), pairs)


def test_intervals_are_over_queries_not_over_repetitions():
    rng = np.random.default_rng(0)
    none = rng.normal(3.0, 0.5, 20)
    losses = np.stack([none, none - 0.2], axis=1)
    queries = [f"{number}" for number in range(20)]

    def rows(repeats: int):
        repeated = np.repeat(losses, repeats, axis=0)
        return context_rows("x", (0, 2), repeated, np.repeat(queries, repeats).tolist(), np.random.default_rng(1))

    once, often = rows(1), rows(5)
    assert [row.measures for row in once] == [pytest.approx(row.measures) for row in often]
    zero, two = (row.measures for row in once)
    assert two["ratio"] == pytest.approx(math.exp(-0.2))
    assert two["ratio low"] == pytest.approx(two["ratio high"])  # the same gain for every query
    assert zero["low"] < zero["perplexity"] < zero["high"]
    assert "ratio" not in zero
    assert zero["queries"] == 20


# --- charts -----------------------------------------------------------------------------------------------------------
def test_a_chart_of_several_runs(milli, make_dataset, tmp_path):
    data = make_dataset()
    for size in ("micro", "milli"):
        train(config(size=size), data, tmp_path / size, use_ray=False)
    small, large = read_runs([tmp_path / "micro", tmp_path / "milli"])
    assert (small.label, large.label) == ("micro, 0.6 M", "milli, 1.1 M")
    assert small.curve("val_loss").x == pytest.approx((2 * CONTEXT / 1e6, 3 * CONTEXT / 1e6))
    last = [record["loss"] for record in read_log(tmp_path / "micro/log.jsonl")]
    assert small.curve("loss", smooth=2).y == pytest.approx((last[0], np.mean(last[:2]), np.mean(last[1:])))
    command = ["plot", str(tmp_path / "micro"), str(tmp_path / "milli"), "--out", str(tmp_path / "a.png")]
    result = CliRunner().invoke(plot_app(), [*command, "--y", "perplexity"])
    assert result.exit_code == 0, result.output
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    assert all((pixels == colour).all(axis=2).sum() > 150 for colour in COLOURS[:2])
    assert not (pixels == COLOURS[2]).all(axis=2).any()
    shutil.copytree(tmp_path / "micro", tmp_path / "twin")
    assert [run.label for run in read_runs([tmp_path / "micro", tmp_path / "twin"])] == ["micro", "twin"]


def plot_app():
    import typer

    group = typer.Typer()
    group.command()(cli_scaling.plot)
    group.command("other")(lambda: None)  # two commands, so that the name is part of the line
    return group


def test_runs_that_cannot_be_drawn_are_named(micro, make_dataset, tmp_path):
    with pytest.raises(PlotError, match=r"nothing has no log\.jsonl"):
        read_runs([tmp_path / "nothing"])
    train(config(val_every=0, steps=1), make_dataset(), tmp_path / "run", use_ray=False)
    with pytest.raises(PlotError, match=r"no val_loss in the log of .*run"):
        loss_chart(read_runs([tmp_path / "run"]), "val_loss")
    with pytest.raises(PlotError, match="7 runs in one chart: at most 6"):
        loss_chart(read_runs([tmp_path / "run"]) * 7)


def test_logarithmic_axes():
    assert log_ticks(2, 800) == [2, 5, 10, 20, 50, 100, 200, 500, 1000]
    assert log_ticks(1, 1e6) == [1, 10, 100, 1e3, 1e4, 1e5, 1e6]
    assert log_ticks(6.5, 9) == [6.5, 7, 7.5, 8, 8.5, 9]
    for low in (0.013, 0.99, 3.0, 812.0):
        for high in (low, low * 1.01, low * 4.9, low * 60, low * 1e7):
            marks = log_ticks(low, high)
            assert marks[0] <= low * 1.0001
            assert marks[-1] >= high * 0.9999
    curve = Curve("a", (0.0, 1.0, 10.0, 100.0), (5.0, 1.0, float("nan"), 100.0))
    chart = line_chart([curve], log_x=True, log_y=True)
    assert (chart == line_chart([Curve("a", (1.0, 100.0), (1.0, 100.0))], log_x=True, log_y=True)).all()


# --- the command line -------------------------------------------------------------------------------------------------
def test_the_forms_of_subsets_and_pairs():
    parsed = cli_scaling.parse_subsets("all=;images=images;both = images, video")
    assert parsed == {"all": (), "images": ("images",), "both": ("images", "video")}
    for wrong in ("all", "../x=images", "a=;a=video", ""):
        with pytest.raises(ConfigError, match="NAME=SOURCE"):
            cli_scaling.parse_subsets(wrong)
    assert cli_scaling.parse_pairs("4, 0,1") == (0, 1, 4)
    for wrong in ("", "1,,2", "-1", "1000"):
        with pytest.raises(ConfigError, match="--pairs"):
            cli_scaling.parse_pairs(wrong)


def test_wrong_options_stop_before_training(make_dataset, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("size: tiny\n")
    common = ["eval", "scaling", "--dataset", make_dataset(), "--config", str(path), "--out", str(tmp_path / "out")]
    for options, message in (
        (["--sizes", "tiny,huge"], "no size 'huge'"),
        (["--sizes", "tiny,pico", "--lr-rule", "depth"], "expected fixed or width"),
        (["--sizes", "tiny,pico", "--set", "batch_tokens=1000"], "not a multiple"),
    ):
        result = CliRunner().invoke(app, [*common, *options])
        assert result.exit_code != 0
        assert message in str(result.exception)


@pytest.mark.slow
def test_a_failed_model_gives_exit_code_3(milli, make_dataset, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps(config(size="atto").model_dump(mode="json")))
    common = ["--dataset", make_dataset(), "--config", str(path), "--sizes", "atto,femto", "--pairs", "0,1"]
    options = [*common, "--set", "device=cpu", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["eval", "scaling", *options, "--format", "json"])
    assert result.exit_code == 0, result.output
    assert list(json.loads(result.stdout)["models"]) == ["atto", "femto"]
    shutil.rmtree(tmp_path / "out")
    result = CliRunner().invoke(
        app, ["eval", "scaling", *options, "--set", "learning_rate=1e30", "--set", "warmup_steps=0"]
    )
    assert result.exit_code == 3
    assert "FAILED" in (tmp_path / "out/scaling.md").read_text()
