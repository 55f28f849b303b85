"""No call of transformers may ask whether to run a model's own code, or run it unasked."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAKERS = ("from_pretrained", "from_config")


def calls_without_trust(source: str) -> list[int]:
    """Lines where a maker of an Auto class is used without trust_remote_code as a keyword."""
    tree = ast.parse(source)
    told = {
        id(node)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and "trust_remote_code" in {k.arg for k in call.keywords}
        for node in (call.func, *call.args)  # an argument of functools.partial
    }
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in MAKERS
        and isinstance(node.value, ast.Name)
        and node.value.id.startswith("Auto")
        and id(node) not in told
    ]


def test_every_auto_class_is_told_whether_to_trust() -> None:
    assert calls_without_trust("a = 1\nm = AutoModel.from_config(c, dtype=d)") == [2]
    assert not calls_without_trust("AutoModel.from_config(\n  c, trust_remote_code=False)")
    for package in ("bitsweep", "harness", "quant", "cuda_ext", "benchmarks", "tools"):
        for file in sorted((ROOT / package).rglob("*.py")):
            assert calls_without_trust(file.read_text(encoding="utf-8")) == [], file
