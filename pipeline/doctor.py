"""Checks of the machine, each with what was found and how to mend it."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

MIN_FREE_GB = 5.0
MIN_RAY = (2, 57)


@dataclass(frozen=True, slots=True)
class Check:
    """One line of `uvd doctor`."""

    name: str
    ok: bool
    finding: str
    fix: str = ""


def checks() -> Iterator[Check]:
    """All checks; a check that raises is itself a finding."""
    again = "run `make setup` again"
    probes: tuple[tuple[str, Callable[[], Check], str], ...] = (
        ("Python", _python, again),
        ("torch", _torch, again),
        ("Ray", _ray, again),
        ("video", _video, again),
        ("OpenGL", _opengl, "sudo apt-get install libosmesa6 libegl1, and leave PYOPENGL_PLATFORM unset"),
        ("MMPose", _mmpose, "pip install --no-deps --no-build-isolation -r requirements-nodeps.txt (needs gcc)"),
        (
            "tokenizer",
            _tokenizer,
            "the files of tokenize/weights/uvd-small are missing or damaged: check out or install again",
        ),
        ("disk", _disk, again),
    )
    for name, probe, fix in probes:
        try:
            yield probe()
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a package is what doctor reports
            yield Check(name, False, f"{type(error).__name__}: {error}", fix)


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("Python", (3, 11) <= sys.version_info < (3, 13), version, "install Python 3.11 and run `make setup`")


def _torch() -> Check:
    import torch

    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
        return Check("torch", True, f"{torch.__version__}, {torch.cuda.device_count()} GPU: {', '.join(sorted(names))}")
    return Check("torch", True, f"{torch.__version__}, no GPU (CPU works, slowly)")


def _ray() -> Check:
    version = importlib.metadata.version("ray")
    ok = tuple(int(part) for part in version.split(".")[:2]) >= MIN_RAY
    return Check("Ray", ok, version, "pip install 'ray[default,train]>=2.57' (older versions can be taken over)")


def _video() -> Check:
    import av

    missing = [name for name in ("h264", "hevc", "vp9", "av1") if name not in av.codecs_available]
    return Check(
        "video", not missing, f"PyAV {av.__version__}, missing decoders: {missing or 'none'}", "pip install av"
    )


def _opengl() -> Check:
    from uvd.renderers.gl import probe_gl

    platform = probe_gl()
    return Check("OpenGL", True, f"{platform.name}: {platform.renderer} ({platform.reason})")


def _mmpose() -> Check:
    from uvd.renderers import mm_compat

    mm_compat.install()
    return Check("MMPose", True, importlib.metadata.version("mmpose"))


def _tokenizer() -> Check:
    from uvd.tokenize.tokenizer import load_tokenizer

    tokenizer = load_tokenizer("uvd-small", device="cpu", encoder_only=True)
    return Check("tokenizer", True, f"{tokenizer.name}, fingerprint {tokenizer.fingerprint[:12]}")


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    finding = f"{free:.0f} GB free here, {len(os.sched_getaffinity(0))} CPUs, {memory:.0f} GB memory"
    return Check("disk", free >= MIN_FREE_GB, finding, f"free at least {MIN_FREE_GB:.0f} GB")
