"""Leases: one run at a time writes a folder of a dataset, on local disks and on object stores.

A run that wants a folder puts a claim, `runs/writing.FOLDER.TOKEN.lease`, under a name of its own, and then lists the
claims. If there is no other one that lives, it holds the folder; else it takes its claim back. Of two runs the one that
claims later sees the other's claim, so two never both hold: that needs no rename, no exclusive creation and no
conditional write, only that a listing shows what was written before it, as local disks, S3, GCS and Azure do. Claims
are renewed every 5 s and taken back at the end, so a finished dataset has none.

Who is dead? On one machine (the same boot of it) a claim is a locked file, and the kernel drops the lock of a process
that ends in any way: taken over at once. Elsewhere a claim is dead when it was watched for 30 s by the watcher's own
clock and did not change; clocks of two machines are never compared. A run that was suspended for that long, or could
not reach the store, finds within 5 s after it goes on that its lease is lost, and stops. Until then shards in work may
still be committed: with the same settings these are the same bytes.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, auto
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uvd.sequences.errors import UserError

if TYPE_CHECKING:
    from uvd.manifests.storage import Storage

BEAT_S = 5.0
"""Time between two renewals of a claim."""
LEASE_S = 30.0
"""A claim that did not change for so long is dead."""
FOLDER = "runs"
_NAME = re.compile(r"^writing\.(.+)\.[0-9a-f]{12}\.lease$")
_BYTES = 4096
"""Of a claim: always as many, so that renewing one in place never leaves parts of two."""
_COMMAND = 300
_CREDENTIALS = re.compile(r"://[^/\s@]+@")
_POLL_S, _PAUSES_S = 1.0, (0.02, 0.3)
_MINE: set[str] = set()
"""Paths of the claims of this process; their last parts are random, so they are nobody else's."""


class FolderHeldError(UserError):
    """Another run writes the folder; the message names it."""


class LeaseLostError(UserError):
    """This run was out of reach for so long that another may have taken over."""

    exit_code = 3


class _Life(Enum):
    DEAD = auto()
    ALIVE = auto()
    UNSURE = auto()


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has a claim, as far as it can be read."""

    folder: str
    host: str
    pid: int
    since: str
    command: str
    held: bool
    """False while it only asks for the folder."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}: {self.command}"


@dataclass(frozen=True, slots=True)
class Seen:
    """A claim that was looked at."""

    path: str
    life: _Life
    holder: Holder

    @property
    def dead(self) -> bool:
        return self.life is _Life.DEAD


def _boot() -> str:
    """What tells one machine between two starts from all others."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


class _Claim:
    """This process's own claim: a small file that it keeps locked, or an object."""

    def __init__(self, storage: Storage, folder: str) -> None:
        self._storage = storage
        self.path = f"{FOLDER}/writing.{folder.replace('/', '.')}.{os.urandom(6).hex()}.lease"
        self._about = {
            "folder": folder,
            "host": socket.gethostname(),
            "boot": _boot(),
            "pid": os.getpid(),
            "since": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            "command": _CREDENTIALS.sub("://…@", " ".join(sys.argv))[:_COMMAND],
        }
        self._beat = 0
        self._file: int | None = None
        _MINE.add(self.path)
        self.renewed = time.monotonic()

    def put(self, *, held: bool) -> None:
        """Writes the claim, or renews it."""
        self._beat += 1
        now = time.monotonic()
        data = json.dumps({**self._about, "held": held, "beat": self._beat}).encode().ljust(_BYTES)
        if self._storage.local_root is None:
            self._storage.put(self.path, data)
        elif self._file is None:
            self._file = _create_locked(self._storage.local_root / self.path, data)
        else:
            os.pwrite(self._file, data, 0)
            os.fsync(self._file)
        self.renewed = now

    def kept(self) -> bool:
        """Renews the claim; False if it is lost."""
        late = self._storage.local_root is None and time.monotonic() - self.renewed > LEASE_S - BEAT_S
        try:
            if late or not self._storage.exists(self.path):
                return False
            self.put(held=True)
        except OSError:
            # The store cannot be reached now. The next beat tries again, until it is too late.
            return time.monotonic() - self.renewed <= LEASE_S - BEAT_S
        return True

    def take_back(self) -> None:
        with suppress(FileNotFoundError):
            self._storage.delete(self.path)
        if self._file is not None:
            os.close(self._file)
            self._file = None
        _MINE.discard(self.path)


def _create_locked(path: Path, data: bytes) -> int:
    """Makes a file that says nothing before it is locked: nobody takes an empty claim for dead at first sight."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        os.pwrite(file, data, 0)
        os.fsync(file)
    except BaseException:
        os.close(file)
        path.unlink(missing_ok=True)
        raise
    return file


class _Watch:
    """Looks at claims of others again and again, and so learns which of them live."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._seen: dict[str, tuple[bytes, float]] = {}
        self._alive: set[str] = set()

    def keep_alive(self, paths: set[str]) -> None:
        """Spares the next looks another proof that these live."""
        self._alive |= paths

    def look(self, folder: str, but: str = "") -> list[Seen]:
        """The claims to a folder that are not dead; removes those that are."""
        found = []
        for seen in self.look_at_all():
            if seen.path == but or seen.holder.folder != folder.replace("/", "."):
                continue
            if not seen.dead:
                found.append(seen)
                continue
            with suppress(FileNotFoundError):
                self._storage.delete(seen.path)
        return found

    def look_at_all(self) -> Iterator[Seen]:
        for name in self._storage.list(FOLDER):
            match = _NAME.match(name)
            if match is None:
                continue
            path = f"{FOLDER}/{name}"
            try:
                data = self._storage.read(path)
                about = _parse(data)
                yield Seen(path, self._life(path, data, about), _holder(match[1], about))
            except FileNotFoundError:
                continue  # taken back meanwhile

    def _life(self, path: str, data: bytes, about: dict[str, Any]) -> _Life:
        if self._storage.local_root is not None and about.get("boot") == _boot():
            return _Life.ALIVE if _is_locked(self._storage.local_root / path) else _Life.DEAD
        if path in self._alive:
            return _Life.ALIVE
        now = time.monotonic()
        before, since = self._seen.setdefault(path, (data, now))
        if data != before:
            self._seen[path] = (data, now)
            return _Life.ALIVE
        return _Life.DEAD if now - since >= LEASE_S else _Life.UNSURE


