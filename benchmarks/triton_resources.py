"""Registers, spills and shared memory of our Triton kernels, from compiles ahead of time: no GPU is needed.

    python benchmarks/triton_resources.py                     writes benchmarks/results/triton_resources.md
    python benchmarks/triton_resources.py --json              prints rows as JSON (the tests read it)
    python benchmarks/triton_resources.py --capability 9.0 --kernel mla --tile 64,32,3,8,1    tries a tile

Nothing is timed here. The columns: shared memory (and the limit) in bytes, registers a thread, bytes of stack frame
(spills), programs that fit an SM, and how many matrix-product instructions the PTX has, by kind.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

CAPABILITIES = ((8, 0), (8, 9), (9, 0), (10, 0))
SM_REGISTERS, SM_THREADS, SYSTEM_BYTES = 65_536, 2_048, 1_024
FEWER_THREADS = {(8, 6): 1_536, (8, 7): 1_536, (8, 9): 1_536, (12, 0): 1_536, (12, 1): 1_536}
RESULT = Path(__file__).parent / "results" / "triton_resources.md"
INSTRUCTIONS = {"wgmma": r"wgmma\.mma_async", "tcgen05": r"tcgen05\.mma", "mma.sync": r"mma\.sync"}

MLA = [  # query heads, query dtype, cache dtype, page tokens
    (16, "bf16", "bf16", 64),
    (128, "bf16", "bf16", 64),
    (128, "fp16", "fp16", 64),
    (16, "bf16", "fp8_e4m3", 64),
    (128, "bf16", "fp8_e4m3", 64),
    (128, "fp16", "fp8_e4m3", 64),
    (128, "bf16", "bf16", 16),
]
GQA = [  # query heads, KV heads, head_dim, v_head_dim, query dtype, cache dtype, page tokens
    (64, 8, 128, 128, "bf16", "bf16", 64),
    (128, 128, 192, 128, "bf16", "bf16", 64),
    (64, 1, 128, 128, "bf16", "bf16", 64),
    (64, 8, 128, 128, "bf16", "fp8_e4m3", 64),
    (64, 8, 128, 128, "fp16", "fp8_e4m3", 64),
    (64, 8, 64, 64, "bf16", "bf16", 16),
    (16, 8, 256, 256, "bf16", "bf16", 64),
    (64, 1, 256, 256, "bf16", "bf16", 64),
    (64, 1, 128, 128, "bf16", "fp8_e4m3", 64),
]
COMBINE = [(128, 512, 2), (128, 512, 64), (64, 128, 256)]  # rows, width, splits


QUICK = {"mla": (0, 1, 3, 4), "gqa": (0, 2), "combine": (1,)}
"""Rows of the lists above that the tests compile."""


def jobs(kernels, capabilities, *, tile=None, quick=False):
    """(label, capability, kernel, constants, pointer types, tile) of everything that is compiled."""
    import triton.language as tl

    from kvcalc.profiling.inputs import TORCH_DTYPES
    from kvcalc.profiling.kernels import triton_common, triton_gqa, triton_mla
    from kvcalc.profiling.kernels.triton_schedule import Tile

    dots = {"bf16": tl.bfloat16, "fp16": tl.float16}
    chosen = Tile(**dict(zip(Tile.__dataclass_fields__, tile, strict=True))) if tile else None

    def dequant(dtype, kv_dtype):
        return triton_common.dequantisation(TORCH_DTYPES[kv_dtype], TORCH_DTYPES[dtype])

    def pointers(dtype, kv_dtype, *, caches):
        kv = "*u8" if kv_dtype == "fp8_e4m3" else f"*{dtype}"
        partial = {"part_ptr": "*fp32", "part_lse_ptr": "*fp32", "lse_ptr": "*fp32"}
        tables = {"table_ptr": "*i32", "lens_ptr": "*i32"}
        scalars = {"scale": "fp32", "out_scale": "fp32"}
        return {
            "q_ptr": f"*{dtype}",
            "out_ptr": f"*{dtype}",
            **dict.fromkeys(caches, kv),
            **partial,
            **tables,
            **scalars,
        }

    def some(kind, shapes):
        return [shape for index, shape in enumerate(shapes) if not quick or index in QUICK[kind]]

    for capability in capabilities:
        if "mla" in kernels:
            for heads, dtype, kv_dtype, page in some("mla", MLA):
                shape = chosen or triton_mla.tile_for(heads, capability=capability, is_fp8=kv_dtype != dtype)
                constants = triton_mla.constants(
                    heads=heads,
                    q_tokens=1,
                    rank=512,
                    rope=64,
                    page_tokens=page,
                    tile=shape,
                    is_split=True,
                    dot=dots[dtype],
                    dequant=dequant(dtype, kv_dtype),
                )
                label = f"MLA 512+64, {heads} heads, {_dtypes(dtype, kv_dtype)}, page {page}"
                types = pointers(dtype, kv_dtype, caches=["pages_ptr"])
                yield label, capability, triton_mla.mla_kernel, constants, types, shape
        if "gqa" in kernels:
            for heads, kv_heads, head_dim, v_head_dim, dtype, kv_dtype, page in some("gqa", GQA):
                rows = heads // kv_heads
                shape = chosen or triton_gqa.tile_for(
                    rows, head_dim=head_dim, v_head_dim=v_head_dim, capability=capability, is_fp8=kv_dtype != dtype
                )
                constants = triton_gqa.constants(
                    heads=heads,
                    kv_heads=kv_heads,
                    q_tokens=1,
                    head_dim=head_dim,
                    v_head_dim=v_head_dim,
                    page_tokens=page,
                    tile=shape,
                    is_split=True,
                    dot=dots[dtype],
                    dequant=dequant(dtype, kv_dtype),
                )
                label = f"{heads}/{kv_heads} heads, {head_dim}/{v_head_dim}, {_dtypes(dtype, kv_dtype)}, page {page}"
                types = pointers(dtype, kv_dtype, caches=["k_ptr", "v_ptr"])
                yield label, capability, triton_gqa.gqa_kernel, constants, types, shape
        if "combine" in kernels:
            for rows, width, splits in some("combine", COMBINE):
                shape = Tile(rows=1, tokens=64, stages=3, warps=4, programs_per_sm=1)
                constants = triton_common.combine_constants(rows=rows, width=width, max_splits=splits, block_tokens=64)
                types = pointers("bf16", "bf16", caches=[])
                label = f"combine, width {width}, {splits} splits"
                yield label, capability, triton_common.combine_kernel, constants, types, shape


def _dtypes(dtype, kv_dtype):
    return dtype if dtype == kv_dtype else f"{dtype}, {kv_dtype} cache"


def compile_job(label, capability, kernel, constants, pointers, tile):
    """One row of the table."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from kvcalc.profiling.kernels.triton_schedule import SHARED_MEMORY_BYTES

    names = list(kernel.arg_names)
    signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in names}
    attributes = {
        (names.index(name),): [["tt.divisibility", 16]] for name, kind in signature.items() if kind.startswith("*")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)
    compiled = triton.compile(source, target=target, options={"num_warps": tile.warps, "num_stages": tile.stages})
    registers, stack = _usage(compiled.asm["cubin"])
    threads = 32 * tile.warps
    shared = compiled.metadata.shared
    fits = min(
        (SHARED_MEMORY_BYTES[capability] + SYSTEM_BYTES) // (shared + SYSTEM_BYTES),
        SM_REGISTERS // (-(-registers // 8) * 8 * threads),
        FEWER_THREADS.get(capability, SM_THREADS) // threads,
    )
    found = {name: len(re.findall(pattern, compiled.asm["ptx"])) for name, pattern in INSTRUCTIONS.items()}
    return {
        "label": label,
        "capability": list(capability),
        "tile": [tile.rows, tile.tokens, tile.stages, tile.warps],
        "shared_bytes": shared,
        "registers": registers,
        "stack_bytes": stack,
        "programs_per_sm": fits,
        "assumed_programs_per_sm": tile.programs_per_sm,
        "instructions": {name: count for name, count in found.items() if count},
    }


