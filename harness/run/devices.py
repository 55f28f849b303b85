"""A device for one stage that measures time, or for several that do not.

A stage of a suite that measures time (Suite.timing) has its device to itself: the other stages of
all processes that share the results folder wait meanwhile, on that GPU, or on that machine's
processor. The lock is an flock in the results folder, which holds within a machine on every file
system that has flocks; where there are none, it lies in the machine's folder for temporary files.
"""

from __future__ import annotations

import errno
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from harness.records.store import disk_errors, file_name

try:
    import fcntl
except ImportError:  # Windows has none: stages there are not kept apart
    fcntl = None  # type: ignore[assignment]

POLL_SECONDS = 0.05
_HELD = {errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK}


@contextmanager
def devices_for(
    results: Path, devices: Sequence[str], alone: bool, waiting: Callable[[str], None]
) -> Iterator[None]:
    """Context: all devices of a stage, as `device_for` has one.

    They are taken in the order of their names, so that no two processes wait for each other.
    """
    by_name = {_name(device): device for device in devices} if fcntl else {}
    with ExitStack() as stack:
        for _, device in sorted(by_name.items()):
            stack.enter_context(device_for(results, device, alone, waiting))
        yield


@contextmanager
def device_for(
    results: Path, device: str, alone: bool, waiting: Callable[[str], None]
) -> Iterator[None]:
    """Context: `device` (cpu, cuda or cuda:N) for a stage; waiting(device) is called once if others
    have it.

    alone  nothing else may run on it.

    Who wants it alone keeps further stages out while it waits, so that it has its turn.
    """
    if fcntl is None:
        yield
        return
    name = _name(device)
    told = False

    def take(kind: str, how: int) -> int:
        nonlocal told
        handle = _open(results, f"device-{name}.{kind}")
        try:
            while not _locked(handle, how):
                if not told:
                    told = True
                    waiting(device)
                time.sleep(POLL_SECONDS)
        except BaseException:
            os.close(handle)
            raise
        return handle

    turn = take("turn", fcntl.LOCK_EX)
    try:
        handle = take("lock", fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
    finally:
        _give_back(turn)
    try:
        yield
    finally:
        _give_back(handle)


def _give_back(handle: int) -> None:
    """Unlock and close; a process that was forked meanwhile has the descriptor, too."""
    fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)


def _locked(handle: int, how: int) -> bool:
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _HELD:
            raise
        return False
    return True


def _open(results: Path, name: str) -> int:
    """Open a file that can be locked; StoreError if none can be written."""
    file = results / ".locks" / name
    with disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(handle, fcntl.LOCK_UN)
    except OSError as error:
        if error.errno in _HELD:
            return handle
        os.close(handle)
        here = Path(tempfile.gettempdir()) / f"bitsweep-{file.name}"
        with disk_errors(here):
            handle = os.open(here, os.O_RDWR | os.O_CREAT, 0o666)
            with suppress(PermissionError):  # another user's, who has made it writable
                os.chmod(here, 0o666)
    return handle


def _name(device: str) -> str:
    """A name that only this device has among all machines."""
    place = platform.node()
    if device.startswith("cuda"):
        import torch

        # cuda:0 is another GPU in every process whose visible devices were chosen.
        place = f"{place}-{torch.cuda.get_device_properties(torch.device(device)).uuid}"
    return file_name(place)
