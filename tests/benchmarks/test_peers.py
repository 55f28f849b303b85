"""The comparison with other programs: its table, and what it says of an environment that is not."""

import pytest
import torch

from benchmarks.peers import decode, environment, gguf_files, quantize
from quant.checkpoint.gguf.file import read_gguf
from tests.quant.checkpoint.gguf_files import llama, write


def test_the_table_has_medians_between_the_fastest_and_the_slowest_round() -> None:
    subject = decode.Subject("w4g64, head w8g32", 93_600_000)
    for clock in (9.0, 8.0, 30.0):
        subject.decode.add(clock, 2 * clock)
        subject.prompt.add(100 * clock, 150 * clock)
    row = decode.table([subject]).splitlines()[1]
    expected = "w4g64, head w8g32 93.6 9.00 [8.00, 30.00] 18.00 900 [800, 3000] 1350"
    assert " ".join(row.split()) == expected


def test_an_environment_that_is_not_there_is_named(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.delenv(environment.VARIABLE, raising=False)
    assert environment.interpreter("llama.cpp") is None
    assert capsys.readouterr().out.startswith("llama.cpp is not measured: BITSWEEP_PEERS names no")
    monkeypatch.setenv(environment.VARIABLE, str(tmp_path))
    with pytest.raises(SystemExit, match=f"{environment.VARIABLE}=.* has no bin/python"):
        environment.interpreter("llama.cpp")


def test_needed_operations_are_two_forwards_less_one_product_and_half_a_hessian() -> None:
    tokens, hidden, inner, kv, blocks = 32 * 512, 576, 1536, 192, 30
    attention_weights = 2 * hidden * hidden + 2 * hidden * kv
    weights = attention_weights + 3 * hidden * inner
    forwards = 2 * tokens * (2 * weights - hidden * inner)
    scores = 2 * 2 * tokens * 512 * hidden
    hessians = tokens * (3 * hidden**2 + inner**2)
    expected = blocks * (forwards + scores + hessians)
    # Strips cover a little more than half of a Hessian; factors and column loops are the rest.
    assert 1.0 < quantize.needed_operations() / expected < 1.15


def test_ratios_are_those_of_the_medians() -> None:
    ours = [
        quantize.Run("bitsweep 1", s, 2 * s, 10**9, 1e11, {"forward": s}) for s in (90, 100, 110)
    ]
    peer = [quantize.Run("peer 2", s, 2 * s, 2 * 10**9) for s in (190.0, 220.0, 230.0)]
    lines = [" ".join(line.split()) for line in quantize.table([*ours, *peer]).splitlines()]
    assert lines[1] == "bitsweep 1 100.0 [90.0, 110.0] 200.0 1000 1.00"
    assert lines[2] == "peer 2 220.0 [190.0, 230.0] 440.0 2000 2.20"
    share = quantize.needed_operations() / 90 / 1e11
    assert f"{share:.0%} (forward 90.0 s)" in lines[3]


def test_packages_of_peers_are_pinned() -> None:
    lines = environment.REQUIREMENTS.read_text().splitlines()
    assert all("==" in line for line in lines if line and not line.startswith("#"))


def test_a_file_in_floats_has_the_same_values_and_metadata(tmp_path) -> None:
    packed = read_gguf(write(tmp_path / "m.gguf", llama(), "Q4_1"))
    floats = read_gguf(gguf_files.write_floats(packed.path, tmp_path / "floats.gguf"))
    assert floats.tensors.keys() == packed.tensors.keys()
    for name, tensor in floats.tensors.items():
        assert tensor.kind == "F32"
        assert torch.equal(tensor.values(), packed.tensors[name].values()), name
    assert {k: v for k, v in floats.metadata.items() if not k.startswith("GGUF.")} == {
        k: v for k, v in packed.metadata.items() if not k.startswith("GGUF.")
    }
