"""GPTQModel: GPTQ of a whole model, in an environment of its own.

Everything that the options do not say is GPTQModel's default. Run as a script by that environment's
interpreter, this file imports nothing of Bitsweep.
"""

from __future__ import annotations

import json
import os
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
    """Options of GPTQModel's QuantizeConfig.

    act_order  columns by falling diagonal of the Hessian, with groups scattered over them.
    fallback   round layers that see less than 0.5 % of the calibration tokens, its default; false
               solves them all the same.
    """

    act_order: bool = False
    fallback: bool = True

    def __post_init__(self) -> None:
        from quant.solvers.outside import interpreter

        interpreter(VARIABLE, NEEDS)


def describe(options: Options) -> list[str]:
    """The method, and what differs from its defaults."""
    words = ["GPTQ", *["act-order"] * options.act_order]
    return words if options.fallback else [*words, "no fallback"]


def whole(request: Request, options: Options) -> Made:
    """Quantize request.model into request.out by the other interpreter."""
    from quant.solvers.outside import interpreter, run_script

    script = Path(__file__).absolute()
    return run_script(interpreter(VARIABLE, NEEDS), script, request, asdict(options))


def main(asked: dict[str, Any], result: Path) -> None:
    """Quantize as asked, save the checkpoint, and write what the run took."""
    from importlib.metadata import version

    # On two cores its pool has one worker, and the loader asks it for two.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig

    torch.manual_seed(asked["seed"])
    if asked["threads"]:
        torch.set_num_threads(asked["threads"])
    options, size = asked["options"], asked["group_size"]
    other = {} if options["fallback"] else {"fallback": None}
    config = QuantizeConfig(
        bits=asked["bits"],
        group_size=-1 if size is None else size,
        sym=asked["symmetric"],
        desc_act=options["act_order"],
        offload_to_disk=False,
        **other,
    )
    model = GPTQModel.load(
        asked["model"], config, device=asked["device"], dtype=torch.float32, trust_remote_code=False
    )
    windows = asked["windows"]
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in windows]
    start = time.perf_counter()
    model.quantize(rows, batch_size=1)
    seconds = time.perf_counter() - start
    model.save(asked["out"])
    said = {"version": f"GPTQModel {version('gptqmodel')}", "seconds": seconds}
    result.write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
else:
    from quant.solvers.base import Solver

    SOLVER = Solver(
        name="gptqmodel",
        label="GPTQModel",
        whole=whole,
        options=Options,
        needs_calibration=True,
        describe=describe,
    )
