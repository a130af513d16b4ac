"""Threads that run pieces of a CPU kernel side by side, each piece on one core.

Torch splits a single operator over its threads and joins them again after it: a kernel of many short operators waits
at every one, and on a shared machine for the slowest. Here each thread takes whole pieces instead, as a flash-decoding
kernel does, and they meet once. Torch releases the interpreter's lock inside operators. In these threads torch's own
parallelism is off.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier

import torch

from kvcalc.profiling.kernels.products import has_onednn_linear


def count() -> int:
    """How many pieces can run at once: torch's threads, or 1 where products do not heed a thread's setting (MKL)."""
    return torch.get_num_threads() if has_onednn_linear(torch.device("cpu")) else 1


def side_by_side(work: Callable[[int], None], workers: int) -> None:
    """Run work(0) .. work(workers - 1), each in a thread of its own, to the end of all; what one raises is raised."""
    if workers == 1:
        work(0)
        return
    for future in [_threads(workers).submit(work, worker) for worker in range(workers)]:
        future.result()


def in_one(work: Callable[[], object], workers: int) -> None:
    """Run work() in one of the threads, to its end: torch's own threads stay asleep.

    After an operator they spin for some milliseconds, on cores that `side_by_side` needs next.
    """
    _threads(workers).submit(work).result()


@cache
def _threads(workers: int) -> ThreadPoolExecutor:
    """A pool whose threads compute operators alone, each on a core of its own where there are as many.

    Woken threads would start out on one core now and then, and share it for milliseconds. Torch's setting for all other
    threads is as before.
    """
    before = torch.get_num_threads()
    met = Barrier(workers + 1)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    free = iter(cores if workers <= len(cores) else ())

    def alone() -> None:
        if (core := next(free, None)) is not None:
            os.sched_setaffinity(0, {core})  # of this thread
        torch.get_num_threads()  # a thread takes the process's setting at its first look, and only then
        torch.set_num_threads(1)
        met.wait()

    pool = ThreadPoolExecutor(workers, thread_name_prefix="kvcalc", initializer=alone)
    for _ in range(workers):
        pool.submit(lambda: None)
    met.wait()
    torch.set_num_threads(before)
    return pool
