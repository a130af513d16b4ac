"""A kernel that reads and does nothing else: what is left of the memory bandwidth when nothing is written back.

Each program adds up blocks a grid apart and writes one number, so that a buffer of any size costs a few KiB of writes.
"""

import torch
import triton
import triton.language as tl

BLOCK_ELEMENTS = 4096
BLOCKS_PER_SM = 8
WARPS = 8


@triton.jit  # type: ignore[untyped-decorator]
def read_kernel(source, sums, elements, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201, N803
    program, programs = tl.program_id(0), tl.num_programs(0)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(program * BLOCK, elements, programs * BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        total += tl.load(source + offsets, mask=offsets < elements, other=0.0)
    tl.store(sums + program, tl.sum(total, axis=0))


def read_sums(source: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """Read fp32 `source` once; `sums` [programs] receives what each program added up."""
    read_kernel[(sums.numel(),)](source, sums, source.numel(), BLOCK=BLOCK_ELEMENTS, num_warps=WARPS)
    return sums


def programs_for(device: torch.device) -> int:
    """As many programs as fill the device."""
    if device.type != "cuda":
        return 2
    return BLOCKS_PER_SM * int(torch.cuda.get_device_properties(device).multi_processor_count)
