"""The base of all errors whose message is for the user: what is wrong, where, and what to do about it.

The command line prints them without a traceback; every other exception is a bug and keeps its own.
"""

from __future__ import annotations

from typing import ClassVar


class UserError(Exception):
    """Something that the user can mend."""

    exit_code: ClassVar[int] = 1


class DeviceError(UserError):
    """The device that was asked for is not there."""
