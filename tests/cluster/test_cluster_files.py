"""The cluster files are what Ray's launcher, KubeRay and a container build accept, and agree with each other."""

from __future__ import annotations

import copy
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import jsonschema
import kubernetes_validate
import pytest
import typer
import yaml
from kuberay_schema import RAY_CLUSTER, RAY_JOB
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

import uvd

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
LAUNCHER = ("ray-cluster.yaml", "ray-cluster-onprem.yaml")
KUBERAY = ("raycluster.yaml", "rayjob.yaml")
KUBERNETES = "1.33"
GIB = 2**30


def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CLUSTER / name).read_text())
    return found


def cluster_spec(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = load(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def groups(name: str) -> list[dict[str, Any]]:
    spec = cluster_spec(name)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def pod(group: dict[str, Any]) -> dict[str, Any]:
    template = group["template"]
    metadata = {"name": "any", **template.get("metadata", {})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def container(group: dict[str, Any]) -> dict[str, Any]:
    (only,) = group["template"]["spec"]["containers"]
    return only


# --- Ray's cluster launcher -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", LAUNCHER)
def test_the_launcher_accepts_the_file(name):
    validate_config(prepare_config(load(name)))


@pytest.mark.parametrize(
    "damage",
    [
        lambda config: config.update(max_worker=1),
        lambda config: config["available_node_types"]["cpu"].update(min_worker=1),
        lambda config: config.update(head_node_type="boss"),
        lambda config: config["docker"].update(images="x"),
        lambda config: config.pop("provider") and config.update(provider={}),
    ],
)
def test_the_launcher_would_notice(damage):
    config = load("ray-cluster.yaml")
    damage(config)
    with pytest.raises((jsonschema.ValidationError, ValueError, KeyError)):
        validate_config(prepare_config(config))


def test_aws_grows_from_nothing_and_on_spot():
    config = prepare_config(load("ray-cluster.yaml"))
    types = config["available_node_types"]
    assert {name: kind["min_workers"] for name, kind in types.items()} == {"head": 0, "cpu": 0, "gpu": 0}
    assert types["head"]["max_workers"] == 0
    assert sum(kind["max_workers"] for kind in types.values()) == config["max_workers"]
    spot = {name for name, kind in types.items() if "InstanceMarketOptions" in kind["node_config"]}
    assert spot == {"cpu", "gpu"}
    assert types["gpu"]["resources"]["GPU"] == 1
    assert types["head"]["resources"] == {"CPU": 0}


def test_all_machines_on_premises_are_used():
    config = prepare_config(load("ray-cluster-onprem.yaml"))
    (kind,) = config["available_node_types"].values()
    assert kind["min_workers"] == kind["max_workers"] == len(config["provider"]["worker_ips"])


def ray_starts(config: dict[str, Any]) -> Iterator[list[str]]:
    """Arguments of each `ray start` in the start commands."""
    for command in (*config["head_start_ray_commands"], *config["worker_start_ray_commands"]):
        for part in command.split(";"):
            words = shlex.split(part)
            if words and Path(words[0]).name == "ray" and words[1] == "start":
                yield words[2:]


@pytest.mark.parametrize("name", LAUNCHER)
def test_ray_start_knows_its_arguments(name):
    head, worker = (start.make_context("start", arguments).params for arguments in ray_starts(load(name)))
    assert head["head"]
    assert head["port"] == 6379
    assert worker["address"] == "$RAY_HEAD_IP:6379"
    assert head["metrics_export_port"] == worker["metrics_export_port"] == 8080
    assert head["dashboard_host"] == "127.0.0.1"
    with pytest.raises(click.UsageError):
        start.make_context("start", ["--head", "--metrics-port=8080"])


@pytest.mark.parametrize("name", LAUNCHER)
def test_every_node_has_the_token_and_asks_for_it(name):
    config = load(name)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    options = config.get("docker", {}).get("run_options", [])
    for command in (config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]):
        assert "RAY_AUTH_MODE=token" in " ".join((command, *options))


def test_files_that_the_launcher_copies_are_there():
    local = [path for path in load("ray-cluster-onprem.yaml")["file_mounts"].values() if not path.startswith("~")]
    assert local
    assert all((ROOT / path).is_file() for path in local)


# --- one way to install ----------------------------------------------------------------------------------------------
def pip_installs(text: str) -> list[tuple[frozenset[str], str]]:
    """(what matters of the options, base name of the requirements file) of each `pip install -r`."""
    joined = re.sub(r"\s*\\?\n\s+(?=[-\w])", " ", text)
    found = re.findall(r"pip install ([^\n]*?)-r (\S+)", joined)
    matters = {"--no-deps", "--no-build-isolation"}
    return [(frozenset(matters & set(options.split())), Path(file).name) for options, file in found]


def test_nodes_get_what_make_setup_gets():
    setup = pip_installs((ROOT / "Makefile").read_text())
    assert [file for _, file in setup] == ["requirements.lock", "requirements-nodeps.txt"]
    assert pip_installs((CLUSTER / "Containerfile").read_text()) == setup
    assert pip_installs("\n".join(load("ray-cluster-onprem.yaml")["setup_commands"])) == setup


# --- KubeRay ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "schema"), [("raycluster.yaml", RAY_CLUSTER), ("rayjob.yaml", RAY_JOB)])
def test_kuberay_accepts_the_file(name, schema):
    jsonschema.validate(load(name), schema)
    for group in groups(name):
        kubernetes_validate.validate(pod(group), KUBERNETES, strict=True)


def test_kuberay_would_notice():
    good = load("raycluster.yaml")
    for place, value in (("minReplica", 0), ("rayStartParams", {"num-gpus": 1}), ("maxReplicas", "8")):
        bad = copy.deepcopy(good)
        bad["spec"]["workerGroupSpecs"][1][place] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, RAY_CLUSTER)
    bad = pod(copy.deepcopy(good["spec"]["workerGroupSpecs"][1]))
    bad["spec"]["containers"][0]["resource"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(bad, KUBERNETES, strict=True)


def test_the_job_runs_on_the_same_cluster():
    assert cluster_spec("rayjob.yaml") == cluster_spec("raycluster.yaml")


def test_the_cluster_is_safe_and_grows_from_nothing():
    spec = cluster_spec("raycluster.yaml")
    assert spec["authOptions"]["mode"] == "token"
    assert spec["enableInTreeAutoscaling"]
    assert [group["groupName"] for group in spec["workerGroupSpecs"]] == ["cpu", "gpu"]
    assert all(group["minReplicas"] == group["replicas"] == 0 for group in spec["workerGroupSpecs"])
    for group in groups("raycluster.yaml"):
        assert group["template"]["spec"]["securityContext"]["runAsNonRoot"]
        assert group["template"]["spec"]["restartPolicy"] == "Never"  # the autoscaler (v2) needs it
        assert not container(group)["securityContext"]["allowPrivilegeEscalation"]


def test_spot_nodes_are_for_workers_only():
    head, cpu, gpu = groups("raycluster.yaml")
    keys = [{item["key"] for item in group["template"]["spec"].get("tolerations", [])} for group in (head, cpu, gpu)]
    assert keys[0] == set()
    assert {"spot", "cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority"} == keys[1]
    assert keys[2] == keys[1] | {"nvidia.com/gpu"}


@pytest.mark.parametrize("number", range(3), ids=("head", "cpu", "gpu"))
def test_what_ray_is_told_fits_what_the_pod_gets(number):
    group = groups("raycluster.yaml")[number]
    params, resources = group["rayStartParams"], container(group)["resources"]
    assert resources["requests"] == resources["limits"]
    options = {option.removeprefix("--") for parameter in start.params for option in parameter.opts}
    assert set(params) <= options
    assert int(params.get("num-gpus", 0)) == int(resources["limits"].get("nvidia.com/gpu", 0))
    ports = {port["name"]: port["containerPort"] for port in container(group)["ports"]}
    assert ports["metrics"] == int(params["metrics-export-port"])
    volumes = {volume["name"]: volume for volume in group["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container(group)["volumeMounts"]} == set(volumes)
    assert {"name": "shared-mem", "mountPath": "/dev/shm"} in container(group)["volumeMounts"]
    shared = gibibytes(volumes["shared-mem"]["emptyDir"]["sizeLimit"])
    # Shared memory counts as the pod's.
    assert int(params["object-store-memory"]) < shared < 0.3 * gibibytes(resources["limits"]["memory"])


def gibibytes(quantity: str) -> int:
    assert quantity.endswith("Gi")
    return int(quantity.removesuffix("Gi")) * GIB


def test_the_head_runs_no_shards():
    head = cluster_spec("raycluster.yaml")["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    ports = {port["name"]: port["containerPort"] for port in container(head)["ports"]}
    assert ports == {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "metrics": 8080}


def test_the_jobs_command_is_one_of_ours():
    from uvd.pipeline.cli import app

    program, *words = shlex.split(load("rayjob.yaml")["spec"]["entrypoint"])
    assert program == "uvd"
    commands: Any = typer.main.get_command(app)
    ingest = commands.commands[words[0]]
    options = {option for parameter in ingest.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= options
    assert words[-2:] == ["--address", "auto"]


def test_versions_are_those_that_are_locked():
    ray_version = re.search(r"^ray==(.+)$", (ROOT / "requirements.lock").read_text(), re.M)
    assert ray_version
    images = {load("ray-cluster.yaml")["docker"]["image"]}
    for name in KUBERAY:
        assert cluster_spec(name)["rayVersion"] == ray_version[1]
        images |= {container(group)["image"] for group in groups(name)}
    assert images == {f"REGISTRY/uvd:{uvd.__version__}"}
    assert f"-t REGISTRY/uvd:{uvd.__version__} " in (CLUSTER / "Containerfile").read_text()


# --- the image --------------------------------------------------------------------------------------------------------
def instructions() -> list[tuple[str, str]]:
    """(instruction, its arguments) of the Containerfile, comments left out and lines joined."""
    lines = [line for line in (CLUSTER / "Containerfile").read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]  # type: ignore[misc]


def copies() -> list[tuple[list[str], str]]:
    """(sources, destination) of each COPY."""
    found = [arguments.split() for name, arguments in instructions() if name == "COPY"]
    return [(words[:-1], words[-1]) for words in found]


def test_the_image_is_built_of_known_steps():
    steps = instructions()
    assert {name for name, _ in steps} == {"FROM", "RUN", "WORKDIR", "COPY", "ENV", "USER", "CMD"}
    assert steps[0] == ("FROM", "docker.io/library/python:3.11-slim-bookworm")
    assert [arguments for name, arguments in steps if name == "USER"] == ["1000:1000"]
    last_user = max(index for index, (name, _) in enumerate(steps) if name == "USER")
    assert not any(name == "RUN" for name, _ in steps[last_user:])
    environment = " ".join(arguments for name, arguments in steps if name == "ENV")
    assert "HOME=/home/ray" in environment  # the launcher reads it from the image
    assert "RAY_AUTH_MODE=token" in environment


def test_every_file_that_the_image_copies_is_there_and_not_ignored():
    rules = (CLUSTER / "Containerfile.dockerignore").read_text().splitlines()
    for sources, _ in copies():
        for source in sources:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in rules, source


def test_the_images_wheel_has_every_package(tmp_path):
    """From nothing but what the Containerfile copies, the wheel is the one that the whole tree gives."""
    for sources, destination in copies():
        if not destination.startswith("src/"):
            continue
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, tmp_path / destination, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                (tmp_path / "src").mkdir(exist_ok=True)
                shutil.copy(ROOT / source, tmp_path / "src")
    build = ["-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", "./src"]
    subprocess.run([sys.executable, *build], cwd=tmp_path, check=True, timeout=240, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("uvd-*.whl")
    there = set(zipfile.ZipFile(wheel).namelist())
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    for package in packages:
        folder = Path(*package.split(".")[1:])
        for module in (ROOT / folder).glob("*.py"):
            assert f"uvd/{folder / module.name}".replace("/./", "/") in there
    assert "uvd/configs/laion.yaml" in there
    assert any(name.startswith("uvd/tokenize/weights/uvd-small/") for name in there)
