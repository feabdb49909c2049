"""Exports hold the very tokens, in a known order, byte for byte the same again; and appear whole or not at all."""

from __future__ import annotations

import base64
import io
import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests_support import dataset_bytes
from token_views import all_tokens, token_rows, write_dataset

from uvd.manifests import Dataset, DatasetError
from uvd.manifests import export as exporting
from uvd.manifests import selection as selecting
from uvd.manifests.condition import Condition
from uvd.manifests.export import FORMATS, export
from uvd.manifests.export_formats import HubParquet, LvmJsonl
from uvd.manifests.lvm_jsonl import MAX_LINE_BYTES, decode_line, encode_line, iter_lines
from uvd.manifests.selection import Selection
from uvd.manifests.token_shard import iter_rows
from uvd.manifests.tokens import unframe
from uvd.sequences.reject import RejectedInput

DOCS = Path(__file__).parents[2] / "docs" / "export.md"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return write_dataset(tmp_path_factory.mktemp("export") / "d")


def line(codes) -> bytes:
    """The form by its definition, not by our encoder."""
    ids = np.asarray(codes, dtype="<i4").tobytes()
    return json.dumps({"tokens": base64.b64encode(ids).decode()}).encode() + b"\n"


# ---- LVM's lines


def test_a_line_of_sixteen_images_is_what_lvm_released():
    codes = np.random.default_rng(0).integers(0, 8192, (16, 256)).astype(np.uint16)
    assert encode_line(codes) == line(codes.reshape(-1))
    assert len(encode_line(codes)) == 21_863
    assert np.array_equal(decode_line(encode_line(codes)), codes)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"1" * 10_000, "not JSON"),
        (b"[1]", "one key"),
        (b'{"tokens": [1, 2]}', "one key"),
        (b'{"tokens": "", "text": "a dog"}', "one key"),
        (b'{"tokens": ""}', "0 bytes"),
        (b'{"tokens": "A"}', "not base64"),
        (b'{"tokens": "AA=A"}', "not base64"),
        (b'{"tokens": "AAAA\\n"}', "not base64"),
        ('{"tokens": "AAAé"}'.encode(), "not base64"),
        (b'{"tokens": "AAAAAAAAAAB="}', "left over"),
        (line(range(255)), "1020 bytes"),
        (line([0] * 257), "1028 bytes"),
        (line([0] * 255 + [8192]), "id 8192 at place 255"),
        (line([-1] * 256), "id -1 at place 0"),
        (line([2**31 - 1] + [0] * 255), "id 2147483647 at place 0"),
    ],
)
def test_lines_that_are_no_sequence_are_refused(bad, said):
    with pytest.raises(RejectedInput, match=said) as refusal:
        decode_line(bad)
    assert str(refusal.value.reason) == "bad_tokens"


def test_ranges_share_lines_out_each_to_one():
    rng = np.random.default_rng(1)
    content = b"".join(bytes(rng.integers(97, 99, rng.integers(0, 9)).tolist()) + b"\n" for _ in range(60)) + b"last"
    expected = content.split(b"\n")
    for step in (1, 2, 3, 7, 50, len(content)):
        found = []
        for start in range(0, len(content), step):
            found += iter_lines(io.BytesIO(content), start, min(start + step, len(content)))
        assert [text for _, text in found] == expected
        assert [content[place : place + len(text or b"")] for place, text in found] == expected


def test_a_line_without_an_end_is_not_held_nor_read_by_every_range():
    class Counted(io.BytesIO):
        bytes_read = 0

        def read(self, size=-1):
            data = super().read(size)
            self.bytes_read += len(data)
            return data

        def readline(self, size=-1):
            data = super().readline(size)
            self.bytes_read += len(data)
            return data

    huge = 5 * MAX_LINE_BYTES
    content = b"a\n" + b"x" * huge + b"\nb\n" + b"y" * MAX_LINE_BYTES + b"\n" + b"z" * (MAX_LINE_BYTES + 1)
    file, found = Counted(content), []
    for start in range(0, len(content), MAX_LINE_BYTES):
        found += iter_lines(file, start, min(start + MAX_LINE_BYTES, len(content)))
    assert [text if text is None else len(text) for _, text in found] == [1, None, 1, MAX_LINE_BYTES, None]
    assert file.bytes_read < 3 * len(content)


