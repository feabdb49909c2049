"""Perplexity of pairs and of frames: which pictures make an episode, and what is measured of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluate_support import LIKELY, UNLIKELY, FakeModel, model_that_knows
from typer.testing import CliRunner

from uvd.manifests.dataset import Dataset
from uvd.manifests.image_shard import ImageShardWriter
from uvd.pipeline.cli import app
from uvd.sequences import Picture, VisualSequence
from uvd.tokenize.tokenizer import load_tokenizer
from uvd.trainer.checkpoint import Provenance, save_model
from uvd.trainer.evaluate.dataset_episodes import DatasetPictures, pair_episodes, pairs_by_role
from uvd.trainer.evaluate.frames import evaluate_frames
from uvd.trainer.evaluate.perplexity import evaluate_perplexity
from uvd.trainer.evaluate.prompting import EvaluationError
from uvd.trainer.evaluate.report import Report
from uvd.trainer.model import build_model


def picture(role: str, photo: int, tint: int = 0) -> Picture:
    pixels = np.full((256, 256, 3), (photo, tint, 7), np.uint8)
    return Picture(role, pixels, f"photo-{photo:03d}.jpg", (300, 300), drawn=True, degraded=role == "grey")


def pairs_sequence(role: str, photos: range, split: str = "val") -> VisualSequence:
    pictures = []
    for photo in photos:
        pair = [picture("image", photo), picture(role, photo, 200)]
        pictures += reversed(pair) if role == "grey" else pair
    return VisualSequence(tuple(pictures), "pairs", "made-up", split, frozenset(photos))


def frames_sequence(number: int, length: int, split: str = "val") -> VisualSequence:
    frames = tuple(picture("frame", 16 * number + index) for index in range(length))
    return VisualSequence(frames, "frames", "made-up", split, frozenset({number}))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Pairs of photos 0 to 11 held out and 20 to 27 for training, masks of two classes; three videos."""
    made = Dataset(str(tmp_path / "data"))
    sequences = {
        "annotated": [
            pairs_sequence("depth", range(8)),
            pairs_sequence("depth", range(8, 12), "test"),
            pairs_sequence("depth", range(20, 28), "train"),
            pairs_sequence("grey", range(8)),
            pairs_sequence("foreground", range(4)),
            pairs_sequence("foreground", range(4, 8)),
            VisualSequence((picture("image", 1),), "single", "made-up", "val", frozenset({1})),
        ],
        "video": [frames_sequence(0, 8), frames_sequence(1, 6), frames_sequence(2, 8), frames_sequence(3, 8, "train")],
    }
    for source, made_sequences in sequences.items():
        made.declare("sequences", source, {"fingerprint": "f" * 64})
        with ImageShardWriter(made, source, 0) as writer:
            for number, sequence in enumerate(made_sequences):
                writer.add(replace(sequence, inputs=frozenset({number})))
            writer.commit(len(made_sequences), [], "f" * 64)
    return made


def photos_of(episode) -> list[int]:
    return [int(shown[0, 0, 0]) for shown in (*episode.prompt, episode.truth)]


def test_pairs_are_held_out_of_one_role_and_of_different_photos(dataset):
    found = pairs_by_role(dataset)
    assert {role: len(pairs) for role, pairs in found.items()} == {"depth": 12, "grey": 8, "foreground": 8}
    episodes = list(pair_episodes(DatasetPictures(dataset), "depth", found["depth"], 3, 24, seed=5))
    for episode in episodes:
        photos = photos_of(episode)
        assert photos[::2] == photos[1::2]
        assert len(set(photos)) == 4
        assert max(photos) < 12
        assert [int(shown[0, 0, 1]) for shown in episode.prompt] == [0, 200] * 3 + [0]
    # Every pair is asked for before one comes again.
    assert sorted(photos_of(episode)[-1] for episode in episodes[:12]) == list(range(12))
    again = list(pair_episodes(DatasetPictures(dataset), "depth", found["depth"], 3, 24, seed=5))
    other = list(pair_episodes(DatasetPictures(dataset), "depth", found["depth"], 3, 24, seed=6))
    assert [photos_of(episode) for episode in again] == [photos_of(episode) for episode in episodes]
    assert [photos_of(episode) for episode in other] != [photos_of(episode) for episode in episodes]


def test_what_is_restored_comes_before_the_photo(dataset):
    (episode,) = pair_episodes(DatasetPictures(dataset), "grey", pairs_by_role(dataset)["grey"], 2, 1, seed=0)
    assert [int(shown[0, 0, 1]) for shown in episode.prompt] == [200, 0, 200, 0, 200]
    assert episode.truth[0, 0, 1] == 0


