"""What the campaign disturbs: small inputs of several kinds, and the commands that make datasets of them.

Every kind has broken inputs, so that rejects are part of what must not change. Laid out once for a campaign; the calm
dataset of each workload is made on a private Ray, undisturbed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from uvd.benchmarks.chaos.cluster import end_with_parent, free_port
from uvd.benchmarks.photo_host import url

PHOTOS, NAMES, PHOTO_SHAPE = 6, 36, (1800, 2400)
"""Pictures, names that they go by, and pixels: PNGs so large that a shard takes some tenths of a second."""
CLIPS, FRAMES, CLIP_SHAPE = 8, 150, (720, 960)
URLS, HOST_PHOTOS = 160, 24
_CONFIGS = {
    "photos": """
source: images
dataset: photos
input: {inputs}/photos
shard_size: 2
derive: [grey]
resize: random_crop
layouts: {{pairs: 1}}
holdout: {{val: 0.2}}
""",
    "video": """
source: video
dataset: clips
input: {inputs}/clips
shard_size: 1
strides: [2, 5]
min_frames: 8
resize: random_crop
""",
    "urls": """
source: laion
dataset: urls
input: {inputs}/urls.parquet
shard_size: 20
fetch: {{allow_private_hosts: true, retries: 0}}
""",
}
_BUILD = """
tokenizer: {{name: uvd-small, device: cpu}}
sources: {{images: {inputs}/photos.yaml}}
"""
_SOURCES = {"photos": "images", "video": "video", "urls": "laion"}


@dataclass(frozen=True)
class Workload:
    """A command, what it starts from, and what an undisturbed run of it makes.

    Attributes:
        arguments: of `uvd`, without the dataset and Ray's address.
        dataset_option: how the command names the dataset.
        section: `sequences` or `tokens`: where it commits.
        doing: what Ray calls its workers while they work, or how that begins.
        start: dataset that a run starts from a copy of; None for none.
        calm: dataset of an undisturbed run.
        shards: that are committed by it.
    """

    name: str
    arguments: tuple[str, ...]
    dataset_option: str
    section: str
    doing: tuple[str, ...]
    start: Path | None
    calm: Path
    shards: int = 0

    def command(self, out: Path, *more: str) -> list[str]:
        return [sys.executable, "-m", "uvd.pipeline.cli", *self.arguments, self.dataset_option, str(out), *more]

    def lay_out(self, out: Path) -> None:
        """What is there before the command runs."""
        if self.start is not None:
            shutil.copytree(self.start, out, dirs_exist_ok=True)


def committed(out: Path, section: str) -> int:
    """Shards that have their manifest."""
    return sum(1 for path in (out / section).rglob("[0-9]*.parquet") if "rejects" not in path.name)


def picture(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    """`(height, width, 3)` uint8: coloured blobs with some texture, like a photo to a codec."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8, 3)).astype(np.uint8)
    blobs = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    return (blobs + rng.integers(-12, 13, (height, width, 1))).clip(0, 255).astype(np.uint8)


def write_photo(path: Path, seed: int, shape: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = cv2.imencode(path.suffix, picture(seed, *shape))[1]
    path.write_bytes(encoded.tobytes())


def write_clip(path: Path, seed: int) -> None:
    """A clip of FRAMES frames, in which a picture moves along."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = CLIP_SHAPE
    wide = picture(seed, height, width + 4 * FRAMES)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(FRAMES):
            frame = np.ascontiguousarray(wide[:, 4 * number : 4 * number + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def _photos(inputs: Path, port: int) -> None:
    for number in range(NAMES):
        name = inputs / "photos" / f"{number:02d}.png"
        if number < PHOTOS:
            write_photo(name, number, PHOTO_SHAPE)
        else:
            name.hardlink_to(inputs / "photos" / f"{number % PHOTOS:02d}.png")
    whole = (inputs / "photos" / "00.png").read_bytes()
    (inputs / "photos" / "cut-off.png").write_bytes(whole[: len(whole) // 2])
    (inputs / "photos" / "empty.jpg").write_bytes(b"")
    (inputs / "photos" / "page.jpg").write_text("<html>not found</html>")


def _video(inputs: Path, port: int) -> None:
    for seed in range(CLIPS):
        write_clip(inputs / "clips" / f"{seed}.mp4", seed)
    (inputs / "clips" / "broken.mp4").write_bytes((inputs / "clips" / "0.mp4").read_bytes()[:5000])


def _urls(inputs: Path, port: int) -> None:
    for seed in range(HOST_PHOTOS):
        write_photo(inputs / "host" / f"{seed:02d}.jpg", seed, (900, 1200))
    pq.write_table(pa.table({"url": [url(number, port) for number in range(URLS)]}), inputs / "urls.parquet")


_INPUTS = {"photos": _photos, "video": _video, "urls": _urls}


@contextmanager
def workloads(folder: Path, names: tuple[str, ...]) -> Iterator[dict[str, Workload]]:
    """Makes inputs and calm datasets below `folder`, and serves the photos of `urls` for the time of the block.

    Args:
        names: of `photos`, `video`, `urls`, `tokens`, which tokenizes what `photos` makes, and `build`, which makes
            both in one pass.
    """
    port = free_port()
    wanted = {
        *names,
        *({"tokens"} if "build" in names else ()),
        *({"photos"} if {"tokens", "build"} & {*names} else ()),
    }
    sources = [name for name in _INPUTS if name in wanted]
    for name in sources:
        _INPUTS[name](folder, port)
        (folder / f"{name}.yaml").write_text(_CONFIGS[name].format(inputs=folder))
    server = _serve(folder / "host", port) if "urls" in wanted else None
    try:
        made = {name: _ingesting(name, folder) for name in sources}
        if "tokens" in wanted:
            made["tokens"] = _tokenizing(made["photos"], folder)
        if "build" in wanted:
            made["build"] = _building(made["tokens"], folder)
        yield {name: made[name] for name in names}
    finally:
        if server is not None:
            server.kill()
            server.wait(timeout=10)


def _serve(photos: Path, port: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "uvd.benchmarks.photo_host", str(photos), str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=end_with_parent)
    assert server.stdout is not None
    server.stdout.readline()
    return server


def _ingesting(name: str, folder: Path) -> Workload:
    arguments = ("ingest", _SOURCES[name], "--config", str(folder / f"{name}.yaml"))
    return _with_calm(Workload(name, arguments, "--out", "sequences", ("make_shard",), None, folder / f"calm-{name}"))


def _tokenizing(photos: Workload, folder: Path) -> Workload:
    arguments = ("tokenize", "--tokenizer", "uvd-small", "--device", "cpu")
    doing = ("TokenizeActor.run",)
    return _with_calm(Workload("tokens", arguments, "--dataset", "tokens", doing, photos.calm, folder / "calm-tokens"))


def _building(tokens: Workload, folder: Path) -> Workload:
    """Its calm dataset is that of ingesting and tokenizing, one after the other."""
    (folder / "build.yaml").write_text(_BUILD.format(inputs=folder))
    arguments = ("build", "--config", str(folder / "build.yaml"))
    doing = ("build_shard", "EncodingActor")
    return Workload("build", arguments, "--out", "tokens", doing, None, tokens.calm, tokens.shards)


def _with_calm(workload: Workload) -> Workload:
    workload.lay_out(workload.calm)
    command = workload.command(workload.calm, "--num-cpus", "1")
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    if done.returncode != 0:
        raise RuntimeError(f"the calm run of {workload.name} failed: {done.stdout[-2000:]}")
    return replace(workload, shards=committed(workload.calm, workload.section))
