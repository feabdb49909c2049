"""`--sql`: answers from the manifests, and nothing else can be read, written or reached."""

from __future__ import annotations

from pathlib import Path

import pytest
from manifest_support import declare, write_image_shard, write_token_shard

from uvd.manifests import Dataset, DatasetError
from uvd.manifests import sql as sql_module
from uvd.manifests.sql import query
from uvd.sequences import Reason

QUOTE = "'"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    dataset = Dataset(str(tmp_path_factory.mktemp("sql") / "it's"))
    for source in ("laion", "video"):
        declare(dataset, source, f"{source}-x")
        sequences = [("single", "train", ["image"]), ("pairs", "val", ["image", "pose"])]
        write_image_shard(dataset, source, 0, sequences, [(Reason.DNS, "http://h/")])
        write_token_shard(dataset, source, 0)
    dataset.declare("tokens", "it's/laion", {"fingerprint": "f"})
    write_token_shard(dataset, "laion", 0, "it's")
    return dataset


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("select count(*) n, sum(num_images)::int images from sequences", [{"n": 4, "images": 6}]),
        ("with v as (from sequences where source = 'video') select count(*) n from v", [{"n": 2}]),
        ("select role, count(*) n from (select unnest(roles) role from Sequences) group by all order by role",
         [{"role": "image", "n": 4}, {"role": "pose", "n": 2}]),
        ("select tokenizer, sum(num_tokens)::int n from tokens group by all order by all",
         [{"tokenizer": "it's", "n": 772}, {"tokenizer": "t", "n": 1544}]),
        ("select s.key from sequences s join tokens t using (key) where tokenizer = 't' order by all limit 1",
         [{"key": "laion-000000-000000"}]),
        ("select folder, reason from rejects order by all limit 1", [{"folder": "laion", "reason": "dns"}]),
        ("select count(*) n from runs", [{"n": 0}]),
        ("select sum(range)::int n from range(4)", [{"n": 6}]),
        ("select 1 as n; -- a comment", [{"n": 1}]),
    ],
)  # fmt: skip
def test_queries_are_answered(dataset, sql, rows):
    assert query(dataset, sql).to_pylist() == rows


def test_describe_names_the_columns(dataset):
    assert "num_images" in {row["column_name"] for row in query(dataset, "describe sequences").to_pylist()}
    names = {row["name"] for row in query(dataset, "show tables").to_pylist()}
    assert names >= {"sequences", "tokens", "rejects", "runs"}


def outside(folder: Path) -> list[str]:
    secret = folder / "secret.csv"
    return [
        f"select * from read_csv('{secret}')",
        f"select * from read_text('{secret}')",
        f"select * from read_blob('{secret}')",
        f"select * from '{secret}'",
        f"select * from glob('{folder}/*')",
        f"select (select content from read_text('{secret}'))",
        f"select * from sequences where exists (from read_text('{secret}'))",
        f"with sequences as (from read_text('{secret}')) from sequences",
        f"select * from query('from read_text(''{secret}'')')",
        "select * from query_table('sequences')",
        "select * from parquet_scan('x.parquet')",
        "select * from parquet_metadata('x.parquet')",
        "select * from sniff_csv('x.csv')",
        "select * from read_json('http://127.0.0.1/x')",
        "select * from 's3://bucket/x.parquet'",
        "select * from arrow_scan(1::pointer, 2::pointer, 3::pointer)",
        "select * from arrow_scan(1, 2, 3)",
        "select * from python_map_function(1)",
        "select * from duckdb_secrets()",
        "select * from duckdb_settings()",
        "select * from information_schema.tables",
        "select getenv('HOME')",
        f"copy sequences to '{folder}/out.csv'",
        f"copy (select 1) to '{folder}/out.parquet' (format parquet)",
        f"export database '{folder}/out'",
        f"attach '{folder}/out.db' as x",
        "install httpfs",
        "load httpfs",
        "pragma database_list",
        "call pragma_version()",
        "set enable_external_access = true",
        "reset enable_external_access",
        "create table x as select 1",
        "drop view sequences",
        "insert into sequences values (1)",
        "delete from sequences",
        "explain analyze select 1",
        "prepare v as select 1",
        "checkpoint",
        "use memory",
        "select 1; select 2",
        "select 1; copy sequences to 'x'",
        "pivot sequences on layout",
        "select * from nothing",
        "select nothing from sequences",
        "selec",
        "",
        "  ",
        ";",
        "select 1 " + " " * 200_000,
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(len(outside(Path("/x")))))
def test_what_leaves_the_views_is_refused(dataset, tmp_path, number):
    (tmp_path / "secret.csv").write_text("hidden\n")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DatasetError, match="--sql") as caught:
        query(dataset, outside(tmp_path)[number])
    assert "hidden" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_duckdb_itself_reaches_no_file_even_if_the_check_of_names_were_passed(dataset, tmp_path, monkeypatch):
    (tmp_path / "secret.csv").write_text("hidden\n")
    monkeypatch.setattr(sql_module, "_check", lambda sql: frozenset({"sequences"}))
    for sql in (
        f"select * from read_text('{tmp_path}/secret.csv')",
        f"select * from read_text('{dataset.uri.replace(QUOTE, 2 * QUOTE)}/dataset.json')",
        f"select * from read_parquet('{dataset.uri.replace(QUOTE, 2 * QUOTE)}/tokens/t/laion/000000.parquet')",
        f"copy (select 1) to '{tmp_path}/out.csv'",
        f"attach '{tmp_path}/out.db'",
        "set enable_external_access = true",
        "select * from sql_module",
    ):
        with pytest.raises(DatasetError, match="--sql"):
            query(dataset, sql)
    assert [path.name for path in tmp_path.iterdir()] == ["secret.csv"]


