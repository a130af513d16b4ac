"""Kernels that are right, wrong, broken or deadly, and a machine without anything to measure: for tests of the run."""

import os
import signal

import torch

from kvcalc.profiling import session
from kvcalc.profiling.inputs import gather
from kvcalc.profiling.kernels.base import Output
from kvcalc.profiling.measure import machine
from kvcalc.profiling.measure.clock import Rule

QUICK = Rule(samples=2, least_samples=2, warm_up_s=0, retaken=0)


class Sound:
    """A right kernel, in a few lines of torch."""

    name = "sound"

    def version(self):
        return "1"

    def form(self, case):
        return "absorbed" if case.is_latent else "grouped"

    def supports(self, case, device):
        return None

    def prepare(self, case, inputs):
        return lambda: Output(torch.stack([self.attend(case, inputs, each) for each in range(case.batch)]))

    def attend(self, case, inputs, sequence):
        """[Q, H, V] of one sequence."""
        tokens = case.seq_lens[sequence]
        if case.is_latent:
            latent = gather(inputs.cache_pages, inputs.page_table, sequence, tokens)  # [S, R+P]
            q, k = inputs.q_absorbed[sequence], latent[:, None]
            v = k[..., : case.attention.kv_lora_rank]
        else:
            q = inputs.q[sequence]
            k, v = (gather(pages, inputs.page_table, sequence, tokens) for pages in (inputs.k_pages, inputs.v_pages))
        k, v = (each.repeat_interleave(case.n_heads // each.shape[1], 1) for each in (k, v))
        scores = torch.einsum("qhd,shd->qhs", q, k) * inputs.scale
        return torch.einsum("qhs,shv->qhv", scores.softmax(-1), v)

    def kernel_extra_flop(self, case, device):
        return 0

    def kernel_extra_bytes(self, case, device):
        return 0

    def workspace_bytes(self, case, device):
        return 0


class Travelling(Sound):
    """A kernel for a fresh process, where it makes the machine small as the fixture does here."""

    name = "travelling"

    def __init__(self, fault=None):
        self.fault = fault

    def __setstate__(self, state):
        self.__dict__.update(state)
        shrink()

    def prepare(self, case, inputs):
        if self.fault is not None and case.context_tokens == 64:
            self.fault()
        return super().prepare(case, inputs)


def shrink():
    """In another process: a small machine, as the fixture makes one here."""
    machine.last_level_cache_bytes = lambda: 1 << 16
    session.TorchProbes = SteadyProbes
    session.QUICK_RULES["cpu"] = QUICK


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class Faulty(Sound):
    """Right, but for the case at one context, where `fault` happens instead."""

    name = "faulty"

    def __init__(self, fault, *, context_tokens=64):
        self.fault, self.context_tokens = fault, context_tokens

    def prepare(self, case, inputs):
        call = super().prepare(case, inputs)
        return call if case.context_tokens != self.context_tokens else lambda: self.fault(call)


def raise_(error):
    def fault(call):
        raise error

    return fault


def not_a_number(call):
    out = call().out
    out[0, 0, 0, 0] = float("nan")
    return Output(out)


class SteadyProbes:
    """Ceilings that need no measuring."""

    def __init__(self, device, **options):
        self.device = device

    def read(self, method=None):
        return {"steady": 1e12}

    def copy(self):
        return 1e12

    def matmul(self, dtype):
        return 1e14

    def launch(self):
        return 1e-9

    def release(self):
        pass
