"""The arithmetic of a quantization: "portable" or "fast", and how "auto" is resolved.

portable  every value that determines a code is computed in float64, whatever the dtype of the
          model: calibration activations, Hessians, factors, grids and the column loop. Results on
          different instruction sets, thread counts and batch sizes then agree to about 1e-12 of a
          quantization step, so one input gives the same artifact on every machine
          (docs/decisions/0017).
fast      calibration runs in the dtype of the model and the rest in float32; codes depend on how
          the machine's matrix products round.

Round-to-nearest uses no calibration data and gives the same bits on every machine in both modes.

This module does not import torch, because plans use it.
"""

from __future__ import annotations

PORTABLE, FAST, AUTO = "portable", "fast", "auto"
ARITHMETIC = (AUTO, PORTABLE, FAST)
# Larger models take hours to quantize on a CPU, and float64 doubles that time.
PORTABLE_PARAMETERS = 10**9


def resolve_arithmetic(wish: str, device: str, parameters: int) -> str:
    """Resolve `wish` to PORTABLE or FAST; "auto" depends on the arguments only, not on the machine.

    device      where blocks run: "cpu", "cuda:0".
    parameters  number of parameters of the model (quant.memory.plan.ModelShape.parameters).
    """
    if wish != AUTO:
        return wish
    small = parameters < PORTABLE_PARAMETERS
    return PORTABLE if small and device.partition(":")[0] == "cpu" else FAST
