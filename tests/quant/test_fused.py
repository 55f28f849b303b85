"""What vLLM makes one layer of has one scheme, or the export says that it does not load."""

from __future__ import annotations

from pathlib import Path

import pytest

import quant
from quant.allocate.run import best
from quant.allocation import Allocation, stored_bits
from quant.calibrate.stream import quantize_model
from quant.checkpoint.folder import read_json
from quant.config import QuantizationConfig
from quant.fused import fused_groups, split_note
from quant.scheme import Scheme
from quant.solvers import rtn
from tests.quant.architectures import tiny_model

LLAMA = [
    *(f"model.layers.0.self_attn.{n}_proj" for n in "qkvo"),
    *(f"model.layers.0.mlp.{n}_proj" for n in ("gate", "up", "down")),
]
FOUR, EIGHT = Scheme(4, 16, symmetric=True), Scheme(8, 16, symmetric=True)


def test_layers_of_one_parent_are_together() -> None:
    attention, output, gates, down = fused_groups(LLAMA)
    assert attention == tuple(LLAMA[:3])
    assert (output, gates, down) == ((LLAMA[3],), tuple(LLAMA[4:6]), (LLAMA[6],))
    experts = [f"h.1.mlp.experts.{i}.{n}_proj" for i in range(2) for n in ("gate", "up", "down")]
    assert fused_groups(["h.1.mlp.gate", *experts]) == [("h.1.mlp.gate",), tuple(experts)]
    latent = ["a.q_a_proj", "a.q_b_proj", "a.kv_a_proj_with_mqa"]
    assert fused_groups(latent) == [("a.q_a_proj", "a.kv_a_proj_with_mqa"), ("a.q_b_proj",)]
    assert fused_groups(["h.0.q_proj", "h.1.q_proj"]) == [("h.0.q_proj",), ("h.1.q_proj",)]


def test_the_first_group_that_is_split_is_named() -> None:
    assert split_note(LLAMA, lambda _: "w4") is None
    assert split_note(LLAMA, lambda name: "w8" if "down" in name else "w4") is None
    said = split_note(LLAMA, lambda name: "w8" if name.endswith(("v_proj", "up_proj")) else "w4")
    assert said is not None
    assert "self_attn.q_proj w4, model.layers.0.self_attn.k_proj w4, model" in said
    assert "v_proj w8 and 1 more groups" in said


def test_a_choice_of_fused_layers_is_the_best_that_has_one_scheme_for_each_group() -> None:
    """Held against all choices."""
    shapes = dict.fromkeys(LLAMA, (16, 16))
    candidates = (Scheme(2, 16), Scheme(3, 16), Scheme(4, 16))
    costs = {
        name: {each.name: factor * 5.0 ** (4 - each.bits) for each in candidates}
        for name, factor in zip(LLAMA, (1, 30, 2, 5, 20, 1, 4), strict=True)
    }
    asked = Allocation(4.3, candidates, fused=True)
    found = best(asked, shapes, costs)
    groups = fused_groups(LLAMA)
    assert all(len({found.scheme.of(name) for name in group}) == 1 for group in groups)
    most, least = asked.budget(sum(a * b for a, b in shapes.values())), float("inf")
    for number in range(len(candidates) ** len(groups)):
        chosen = {
            name: candidates[number // len(candidates) ** at % len(candidates)]
            for at, group in enumerate(groups)
            for name in group
        }
        if sum(stored_bits(chosen[name], *shapes[name]) for name in LLAMA) <= most:
            least = min(least, sum(costs[name][chosen[name].name] for name in LLAMA))
    assert found.predicted == pytest.approx(least)
    assert asked.name == "auto4.3_fused"
    alone = best(Allocation(4.3, candidates), shapes, costs)
    assert alone.predicted < found.predicted


def test_a_choice_without_groups_keeps_its_identity() -> None:
    plain = QuantizationConfig(rtn.SOLVER, Allocation(3.0, (Scheme(2, 16), Scheme(4, 16))))
    assert "fused" not in plain.identity()["scheme"]
    together = Allocation(3.0, (Scheme(2, 16), Scheme(4, 16)), fused=True)
    assert QuantizationConfig(rtn.SOLVER, together).identity()["scheme"]["fused"] is True


@pytest.mark.parametrize("format", ["gptq-v2", "compressed-tensors"])
def test_an_export_says_what_vllm_does_not_load(format: str, tmp_path: Path) -> None:
    for name, patterns, loads in (
        ("split", ("*.v_proj",), False),
        ("whole", ("*.q_proj", "*.k_proj", "*.v_proj"), True),
    ):
        scheme = Scheme(
            4, 16, symmetric=True, layers=tuple((pattern, EIGHT) for pattern in patterns)
        )
        model = tiny_model("llama")
        result = quantize_model(model, [], QuantizationConfig(rtn.SOLVER, scheme))
        artifact = quant.save(tmp_path / name, model, result.weights, method={"name": "rtn"})
        exported = quant.export(artifact, tmp_path / f"{name}-{format}", format)
        said = any("vLLM does not load this checkpoint" in note for note in exported.notes)
        assert said is not loads
        if format == "compressed-tensors":
            settings = read_json(tmp_path / f"{name}-{format}" / "config.json")
            groups = settings["quantization_config"]["config_groups"].values()
            assert all("." in target for group in groups for target in group["targets"])
        assert quant.load(tmp_path / f"{name}-{format}") is not None
