"""AutoRound (Intel): rounding learned by signed gradients, in an environment of its own.

Everything that the options do not say is AutoRound's default. Run as a script by that environment's
interpreter, this file imports nothing of Bitsweep.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quant.solvers.outside import Made, Request

VARIABLE = "BITSWEEP_PEERS"
NEEDS = "tools/peers/README.md says how to make one."


@dataclass(frozen=True)
class Options:
    """Options of AutoRound.

    iterations  steps a block; its default of 200 takes a processor hours on models that GPTQ
                quantizes in minutes. 0 rounds.
    """

    iterations: int = 200

    def __post_init__(self) -> None:
        from quant.solvers.outside import interpreter

        if self.iterations < 0:
            raise ValueError(f"iterations={self.iterations} must be 0 (rounding) or more")
        interpreter(VARIABLE, NEEDS)


def describe(options: Options) -> list[str]:
    """The number of steps."""
    return [f"{options.iterations} iterations"]


def whole(request: Request, options: Options) -> Made:
    """Quantize request.model into request.out by the other interpreter."""
    from quant.solvers.outside import interpreter, run_script

    script = Path(__file__).absolute()
    return run_script(interpreter(VARIABLE, NEEDS), script, request, asdict(options))


def main(asked: dict[str, Any], result: Path) -> None:
    """Quantize as asked, save the checkpoint, and write what the run took."""
    from importlib.metadata import version

    import torch
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if asked["threads"]:
        torch.set_num_threads(asked["threads"])
    model = AutoModelForCausalLM.from_pretrained(
        asked["model"], dtype=torch.float32, trust_remote_code=False
    )
    tokenizer = AutoTokenizer.from_pretrained(asked["model"], trust_remote_code=False)
    windows = asked["windows"]
    length = min(map(len, windows))
    rows = [{"input_ids": torch.tensor([ids[:length]])} for ids in windows]
    size = asked["group_size"]
    rounding = AutoRound(
        model,
        tokenizer,
        bits=asked["bits"],
        group_size=-1 if size is None else size,
        sym=asked["symmetric"],
        iters=asked["options"]["iterations"],
        dataset=rows,
        seqlen=length,
        nsamples=len(rows),
        batch_size=min(8, len(rows)),
        seed=asked["seed"],
        device_map=asked["device"],
        enable_torch_compile=False,
    )
    start = time.perf_counter()
    rounding.quantize()
    seconds = time.perf_counter() - start
    rounding.save_quantized(asked["out"], format="auto_round:gptqmodel")
    tokenizer.save_pretrained(asked["out"])
    said = {"version": f"AutoRound {version('auto-round')}", "seconds": seconds}
    result.write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
else:
    from quant.solvers.base import Solver

    SOLVER = Solver(
        name="auto_round",
        label="AutoRound",
        whole=whole,
        options=Options,
        needs_calibration=True,
        describe=describe,
    )
