"""No call of transformers may ask whether to run a model's own code, or run it unasked."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAKERS = ("from_pretrained", "from_config")


def calls_without_trust(source: str) -> list[int]:
    """Lines of calls such as AutoConfig.from_pretrained that do not say trust_remote_code."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and node.attr in MAKERS
        and isinstance(node.value, ast.Name)
        and node.value.id.startswith("Auto")
        and "trust_remote_code" not in source.split("\n", node.lineno - 1)[-1][:400]
    ]


def test_every_auto_class_is_told_whether_to_trust() -> None:
    assert calls_without_trust("a = 1\nm = AutoModel.from_config(c, dtype=d)") == [2]
    assert not calls_without_trust("AutoModel.from_config(\n  c, trust_remote_code=False)")
    for package in ("harness", "quant", "cuda_ext", "benchmarks", "tools"):
        for file in sorted((ROOT / package).rglob("*.py")):
            assert calls_without_trust(file.read_text(encoding="utf-8")) == [], file