# ---- formats


def exported(dataset: Dataset, form: str, out: Path, **more) -> list[np.ndarray]:
    """The framed tokens that an export holds, read without uvd."""
    export(dataset, more.pop("selection", Selection()), form, out, **more)
    return read_export(form, out)


def read_export(form: str, out: Path) -> list[np.ndarray]:
    if form == "lvm-jsonl":
        lines = [json.loads(text) for path in sorted(out.glob("*.jsonl")) for text in path.read_text().splitlines()]
        ids = [np.frombuffer(base64.b64decode(item["tokens"]), "<i4") for item in lines]
        return [np.concatenate([[8192], codes, [8193]]) for codes in ids]
    if form == "numpy":
        tokens, offsets = np.fromfile(out / "tokens.bin", "<u2"), np.load(out / "offsets.npy")
        return [tokens[a:b] for a, b in pairwise(offsets)]
    tables = [pq.read_table(path) for path in sorted(out.rglob("*.parquet"))]
    return [np.array(tokens) for table in tables for tokens in table["tokens"].to_pylist()]


@pytest.mark.parametrize("form", FORMATS)
def test_every_token_is_there_in_order(dataset, form, tmp_path):
    expected = all_tokens(dataset)
    rows = {row["key"]: row for row in token_rows(dataset)}
    keys = sorted(expected, key=lambda key: rows[key]["split"]) if form == "hf" else list(expected)
    found = exported(dataset, form, tmp_path / "out")
    assert len(found) == len(keys) == 24
    assert all(np.array_equal(one, expected[key]) for one, key in zip(found, keys, strict=True))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("shuffle", [None, 3])
def test_the_same_bytes_again(dataset, form, shuffle, tmp_path):
    for name in ("a", "b"):
        export(dataset, Selection(), form, tmp_path / name, shuffle=shuffle)
    assert dataset_bytes(tmp_path / "a") == dataset_bytes(tmp_path / "b")
    about = json.loads((tmp_path / "a" / "export.json").read_text())
    assert (about["sequences"], about["images"], about["tokens"]) == (24, 48, 48 * 256 + 48)
    assert about["tokenizer"] == "t"
    assert about["tokenizer_fingerprint"] == "abc"
    files = {name: len(data) for name, data in dataset_bytes(tmp_path / "a").items() if name != "export.json"}
    assert about["files"] == files


@pytest.mark.parametrize("block", [1, 3000, 1 << 26])
def test_a_shuffle_loses_and_doubles_nothing(dataset, block, tmp_path, monkeypatch):
    monkeypatch.setattr(selecting, "SHUFFLE_TOKENS", block)
    plain = [tokens.tobytes() for tokens in exported(dataset, "numpy", tmp_path / "plain")]
    orders = [
        [tokens.tobytes() for tokens in exported(dataset, "numpy", tmp_path / f"{seed}", shuffle=seed)]
        for seed in (0, 1)
    ]
    assert plain not in orders
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(plain)


@pytest.mark.parametrize(
    ("selection", "chosen"),
    [
        (Selection(split="val"), lambda row: row["split"] == "val"),
        (Selection(sources=("video",)), lambda row: row["key"].startswith("video")),
        (Selection(where="num_images > 1 and layout <> 'frames'"), lambda row: row["layout"] == "pairs"),
        (
            Selection(split="train", where="source = 'laion' -- and nothing else"),
            lambda row: row["split"] == "train" and row["source"] == "laion",
        ),
        (Selection(where="case when layout = 'single' then true end"), lambda row: row["layout"] == "single"),
        (Selection(where="len(list_filter(roles, lambda r: r = 'image')) = 3"), lambda row: row["num_images"] == 3),
    ],
)
def test_what_is_chosen(dataset, selection, chosen, tmp_path):
    export(dataset, selection, "numpy", tmp_path / "out")
    keys = pq.read_table(tmp_path / "out" / "sequences.parquet")["key"].to_pylist()
    assert keys == [row["key"] for row in token_rows(dataset) if chosen(row)]
    assert keys


