"""The configurations of the kernels compile for sm_90 without a GPU: no spills, registers within the table's budget.

All tiles, groups and dtypes of the tables are here, with sizes that are multiples of 16 as far as addresses need them;
of the variants for max(u, 0) those of one tile.  As a program this file compiles every PARTS-th configuration, in a
process without Triton's interpreter, and prints what the assembler says.  The tests read that.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest

TYPES = {"bf16": 2, "fp16": 2, "fp32": 4}
STACK = {"top_k bf16 4096 8 False": 8, "top_k fp16 4096 8 False": 8}  # bytes that Triton 3.4 spills, and 3.6 does not


def kernels():
    """(label, kernel, types of arguments, constants, warps, stages, budget): every configuration of the tables."""
    from proxsae.pytorch.kernels import decode, gradients, scores, topk

    types = ("*fp32", "*fp32", "*fp32", "*i64", "*fp32", "i32", "i32 k")
    yield "scores", scores._scores, types, {"LATENTS": scores.LATENTS}, scores.WARPS, 3, scores.REGISTERS
    for ty, size in TYPES.items():
        key = "i16" if ty == "bf16" else "i32"
        for tile, (warps, budget) in topk.TILES.items():
            types = ("*" + ty, "*" + key, "*i32", "*i64", "i32 k", "i32", "i32 k", "i32")
            fixed = {"TILE": tile, "CHUNK": topk.CHUNKS[size]}
            for group in topk.GROUPS:
                if not reachable(topk.plan, tile, group):
                    continue
                for positive in sorted({False, (tile, group) == (2048, 32)}):
                    constants = {"POSITIVE": positive, "GROUP": group, **fixed}
                    yield f"top_k {ty} {tile} {group} {positive}", topk._top_k, types, constants, warps, 3, budget
        fixed = {"GATHER": decode.GATHER, "BLOCK": decode.BLOCKS[size]}
        types = ("*i64", "*fp32", "*" + ty, "*" + ty, "i32", "i32 k", "i32", "i32 k")
        yield f"decode {ty}", decode._decode, types, fixed, 1, 3, decode.REGISTERS
        types = ("*i64", "*" + ty, "*" + ty, "*fp32", "i32 k", "i32", "i32 k", "i32 k")
        yield f"gather_dot {ty}", decode._gather_dot, types, fixed, 1, 3, decode.REGISTERS
        fixed = {"GATHER": gradients.GATHER, "BLOCK": gradients.BLOCKS[size], "SPLIT": gradients.SPLIT}
        types = ("*i64", "*fp32", "*" + ty, "*i32", "*i32", "*i64", "*fp32", "i32", "i32 k", "i32 k", "i32", "i32 k")
        yield f"sum_pieces {ty}", gradients._sum_pieces, types, fixed, 1, 3, gradients.REGISTERS
        types = ("*i64", "*fp32", "*" + ty, "*i32", "*i32", "*fp32", "*fp32", "i32 k", "i32 k", "i32", "i32 k")
        for add in (False, True):
            constants = {"ADD": add, **fixed}
            yield f"sum_atoms {ty}, ADD={add}", gradients._sum_atoms, types, constants, 1, 3, gradients.REGISTERS


def reachable(plan, tile, group):
    """Whether any size has this plan."""
    found = (plan(2**p, 2**q) for p in range(3, 24) for q in range(p))
    return any(one is not None and (one.tile, one.group) == (tile, group) for one in found)


def compile_one(label, kernel, types, constants, warps, stages, budget):
    """What the assembler says; "i32 k" is a whole number known to be a multiple of 16, as addresses are."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    free = [name for name in kernel.arg_names if name not in constants]
    at = kernel.arg_names.index
    signature = {name: "constexpr" for name in constants} | {
        name: ty.removesuffix(" k") for name, ty in zip(free, types, strict=True)
    }
    multiples = [name for name, ty in zip(free, types, strict=True) if ty[0] == "*" or ty.endswith(" k")]
    source = ASTSource(
        kernel,
        {name: signature[name] for name in kernel.arg_names},
        {(at(name),): value for name, value in constants.items()},
        {(at(name),): [["tt.divisibility", 16]] for name in multiples},
    )
    options = {"num_warps": warps, "num_stages": stages}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    dump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        usage = subprocess.run([dump, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    ptx = made.asm["ptx"]
    return {
        "label": label,
        "budget": budget,
        **{name.lower(): int(n) for name, n in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)},
        "shared": made.metadata.shared,
        "wide_loads": len(re.findall(r"ld\.global\S*\.v4\.b32", ptx)),
        "nan_max": "max.NaN" in ptx,
        "flushes": ".ftz" in ptx,
        "atomics": bool(re.search(r"\b(atom|red)\.", ptx)),
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    pytest.importorskip("triton")
    parts = min(2, os.cpu_count() or 1)
    folder = tmp_path_factory.mktemp("triton")
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"TRITON_CACHE_DIR": str(folder), "PYTHONPATH": path}
    environment.pop("TRITON_INTERPRET", None)
    running = [
        subprocess.Popen([sys.executable, __file__, str(i), str(parts)], env=environment, stdout=subprocess.PIPE)
        for i in range(parts)
    ]
    answers = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0] * parts
    return [json.loads(line) for answer in answers for line in answer.splitlines()]


def test_no_configuration_spills(made):
    assert len(made) > 50
    spilled = STACK if version("triton") < "3.6" else {}
    for one in made:
        assert one["stack"] <= spilled.get(one["label"], 0), one
        assert one["local"] == 0, one


def test_registers_and_shared_memory_are_within_budget(made):
    for one in made:
        assert 0 < one["reg"] <= one["budget"], one
        assert one["shared"] <= 227 * 1024, one


def test_loads_of_rows_are_16_bytes_wide(made):
    for one in made:
        assert one["wide_loads"] > 0, one


def test_nothing_is_atomic_nor_flushed_to_zero_and_relu_keeps_nan(made):
    """What the interpreter cannot show: its maximum keeps every NaN, and its programs run one after another."""
    for one in made:
        assert not one["atomics"], one
        assert not one["flushes"], one
        assert one["nan_max"] == one["label"].endswith(" True"), one


if __name__ == "__main__":
    part, parts = map(int, sys.argv[1:])
    for configuration in list(kernels())[part::parts]:
        print(json.dumps(compile_one(*configuration)), flush=True)
