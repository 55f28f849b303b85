"""HQQ (Mobius Labs): grids that are optimized without a text, in an environment of its own.

Everything that the options do not say is HQQ's default. Its zero-points have fractions, so it is
asked for levels that store them (scheme=hqq4g64). Run as a script by that environment's
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
    from quant.scheme import Scheme
    from quant.solvers.outside import Made, Request

VARIABLE = "BITSWEEP_PEERS"
NEEDS = "tools/peers/README.md says how to make one."


@dataclass(frozen=True)
class Options:
    """Options of HQQ.

    optimize  move zero-points until the weights' errors are sparse, its default; false leaves the
              grids of the range and rounds.
    """

    optimize: bool = True

    def __post_init__(self) -> None:
        from quant.solvers.outside import interpreter

        interpreter(VARIABLE, NEEDS)


def describe(options: Options) -> list[str]:
    """What differs from its defaults."""
    return [] if options.optimize else ["not optimized"]


def refuses(_options: Options, scheme: Scheme) -> str | None:
    """Other levels than its own."""
    if scheme.kind.name == "hqq":
        return None
    group = "" if scheme.group_size is None else f"g{scheme.group_size}"
    return f"its zero-points have fractions; use scheme=hqq{scheme.bits}{group}"


def whole(request: Request, options: Options) -> Made:
    """Quantize request.model into request.out by the other interpreter."""
    from quant.solvers.outside import interpreter, run_script

    script = Path(__file__).absolute()
    return run_script(interpreter(VARIABLE, NEEDS), script, request, asdict(options))


def main(asked: dict[str, Any], result: Path) -> None:
    """Quantize as asked, save the checkpoint, and write what the run took."""
    from importlib.metadata import version

    import torch
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(asked["seed"])
    if asked["threads"]:
        torch.set_num_threads(asked["threads"])
    model = AutoModelForCausalLM.from_pretrained(
        asked["model"], dtype=torch.float32, trust_remote_code=False
    ).to(asked["device"])
    tokenizer = AutoTokenizer.from_pretrained(asked["model"], trust_remote_code=False)
    config = BaseQuantizeConfig(nbits=asked["bits"], group_size=asked["group_size"], axis=1)
    config["weight_quant_params"]["optimize"] = asked["options"]["optimize"]
    head = model.get_output_embeddings()
    linears = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    ]
    start = time.perf_counter()
    for name, module in linears:
        parent, _, child = name.rpartition(".")
        made = HQQLinear(module, config, device=asked["device"])
        setattr(model.get_submodule(parent), child, made)
    seconds = time.perf_counter() - start
    # What transformers 4 writes for HqqConfig; transformers 5 has no loader of it.
    model.config.quantization_config = {
        "quant_method": "hqq", "quant_config": config, "skip_modules": ["lm_head"],
    }  # fmt: skip
    model.save_pretrained(asked["out"])
    tokenizer.save_pretrained(asked["out"])
    said = {"version": f"HQQ {version('hqq')}", "seconds": seconds}
    result.write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
else:
    from quant.solvers.base import Solver

    SOLVER = Solver(
        name="hqq_library",
        label="HQQ's library",
        whole=whole,
        options=Options,
        describe=describe,
        refuses=refuses,
    )