def test_masks_of_one_class_keep_to_their_sequence(dataset):
    masks = pairs_by_role(dataset)["foreground"]
    for episode in pair_episodes(DatasetPictures(dataset), "foreground", masks, 3, 16, seed=0):
        assert len({photo // 4 for photo in photos_of(episode)}) == 1
    with pytest.raises(EvaluationError, match="no 5 pairs in one sequence among the 8"):
        list(pair_episodes(DatasetPictures(dataset), "foreground", masks, 4, 1, seed=0))


def measured(report: Report, group: str) -> dict[str, float]:
    return {row.predictor: row.measures["perplexity"] for row in report.rows if row.group == group}


def test_perplexity_of_who_knows(dataset):
    pairs = pairs_by_role(dataset)["depth"]
    known = model_that_knows(pair_episodes(DatasetPictures(dataset), "depth", pairs, 5, 12, seed=0))
    done: list[int] = []
    report = evaluate_perplexity(known, dataset, roles=["depth"], episodes=12, advance=done.append)
    values = measured(report, "depth")
    assert values["model"] == values["no examples"] == LIKELY
    assert values["blank"] == values["another's answer"] == UNLIKELY
    assert values["truth"] == 1
    assert values["uniform"] == pytest.approx(8192)
    assert sum(done) == 12
    assert report.settings["examples"] == 5
    half = FakeModel(dict(list(known.answers.items())[:6]))
    report = evaluate_perplexity(half, dataset, roles=["depth"], episodes=12)
    row = report.rows[0]
    assert row.measures["perplexity"] == pytest.approx((LIKELY + UNLIKELY) / 2)
    assert row.measures["pooled"] == pytest.approx((LIKELY * UNLIKELY) ** 0.5)


def test_perplexity_by_default_is_of_the_papers_roles(dataset):
    report = evaluate_perplexity(FakeModel(), dataset, examples=1, episodes=2)
    assert {row.group for row in report.rows} == {"depth"}
    with pytest.raises(EvaluationError, match=r"no pairs of pose.*there are depth, foreground, grey"):
        evaluate_perplexity(FakeModel(), dataset, roles=["pose"])
    with pytest.raises(EvaluationError, match=r"needs 12 images of context.*holds 8"):
        evaluate_perplexity(FakeModel(context_images=8), dataset)
    with pytest.raises(EvaluationError, match="no source 'laion'"):
        evaluate_perplexity(FakeModel(), dataset, sources=["laion"])
    with pytest.raises(EvaluationError, match="no split 'valid'"):
        evaluate_perplexity(FakeModel(), dataset, splits=["valid"])


def test_frames_give_a_curve(dataset):
    report = evaluate_frames(FakeModel(), dataset, context_frames=7)
    (curve,) = report.curves
    assert curve.x == (1, 2, 3, 4, 5, 6, 7)
    # Picture n has perplexity 100 - n.
    assert curve.y == pytest.approx((99, 98, 97, 96, 95, 94, 93))
    assert report.settings["windows"] == 2  # one of three is too short, one is for training
    values = measured(report, "7")
    assert values["blank"] == values["another's answer"] == UNLIKELY
    assert (values["truth"], round(values["uniform"])) == (1, 8192)
    assert report.chart() is not None
    assert evaluate_frames(FakeModel(), dataset, context_frames=5, episodes=2).settings["held_out_windows"] == 3
    with pytest.raises(EvaluationError, match=r"no window of 16 frames.*the longest of 3 has 8"):
        evaluate_frames(FakeModel(), dataset)
    assert evaluate_frames(FakeModel(context_images=6), dataset).settings["context_frames"] == 5


def test_a_damaged_picture_is_named(dataset):
    path = Path(dataset.uri) / "sequences/video/000000.tar"
    data = bytearray(path.read_bytes())
    data[600:640] = b"x" * 40
    path.write_bytes(bytes(data))
    with pytest.raises(EvaluationError, match="video-000000-000000 cannot be read"):
        evaluate_frames(FakeModel(), dataset, context_frames=7)


def test_the_command_line(dataset, tmp_path, micro):
    """A small random network over the embedded tokenizer: every part from the command to the files."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer("uvd-small", "cpu")
    model = build_model(micro, context=1025)
    save_model(tmp_path / "run/model", model, Provenance(tokenizer.name, tokenizer.fingerprint, micro, 1025))
    common = ["--model", str(tmp_path / "run"), "--device", "cpu"]
    pairs = ["--dataset", dataset.uri, "--role", "depth", "--examples", "1", "--episodes", "2", "--format", "json"]
    result = CliRunner().invoke(app, ["eval", "perplexity", *pairs, *common, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed == json.loads((tmp_path / "out/perplexity.json").read_text())
    assert printed["settings"]["tokenizer"] == "uvd-small"
    rows = {row["predictor"]: row["perplexity"] for row in printed["rows"]}
    assert 6000 < rows["model"] < 11000  # an untrained network is about as good as chance
    assert (tmp_path / "out/perplexity.png").exists()
    assert CliRunner().invoke(app, ["eval", "perplexity", *pairs, *common, "--format", "csv"]).exit_code == 1
    table = CliRunner().invoke(app, ["eval", "raven", *common, "--form", "series", "--puzzles", "1"])
    assert table.exit_code == 1
    assert "series puzzles needs 6 images of context" in str(table.exception)
