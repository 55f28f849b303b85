"""The code of the CUDA column loop, compiled for the host and run by a loop over its threads."""

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch

from cuda_ext import toolchain
from quant.solvers.columns import plain_columns
from tests.oracles.column_blocks import FUSED, SCHEMES, block

HERE = Path(__file__).parent


class ColumnLoop(ctypes.Structure):
    """bitsweep::ColumnLoop of csrc/shared/column_loop.h."""

    _fields_ = [
        ("weight", ctypes.c_void_p),
        ("upper", ctypes.c_void_p),
        ("upper_stride", ctypes.c_int64),
        ("scale", ctypes.c_void_p),
        ("other", ctypes.c_void_p),
        ("group", ctypes.c_void_p),
        ("ternary", ctypes.c_bool),
        ("max_code", ctypes.c_float),
        ("columns", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("codes", ctypes.c_void_p),
        ("errors", ctypes.c_void_p),
    ]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    try:
        compiler = toolchain.find_compiler()
    except toolchain.BuildError as error:
        pytest.skip(str(error))
    made = tmp_path_factory.mktemp("loop") / "column_loop_on_host.so"
    flags = ("-std=c++20", "-O1", "-shared", "-fPIC", "-ffp-contract=off", "-w")
    source = HERE / "column_loop_on_host.cpp"
    command = (compiler, *flags, "-I", str(toolchain.SOURCES), str(source), "-o", str(made))
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(made))


def run(library, weight, upper, grids, index, scheme):
    rows, count = weight.shape[1], len(index)
    codes = torch.full((count, rows), 77, dtype=torch.uint8)
    errors = torch.full((count, rows), float("nan"))
    group = torch.tensor(index, dtype=torch.int32)
    other = grids["negative_scale" if scheme.levels == "ternary" else "zero"]
    library.column_loop_on_host(
        ctypes.byref(
            ColumnLoop(
                weight.data_ptr(),
                upper.data_ptr(),
                upper.stride(0),
                grids["scale"].data_ptr(),
                other.data_ptr(),
                group.data_ptr() if len(grids["scale"]) > 1 else None,
                scheme.levels == "ternary",
                scheme.max_code,
                weight.shape[0],
                count,
                rows,
                codes.data_ptr(),
                errors.data_ptr(),
            )
        )
    )
    return codes, errors


@pytest.mark.skipif(not FUSED, reason="addcmul_ rounds twice here")
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
@pytest.mark.parametrize(
    ("columns", "rows", "count", "groups"),
    [(128, 200, 128, 1), (128, 64, 128, 3), (15, 65, 15, 2), (17, 1, 17, 1), (40, 130, 33, 4)],
)
def test_the_cuda_loop_is_the_plain_loop_bit_for_bit(library, scheme, columns, rows, count, groups):
    weight, upper, grids = block(columns, rows, groups, scheme)
    index = [(7 * step) % groups for step in range(count)]
    expected, found = weight.clone(), weight.clone()
    codes, errors = plain_columns(expected, upper, grids, index, scheme)
    made_codes, made_errors = run(library, found, upper, grids, index, scheme)
    assert torch.equal(made_codes, codes)
    assert torch.equal(made_errors, errors)
    assert torch.equal(found, expected)
