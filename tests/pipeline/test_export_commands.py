"""`uvd export`, `uvd import`, `uvd subset`; importing loses no line and makes the same bytes however it runs."""

from __future__ import annotations

import base64
import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from commands_support import committed, finished, uvd, wait_for
from tests_support import dataset_bytes
from token_views import all_tokens, token_rows, write_dataset
from typer.testing import CliRunner

from uvd.manifests import ConfigChangedError, Dataset, DatasetError
from uvd.manifests.export import export
from uvd.manifests.lvm_jsonl import MAX_LINE_BYTES, encode_line
from uvd.manifests.selection import Selection
from uvd.manifests.stats import statistics
from uvd.manifests.subset import subset
from uvd.manifests.tokens import unframe
from uvd.manifests.verify import verify
from uvd.pipeline import importing
from uvd.pipeline.cli import app
from uvd.pipeline.cli_export import parse_count
from uvd.pipeline.config import ConfigError
from uvd.pipeline.importing import ImportSettings, import_range
from uvd.pipeline.stage import find_missing
from uvd.trainer.data import open_split

RANGE = 9000
"""Bytes of lines a shard here: a few lines."""


def write_lines(path: Path, sequences: int, seed: int = 0, lines: tuple[bytes, ...] = ()) -> bytes:
    """Lines of one to four images with `lines` among them."""
    rng = np.random.default_rng(seed)
    made = [encode_line(rng.integers(0, 8192, (rng.integers(1, 5), 256)).astype(np.uint16)) for _ in range(sequences)]
    for number, line in enumerate(lines):
        made.insert(3 * number + 1, line)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(made))
    return path.read_bytes()


def settings(**more) -> ImportSettings:
    return ImportSettings(**({"name": "lvm", "dataset": "lvm", "range_bytes": RANGE} | more))


def import_here(out: Path, inputs: list[Path], chosen: ImportSettings | None = None) -> Dataset:
    """Imports in this process: what `import_lvm_jsonl` does, without Ray."""
    dataset = Dataset(str(out))

    def run_here(dataset, stage, missing, console):
        for job in missing.jobs:
            import_range(job)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importing, "run_stage", run_here)
        importing.import_lvm_jsonl(dataset, inputs, chosen or settings())
    return Dataset.existing(str(out))


def test_lines_come_back_as_they_were(tmp_path):
    """export(import(x)) = x, byte for byte, over files, shards and rejects' places."""
    content = write_lines(tmp_path / "in" / "a.jsonl", 20) + write_lines(tmp_path / "in" / "b" / "c.jsonl", 15, 1)
    dataset = import_here(tmp_path / "d", [tmp_path / "in"])
    assert len(dataset.shards("tokens/unknown/lvm")) > 5
    export(dataset, Selection(), "lvm-jsonl", tmp_path / "out")
    assert (tmp_path / "out" / "tokens-00000.jsonl").read_bytes() == content
    assert verify(dataset, deep=True).problems == []


def test_tokens_come_back_as_they_were(tmp_path):
    base = write_dataset(tmp_path / "base")
    export(base, Selection(), "lvm-jsonl", tmp_path / "lines")
    dataset = import_here(tmp_path / "d", [tmp_path / "lines"])
    for one, other in zip(all_tokens(base).values(), all_tokens(dataset).values(), strict=True):
        assert np.array_equal(one, other)
    (folder,) = dataset.token_folders()
    assert folder == ("t", "lvm")  # as export.json says
    assert open_split(dataset.uri, "train").tokenizer_fingerprint == "abc"


