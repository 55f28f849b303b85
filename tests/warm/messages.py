"""What test processes and the server share: messages (JSON behind its length, and open files)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
from collections.abc import Sequence
from typing import Any

_LENGTH = struct.Struct("!I")
_MOST_FILES = 8


def send(connection: socket.socket, message: dict[str, Any], files: Sequence[int] = ()) -> None:
    """Send a message; the other side gets the files as descriptors of its own."""
    data = json.dumps(message).encode()
    if files:
        socket.send_fds(connection, [_LENGTH.pack(len(data))], list(files))
    else:
        connection.sendall(_LENGTH.pack(len(data)))
    connection.sendall(data)


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The next message and its files; raises EOFError where the other side has closed."""
    head, files, _, _ = socket.recv_fds(connection, _LENGTH.size, _MOST_FILES)
    try:
        if len(head) < _LENGTH.size:
            raise EOFError("the other side has closed the connection")
        (left,) = _LENGTH.unpack(head)
        parts = []
        while left:
            part = connection.recv(left)
            if not part:
                raise EOFError("the other side has closed the connection")
            parts.append(part)
            left -= len(part)
    except BaseException:
        for file in files:
            os.close(file)
        raise
    return json.loads(b"".join(parts)), files


def kill(process: int) -> None:
    """Kill a process that leads a group, with the group, or is about to lead one."""
    for send in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            send(process, signal.SIGKILL)
