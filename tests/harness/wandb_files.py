"""Readers of what wandb wrote: the log of an offline run, and its tables."""

import importlib
import json
import struct
from dataclasses import dataclass, field
from pathlib import Path

from harness import tracking

BLOCK = 32768


@dataclass
class StoredRun:
    """What a .wandb file says."""

    run: object = None
    config: dict = field(default_factory=dict)
    summary: dict = field(default_factory=dict)
    history: dict = field(default_factory=dict)


def log_entries(data: bytes):
    """Entries of wandb's log: ":W&B", then LevelDB's log format (crc, length, type in blocks)."""
    assert data[:4] == b":W&B"
    position, entry = 7, b""
    while position + 7 <= len(data):
        room = BLOCK - position % BLOCK
        if room < 7:
            position += room
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        entry += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or last part
            yield entry
            entry = b""


def read_run(folder: Path) -> StoredRun:
    tracking.close()
    messages = importlib.import_module("wandb.proto.wandb_internal_pb2")
    (path,) = folder.glob("*.wandb")
    stored = StoredRun()
    for entry in log_entries(path.read_bytes()):
        record = messages.Record()
        record.ParseFromString(entry)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            stored.run = record.run
            stored.config |= values(record.run.config.update)
        elif kind == "config":
            stored.config |= values(record.config.update)
        elif kind == "summary":
            stored.summary |= values(record.summary.update)
        elif kind == "history":
            stored.history |= values(record.history.item)
    return stored


def values(items) -> dict:
    """Items as a dictionary; a nested key is a path into dictionaries of dictionaries."""
    found: dict = {}
    for item in items:
        *path, name = item.nested_key or [item.key]
        inner = found
        for part in path:
            inner = inner.setdefault(part, {})
        inner[name] = json.loads(item.value_json)
    return found


def read_table(folder: Path, entry: dict) -> dict:
    assert entry["_type"] == "table-file"
    return json.loads((folder / "files" / entry["path"]).read_text())
