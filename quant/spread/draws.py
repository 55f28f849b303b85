"""Random numbers for a model over several devices: those that it has on one."""

from __future__ import annotations

import torch


class Draws:
    """One stream of numbers; each device goes on where the one before it was.

    Devices of one kind make the same numbers of the same state, so that it does not matter on which
    of them a number is drawn.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._now: torch.Generator | None = None
        self._device: torch.device | None = None

    def at(self, device: str | torch.device) -> torch.Generator:
        """The generator on a device, at the state of the stream."""
        device = torch.device(device)
        if self._now is None:
            self._now, self._device = torch.Generator(device).manual_seed(self._seed), device
        elif device != self._device:
            moved = torch.Generator(device)
            moved.set_state(self._now.get_state())
            self._now, self._device = moved, device
        return self._now
