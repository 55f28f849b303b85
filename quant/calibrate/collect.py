"""Collect the Hessians of a block's layers with hooks while calibration data runs through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

from quant.blocks import linear_layers, weight_matrix
from quant.calibrate.devices import DeviceWorkers, assign
from quant.calibrate.statistics import InputStatistics
from quant.calibrate.windows import Batch
from quant.drift import Drift
from quant.errors import ModelStructureError, NonFiniteError
from quant.experts import routed_groups
from quant.hessian import Hessian
from quant.transforms.base import Change


class Collected(Exception):
    """Stops the forward pass of a block once all of its Hessians have the batch."""


class Collector:
    """Hooks that update one Hessian per group of layers with equal inputs while a block runs.

    Groups are distributed over the workers; each Hessian has `dtype` and is on the device of its
    worker. With single_pass the block is stopped (by Collected) once every group has its inputs:
    the rest, such as the last and largest product of an MLP, is not needed. with_statistics
    collects the statistics of the same inputs, too. changes are those of coordinates that the block
    has already, by group: inputs of the full-precision model are compared after them. drift_of
    makes what a group's drift is summed in, of the weights of its layers.
    """

    def __init__(
        self,
        block: nn.Module,
        name: str,
        groups: Sequence[tuple[str, ...]],
        single_pass: bool,
        workers: DeviceWorkers,
        dtype: torch.dtype = torch.float32,
        with_statistics: bool = False,
        changes: Mapping[tuple[str, ...], Sequence[Change]] = MappingProxyType({}),
        drift_of: Callable[[Sequence[Tensor]], Drift] = lambda _: Drift(),
    ) -> None:
        self.hessians: dict[tuple[str, ...], Hessian] = {}
        self.statistics: dict[tuple[str, ...], InputStatistics] = {}
        self.worker_of = dict(zip(groups, spread(block, groups, len(workers)), strict=True))
        self._batch: Batch | None = None
        self._reference: Mapping[tuple[str, ...], list[Tensor]] | None = None
        self._waiting: set[str] = set()
        self._single_pass = single_pass
        self._workers = workers
        self._changes = changes
        mixtures = {group for stage in routed_groups(block) for group in stage}
        self._routed = [group for group in self.worker_of if group in mixtures]
        self._handles = []
        linears = linear_layers(block)
        for group, worker in self.worker_of.items():
            leader = linears[group[0]]
            device = workers.devices[worker] if worker else weight_matrix(leader).device
            layer = f"{name}.{group[0]}"
            inputs = weight_matrix(leader).shape[1]
            drift = drift_of([weight_matrix(linears[member]) for member in group])
            hessian = Hessian(inputs, layer=layer, dtype=dtype, device=device, drift=drift)
            self.hessians[group] = hessian
            statistics = InputStatistics(inputs, device) if with_statistics else None
            if statistics is not None:
                self.statistics[group] = statistics
            own = weight_matrix(leader).dtype
            hook = self._feeder(group, hessian, worker, own, group in mixtures, statistics)
            self._handles.append(leader.register_forward_pre_hook(hook))

    def begin(
        self, batch: Batch, reference: Mapping[tuple[str, ...], list[Tensor]] | None = None
    ) -> None:
        """Set the batch to which the inputs belong until `end`.

        reference  what the layers read in the full-precision model, by group.
        """
        self._batch, self._reference = batch, reference
        self._waiting = {hessian.layer for hessian in self.hessians.values()}
        # Every sequence counts for every expert, even without tokens for it: n is only a scale.
        for group in self._routed:
            self.hessians[group].sequences += batch.tokens.shape[0]

    def end(self) -> None:
        """Collect nothing until the next `begin`."""
        self._batch = self._reference = None

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _feeder(
        self,
        group: tuple[str, ...],
        hessian: Hessian,
        worker: int,
        own: torch.dtype,
        routed: bool,
        statistics: InputStatistics | None,
    ) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def feed(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            if self._batch is None:
                return
            batch, inputs, shape = self._batch, args[0], self._batch.tokens.shape
            require_fits(inputs, own, batch, f"the input of {hessian.layer}")
            # Some models (OPT) flatten [batch, tokens] before a layer; the Hessian counts
            # sequences by the first dimension.
            if not routed and inputs.numel() == shape.numel() * inputs.shape[-1]:
                inputs = inputs.reshape(*shape, inputs.shape[-1])
            beside = self._counterpart(group, hessian.layer, args[0])
            if worker:
                # Copy now: the block may change this tensor in place while the worker still reads.
                device = self._workers.devices[worker]
                inputs = inputs.detach().to(device, copy=True)
                beside = None if beside is None else beside.to(device)
            sequences = 0 if routed else None
            self._workers.send(worker, lambda: update(hessian, inputs, batch, sequences, beside))
            if statistics is not None:
                self._workers.send(worker, lambda: statistics.update(inputs))
            self._waiting.discard(hessian.layer)
            if self._single_pass and not self._waiting:
                raise Collected

        return feed

    def _counterpart(self, group: tuple[str, ...], layer: str, inputs: Tensor) -> Tensor | None:
        """Return the inputs of the same tokens in the full-precision model; None without them."""
        if self._reference is None:
            return None
        left = self._reference[group]
        if not left or left[0].shape != inputs.shape:
            found = list(left[0].shape) if left else "nothing"
            raise ModelStructureError(
                f"{layer} reads {list(inputs.shape)} behind quantized layers and {found} in the "
                "full-precision model, so that they cannot be compared; use method=gptq."
            )
        beside = left.pop(0)
        for change in self._changes.get(group, ()):
            beside = change.inputs(beside)
        return beside


def update(
    hessian: Hessian,
    inputs: Tensor,
    batch: Batch,
    sequences: int | None = None,
    reference: Tensor | None = None,
) -> None:
    """Add inputs [batch, tokens, in] to a Hessian; NonFiniteError names the window."""
    try:
        hessian.update(inputs, sequences, reference)
    except NonFiniteError:
        require_finite(inputs, batch, f"the input of {hessian.layer}")
        raise


def require_fits(values: Tensor, dtype: torch.dtype, batch: Batch, what: str) -> None:
    """Apply require_finite to values computed in a wider dtype than the model's.

    A value beyond the range of the model's dtype would be inf or NaN when the model is used.
    """
    most = torch.finfo(dtype).max
    if values.dtype == dtype or not values.numel():
        return
    low, high = values.aminmax()  # no copy of the values; NaN fails the comparisons
    if low >= -most and high <= most:
        return
    require_finite(torch.where(values.abs() <= most, values, torch.inf), batch, what)


def spread(block: nn.Module, groups: Sequence[tuple[str, ...]], workers: int) -> list[int]:
    """Return the device worker of each group, balanced by factorization and column-loop work.

    Factoring n inputs takes about n^3 operations and the column loop over m outputs m n^2. The
    Hessian, n^2 per token, is proportional.
    """
    shapes = {name: weight_matrix(module).shape for name, module in linear_layers(block).items()}
    costs = []
    for group in groups:
        inputs = shapes[group[0]][1]
        costs.append(float(inputs) ** 2 * (inputs + sum(shapes[name][0] for name in group)))
    return assign(costs, workers)


def require_finite(values: Tensor, batch: Batch, what: str) -> None:
    """Raise NonFiniteError, naming `what` and the first window with NaN or infinite values."""
    if torch.isfinite(values.sum()):  # one pass; NaN and infinity survive a sum
        return
    broken = ~torch.isfinite(values)
    if not broken.any():  # only the sum overflowed
        return
    where = f"one of the calibration windows {list(batch.windows)}"
    if values.dim() > 2:  # [batch, ...]; routed tokens may be of any window
        row = int(broken.flatten(1).any(dim=1).nonzero()[0])
        where = f"calibration window {batch.windows[row]}"
    raise NonFiniteError(
        f"{what} holds {int(broken.sum())} NaN or infinite values in {where} (counted from 0); run "
        "the model in float32 or bfloat16, or look for damaged weights in the layers before."
    )
