"""What a user may have meant by a name that does not exist: here, elsewhere, or in another tool."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_type_hints

from harness.config.help import options, options_with
from harness.config.schema import SweepConfig

# Keys of other tools (GPTQ's code, AutoGPTQ, AutoAWQ, llm-compressor, lm-eval) and those here.
KEYS_ELSEWHERE = {
    "nsamples": "calib.sequences", "n_samples": "calib.sequences", "num_samples": "calib.sequences",
    "num_calibration_samples": "calib.sequences", "seqlen": "calib.length",
    "seq_len": "calib.length", "max_seq_length": "calib.length", "max_length": "calib.length",
    "dataset": "calib", "wbits": "scheme.bits", "w_bit": "scheme.bits", "num_bits": "scheme.bits",
    "groupsize": "scheme.group_size", "q_group_size": "scheme.group_size",
    "sym": "scheme.symmetric", "desc_act": "method.act_order", "actorder": "method.act_order",
    "percdamp": "method.damping", "damp_percent": "method.damping",
    "dampening_frac": "method.damping", "limit": "suite.zeroshot.limit",
    "tasks": "suite.zeroshot.tasks",
}  # fmt: skip
# Names of other tools and papers, and the overrides that give the same here.
OPTIONS_ELSEWHERE = {
    "quarot": "transform=[residual_hadamard,hadamard]", "spinquant": "transform=[hadamard]",
    "mrgptq": "method=gptq scheme=nvfp4 transform=[hadamard]", "autoawq": "transform=[awq]",
    "gpu": "runtime=cuda", "fp16": "scheme=w16", "bf16": "scheme=w16", "float16": "scheme=w16",
    "bfloat16": "scheme=w16", "ppl": "suite=[perplexity]", "kld": "suite=[divergence]",
    "kl": "suite=[divergence]", "lmeval": "suite=[zeroshot]", "mmlu": "suite=[zeroshot]",
    "hellaswag": "suite=[zeroshot]", "speed": "suite=[latency]", "kvcache": "suite=[kv_cache]",
    "round": "method=rtn", "fullprecision": "method=none scheme=w16",
}  # fmt: skip
SEVERAL = ("transform", "suite")  # groups of which several options are chosen
BITS = re.compile(r"(?:u?int|i|b|bits?)?[-_]?([2-8])(?:[-_]?bits?)?", re.IGNORECASE)
ACTIVATIONS = re.compile(r"(w[2-8](?:g\d+)?)_?a([48])", re.IGNORECASE)
MOST = 4  # names of one family that are listed


def option_hint(group: str, name: str, known: Sequence[str], extra: Path | None = None) -> str:
    """What the option of a group may be meant to be, in brackets; "" if nothing is close."""
    same = [each for each in known if _plain(each) == _plain(name)]
    family = [each for each in known if each.startswith(f"{name}_")][:MOST]
    for meant in (same, family):
        if meant:
            *others, last = meant
            return f" (did you mean {', '.join(others)}{' or ' * bool(others)}{last}?)"
    for other in ("method", "transform", "scheme", "suite", "calib"):
        found = [each for each in options(other, extra) if _plain(each) == _plain(name)]
        if other == "calib" and group == "suite" and found:
            text = f"suite=[perplexity] suite.perplexity.protocols=[{found[0]}]"
            return f" ({found[0]} is a text: write {text})"
        if other != group and found:
            return f" ({found[0]} is a {other}: write {_written(other, found[0])})"
    if _plain(name) in OPTIONS_ELSEWHERE:
        return f" (that is {OPTIONS_ELSEWHERE[_plain(name)]} here)"
    if group == "scheme" and (said := scheme_hint(name, known)) is not None:
        return said
    if group == "model":
        return _model_hint(name, known)
    return did_you_mean(name, known)


def key_hint(key: str, known: Sequence[str], extra: Path | None = None) -> str:
    """What a dotted key may be meant to be, in brackets; "" if nothing is close.

    known  the keys that there are where it was looked for.
    """
    last = key.rpartition(".")[2]
    elsewhere = _keys_named(last, extra)
    if elsewhere:
        return f" (did you mean {' or '.join(elsewhere)}?)"
    if last in KEYS_ELSEWHERE:
        return f" (that is {KEYS_ELSEWHERE[last]} here)"
    return did_you_mean(last, known)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ " (did you mean NAME?)" for the closest known name; "" if none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""


def _plain(name: str) -> str:
    return re.sub(r"[-_ .]", "", name).lower()


def _written(group: str, option: str) -> str:
    return f"{group}=[{option}]" if group in SEVERAL else f"{group}={option}"


def scheme_hint(name: str, known: Sequence[str] = ()) -> str | None:
    """What the name of a scheme may be meant to be, in brackets; None if it is nothing usual."""
    bits, both = BITS.fullmatch(name), ACTIVATIONS.fullmatch(name)
    if bits is not None:
        return f" (did you mean w{bits[1]}, or with groups w{bits[1]}g128?)"
    if both is not None:
        activations = f"transform=[round_inputs] transform.round_inputs.bits={both[2]}"
        return f" (inputs are rounded by a transform: scheme={both[1].lower()} {activations})"
    layers = re.split("_head_|_emb_", name)[0]
    return "" if layers != name and layers in known else None  # the name's own error says more


def _model_hint(name: str, known: Sequence[str]) -> str:
    if Path(name).is_dir():
        return f" (a folder is read by model=local model.path={name})"
    if "/" not in name:
        return did_you_mean(name, known)
    close = did_you_mean(name.rpartition("/")[2].lower(), known).removesuffix(")")
    return f"{close or ' ('}{' A' if close else 'a'}ny model of the hub: model=hub model.id={name})"


def _keys_named(last: str, extra: Path | None) -> list[str]:
    """The dotted keys with this last name, of the schema and of the options of methods."""
    found = []
    for name, hint in get_type_hints(SweepConfig).items():
        if dataclasses.is_dataclass(hint) and last in {f.name for f in dataclasses.fields(hint)}:
            found.append(f"{name}.{last}")
    if options_with("method", last, extra):
        found.append(f"method.{last}")
    return found[:MOST]
