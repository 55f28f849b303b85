"""Locks on a shared folder that hold across nodes, and that a killed owner does not keep.

A lock is two things, because neither does alone.

- An flock on `NAME.lock`. The system releases it when the owner ends in any way. Within a node it
  always holds; between nodes only where the file system passes it on (not on BeeGFS as installed,
  Lustre with localflock, NFS with local_lock, or where there is no flock at all).
- A lease, `NAME.<number>.lease`: a file that only one process can create, on NFS too, which says
  who the owner is and whose time stamp the owner renews. Numbers only grow and leases stay,
  given back or not, so no two processes can take over the same dead owner's lock.

An owner on this machine is dead as soon as its flock is gone. Of one elsewhere that cannot be told
from a file system without common flocks, so it is dead when its lease was not renewed for
STALE_SECONDS by this process's own clock: clocks of two machines are never compared.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

RENEW_SECONDS = 10.0
STALE_SECONDS = 90.0  # above the minute for which NFS clients may keep what they know of a file
POLL_SECONDS = 0.1
RELEASED = "released\n"
NO_FLOCK = -1  # instead of the descriptor of a file that is locked
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = "/proc/self/ns/pid"
_UNKNOWN = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK}
_HELD = {errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK}


@dataclass(frozen=True)
class Owner:
    """A process.

    born      its start in seconds since 1970: another process may get its number later.
    machine   changes with every boot, so that a name such as localhost is not taken for another.
    processes names the space of process numbers: containers of one machine have several.
    """

    pid: int
    born: float
    host: str
    machine: str
    processes: str
    since: str

    @staticmethod
    def this() -> Owner:
        """This process, from now on."""
        pid = os.getpid()
        since = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
        return Owner(pid, _born(pid) or 0.0, platform.node(), *_machine(), since)

    @staticmethod
    def read(text: str) -> Owner | None:
        """The owner that a lease's text names; None if there is none, or not yet."""
        try:
            return Owner(**json.loads(text))
        except (ValueError, TypeError):
            return None

    @property
    def here(self) -> bool:
        """Whether it runs, or ran, on this machine as it is now up."""
        return self.machine == _machine()[0]

    @property
    def alive(self) -> bool | None:
        """Whether it runs; None if that cannot be asked from here."""
        if not self.here or self.processes != _machine()[1]:
            return None
        born = _born(self.pid)
        return born is not None and abs(born - self.born) < 1.0

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since} UTC,"


class Lease:
    """One lock, to be tried or waited for; `file` ends in .lock. Raises OSError.

    What it saw of another's lease is kept from one try to the next, so that a process which comes
    back now and then finds a dead owner as surely as one that waits.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._handle: int | None = None
        self._number = 1
        self._seen: tuple[int, int, float] | None = None  # number, time stamp, our clock
        self._mine: Path | None = None
        self._ended = threading.Event()

    def take(self) -> bool:
        """Take the lock if nobody holds it."""
        if self._handle is None and not self._flock():
            return False
        if self._follow():
            return True
        self._unlock()
        return False

    def wait(self, waiting: Callable[[str], None] = lambda _: None) -> None:
        """Take the lock, waiting for its owner; waiting(who) is called once if there is one."""
        told = False
        while not self.take():
            if not told:
                told = True
                waiting(self.owner())
            time.sleep(POLL_SECONDS)

    def release(self) -> None:
        """Give the lock back."""
        self._ended.set()
        if self._mine is not None:
            with contextlib.suppress(OSError), open(self._mine, "r+b") as file:
                file.write(RELEASED.encode())  # first, so that the text is at no time another's
                file.truncate()
            self._mine = None
        self._unlock()

    def owner(self) -> str:
        """Who holds it, for a message."""
        found = self._newest()
        owner = None if found is None else Owner.read(found[1])
        return "another process" if owner is None else str(owner)

    def lives(self) -> bool:
        """Whether an owner lives; one elsewhere does if its lease was renewed lately, by the clocks
        of both machines.
        """
        found = self._newest()
        owner = None if found is None else Owner.read(found[1])
        if found is None or owner is None:
            return False
        alive = owner.alive
        return time.time() - found[0] / 1e9 < STALE_SECONDS if alive is None else alive

    def given_back(self) -> bool:
        """Whether the last owner gave the lock back, and was not killed."""
        found = self._newest()
        return found is None or found[1].startswith(RELEASED)

    def _follow(self) -> bool:
        """Create the next lease if the newest is released or its owner is dead."""
        found = self._newest()
        if found is not None and not self._dead(*found):
            return False
        mine = self._lease(self._number + (found is not None))
        try:
            handle = os.open(mine, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(handle, "w") as file:
            file.write(json.dumps(asdict(Owner.this())))
        self._mine, self._ended = mine, threading.Event()
        threading.Thread(target=_renew, args=(mine, self._ended), daemon=True).start()
        return True

    def _newest(self) -> tuple[int, str] | None:
        """Time stamp and text of the newest lease, whose number is kept; None if there is none."""
        found = None
        while True:
            number = self._number if found is None else self._number + 1
            try:
                # Opened, not looked up: that is when a client of NFS asks its server.
                with open(self._lease(number), encoding="utf-8") as file:
                    found = (os.fstat(file.fileno()).st_mtime_ns, file.read())
            except FileNotFoundError:
                return found
            self._number = number

    def _dead(self, stamp: int, text: str) -> bool:
        """Whether the newest lease binds nobody; called with the flock in hand, if there is one."""
        if text.startswith(RELEASED):
            return True
        owner = Owner.read(text)
        if owner is not None and owner.here and self._handle != NO_FLOCK:
            return True  # it would have the flock
        alive = None if owner is None else owner.alive
        return self._age(stamp) > STALE_SECONDS if alive is None else not alive

    def _age(self, stamp: int) -> float:
        """Seconds, by our clock, for which this lease was seen unchanged."""
        now = time.monotonic()
        if self._seen is None or self._seen[:2] != (self._number, stamp):
            self._seen = (self._number, stamp, now)
        return now - self._seen[2]

    def _lease(self, number: int) -> Path:
        return self._file.with_suffix(f".{number}.lease")

    def _flock(self) -> bool:
        handle = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o666)
        self._handle = NO_FLOCK
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._handle = handle
                return True
        except OSError as error:
            if error.errno in _HELD:
                self._handle = None
                return False
            if error.errno not in _UNKNOWN:
                raise
        finally:
            if self._handle != handle:
                os.close(handle)
        return True

    def _unlock(self) -> None:
        if self._handle is not None and self._handle >= 0:
            os.close(self._handle)
        self._handle = None


@contextmanager
def held(file: Path, waiting: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Context: the lock `file`, whose folder is made. Arguments as in Lease.wait."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lease = Lease(file)
    try:
        lease.wait(waiting)
        yield
    finally:
        lease.release()


def _renew(lease: Path, ended: threading.Event) -> None:
    while not ended.wait(RENEW_SECONDS):
        with contextlib.suppress(OSError):  # a server that is away for a moment
            os.utime(lease)


def _born(pid: int) -> float | None:
    """When a process of this machine started; None if there is none."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.NoSuchProcess:
        return None


@lru_cache(maxsize=1)
def _machine() -> tuple[str, str]:
    """This machine as it is now up, and the space of its process numbers."""
    try:
        boot = _BOOT.read_text().strip()
        return boot, f"{platform.node()} {os.readlink(_NAMESPACE)}"
    except OSError:  # not Linux
        return platform.node(), platform.node()
