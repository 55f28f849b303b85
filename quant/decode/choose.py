"""Select the fastest decoder that is correct for a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from quant.decode.caches import Decoder, DynamicDecoder, Recorder, StaticDecoder, Step
from quant.decode.description import Unsupported
from quant.decode.fused import FusedDecoder
from quant.spread.connect import devices_of

T = TypeVar("T", bound=Decoder)

WARM_STEPS = 3  # before a capture: loads kernels and allocates workspaces
# Largest difference of logits between two decoders, in standard deviations of the logits. A wrong
# mask or position changes logits by about 1; rounding changes them by far less than these values.
AGREEMENT = {torch.float32: 1e-3, torch.float64: 1e-6}
AGREEMENT_16_BITS = 0.1


def make_decoder(
    model: Any, prompt: Tensor, tokens: int, record: Recorder | None = None, *, fused: bool = True
) -> Decoder:
    """Return the fastest decoder with the model's own logits for prompt [1, T] and `tokens` steps.

    On the CPU that is a fused step, or a static cache if the model has no fused step; on CUDA it is
    a static cache with a captured step. Each is compared with the dynamic cache on the prompt and
    one step. A model that is spread over several devices has the dynamic cache, whose keys and
    values stay with their block. The decoder's `reason` says what was not possible.
    torch.OutOfMemoryError is raised; any other exception of a mode makes the mode unsupported.
    record and fused are for tests.
    """
    devices = devices_of(model)
    if devices:  # a graph is of one device, and so are the length and mask of a static cache
        reason = f"no fused step, static cache or CUDA graph over {len(devices)} devices"
        return DynamicDecoder(model, reason)
    if record is None and prompt.device.type == "cuda":
        record = cuda_graph(prompt.device)
    positions, reason = prompt.shape[1] + tokens, ""
    if record is None and fused:
        found = _try("no fused step", FusedDecoder, model, positions, prompt)
        if not isinstance(found, str):
            return found
        reason = found
    static = _try("no static cache", StaticDecoder, model, positions, prompt)
    if isinstance(static, str):
        return DynamicDecoder(model, "; ".join(filter(None, (reason, static))))
    if record is None:
        static.reason = reason or f"no CUDA graph on {prompt.device.type}"
        return static
    try:
        static.prefill(prompt)
        static.capture(record)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        static = StaticDecoder(model, positions)
        static.reason = f"no CUDA graph: {_short(error)}"
    return static


def _try(
    without: str, kind: Callable[[Any, int], T], model: Any, positions: int, prompt: Tensor
) -> T | str:
    """Return a decoder with the logits of a dynamic cache, or the reason there is none."""
    try:
        decoder = kind(model, positions)
        _require_agreement(decoder, DynamicDecoder(model), prompt)
    except torch.OutOfMemoryError:
        raise
    except (Unsupported, RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        return f"{without}: {_short(error)}"
    return decoder


def cuda_graph(device: torch.device) -> Recorder:
    """Return a recorder that captures as torch's documentation requires, after a warm-up."""

    def record(warm: Step, step: Step) -> Step:
        with torch.cuda.device(device):
            side = torch.cuda.Stream(device)
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                for _ in range(WARM_STEPS):
                    warm()
            torch.cuda.current_stream(device).wait_stream(side)
            graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device)
            try:
                with torch.cuda.graph(graph):
                    step()
            except RuntimeError as error:
                # Ending a broken capture raises another error, which hides the cause, and leaves
                # the stream of the capture current.
                torch.cuda.set_stream(before)
                cause = error.__context__
                raise cause if isinstance(cause, RuntimeError) else error from None
        return graph.replay

    return record


def _require_agreement(decoder: Decoder, dynamic: DynamicDecoder, prompt: Tensor) -> None:
    """Raise Unsupported if the two give different logits for the prompt or the next token."""
    dynamic.prefill(prompt)
    decoder.prefill(prompt)
    _require_close(decoder.logits, dynamic.logits, "prompt")
    dynamic.token = decoder.token.clone()
    dynamic.step()
    decoder.step()
    _require_close(decoder.logits, dynamic.logits, "first token")


def _require_close(found: Tensor, expected: Tensor, where: str) -> None:
    spread = expected.double().std()
    worst = float(((found.double() - expected.double()).abs().max() / spread).nan_to_num(torch.inf))
    allowed = AGREEMENT.get(expected.dtype, AGREEMENT_16_BITS)
    if worst > allowed:
        raise Unsupported(
            f"its logits at the {where} are {worst:.2g} standard deviations from those with the "
            f"dynamic cache (rounding explains at most {allowed:g})"
        )


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    text = lines[0][:200] if lines else type(error).__name__
    return text if isinstance(error, Unsupported) else f"{type(error).__name__}: {text}"
