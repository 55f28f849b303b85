"""Formats are the files of one folder: found, complete or refused, compared by no one else."""

import ast
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import quant
from quant.checkpoint import formats as package
from quant.checkpoint.choose import artifact_format, exported, formats, parse, written
from quant.checkpoint.folder import MANIFEST
from quant.checkpoint.formats.base import Format
from quant.checkpoint.one_file import FileFormat
from quant.errors import ArtifactError
from quant.scheme import Scheme
from tests.quant.tiny_checkpoints import METHOD, edit_config, edit_tensors, logits, quantized

ROOT = Path(__file__).resolve().parents[3]
# One byte a code, scales beside it; no zero-points: code 8 stands for 0.
BYTEWISE = '''
"""One code a byte, symmetric, one scale a row."""

from quant.checkpoint.formats.base import CheckpointFormat, Format
from quant.checkpoint.meta import read_meta


def matches(config):
    return config.get("quant_method") == "bytewise"


def parse(config, where):
    return CheckpointFormat(FORMAT, 4, None, True, False, producer=read_meta(config)[1])


def zero_points(parsed):
    return "always 8"


def read_layer(tensors, parsed, layer, shape):
    import torch
    from quant.weight import QuantizedWeight

    codes, scale = tensors["codes"], tensors["rows"]
    scheme = parsed.scheme(scale.dtype)
    zero = torch.full((len(codes), 1), 8, dtype=torch.uint8)
    return QuantizedWeight(codes=codes, scheme=scheme, scale=scale[:, None], zero=zero)


FORMAT = Format(
    name="bytewise", title="Bytewise", quant_method="bytewise", readers="a test",
    parts=("codes", "rows"), codes="codes", scales="rows", matches=matches, parse=parse,
    zero_points=zero_points, read_layer=read_layer,
)
'''

Add = Callable[[str, str], None]


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Add]:
    """Puts one more file into the folder of formats, as far as Python can see."""
    folder = tmp_path / "more"
    folder.mkdir()
    added = []

    def put(name: str, text: str) -> None:
        added.append(name)
        (folder / f"{name}.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])

    yield put
    for name in added:
        del sys.modules[f"{package.__name__}.{name}"]
        vars(package).pop(name, None)


def test_a_new_format_is_one_file(tmp_path: Path, add: Add) -> None:
    model, weights = quantized("llama", Scheme(4, symmetric=True))
    folder = quant.save(tmp_path / "a", model, weights, method=METHOD)
    expected = logits(quant.load(folder, kernel="reference"))

    def rewrite(tensors: dict[str, Tensor]) -> None:
        for layer, weight in weights.items():
            for part in ("qweight", "qzeros", "scales", "g_idx"):
                del tensors[f"{layer}.{part}"]
            tensors[f"{layer}.codes"] = weight.codes
            tensors[f"{layer}.rows"] = weight.scale[:, 0].contiguous()

    edit_tensors(rewrite)(folder)
    edit_config(lambda c: c.update(quantization_config={"quant_method": "bytewise"}))(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(
        ArtifactError, match=r"quant_method='bytewise' cannot be read; only auto-round"
    ):
        quant.load(folder)

    add("bytewise", BYTEWISE)
    assert torch.equal(logits(quant.load(folder, kernel="reference")), expected)
    checkpoint, scheme = quant.checkpoint.read_scheme(folder)
    assert (checkpoint.name, checkpoint.zero_points, scheme.name) == (
        "Bytewise",
        "always 8",
        "w4_sym",
    )
    exported = quant.export(folder, tmp_path / "b", "gptq-v2")
    assert torch.equal(logits(quant.load(exported.folder, kernel="reference")), expected)
    with pytest.raises(
        ArtifactError, match="format 'bytewise' is unknown; choose one of awq, bitsweep"
    ):
        quant.export(folder, tmp_path / "c", "bytewise")
    edit_config(lambda c: c.update(intermediate_size=64))(folder)
    with pytest.raises(ArtifactError, match=r"mlp.*_proj.codes holds .* codes, but config.json"):
        quant.load(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"formats.broken does not end with FORMAT = Format\(name='broken'"),
        ("FORMAT = 'broken'", "formats.broken does not end with FORMAT"),
        (BYTEWISE, "formats.broken does not end with FORMAT"),  # another name than its file
    ],
)
def test_an_incomplete_file_is_refused(add: Add, text: str, message: str) -> None:
    add("broken", text)
    with pytest.raises(ArtifactError, match=message):
        parse({"quant_method": "awq"}, "folder")


