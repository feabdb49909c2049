"""`uvd stats` and `uvd show` on the command line: tables, JSON, conditions, SQL, and what is said when they cannot."""

from __future__ import annotations

import json

import pytest
from manifest_support import declare, write_image_shard, write_token_shard
from typer.testing import CliRunner

from uvd.manifests import Dataset
from uvd.pipeline.cli import app
from uvd.sequences import Reason
from uvd.sequences.errors import UserError

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    dataset = Dataset(str(tmp_path_factory.mktemp("stats") / "d"))
    declare(dataset, "laion", "laion-[x]")
    sequences = [("single", "train", ["image"]), ("pairs", "val", ["image", "pose"])]
    write_image_shard(dataset, "laion", 0, sequences, [(Reason.DNS, "http://h/")])
    write_token_shard(dataset, "laion", 0)
    return dataset.uri


def run(*arguments: str):
    return RUNNER.invoke(app, list(arguments))


def test_all_tables_have_a_title_and_fit_a_narrow_terminal(dataset):
    result = run("stats", "--dataset", dataset, "--by", "layout,role")
    assert result.exit_code == 0, result.output
    for said in ("Shares", "beside UVDv1", "Codebook use", "perplexity", "Rejected inputs by dataset", "laion-[x]"):
        assert said in result.output
    assert max(map(len, result.output.splitlines())) <= 80


def test_json_has_the_tables_that_are_asked_for(dataset):
    arguments = ("--format", "json", "--by", " split , layout", "--where", "num_images = 2")
    content = json.loads(run("stats", "--dataset", dataset, *arguments).output)
    (row,) = content["by"]
    assert (row["split"], row["layout"], row["sequences"], row["images"], row["tokens"]) == ("val", "pairs", 1, 2, 514)


def test_sql_is_a_table_or_json(dataset):
    sql = "select split, count(*) n from sequences group by all order by all"
    assert json.loads(run("stats", "--dataset", dataset, "--sql", sql, "--format", "json").output) == [
        {"split": "train", "n": 1},
        {"split": "val", "n": 1},
    ]
    assert "train" in run("stats", "--dataset", dataset, "--sql", sql).output
    assert run("stats", "--dataset", dataset, "--sql", "select 1 where false").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["stats", "--format", "xml"], 2, "expected table, json or html"),
        (["stats", "--by", "layuot"], 1, "did you mean 'layout'"),
        (["stats", "--where", "nope = 1"], 1, "nope"),
        (["stats", "--tokenizer", "nobody"], 1, "there are t"),
        (["stats", "--sql", "select 1", "--by", "layout"], 2, "--sql stands alone"),
        (["stats", "--sql", "select * from read_text('/etc/passwd')"], 1, "read_text is not allowed"),
        (["stats", "--sql", "copy sequences to '/tmp/x'"], 1, "one select"),
        (["show", "laion-000000-000007", "--out", "x.png"], 1, "nearest: laion-000000-000000, laion-000000-000001"),
        (["show", "loin-000000-000000", "--out", "x.png"], 1, "nearest: laion-000000-000000"),
    ],
)
def test_what_cannot_be_done_is_said(dataset, arguments, code, said):
    result = run(*arguments, "--dataset", dataset)
    assert isinstance(result.exception, UserError)
    assert result.exception.exit_code == code
    assert said in str(result.exception)
