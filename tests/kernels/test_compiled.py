"""Every kernel is machine code for Hopper and for Blackwell, and what makes a scale is one function."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from tests.kernels import compiling

pytest.importorskip("triton")

BLACKWELL_ALONE = {"dsv4.kernels.moe.blackwell.grouped_scaled"}  # Hopper has no block-scaled product


@pytest.mark.parametrize("arch", compiling.TARGETS)
def test_every_kernel_that_is_launched_compiles(arch: int) -> None:
    """A new kernel fails here until a script of tests/kernels compiles it for every target."""
    made = {row["entry"] for script in compiling.SCRIPTS for row in compiling.rows(script, arch)}
    wanted = compiling.entries() - (BLACKWELL_ALONE if arch == 90 else set())
    assert made == wanted


def test_the_scripts_are_all_there_are() -> None:
    here = Path(__file__).parent
    found = {
        path for path in here.rglob("*.py") if "GPUTarget(" in path.read_text() and path.stem != Path(__file__).stem
    }
    assert {str(path.relative_to(here).with_suffix("")).replace("/", ".") for path in found} == set(compiling.SCRIPTS)


def test_a_kernel_that_nobody_compiles_is_missed(tmp_path: Path) -> None:
    (tmp_path / "new.py").write_text("@triton.jit\ndef part(x): pass\n\n@triton.jit\ndef whole(x): part(x)\n")
    (tmp_path / "old.py").write_text("from dsv4.kernels.new import whole\n\n@triton.jit\ndef all(x): whole(x)\n")
    assert compiling.entries(tmp_path) == {"dsv4.kernels.old.all"}
    (tmp_path / "old.py").write_text("from dsv4.kernels.new import whole\n\ndef launch(x): whole[(1,)](x)\n")
    assert compiling.entries(tmp_path) == {"dsv4.kernels.new.whole"}


@pytest.mark.parametrize("arch", [100, 103])
def test_block_scaled_products_are_the_instructions_that_were_meant(arch: int) -> None:
    """W4A4 multiplies MXFP4 by MXFP4, W4A8 MXFP8 by MXFP4, and neither anything else."""
    found = {row["name"]: row["matrix"] for row in compiling.rows("moe.compiled", arch) if "scaled" in row["name"]}
    assert set(found) == {f"scaled {kind} {part}" for kind in ("w4a4", "w4a8") for part in ("up", "down")}
    for name, matrix in found.items():
        kind = "mxf4" if "w4a4" in name else "mxf8f6f4"
        assert matrix, name
        assert all(f".kind::{kind}.block_scale" in instruction for instruction in matrix), (name, matrix)


def test_no_kernel_but_one_makes_a_scale() -> None:
    """An exponent is read from a float's bits in `convert.scale_byte`, which rounds up to a power of two, and nowhere
    else; its byte is what every packed row and every quantised operand gets.
    """
    reads = [
        f"{path.relative_to(compiling.KERNELS)}:{function.name}"
        for path in compiling.KERNELS.rglob("*.py")
        if path.name != "reference.py"
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.RShift) and ast.unparse(node.right) == "23"
    ]
    assert reads == ["convert.py:scale_byte"]