def test_a_configuration_belongs_to_one_format(add: Add) -> None:
    add("bytewise", BYTEWISE.replace('== "bytewise"', '== "awq"'))
    with pytest.raises(ArtifactError, match="matches both AWQ gemm and Bytewise"):
        parse({"quant_method": "awq"}, "folder")


def test_what_is_there() -> None:
    assert [format.name for format in formats()] == [
        "auto-round", "awq", "bitsandbytes", "bitsweep", "bitsweep-factored", "bitsweep-ternary",
        "compressed-tensors", "compressed-tensors-fp4", "gptq-v1", "gptq-v2", "hqq", "torchao",
    ]  # fmt: skip
    only_read = {"auto-round", "bitsandbytes", "compressed-tensors-fp4", "hqq", "torchao"}
    assert set(written()) == {format.name for format in formats()} - only_read
    assert [name for name, (_, writer) in written().items() if writer.own] == [
        "bitsweep", "bitsweep-factored", "bitsweep-ternary", "gptq-v2",
    ]  # fmt: skip
    assert {*exported()} == {*written(), "gguf"} - {"bitsweep-factored"}
    for format in formats():
        named = {
            *filter(None, [format.codes]),
            *format.marks,
            *([format.scales] if format.scales else []),
        }
        assert format.parts is None or named <= set(format.parts)
        assert pickle.loads(pickle.dumps(format)) == format


def test_no_artifact_holds_the_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {name: each for name, each in written().items() if name == "bitsweep-ternary"}
    monkeypatch.setattr("quant.checkpoint.choose.written", lambda: own)
    with pytest.raises(
        ArtifactError, match=r"artifacts \(bitsweep-ternary\) supports w4g8; add one"
    ):
        artifact_format(Scheme(4, group_size=8))


def test_two_configuration_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for name in ("quantize_config.json", "quant_config.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ArtifactError, match=r"quant_config.json and quantize_config.json, which"):
        quant.checkpoint.read_format(tmp_path)


def test_docs_name_every_format() -> None:
    text = (ROOT / "docs" / "checkpoints.md").read_text()
    for format in (*formats(), *exported().values()):
        assert format.title in text, format.title
        assert format.quant_method in text
        assert format.name in text


def test_formats_are_listed_without_torch() -> None:
    code = (
        "import sys; from quant.checkpoint.choose import formats, parse; formats();"
        "parse({'quant_method': 'awq', 'bits': 4, 'group_size': 8}, 'folder');"
        "print([n for n in ('torch', 'transformers') if n in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def compared(source: str) -> set[str]:
    """The texts that a module compares something with."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            parts = [leaf for side in (node.left, *node.comparators) for leaf in ast.walk(side)]
            found |= {
                p.value for p in parts if isinstance(p, ast.Constant) and type(p.value) is str
            }
    return found


def names(format: Format | FileFormat) -> set[str]:
    # "gptq" is the name of a method too.
    codes = {format.codes} if isinstance(format, Format) else set()
    return {format.name, format.title, format.quant_method, *codes} - {"gptq", ""}


def test_no_one_else_compares_the_name_of_a_format() -> None:
    known = set().union(*map(names, (*formats(), *exported().values()))) | {"gptq_v2"}
    assert compared("if a.b == 'gptq-v1' or c in ('awq',): pass") & known == {"gptq-v1", "awq"}
    for floor in ("quant", "harness"):
        for path in (ROOT / floor).rglob("*.py"):
            if path.parent.name != "formats":
                # quant.linear has buffers of its own that are called like GPTQ's, and every linear
                # layer has a weight.
                met = compared(path.read_text()) & known - {"qweight", "weight"}
                assert not met, f"{path} compares {met}"
