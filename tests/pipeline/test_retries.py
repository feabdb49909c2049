"""`--retry-rejects` against a real server whose failures pass: what is tried again, where it goes, how it counts."""

from __future__ import annotations

import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests_support import dataset_bytes, write_photo

from uvd.manifests.dataset import ConfigChangedError, Dataset
from uvd.manifests.stats import query, statistics
from uvd.manifests.verify import verify
from uvd.pipeline.config import config_entry
from uvd.pipeline.ingest import Round, ingest, make_shard, plan, retry_rejects
from uvd.pipeline.ray_runtime import ray_runtime
from uvd.pipeline.retries import plan_round, round_units, rounds, start_round
from uvd.sources.base import SourceError
from uvd.sources.images import ImagesConfig, ImagesSource
from uvd.sources.laion import LaionConfig, LaionSource

PHOTOS = 12


class Server:
    """Serves `N.jpg`; numbers in `down` answer 503, those in `gone` 404."""

    def __init__(self, photos: Path) -> None:
        self.down: set[int] = set()
        self.gone: set[int] = set()
        self.asked: Counter[int] = Counter()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                stem = self.path.strip("/").removesuffix(".jpg")
                number = int(stem) if stem.isdigit() else None
                status, body = 404, b""
                if number is not None:
                    server.asked[number] += 1
                    status = 503 if number in server.down else 404 if number in server.gone else 200
                    body = (photos / f"{number}.jpg").read_bytes() if status == 200 else b""
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return self.http.server_address[1]


@pytest.fixture
def server(tmp_path):
    for seed in range(PHOTOS):
        write_photo(tmp_path / "photos" / f"{seed}.jpg", seed, 120, 160)
    made = Server(tmp_path / "photos")
    yield made
    made.http.shutdown()


@pytest.fixture
def config(server, tmp_path) -> LaionConfig:
    urls = [f"http://127.0.0.1:{server.port}/{number}.jpg" for number in range(PHOTOS)]
    pq.write_table(pa.table({"url": urls}), tmp_path / "urls.parquet")
    fetch = {"allow_private_hosts": True, "retries": 0}
    return LaionConfig(
        dataset="d", input=str(tmp_path / "urls.parquet"), shard_size=5, resize="random_crop", fetch=fetch
    )


def make(dataset: Dataset, config: LaionConfig) -> None:
    entry = config_entry(config)
    dataset.declare("sequences", config.folder, entry)
    for job in plan(dataset, config, entry["fingerprint"]):
        make_shard(job)


def start_next_round(dataset: Dataset, config: LaionConfig) -> tuple[str, int]:
    name, content, inputs = plan_round(dataset, config.folder, LaionSource(config).plan(), config.shard_size)
    if inputs:
        start_round(dataset, name, config.folder, content, config_entry(config), config.shard_size)
    return name, inputs


def run_round(dataset: Dataset, config: LaionConfig, name: str) -> None:
    recorded = dataset.info()["sequences"][name]["fingerprint"]
    for job in plan(dataset, config, recorded, Round(name, round_units(dataset, name))):
        make_shard(job)


def retry(dataset: Dataset, config: LaionConfig) -> int:
    name, inputs = start_next_round(dataset, config)
    if inputs:
        run_round(dataset, config, name)
    return inputs


def test_only_passing_failures_are_tried_again_and_every_input_is_counted_once(server, config, tmp_path):
    server.down, server.gone = {1, 4, 6, 11}, {2}
    dataset = Dataset(str(tmp_path / "d"))
    make(dataset, config)
    before = {name: data for name, data in dataset_bytes(tmp_path / "d").items() if name != "dataset.json"}
    server.down, server.gone = {6}, {11}
    server.asked.clear()
    assert retry(dataset, config) == 4
    assert set(server.asked) == {1, 4, 6, 11}
    after = dataset_bytes(tmp_path / "d")
    assert {name: after[name] for name in before} == before  # nothing that was committed changed

    reasons = query(dataset, "select reason, count(*) n from rejects group by all").to_pylist()
    assert {row["reason"]: row["n"] for row in reasons} == {"http_404": 2, "http_5xx": 1}
    first, second = statistics(dataset)["accounting"]
    assert (first["inputs"], first["used"], first["rejected"], first["retried"]) == (12, 7, 5, 4)
    assert (second["source"], second["inputs"], second["used"], second["rejected"]) == ("laion-retry1", 4, 2, 2)
    assert first["used"] + second["used"] + 3 == PHOTOS
    assert verify(dataset, deep=True).problems == []


