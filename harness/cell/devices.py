"""The devices of a cell: one, or several over which its models are spread, as runtime.devices says.

Sizes come from shapes and devices are taken as empty, so that the same cell on the same machine has
the same key whenever it is planned. What is free then is looked at when a model is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.cell.choices import Choices
from harness.config.schema import RuntimeConfig
from harness.errors import ConfigError
from harness.models import dummy
from harness.models.model import Model, RandomModel
from harness.models.streaming import ALWAYS, measured_shape
from quant.errors import ModelStructureError, NotEnoughMemory
from quant.scheme import Scheme
from quant.spread.split import GIB, Parts, Room, fewest, held_by, split

if TYPE_CHECKING:
    from quant.memory.shapes import ModelShape

AUTO, ALL = "auto", "all"
FORM = "use a number, all, auto or a list such as [cuda:0,cuda:1]"


@dataclass(frozen=True)
class Devices:
    """Where the models of a cell lie.

    names     devices, the first of which has the tokens and the logits.
    model     how many of them the model under test is spread over, from the first on.
    baseline  the same of the full-precision model that it is compared with.
    bytes     of the model under test on each of its devices, by its shapes; () for one device.
    """

    names: tuple[str, ...]
    model: int = 1
    baseline: int = 1
    bytes: tuple[int, ...] = field(default=(), compare=False)

    @property
    def home(self) -> str:
        return self.names[0]

    @property
    def all(self) -> tuple[str, ...]:
        """Those that some model lies on."""
        return self.names[: max(self.model, self.baseline)]

    @property
    def of_model(self) -> tuple[str, ...]:
        return self.names[: self.model]

    @property
    def of_baseline(self) -> tuple[str, ...]:
        return self.names[: self.baseline]

    @property
    def gpus(self) -> int:
        """How many GPUs a process must see that runs the cell; 0 on the processor."""
        if not self.home.startswith("cuda"):
            return 0
        if len(self.all) == 1:
            return 1
        return 1 + max(int(name.partition(":")[2]) for name in self.all)

    def said(self) -> str | None:
        """For the plan: over how many devices, and what each holds; None for one device."""
        if len(self.all) == 1:
            return None
        held = [
            f"{n} {size / GIB:.1f} GiB" for n, size in zip(self.of_model, self.bytes, strict=False)
        ]
        parts = []
        if self.model > 1:
            listed = ", ".join(held or self.of_model)
            parts.append(
                f"the model lies over {self.model} devices ({listed}), blocks by their bytes"
            )
        if self.baseline != self.model:
            parts.append(f"its full-precision baseline over {self.baseline}")
        return f"{', '.join(parts)}; the harness's own loop, no serving engine"

    def semantics(self) -> dict[str, int]:
        """What times depend on; nothing for one device, as in all keys from before there were
        several.
        """
        if len(self.all) == 1:
            return {}
        found = {"devices": self.model}
        return found if self.baseline == self.model else found | {"baseline": self.baseline}


def visible_gpus() -> list[Room]:
    """The GPUs that this process sees, with all of their memory."""
    import torch

    return [
        Room(f"cuda:{index}", torch.cuda.get_device_properties(index).total_memory)
        for index in range(torch.cuda.device_count())
    ]


def asked_for(runtime: RuntimeConfig, elsewhere: bool = False) -> tuple[str, ...] | None:
    """The devices that runtime.devices names, or runtime.device alone; None: as few as will do.

    elsewhere  the cell runs on another machine, whose devices are not known here.

    Raises ConfigError for devices that cannot be.
    """
    wish, device = _plain(runtime.devices), runtime.device
    said = f"runtime.devices={_said(wish)}"
    if wish is None or (wish is not True and wish == 1):
        return (device,)
    if wish not in (ALL, AUTO) and (isinstance(wish, bool) or not isinstance(wish, tuple | int)):
        raise ConfigError(f"{said} is unknown; {FORM}.")
    if isinstance(wish, int) and wish < 1:
        raise ConfigError(f"{said} is too small; {FORM}.")
    if isinstance(wish, tuple):
        _require_names(wish, device, said)
    if device != "cuda":
        return _on_one(wish, device, said)
    if elsewhere:
        if wish == ALL:
            raise ConfigError(
                f"{said}, but the cell runs on another machine, and how many GPUs a worker is "
                "given has to be known here: use a number, such as runtime.devices=4."
            )
        if wish == AUTO:  # a worker is given one
            return (device,)
        return wish if isinstance(wish, tuple) else _first(int(wish))
    here = [room.device for room in visible_gpus()]
    if wish == AUTO:
        return None if len(here) > 1 else (device,)
    if isinstance(wish, tuple):
        unknown = [name for name in wish if name not in here]
        if unknown:
            raise ConfigError(
                f"{said}: {unknown[0]} is not among the devices that can be seen here "
                f"({', '.join(here) or 'none'}): leave it out, or set CUDA_VISIBLE_DEVICES."
            )
        return wish
    count = len(here) if wish == ALL else int(wish)
    if count > len(here):
        raise ConfigError(
            f"{said}, but {len(here)} CUDA device{'s' * (len(here) != 1)} can be seen here "
            f"({', '.join(here) or 'none'}): use runtime.devices={max(1, len(here))} or fewer, or "
            "set CUDA_VISIBLE_DEVICES."
        )
    return tuple(here[:count]) if count > 1 else (device,)


def devices_for(choices: Choices, model: Model, kernel: str, elsewhere: bool) -> Devices:
    """The devices of a cell whose model is known.

    Raises ConfigError, with the bytes of every device, for devices on which the model does not fit.
    """
    runtime = choices.runtime
    names = asked_for(runtime, elsewhere)
    if names is not None and len(names) == 1:
        return Devices(names)
    if runtime.stream == ALWAYS:  # a block at a time lies on the first
        return Devices(names or (runtime.device,))
    here = [] if elsewhere else visible_gpus()
    rooms = [Room(room.device, dummy.usable(room.free, room.device)) for room in here]
    if names is not None:
        rooms = [room for name in names for room in rooms if room.device == name]
    else:
        return _as_few_as_will_do(choices, model, kernel, rooms)
    held = () if elsewhere else _require_fit(choices, model, kernel, rooms)
    return Devices(names, len(names), len(names), held)


def _as_few_as_will_do(
    choices: Choices, model: Model, kernel: str, rooms: Sequence[Room]
) -> Devices:
    """One device for what fits on one; one, too, for what fits on none, which then streams or is
    refused as on a machine with one, and where every suite takes blocks in turn.
    """
    if all(each.suite.streams for each in choices.suites):
        return Devices((choices.runtime.device,))
    parts = _parts(choices, model, kernel, quantized=True)
    count = fewest(parts, rooms, model.name) or 1
    baseline = count
    if choices.solving is not None:
        full = _parts(choices, model, kernel, quantized=False)
        baseline = fewest(full, rooms, model.name) or 1
    names = tuple(room.device for room in rooms)
    if max(count, baseline) == 1:
        return Devices((choices.runtime.device,))
    held = held_by(parts, split(parts, rooms[:count], model.name)) if count > 1 else ()
    return Devices(names, count, baseline, tuple(held))


def _require_fit(
    choices: Choices, model: Model, kernel: str, rooms: Sequence[Room]
) -> tuple[int, ...]:
    """The bytes on each device."""
    parts = _parts(choices, model, kernel, quantized=True)
    try:
        return tuple(held_by(parts, split(parts, rooms, f"model={model.name}")))
    except NotEnoughMemory as error:
        raise ConfigError(f"runtime.devices={len(rooms)}: {error}") from error
    except ModelStructureError as error:
        raise ConfigError(str(error)) from error


def _parts(choices: Choices, model: Model, kernel: str, *, quantized: bool) -> Parts:
    """Bytes of the model under test, or of its full-precision baseline, with keys and values."""
    scheme = choices.scheme if quantized and choices.solving is not None else None
    positions = max((each.positions for each in choices.suites), default=0)
    if isinstance(model, RandomModel):
        assert scheme is None or isinstance(scheme, Scheme)  # others need weights
        found, hidden, itemsize = dummy.parts(model.config, scheme, kernel)
        return found.beside(dummy.cache_bytes(positions, hidden, itemsize))
    artifact = model.folder if model.checkpoint is not None else None
    shape, _ = measured_shape(model, artifact, choices.scheme)
    if scheme is not None:
        shape = shape.packed_outside(scheme)
    found = _of_shape(shape, scheme)
    return found.beside(dummy.cache_bytes(positions, shape.hidden, shape.itemsize))


def _of_shape(shape: ModelShape, scheme: Any) -> Parts:
    """As if all blocks were as large as the largest; packed, each layer with its largest scheme."""
    block = shape.block_bytes
    if scheme is not None:
        dense = sum(outputs * inputs for outputs, inputs in shape.layers)
        packed = sum(
            max(int(n * m * each.bits_per_weight(n) / 8) for each in scheme.every)
            for m, n in shape.layers
        )
        block = max(0, block - dense * shape.itemsize) + packed
    first = shape.outside_bytes - shape.head_bytes
    return Parts(first, (block,) * shape.blocks, shape.head_bytes)


def _on_one(wish: Any, device: str, said: str) -> tuple[str, ...]:
    """Devices of a runtime.device that is one: the processor, or one GPU by its number."""
    if wish in (ALL, AUTO) or wish == (device,):
        return (device,)
    what = "the processor is one device" if device == "cpu" else "it names one device"
    raise ConfigError(
        f"{said}, but runtime.device={device}, and {what}: use "
        f"{'runtime=cuda' if device == 'cpu' else 'runtime.device=cuda'}, or runtime.devices=1."
    )


def _require_names(names: tuple[str, ...], device: str, said: str) -> None:
    kind = device.partition(":")[0]
    if not names:
        raise ConfigError(f"{said} names no device; {FORM}.")
    for name in names:
        word, _, number = name.partition(":")
        if word != kind or (word == "cuda" and not number.isdigit()):
            better = "use runtime=cuda" if kind == "cpu" else "use names such as cuda:0"
            raise ConfigError(
                f"{said}: {name} is not one of the devices of runtime.device={device}; {better}."
            )
        if names.count(name) > 1:
            raise ConfigError(f"{said} names {name} twice: name each device once.")


def _first(count: int) -> tuple[str, ...]:
    return tuple(f"cuda:{index}" for index in range(count))


def _plain(wish: Any) -> Any:
    """A list of the configuration as a tuple of names."""
    return (
        tuple(map(str, wish)) if isinstance(wish, Sequence) and not isinstance(wish, str) else wish
    )


def _said(wish: Any) -> str:
    return f"[{','.join(wish)}]" if isinstance(wish, tuple) else str(wish)
