"""llm-compressor (vLLM): GPTQ, AWQ or rounding of a whole model, in an environment of its own.

Everything that the options do not say is llm-compressor's default. Run as a script by that
environment's interpreter, this file imports nothing of Bitsweep.
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
RECIPES = {"gptq": "GPTQ", "awq": "AWQ", "rtn": "RTN"}


@dataclass(frozen=True)
class Options:
    """Options of llm-compressor's modifiers.

    recipe     "gptq", "awq" (scales are searched, then rounded to nearest) or "rtn".
    act_order  gptq: columns by falling diagonal of the Hessian, with groups of adjacent columns
               ("static", its default), or in their natural order (false).
    """

    recipe: str = "gptq"
    act_order: bool = True

    def __post_init__(self) -> None:
        from quant.solvers.outside import interpreter

        if self.recipe not in RECIPES:
            raise ValueError(f"recipe={self.recipe!r} is unknown; choose of {', '.join(RECIPES)}")
        interpreter(VARIABLE, NEEDS)


def describe(options: Options) -> list[str]:
    """The recipe, and act-order where there is a column order."""
    ordered = options.recipe == "gptq" and options.act_order
    return [RECIPES[options.recipe], *["act-order"] * ordered]


def whole(request: Request, options: Options) -> Made:
    """Quantize request.model into request.out by the other interpreter."""
    from quant.solvers.outside import interpreter, run_script

    script = Path(__file__).absolute()
    return run_script(interpreter(VARIABLE, NEEDS), script, request, asdict(options))


def main(asked: dict[str, Any], result: Path) -> None:
    """Quantize as asked, save the checkpoint, and write what the run took."""
    from importlib.metadata import version

    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(asked["seed"])
    if asked["threads"]:
        torch.set_num_threads(asked["threads"])
    model = AutoModelForCausalLM.from_pretrained(
        asked["model"], dtype=torch.float32, trust_remote_code=False
    ).to(asked["device"])
    tokenizer = AutoTokenizer.from_pretrained(asked["model"], trust_remote_code=False)
    windows = asked["windows"]
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in windows]
    start = time.perf_counter()
    oneshot(
        model=model,
        tokenizer=tokenizer,
        dataset=Dataset.from_list(rows),
        recipe=_recipe(asked),
        max_seq_length=max(map(len, windows)),
        num_calibration_samples=len(windows),
    )
    seconds = time.perf_counter() - start
    model.save_pretrained(asked["out"], save_compressed=True)
    tokenizer.save_pretrained(asked["out"])
    said = {"version": f"llm-compressor {version('llmcompressor')}", "seconds": seconds}
    result.write_text(json.dumps(said), encoding="utf-8")


def _recipe(asked: dict[str, Any]) -> list[Any]:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier

    options, size = asked["options"], asked["group_size"]
    grid = QuantizationArgs(
        num_bits=asked["bits"],
        group_size=size,
        strategy="channel" if size is None else "group",
        symmetric=asked["symmetric"],
    )
    scheme = {"group_0": QuantizationScheme(targets=["Linear"], weights=grid)}
    said = {"config_groups": scheme, "ignore": ["lm_head"]}
    if options["recipe"] == "gptq":
        order = {} if options["act_order"] else {"actorder": None}
        return [GPTQModifier(**said, **order)]
    rounding = QuantizationModifier(**said)
    if options["recipe"] == "rtn":
        return [rounding]
    import torch
    from llmcompressor.modifiers.transform.awq import AWQModifier

    if not torch.accelerator.is_available():
        # It pins what it would copy to an accelerator, which torch refuses without one.
        setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)  # noqa: B010

    return [AWQModifier(), rounding]


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
else:
    from quant.solvers.base import Solver

    SOLVER = Solver(
        name="llm_compressor",
        label="llm-compressor",
        whole=whole,
        options=Options,
        needs_calibration=True,
        describe=describe,
    )
