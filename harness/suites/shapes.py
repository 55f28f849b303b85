"""What the kernels suite and its plan share: names of tasks, and which layers can be timed."""

from __future__ import annotations

import re
from collections.abc import Sequence

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


def not_one_scheme(schemes: Sequence[str], factored: bool) -> str | None:
    """Why layers of these schemes, or factors, cannot be timed; None if they can."""
    if factored:
        return (
            "its layers are products of factors, and kernels multiply codes: leave suite=kernels "
            "out, and time the model with suite=latency"
        )
    if len(schemes) > 1:
        return (
            f"its layers have several schemes ({', '.join(schemes)}), and "
            "kernels are timed for one: measure a model of a single scheme, or time this one with "
            "suite=latency"
        )
    return None
