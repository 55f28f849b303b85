"""Counting on listings made by hand, and the tables of docs/kernels.md against the compiler."""

import re

import pytest

from cuda_ext import toolchain
from tools import machine_code as code


def listing(*lines: str) -> str:
    """A listing of one function; a line that ends in a colon is a label."""
    body = [
        line if line.endswith(":") else f"        /*{16 * n:04x}*/                   {line} ;"
        for n, line in enumerate(lines)
    ]
    return "\n".join([".text.kernel:", *body, ""])


# A step: a copy on a branch that may be skipped, products, and a rest that a full step jumps over.
STEP = listing(
    "MOV R0, R1", ".L_x_0:", "@P0 BRA `(.L_x_1)", "LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64]",
    ".L_x_1:", "LDS.128 R4, [R3]", "HMMA.16816.F32 R8, R4, R6, R8",
    "@!P1 BRA `(.L_x_2)", "FADD R1, R1, R2", "FADD R1, R1, R2", ".L_x_2:",
    "HMMA.16816.F32 R8, R4, R6, R8", "@P2 BRA `(.L_x_0)", "EXIT",
)  # fmt: skip


def test_the_way_meets_copies_and_products_and_nothing_else() -> None:
    (blocks,) = code.functions(STEP).values()
    products, copies = code.loop_of(blocks)
    assert [blocks[i].count("HMMA") for i in products] == [1, 1]
    assert len(copies) == 1
    # Without the copy its branch skips it; the two additions are jumped over.
    assert code.round_trip(blocks, products) == 6
    assert code.round_trip(blocks, [*products, *copies]) == 7


def test_a_jump_without_a_predicate_does_not_fall_through() -> None:
    (blocks,) = code.functions(
        listing("BRA `(.L_x_0)", "MOV R1, R2", ".L_x_0:", "@P0 EXIT", "BRA `(.L_x_0)")
    ).values()
    assert [block.next for block in blocks[:4]] == [(2,), (2,), (3,), (2,)]


def test_products_outside_a_loop_are_said() -> None:
    (blocks,) = code.functions(listing("HMMA.16816.F32 R8, R4, R6, R8", "EXIT")).values()
    with pytest.raises(ValueError, match="no way through"):
        code.round_trip(blocks, [0])


def test_an_inner_loop_counts_as_often_as_it_runs() -> None:
    """4 bits, 8 tokens: 16 products a unit, written for the first unit and for a loop of three."""
    unit = ["LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64]"] * 4
    products = ["HMMA.16816.F32 R8, R4, R6, R8"] * 16
    (blocks,) = code.functions(
        listing(
            ".L_x_0:", *unit, "@P0 BRA `(.L_x_3)", ".L_x_3:", *products, ".L_x_1:", *unit,
            "@P0 BRA `(.L_x_4)", ".L_x_4:", *products, "@P1 BRA `(.L_x_1)",
            "@P2 BRA `(.L_x_0)", "EXIT",
        )
    ).values()  # fmt: skip
    once = 4 + 1 + 16
    assert code.instructions(blocks, "4", 8) * 16 == once + (once + 1) + 1 + 2 * (once + 1)


@pytest.mark.long
def test_the_documented_tables_are_those_of_the_compiler() -> None:
    try:
        code.nvdisasm(), toolchain.find_compiler()
        release = toolchain.short_version(toolchain.find_nvcc())
    except (FileNotFoundError, toolchain.BuildError) as error:
        pytest.skip(str(error))
    instances = code.all_instances()
    assert len(instances) == 66
    assert {i.spilled_bytes + i.stack_bytes for i in instances} == {0}
    for instance in instances:
        assert instance.wide_copies >= 4, instance  # 16 bytes a lane: a unit's words at least
        assert instance.narrow_copies <= 1, instance
        assert instance.registers <= (255 if instance.tokens > 16 else 168), instance
    if "release 13.0" in release:
        kept = re.search(
            r"<!-- begin: machine code -->\n(.*?)\n<!-- end", code.DOCS.read_text(), re.DOTALL
        )
        assert kept is not None
        assert kept[1] == code.table(instances)
