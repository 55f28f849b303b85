"""In which arithmetic a model is quantized: "portable" or "fast", and what "auto" stands for.

portable  everything that decides a code is computed in float64, whatever the dtype of the model:
          calibration activations, Hessians, factors, grids and the column loop. Instruction sets,
          numbers of threads and batches then agree to about 1e-12 of a quantization step, so one
          input gives one artifact on every machine (docs/decisions/0017).
fast      calibration in the dtype of the model, the rest in float32: codes follow the rounding of
          the machine's matrix products.

Rounding to nearest, which sees no calibration, is the same bits on every machine in both.

Imports no torch: plans ask here.
"""

from __future__ import annotations

PORTABLE, FAST, AUTO = "portable", "fast", "auto"
ARITHMETIC = (AUTO, PORTABLE, FAST)
# Above this the time of a quantization on a CPU is hours, which float64 doubles.
PORTABLE_PARAMETERS = 10**9


def resolve_arithmetic(wish: str, device: str, parameters: int) -> str:
    """PORTABLE or FAST: the wish, or for "auto" a rule that needs no clock and no machine.

    device      that blocks run on: "cpu", "cuda:0".
    parameters  of the model (quant.memory.plan.ModelShape.parameters).
    """
    if wish != AUTO:
        return wish
    small = parameters < PORTABLE_PARAMETERS
    return PORTABLE if small and device.partition(":")[0] == "cpu" else FAST
