"""The audit of a whole checkpoint: what is in memory while its blocks go by."""

import gc
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor
from transformers import LlamaConfig, LlamaForCausalLM

from quant.audit.checkpoint import AT_ONCE, AuditedCheckpoint
from quant.audit.run import Audit, audit
from quant.audit.verdict import AS_GOOD, ROUNDED
from quant.calibrate.run import Progress
from quant.checkpoint.make import quantize_to
from quant.checkpoint.source import CheckpointSource
from quant.checkpoint.tensors import TensorReader
from quant.config import QuantizationConfig
from quant.memory.limits import Limits
from quant.memory.plan import MemoryPlanError
from quant.scheme import Scheme
from quant.solvers import gptq, rtn
from tests.quant.tiny_checkpoints import edit_tensors

WINDOWS = [torch.arange(start, start + 48) for start in (1, 20, 43)]
LAYERS = 7  # of a block


def make(
    folder: Path, blocks: int, quantization: QuantizationConfig | None = None
) -> tuple[Path, Path]:
    """A random Llama of so many blocks, and its checkpoint: rounded, if nothing else is said."""
    quantization = quantization or QuantizationConfig(rtn.SOLVER, Scheme(4, 32))
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=blocks, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=96, tie_word_embeddings=True,
    )  # fmt: skip
    base, made = folder / f"base-{blocks}", folder / f"made-{blocks}"
    LlamaForCausalLM(config).save_pretrained(base)
    with CheckpointSource(base, torch.float32) as source:
        method = {"name": quantization.solver.name, **asdict(quantization.options)}
        quantize_to(made, source, WINDOWS, quantization, model_hash="m", method=method)
    return base, made


def audited(base: Path, made: Path, progress: Progress | None = None, **more: Any) -> Audit:
    with CheckpointSource(base, torch.float32) as source:
        return audit(made, source, base, WINDOWS, progress, **more)


def live_bytes() -> int:
    """Bytes of all tensors that something holds in this process; views and meta count nothing."""
    held = {}
    for each in gc.get_objects():
        fake = isinstance(each, FakeTensor)  # what a compiler that ran before has left
        if isinstance(each, torch.Tensor) and not fake and each.device.type == "cpu":
            storage = each.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
    return sum(held.values())


@pytest.mark.parametrize("sequential", [False, True])
def test_inputs_are_those_of_the_producer(tmp_path: Path, sequential: bool) -> None:
    """Of a true-sequential one, behind its quantized layers of the same block."""
    options = gptq.Options(true_sequential=sequential, static_groups=True)
    base, made = make(tmp_path, 2, QuantizationConfig(gptq.SOLVER, Scheme(3, 32), options))
    found = audited(base, made)
    assert found.claim.true_sequential == sequential
    assert {each.verdict.name for each in found.layers} == {AS_GOOD}
    assert min(each.evidence.agreement for each in found.layers) > 0.999


def test_memory_does_not_grow_with_depth(tmp_path: Path) -> None:
    peaks, block = {}, 0
    for blocks in (2, 8):
        base, made = make(tmp_path, blocks)
        gc.collect()
        before, peak = live_bytes(), 0

        def look(done: int, _total: int, _layer: str, before: int = before) -> None:
            nonlocal peak
            if done % LAYERS == 4:  # the MLP's first layer, behind a block's q, k, v and o
                peak = max(peak, live_bytes() - before)

        found = audited(base, made, look)
        assert len(found.layers) == LAYERS * blocks
        assert {each.verdict.name for each in found.layers} == {ROUNDED}
        peaks[blocks] = peak
        block = sum(4 * each.outputs * each.inputs for each in found.layers) // blocks
    # The next block may or may not have been read at the time, so two runs differ by up to one.
    assert block < peaks[2]
    assert peaks[8] < peaks[2] + 1.5 * block


def test_hidden_states_wait_on_disk_if_asked(tmp_path: Path) -> None:
    base, made = make(tmp_path, 2)
    scratch, files = tmp_path / "scratch", []

    def look(_done: int, _total: int, _layer: str) -> None:
        files.append(len(list(scratch.iterdir())))

    on_disk = audited(base, made, look, activations="disk", scratch=scratch)
    assert min(files) > 0
    assert not scratch.exists()
    assert on_disk == audited(base, made)


def test_what_does_not_fit_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, made = make(tmp_path, 2)
    monkeypatch.setattr("quant.audit.run.free_memory", lambda *_: Limits(host=10**5))
    with pytest.raises(MemoryPlanError, match=r"of host memory and 95\.0 kB may be taken"):
        audited(base, made, activations="cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_file_is_mapped_while_blocks_go_by(tmp_path: Path) -> None:
    """Touched pages of mapped weights would count as memory of the process, all of them."""
    base, made = make(tmp_path, 2)
    seen = []

    def look(_done: int, _total: int, _layer: str) -> None:
        seen.append(str(tmp_path) in Path("/proc/self/maps").read_text())

    audited(base, made, look)
    assert seen == [False] * 2 * LAYERS


def test_other_tensors_that_differ_are_counted_in_pieces(tmp_path: Path, monkeypatch) -> None:
    base, made = make(tmp_path, 2)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.embed_tokens.weight"][90:] *= 1.5
        tensors["model.norm.weight"] *= 1 + 2**-9  # the rounding of bfloat16

    edit_tensors(change)(base)
    monkeypatch.setattr("quant.audit.checkpoint.AT_ONCE", 100)
    assert AT_ONCE > 100
    with (
        CheckpointSource(base, torch.float32) as source,
        AuditedCheckpoint(made, source.model) as checkpoint,
        TensorReader(base, mapped=False) as stored,
    ):
        assert dict(checkpoint.differing(stored)) == {"model.embed_tokens.weight": 6 / 96}