def test_lines_are_sequences_and_rejects(tmp_path):
    bad = (b"\n", b"{}\n", b'{"tokens": "AAAA"}\n', b"[" * (MAX_LINE_BYTES + 5) + b"\n", b'{"tokens": "%%"}\r\n')
    content = write_lines(tmp_path / "a.jsonl", 20, lines=bad)
    dataset = import_here(tmp_path / "d", [tmp_path / "a.jsonl"], settings(range_bytes=100_000))
    shards = dataset.shards("tokens/unknown/lvm")
    rejects = [row for shard in shards for row in dataset.rejects(shard).to_pylist()]
    assert [row["reason"] for row in rejects] == ["bad_tokens"] * 3 + ["too_large", "bad_tokens"]
    for row, line in zip(rejects, bad, strict=True):
        name, place = row["origin"].split(":")
        assert name == "a.jsonl"
        assert content[int(place) :].startswith(line)
    about = [dataset.metadata(shard) for shard in shards]
    assert sum(one["inputs"] for one in about) == content.count(b"\n") == 25
    assert all(one["inputs"] == one["sequences"] + one["rejected"] for one in about)
    assert verify(dataset, deep=True).problems == []
    kept = [encode_line(unframe(tokens)) for tokens in all_tokens(dataset).values()]
    assert kept == [line for line in content.splitlines(keepends=True) if line not in bad]


def test_statistics_training_and_views_take_what_was_imported(tmp_path):
    write_lines(tmp_path / "a.jsonl", 30)
    dataset = import_here(tmp_path / "d", [tmp_path / "a.jsonl"], settings(holdout=(("val", 0.3),)))
    rows = token_rows(dataset)
    (tokens,) = statistics(dataset)["tokens"]
    assert tokens["sequences"] == 30
    assert {row["split"] for row in rows} == {"train", "val"}
    assert open_split(dataset.uri, "train").tokens == sum(r["num_tokens"] for r in rows if r["split"] == "train")
    subset(dataset, Selection(split="val"), str(tmp_path / "v"))
    view = Dataset.existing(str(tmp_path / "v"))
    assert verify(view, deep=True).problems == []
    assert token_rows(view) == [row for row in rows if row["split"] == "val"]


