"""torchao (PyTorch): rounding of weights to integers of any width, in an environment of its own.

Everything that the options do not say is torchao's default. Run as a script by that environment's
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
AFFINE, HQQ = "affine", "hqq_scale_only"


@dataclass(frozen=True)
class Options:
    """Options of torchao's IntxWeightOnlyConfig.

    grids  "affine", from the range, or "hqq_scale_only", scales optimized as HQQ does, which are
           symmetric.
    """

    grids: str = AFFINE

    def __post_init__(self) -> None:
        from quant.solvers.outside import interpreter

        if self.grids not in (AFFINE, HQQ):
            raise ValueError(f"grids={self.grids!r} is unknown; choose of {AFFINE}, {HQQ}")
        interpreter(VARIABLE, NEEDS)


def describe(options: Options) -> list[str]:
    """How grids are found, where that is not by the range."""
    return [] if options.grids == AFFINE else ["HQQ's scales"]


def refuses(options: Options, scheme: Scheme) -> str | None:
    """Levels that are not uniform, and HQQ's scales with zero-points."""
    if scheme.kind.name != "uniform":
        return "its levels are uniform; leave scheme.levels out"
    if options.grids == HQQ and not scheme.symmetric:
        return f"method.grids={HQQ} has no zero-points; add scheme.symmetric=true"
    return None


def whole(request: Request, options: Options) -> Made:
    """Quantize request.model into request.out by the other interpreter."""
    from quant.solvers.outside import interpreter, run_script

    script = Path(__file__).absolute()
    return run_script(interpreter(VARIABLE, NEEDS), script, request, asdict(options))


def main(asked: dict[str, Any], result: Path) -> None:
    """Quantize as asked, save the checkpoint, and write what the run took."""
    from importlib.metadata import version

    import torch
    from torchao.quantization import IntxWeightOnlyConfig, MappingType, PerAxis, PerGroup, quantize_
    from transformers import AutoModelForCausalLM, AutoTokenizer, TorchAoConfig
    from transformers.quantizers.quantizer_torchao import TorchAoHfQuantizer

    torch.manual_seed(asked["seed"])
    if asked["threads"]:
        torch.set_num_threads(asked["threads"])
    model = AutoModelForCausalLM.from_pretrained(
        asked["model"], dtype=torch.float32, trust_remote_code=False
    ).to(asked["device"])
    tokenizer = AutoTokenizer.from_pretrained(asked["model"], trust_remote_code=False)
    size = asked["group_size"]
    config = IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{asked['bits']}"),
        granularity=PerAxis(0) if size is None else PerGroup(size),
        mapping_type=MappingType.SYMMETRIC if asked["symmetric"] else MappingType.ASYMMETRIC,
        intx_choose_qparams_algorithm=asked["options"]["grids"],
    )
    head = model.get_output_embeddings()

    def chosen(module: torch.nn.Module, _name: str) -> bool:
        return isinstance(module, torch.nn.Linear) and module is not head

    start = time.perf_counter()
    quantize_(model, config, filter_fn=chosen)
    seconds = time.perf_counter() - start
    model.config.quantization_config = TorchAoConfig(quant_type=config)
    model.hf_quantizer = TorchAoHfQuantizer(model.config.quantization_config)
    model.save_pretrained(asked["out"])
    tokenizer.save_pretrained(asked["out"])
    said = {"version": f"torchao {version('torchao')}", "seconds": seconds}
    result.write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
else:
    from quant.solvers.base import Solver

    SOLVER = Solver(
        name="torchao",
        label="torchao",
        whole=whole,
        options=Options,
        describe=describe,
        refuses=refuses,
    )