def _usage(cubin):
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    return int(found[1]), int(found[2])


def markdown(rows):
    from kvcalc.profiling.kernels.triton_schedule import SHARED_MEMORY_BYTES

    lines = [
        "# Resources of the Triton kernels",
        "",
        f"Compiled ahead of time by triton {version('triton')} without a GPU: nothing here is a time.",
        "Reproduce with `python benchmarks/triton_resources.py`.",
        "",
        "Tile: rows x tokens, pipeline stages, warps. Stack: bytes of local memory a thread, 0 where nothing spills.",
        "Programs: how many an SM holds, by shared memory and registers.",
        "",
        "| GPU | kernel | tile | shared memory | limit | registers | stack | programs | matrix products in PTX |",
        "|---|---|---|--:|--:|--:|--:|--:|---|",
    ]
    for row in rows:
        name = "sm_{}{}".format(*row["capability"])
        tile = "{}x{}, {}, {}".format(*row["tile"])
        limit = SHARED_MEMORY_BYTES[tuple(row["capability"])]
        products = ", ".join(f"{count} {name}" for name, count in row["instructions"].items()) or "none"
        numbers = f"{row['shared_bytes']:,} | {limit:,} | {row['registers']} | {row['stack_bytes']}"
        lines.append(f"| {name} | {row['label']} | {tile} | {numbers} | {row['programs_per_sm']} | {products} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print rows as JSON instead of writing the table")
    parser.add_argument("--quick", action="store_true", help="compile only what the tests look at")
    parser.add_argument("--kernel", action="append", choices=list(QUICK))
    parser.add_argument("--capability", action="append", help="such as 9.0")
    parser.add_argument("--tile", help="rows,tokens,stages,warps,programs_per_sm in place of the default tile")
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    capabilities = [tuple(map(int, text.split("."))) for text in arguments.capability or []] or CAPABILITIES
    tile = tuple(map(int, arguments.tile.split(","))) if arguments.tile else None
    with tempfile.TemporaryDirectory(prefix="kvcalc-triton-") as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        rows = []
        for job in jobs(arguments.kernel or list(QUICK), capabilities, tile=tile, quick=arguments.quick):
            try:
                rows.append(compile_job(*job))
            except Exception as error:
                place = f"sm_{job[1][0]}{job[1][1]} {job[0]}"
                print(f"error: {place}: {type(error).__name__}: {str(error)[-300:]}", file=sys.stderr)
                return 1
    if arguments.json:
        print(json.dumps({"triton": version("triton"), "rows": rows}))
    else:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(markdown(rows))
        print(f"wrote {arguments.output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