def test_equal_lines_are_held_out_together(tmp_path):
    write_lines(tmp_path / "a.jsonl", 30)
    shutil.copy(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    dataset = import_here(
        tmp_path / "d", [tmp_path / "a.jsonl", tmp_path / "b.jsonl"], settings(holdout=(("val", 0.5),))
    )
    splits: dict[bytes, set[str]] = {}
    for row, tokens in zip(token_rows(dataset), all_tokens(dataset).values(), strict=True):
        splits.setdefault(tokens.tobytes(), set()).add(row["split"])
    assert len(splits) == 30
    assert all(len(names) == 1 for names in splits.values())
    assert set.union(*splits.values()) == {"train", "val"}


def test_other_files_and_settings_are_refused(tmp_path):
    write_lines(tmp_path / "a.jsonl", 9)
    import_here(tmp_path / "d", [tmp_path / "a.jsonl"])
    with pytest.raises(ConfigChangedError, match="holdout"):
        import_here(tmp_path / "d", [tmp_path / "a.jsonl"], settings(holdout=(("val", 0.5),)))
    write_lines(tmp_path / "a.jsonl", 12)
    with pytest.raises(ConfigChangedError, match="other inputs"):
        import_here(tmp_path / "d", [tmp_path / "a.jsonl"])
    with pytest.raises(DatasetError, match="another tokenizer unknown"):
        import_here(tmp_path / "d", [tmp_path / "a.jsonl"], settings(name="b", tokenizer_fingerprint="x"))


def test_inputs_that_cannot_be_used_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no file or folder"):
        import_here(tmp_path / "d", [tmp_path / "none"])
    with pytest.raises(DatasetError, match=r"no \.jsonl files"):
        import_here(tmp_path / "d", [tmp_path / "empty"])
    for name in ("one", "two"):
        write_lines(tmp_path / name / "a.jsonl", 3)
    with pytest.raises(DatasetError, match=r"called a\.jsonl"):
        import_here(tmp_path / "d", [tmp_path / "one", tmp_path / "two"])
    (tmp_path / "one" / "export.json").write_text('{"tokenizer": ["x"]}')
    with pytest.raises(DatasetError, match="give --tokenizer"):
        import_here(tmp_path / "d", [tmp_path / "one"])
    assert not (tmp_path / "d").exists()


def test_a_plan_is_in_shard_order_and_knows_its_files(tmp_path):
    write_lines(tmp_path / "a.jsonl", 9)
    dataset = import_here(tmp_path / "d", [tmp_path / "a.jsonl"])
    entry = dataset.info()["tokens"]["unknown/lvm"]["fingerprint"]
    jobs = importing._plan(dataset, [("a.jsonl", tmp_path / "a.jsonl")], settings(), entry)
    assert len(find_missing(dataset, "tokens/unknown/lvm", jobs).jobs) == 0
    assert jobs[0].start == 0
    assert jobs[-1].end == (tmp_path / "a.jsonl").stat().st_size
    assert all(one.end == two.start for one, two in pairwise(jobs))


@pytest.mark.slow
def test_killed_and_run_again_an_import_is_the_same(tmp_path):
    write_lines(tmp_path / "in" / "a.jsonl", 40_000)
    command = ("import", "lvm-jsonl", str(tmp_path / "in"), "--num-cpus", "2")
    finished(uvd(*command, "--out", str(tmp_path / "whole")))
    process = uvd(*command, "--out", str(tmp_path / "killed"))
    wait_for(process, lambda: committed(tmp_path / "killed", "tokens") >= 1)
    process.kill()
    process.communicate()
    assert 0 < committed(tmp_path / "killed", "tokens") < committed(tmp_path / "whole", "tokens")
    finished(uvd(*command, "--out", str(tmp_path / "killed")))
    assert dataset_bytes(tmp_path / "killed") == dataset_bytes(tmp_path / "whole")


def test_the_commands(tmp_path):
    """There and back as a user does it; the import on Ray."""
    write_dataset(tmp_path / "base")
    run = CliRunner()

    def uvd_here(*arguments: str) -> str:
        result = run.invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, (result.output, result.exception)
        return result.output

    said = uvd_here("export", "--dataset", tmp_path / "base", "--format", "lvm-jsonl", "--out", tmp_path / "lines")
    assert "24 sequences, 48 images" in said
    said = finished(
        uvd("import", "lvm-jsonl", str(tmp_path / "lines"), "--out", str(tmp_path / "d"), "--num-cpus", "1")
    )
    assert "1 shards committed (24 inputs, 24 sequences, 48 images" in said
    assert "nothing to do" in finished(
        uvd("import", "lvm-jsonl", str(tmp_path / "lines"), "--out", str(tmp_path / "d"))
    )
    said = uvd_here(
        "subset", "--dataset", tmp_path / "d", "--where", "num_images > 1", "--tokens", "2K", "--out", tmp_path / "v"
    )
    assert "a view of" in said
    again = uvd_here(
        "subset", "--dataset", tmp_path / "d", "--where", "num_images > 1", "--tokens", "2K", "--out", tmp_path / "v"
    )
    assert "nothing to do" in again
    uvd_here("verify", "--dataset", tmp_path / "v", "--deep")
    uvd_here("stats", "--dataset", tmp_path / "v")
    uvd_here("export", "--dataset", tmp_path / "v", "--format", "lvm-jsonl", "--out", tmp_path / "few")
    lines = (tmp_path / "few" / "tokens-00000.jsonl").read_text().splitlines()
    images = [len(base64.b64decode(json.loads(line)["tokens"])) // 1024 for line in lines]
    assert images
    assert min(images) > 1
    assert sum(256 * number + 2 for number in images) <= 2000


@pytest.mark.parametrize(
    "arguments",
    [
        ("export", "--dataset", "D", "--format", "csv", "--out", "o"),
        ("import", "csv", "a.csv", "--out", "o"),
        ("import", "lvm-jsonl", "a", "--out", "o", "--name", "../x"),
        ("import", "lvm-jsonl", "a", "--out", "o", "--tokenizer", "a/b"),
        ("subset", "--dataset", "D", "--out", "o", "--tokens", "ten"),
    ],
)
def test_wrong_use_is_refused(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "D")
    assert isinstance(CliRunner().invoke(app, arguments).exception, ConfigError)
    assert not (tmp_path / "o").exists()


def test_counts_of_tokens():
    assert [parse_count(text) for text in ("1", "10M", "1.5b", " 2k ")] == [1, 10**7, 1_500_000_000, 2000]
    for text in ("0", "-5", "", "M", "1e9", "10MB", "9" * 40):
        with pytest.raises(ConfigError, match="no number of tokens"):
            parse_count(text)
