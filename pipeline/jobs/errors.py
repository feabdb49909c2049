"""What can go wrong between this machine and a cluster; every message says how to mend it."""

from __future__ import annotations

from uvd.sequences.errors import UserError


class JobError(UserError):
    """A job could not be submitted, found or followed."""


class ClusterUnreachableError(JobError):
    """Nothing answers at the address, or what answers is no Ray dashboard."""


class ClusterTokenError(JobError):
    """The cluster wants a token that this machine does not have, or takes any caller."""


class JobRunningError(JobError):
    """The same command runs on the cluster already."""


class SubmissionError(JobError):
    """The command cannot be sent as it is."""

    exit_code = 2


class VersionSkewError(SubmissionError):
    """Python, Ray or uvd are not the same here and on the cluster."""
