"""Task names of the kernels suite: a layer's shape and a batch."""

from __future__ import annotations

import re

_TASK = re.compile(r"(\d+)x(\d+)_b(\d+)$")


def task_name(inputs: int, outputs: int, batch: int) -> str:
    """ "4096x11008_b16": inputs, outputs and batch of a metric."""
    return f"{inputs}x{outputs}_b{batch}"


def parse_task(task: str) -> tuple[int, int, int]:
    """(inputs, outputs, batch) of `task_name`; ValueError for another name."""
    match = _TASK.match(task)
    if match is None:
        raise ValueError(f"{task!r} is not a layer shape and batch such as 4096x11008_b16.")
    inputs, outputs, batch = (int(part) for part in match.groups())
    return inputs, outputs, batch