@pytest.mark.parametrize(
    "where",
    [
        "",
        "true) from manifest_rows; drop table x; select (true",
        "true, true",
        "true) from manifest_rows where (true",
        "exists (from read_text('/etc/passwd'))",
        "key in (select key from manifest_rows)",
        "count(*) > 1",
        "row_number() over () = 1",
        "random() < 0.5",
        "now() > '2020-01-01'",
        "current_date > '2020-01-01'",
        "getenv('HOME') = 'x'",
        "current_setting('threads') = '1'",
        "?",
        "nothing = 1",
        "(" * 3000 + "true" + ")" * 3000,
        "key + 1",
    ],
)
def test_conditions_that_a_row_does_not_decide_are_refused(where):
    with pytest.raises(DatasetError, match="--where"):
        Condition(where)


def test_a_condition_that_fails_on_a_value_says_so(dataset, tmp_path):
    with pytest.raises(DatasetError, match=r"--where: .*laion"):
        export(dataset, Selection(where="key::int > 3"), "numpy", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_nothing_chosen_is_an_error(dataset, tmp_path):
    with pytest.raises(DatasetError, match="nothing to write"):
        export(dataset, Selection(split="test"), "numpy", tmp_path / "out")
    with pytest.raises(DatasetError, match="no tokens of source 'lajon'"):
        export(dataset, Selection(sources=("lajon",)), "numpy", tmp_path / "out")
    with pytest.raises(DatasetError, match="expected train, val, test"):
        export(dataset, Selection(split="dev"), "numpy", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("writer", [LvmJsonl, HubParquet])
def test_files_end_after_so_many_tokens(dataset, writer, tmp_path):
    written = writer(tmp_path, 1500)
    for row in token_rows(dataset):
        written.add(row, all_tokens(dataset)[row["key"]])
    written.close()
    form = "lvm-jsonl" if writer is LvmJsonl else "hf"
    assert len(list(tmp_path.rglob("tokens-*"))) > 5
    assert sum(len(tokens) for tokens in read_export(form, tmp_path)) == sum(map(len, all_tokens(dataset).values()))


def test_parquet_says_of_its_columns_what_datasets_writes(dataset, tmp_path):
    export(dataset, Selection(), "hf", tmp_path / "out")
    schema = pq.read_schema(tmp_path / "out" / "train" / "tokens-00000.parquet")
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == schema.names
    assert features["key"] == {"dtype": "string", "_type": "Value"}
    assert features["num_images"] == {"dtype": "int16", "_type": "Value"}
    assert features["tokens"] == {"feature": {"dtype": "uint16", "_type": "Value"}, "_type": "Sequence"}
    assert str(schema.field("tokens").type.value_type) == "uint16"
    assert {path.parent.name for path in (tmp_path / "out").rglob("*.parquet")} == {"train", "val"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "split: val\n    path: val/*.parquet" in card


@pytest.mark.parametrize("form", ["lvm-jsonl", "numpy", "hf"])
def test_the_documented_code_loads_each_format(dataset, form, tmp_path, monkeypatch):
    export(dataset, Selection(), form, tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"<!-- " + form + r" -->\n```python\n(.*?)```", DOCS.read_text(), re.S)
    names: dict = {}
    exec(blocks[0], names)
    ids = [np.asarray(tokens) for tokens in names["sequences"]]
    expected = list(all_tokens(dataset).values())
    if form == "lvm-jsonl":
        expected = [unframe(tokens).reshape(-1) for tokens in expected]
    assert sorted(one.astype("<u2").tobytes() for one in ids) == sorted(one.tobytes() for one in expected)


# ---- whole or not at all


def test_an_export_is_not_replaced_unasked_and_nothing_else_ever_is(dataset, tmp_path):
    out = tmp_path / "out"
    export(dataset, Selection(), "numpy", out)
    with pytest.raises(DatasetError, match="--overwrite"):
        export(dataset, Selection(), "lvm-jsonl", out)
    assert (out / "tokens.bin").exists()
    export(dataset, Selection(), "lvm-jsonl", out, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == ["export.json", "tokens-00000.jsonl"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    for place in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
        with pytest.raises(DatasetError, match="is no export"):
            export(dataset, Selection(), "numpy", place, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


def test_a_failed_export_leaves_nothing_and_what_a_killed_one_left_goes(dataset, tmp_path):
    class Killed(BaseException):
        pass

    def stop() -> None:
        raise Killed

    left = tmp_path / ".out.0123456789ab.tmp"
    left.mkdir()
    (left / "tokens.bin").write_bytes(b"half")
    with pytest.raises(Killed):
        export(dataset, Selection(), "numpy", tmp_path / "out", advance=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_running_export_is_not_taken_for_a_dead_one(dataset, tmp_path):
    with exporting._temporary_folder(tmp_path / "out") as running:
        export(dataset, Selection(), "numpy", tmp_path / "out")
        assert running.is_dir()


@pytest.mark.parametrize("damage", ["cut", "ids", "gone", "manifest", "foreign"])
def test_damaged_shards_are_named(damage, tmp_path):
    dataset = write_dataset(tmp_path / "d")
    tar = tmp_path / "d" / "tokens" / "t" / "video" / "000001.tar"
    data = bytearray(tar.read_bytes())
    (row, *_) = dataset.manifest(dataset.shards("tokens/t/video")[1]).to_pylist()
    if damage == "cut":
        tar.write_bytes(data[: row["offset"] + 100])
    elif damage == "ids":
        data[row["offset"] + 2 : row["offset"] + 4] = b"\xff\xff"
        tar.write_bytes(data)
    elif damage == "gone":
        tar.unlink()
    elif damage == "manifest":
        tar.with_suffix(".parquet").write_bytes(b"PAR1 not really")
    else:
        tar.with_suffix(".parquet").write_bytes(tar.with_suffix(".rejects.parquet").read_bytes())
    with pytest.raises(DatasetError, match=r"tokens/t/video/000001\.(tar|parquet)"):
        export(dataset, Selection(), "numpy", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tokens_of_two_tokenizers_are_not_mixed(tmp_path):
    dataset = write_dataset(tmp_path / "d")
    dataset.declare("tokens", "other/laion", {"fingerprint": "x"})
    with pytest.raises(DatasetError, match="say which by its tokenizer"):
        export(dataset, Selection(), "numpy", tmp_path / "out")
    export(dataset, Selection(tokenizer="t"), "numpy", tmp_path / "out")


def test_rows_far_apart_are_read_without_what_lies_between(tmp_path, monkeypatch):
    dataset = write_dataset(tmp_path / "d")
    monkeypatch.setattr("uvd.manifests.token_shard._GAP_BYTES", 16)
    expected = all_tokens(dataset)
    for shard in dataset.all_shards("tokens"):
        table = dataset.manifest(shard)
        for chosen in ([0, 5], [1, 2, 4], [3], []):
            found = list(iter_rows(dataset, shard, table.take(pa.array(chosen, pa.int64()))))
            assert [row["key"] for row, _ in found] == [table["key"][number].as_py() for number in chosen]
            assert all(np.array_equal(tokens, expected[row["key"]]) for row, tokens in found)
        with pytest.raises(ValueError, match="out of order"):
            list(iter_rows(dataset, shard, table.take([5, 0])))