def _is_locked(path: Path) -> bool:
    file = os.open(path, os.O_RDONLY)
    try:
        # Shared, so that two who look at once do not take each other for the holder.
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def _parse(data: bytes) -> dict[str, Any]:
    """A claim's content; empty if it is none, as of a writer of another version."""
    try:
        about = json.loads(data[:_BYTES])
    except ValueError:
        return {}
    return about if isinstance(about, dict) else {}


def _holder(folder: str, about: dict[str, Any]) -> Holder:
    texts = {name: str(about.get(name, "?"))[:_COMMAND] for name in ("host", "since", "command")}
    pid = about.get("pid")
    return Holder(folder, pid=pid if isinstance(pid, int) else 0, held=about.get("held") is True, **texts)


class Lease:
    """Folders that this process holds; renews the claims in a thread."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._claims: list[_Claim] = []
        self._ended = threading.Event()
        self._when_lost: list[Callable[[], None]] = []
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self.lost = False

    def call_when_lost(self, function: Callable[[], None]) -> None:
        self._when_lost.append(function)
        if self.lost:
            function()

    def _take(self, folder: str, wait: bool, say: Callable[[str], None]) -> None:
        self._claims.append(_acquire(self._storage, folder, wait, say))
        if len(self._claims) == 1:
            self._thread.start()

    def _renew(self) -> None:
        while not self._ended.wait(BEAT_S):
            if not all(claim.kept() for claim in list(self._claims)):
                self.lost = True
                for function in self._when_lost:
                    function()
                return

    def _end(self) -> None:
        self._ended.set()
        if self._claims:
            self._thread.join()
        for claim in self._claims:
            claim.take_back()


@contextmanager
def hold(
    storage: Storage, folders: Iterable[str], *, wait: bool = False, say: Callable[[str], None] = lambda _: None
) -> Iterator[Lease]:
    """Holds folders for the time of the block.

    Args:
        folders: such as `sequences/laion`; taken in the order of their names, so that two runs cannot wait for each
            other.
        wait: for as long as another run holds one of them.
        say: is told for whom one waits.

    Raises:
        FolderHeldError: if another run holds one and `wait` is off; after up to 30 s where it is on another machine.
        LeaseLostError: at the end of the block, if the lease was lost meanwhile.
    """
    lease = Lease(storage)
    try:
        for folder in sorted(set(folders)):
            lease._take(folder, wait, say)
        yield lease
    finally:
        lease._end()
    if lease.lost:
        raise LeaseLostError(
            f"{storage.uri} was out of reach for {LEASE_S:.0f} s, so that another run may have taken over; this one "
            "stopped. The same command again goes on."
        )


def _acquire(storage: Storage, folder: str, wait: bool, say: Callable[[str], None]) -> _Claim:
    watch, told = _Watch(storage), ""
    while True:
        others = watch.look(folder)
        if not others:
            claim = _Claim(storage, folder)
            try:
                claim.put(held=False)
                others = watch.look(folder, but=claim.path)
                if not others:
                    claim.put(held=True)
                    return claim
            except BaseException:
                claim.take_back()
                raise
            claim.take_back()
        holder = next((seen for seen in others if seen.holder.held), None)
        if holder is None:  # only others that ask as well: once more, at another moment than they
            time.sleep(random.uniform(*_PAUSES_S))
            continue
        if holder.life is _Life.ALIVE and not wait:
            raise FolderHeldError(
                f"another run writes {folder} in {storage.uri}: {holder.holder}. Wait for it (--wait), or stop it; "
                "what it has made is kept."
            )
        if told != holder.path:
            told = holder.path
            doing = "waiting for" if wait else f"looking for up to {LEASE_S:.0f} s whether it lives:"
            say(f"{folder}: {doing} {holder.holder}")
        time.sleep(_POLL_S)


def writers(storage: Storage) -> tuple[list[Holder], list[str]]:
    """Other runs that write now, and the paths of claims that killed runs left.

    Takes up to 5 s if there are claims of other machines that live, and 30 s if there are dead ones.
    """
    watch = _Watch(storage)
    while True:
        claims = [seen for seen in watch.look_at_all() if seen.path not in _MINE]
        if not any(seen.life is _Life.UNSURE for seen in claims):
            break
        watch.keep_alive({seen.path for seen in claims if seen.life is _Life.ALIVE})
        time.sleep(_POLL_S)
    return [seen.holder for seen in claims if not seen.dead], [seen.path for seen in claims if seen.dead]
