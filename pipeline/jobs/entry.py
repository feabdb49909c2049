"""What a job runs on the cluster: `python -m uvd.pipeline.jobs.entry …`, the command line after a look at the versions.

It checks what only the cluster knows: the uvd that its image was made for, and the packages that this one needs.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from uvd import __version__
from uvd.pipeline.jobs import environment
from uvd.pipeline.jobs.errors import VersionSkewError
from uvd.sequences.errors import UserError

ABOUT = "uvd-job.json"


def installed_version(name: str) -> str | None:
    """The version of a package in this Python; uvd's own is that of the image, since what was sent has no metadata."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_image(
    sent: str, requirements: Iterable[str], installed: Callable[[str], str | None] = installed_version
) -> None:
    """Refuses an image that was made for another uvd, or that lacks what this one needs.

    Args:
        sent: version of the uvd that came with the job.
        requirements: its dependencies, such as `av>=18`.

    Raises:
        VersionSkewError: names what is wanted and what is there.
    """
    image = installed("uvd")
    if image is not None and image != sent:
        raise VersionSkewError(
            f"the job brings uvd {sent}, and the cluster's image was made for uvd {image}. Make the image anew from "
            "this version (cluster/Containerfile), or submit from the image's"
        )
    lacking = []
    for line in requirements:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        version = installed(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            lacking.append(f"{requirement.name}{requirement.specifier} ({version or 'none'} there)")
    if lacking:
        raise VersionSkewError(
            f"uvd {sent} needs what the cluster's image does not have: {', '.join(lacking)}. Make the image anew "
            "(cluster/Containerfile)"
        )


def prepare() -> None:
    """Sets the job's variables, checks the image, and says in the log what runs where."""
    import ray

    about: dict[str, Any] = json.loads(Path(ABOUT).read_text())
    environment.apply()
    check_image(__version__, about["requirements"])
    versions = f"Python {platform.python_version()}, Ray {ray.__version__}"
    print(f"uvd {__version__} (wheel {about['wheel']}) on {platform.node()}: {versions}", file=sys.stderr, flush=True)


def main() -> None:
    try:
        prepare()
    except UserError as error:
        print(f"uvd: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    from uvd.pipeline import cli

    sys.argv[0] = "uvd"  # as leases name who writes
    cli.main()


if __name__ == "__main__":
    main()