def test_rounds_go_on_until_nothing_passing_is_left(server, config, tmp_path):
    server.down = {0, 3, 9}
    dataset = Dataset(str(tmp_path / "d"))
    make(dataset, config)
    assert retry(dataset, config) == 3
    server.down = {9}
    assert retry(dataset, config) == 3
    server.down = set()
    assert retry(dataset, config) == 1
    assert retry(dataset, config) == 0
    assert rounds(dataset, "laion") == ["laion", "laion-retry1", "laion-retry2", "laion-retry3"]
    assert query(dataset, "select count(*) n from rejects").to_pylist() == [{"n": 0}]
    origins = query(dataset, "select origins[1] o from sequences").to_pylist()
    assert len({row["o"] for row in origins}) == PHOTOS


def test_a_retried_image_is_what_it_would_have_been(server, config, tmp_path):
    whole, flaky = Dataset(str(tmp_path / "whole")), Dataset(str(tmp_path / "flaky"))
    make(whole, config)
    server.down = {7}
    make(flaky, config)
    server.down = set()
    retry(flaky, config)
    sql = "select phashes from sequences where origins[1] like '%/7.jpg'"
    (wanted,), (found,) = (query(dataset, sql).to_pylist() for dataset in (whole, flaky))
    assert wanted == found  # the same random crop, though it lies in another shard


def test_a_round_is_the_same_whenever_it_is_killed(server, config, tmp_path):
    server.down = {1, 4, 6, 8, 9, 10, 11}
    calm, killed = Dataset(str(tmp_path / "calm")), Dataset(str(tmp_path / "killed"))
    for dataset in (calm, killed):
        make(dataset, config)
    server.down = {9}
    retry(calm, config)
    # Killed after the plan was written and one of two shards was made; then other servers are up.
    name, _ = start_next_round(killed, config)
    recorded = killed.info()["sequences"][name]["fingerprint"]
    jobs = list(plan(killed, config, recorded, Round(name, round_units(killed, name))))
    assert len(jobs) == 2
    make_shard(jobs[1])
    run_round(killed, config, name)
    assert dataset_bytes(tmp_path / "killed") == dataset_bytes(tmp_path / "calm")


def test_through_ray_and_the_command_one_call_is_one_round(server, config, tmp_path):
    out = str(tmp_path / "d")
    server.down = {2, 5}
    with ray_runtime(num_cpus=1):
        assert ingest(config, out).complete
        server.down = {5}
        ((name, result),) = retry_rejects(config, out)
        assert (name, result.complete, result.totals["used"], result.totals["rejected"]) == ("laion-retry1", True, 1, 1)
        server.down = set()
        assert [name for name, _ in retry_rejects(config, out)] == ["laion-retry1", "laion-retry2"]
        assert [name for name, _ in retry_rejects(config, out)] == ["laion-retry1", "laion-retry2"]


def test_overwriting_the_source_drops_its_retries(server, config, tmp_path):
    server.down = {2}
    dataset = Dataset(str(tmp_path / "d"))
    make(dataset, config)
    retry(dataset, config)
    changed = config.model_copy(update={"seed": 1})
    with pytest.raises(ConfigChangedError):
        dataset.declare("sequences", "laion", config_entry(changed))
    dataset.declare("sequences", "laion", config_entry(changed), overwrite=True)
    assert dataset.sources() == ["laion"]
    assert not (tmp_path / "d" / "sequences" / "laion-retry1").exists()


def test_a_round_that_was_recorded_and_never_planned_is_no_round(server, config, tmp_path):
    server.down = {2}
    dataset = Dataset(str(tmp_path / "d"))
    make(dataset, config)
    name, _ = start_next_round(dataset, config)
    (tmp_path / "d" / "sequences" / name / "plan.parquet").unlink()  # killed before it was written
    assert query(dataset, "select count(*) n from rejects").to_pylist() == [{"n": 1}]
    assert retry(dataset, config) == 1
    assert verify(dataset).problems == []


def test_a_damaged_plan_is_found(server, config, tmp_path):
    server.down = {2}
    dataset = Dataset(str(tmp_path / "d"))
    make(dataset, config)
    retry(dataset, config)
    plan_of_round = tmp_path / "d" / "sequences" / "laion-retry1" / "plan.parquet"
    plan_of_round.write_bytes(plan_of_round.read_bytes() + b" ")
    assert any("plan.parquet" in problem for problem in verify(dataset).problems)


def test_a_source_whose_rejects_are_final_says_so(tmp_path):
    from uvd.sequences import Seeds
    from uvd.sources.base import RetriedPart, WorkUnit

    source = ImagesSource(ImagesConfig(dataset="d", input=tmp_path))
    with pytest.raises(SourceError, match="nothing for a reason that passes"):
        source.read_again(RetriedPart(WorkUnit(0, 1, {}), (0,)), Seeds(0, ("x",)))
