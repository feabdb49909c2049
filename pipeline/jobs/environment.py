"""Credentials for a job: variables of the submitter's environment, handed over in a file and not in Ray's job record.

What Ray's runtime environment has under `env_vars` is kept with the job, shown to whoever may list jobs, and written to
logs on every node. So values travel as a file of mode 0600 among the job's files; the job's command and each of its
workers read it when they start. It lies in Ray's memory and in its session folder on the nodes for as long as Ray keeps
the job's files.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from uvd.pipeline.jobs.errors import SubmissionError

FILE = "uvd-environment.json"
HOOK = "uvd.pipeline.jobs.environment.apply"
"""What Ray calls in each worker."""
_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
_OWN = ("PATH", "PYTHONPATH", "HOME")


def read_variables(names: Iterable[str]) -> dict[str, str]:
    """The values of the variables that the user named.

    Raises:
        SubmissionError: if one is not set, or is no name, or belongs to the cluster.
    """
    found = {}
    for name in names:
        if "=" in name:
            raise SubmissionError(
                f"--env {name.partition('=')[0]}=…: give the name alone; the value is taken from the environment, so "
                "that it is in no history and no list of processes"
            )
        if not _NAME.match(name):
            raise SubmissionError(f"--env {name}: not the name of a variable")
        if name in _OWN or name.startswith("RAY_"):
            raise SubmissionError(f"--env {name}: the cluster has its own")
        if name not in os.environ:
            raise SubmissionError(f"--env {name}: there is no such variable here")
        found[name] = os.environ[name]
    return found


def write_variables(variables: dict[str, str], folder: Path) -> None:
    """Puts them among the job's files, readable by their owner only; nothing if there are none."""
    if not variables:
        return
    descriptor = os.open(folder / FILE, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(variables, file)


def apply() -> None:
    """Sets them in this process, whose working folder is that of the job's files."""
    try:
        variables = json.loads(Path(FILE).read_text())
    except FileNotFoundError:
        return
    os.environ.update(variables)