def test_variables_of_the_program_are_no_tables(dataset):
    import pyarrow as pa

    secret = pa.table({"a": [1]})
    with pytest.raises(DatasetError, match="none of the views"):
        query(dataset, "select * from secret")
    assert len(secret) == 1


def test_an_endless_answer_is_cut_off(dataset, monkeypatch):
    monkeypatch.setattr(sql_module, "MAX_ROWS", 1000)
    with pytest.raises(DatasetError, match="over 1,000 rows"):
        query(dataset, "select * from range(1000000000000)")
    assert len(query(dataset, "select * from range(1000)")) == 1000


def test_memory_is_bounded(dataset, monkeypatch):
    monkeypatch.setattr(sql_module, "MEMORY_MB", 50)
    monkeypatch.setattr(sql_module, "SPILL_GB", 0)
    with pytest.raises(DatasetError, match="--sql"):
        query(dataset, "select len(list(range)) from range(20000000)")


def test_a_foreign_file_among_the_manifests_is_named(tmp_path):
    dataset = Dataset(str(tmp_path / "d"))
    declare(dataset, "laion", "x")
    write_image_shard(dataset, "laion", 0, [("single", "train", ["image"])])
    (tmp_path / "d/sequences/laion/000001.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DatasetError, match=r"000001\.parquet"):
        query(dataset, "select count(distinct key) from sequences")


def test_a_dataset_without_shards_answers(tmp_path):
    dataset = Dataset(str(tmp_path / "d"))
    declare(dataset, "laion", "x")
    for view in ("sequences", "tokens", "rejects", "runs"):
        assert query(dataset, f"select count(*) n from {view}").to_pylist() == [{"n": 0}]


def test_a_folder_whose_name_is_a_pattern_is_itself(tmp_path):
    for name, images in (("a[bc]", 1), ("ab", 2)):
        dataset = Dataset(str(tmp_path / name))
        declare(dataset, "laion", "x")
        write_image_shard(dataset, "laion", 0, [("single", "train", ["image"] * images)])
    found = query(Dataset(str(tmp_path / "a[bc]")), "select num_images n from sequences")
    assert found.to_pylist() == [{"n": 1}]


def test_a_manifest_of_other_columns_is_refused(tmp_path):
    dataset = Dataset(str(tmp_path / "d"))
    declare(dataset, "laion", "x")
    shard = write_image_shard(dataset, "laion", 0, [("single", "train", ["image"])])
    (tmp_path / "d/sequences/laion/000001.parquet").write_bytes((tmp_path / "d" / shard.rejects).read_bytes())
    with pytest.raises(DatasetError, match="--sql"):
        query(dataset, "select key from sequences")
