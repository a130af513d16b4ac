"""The expected time of a decode step in aggregated serving: which sequences decode, and whose prompts run among them.

N clients ask, each again as soon as it is answered (a closed loop), for `output_tokens` O tokens after a prompt that
takes P alone. With D(n) for the step of n sequences:

    resident   the sequences that memory holds; the others wait their turn. An engine that reserves starts a
               request once all of its tokens have room, any other takes more and puts some back when memory is full
    decoding   n of the resident decode, the others run their prompt: in a time TPOT x O + TTFT, each does so once
    TPOT       D(n) + (n - 1) / O x P: every other sequence that decodes had a prompt, once in O steps
    TTFT       P and the wait for the prompts before it, P x rho / (2 (1 - rho)) at a share rho of time spent on prompts
               (M/D/1 queue: Pollaczek-Khinchine)
"""

from collections.abc import Sequence
from dataclasses import replace

from kvcalc.hardware import Gpu
from kvcalc.timing.calibrated import Calibration
from kvcalc.timing.parts import other_part, us
from kvcalc.timing.step import Step
from kvcalc.timing.step_time import StepTime, step_time

ROUNDS = 8
MOST_SHARE = 0.98
"""Of the time that prompts may take before the wait is cut: a queue that grows without end has no mean."""


def aggregated(
    step: Step,
    gpu: Gpu,
    calibrations: Sequence[Calibration],
    *,
    prefill: StepTime,
    output_tokens: int,
    fits: int,
) -> StepTime:
    """The expected time between a sequence's tokens.

    prefill  expected time of one request's prompt
    fits     sequences that memory holds, over all GPUs; 0 where not even one fits, which then is taken to
    """
    asked = step.workload.batch
    resident = max(min(asked, fits), min(asked, step.parallelism.dp))
    alone = _step_time(step, resident, gpu, calibrations)
    if alone.expected_s is None or prefill.expected_s is None:
        return alone
    replica = step.parallelism.batch_on_rank(resident)
    decoding = decoding_sequences(replica, alone.expected_s, prefill.expected_s, output_tokens)
    if (rounded := max(1, round(decoding))) != replica:
        alone = _step_time(step, rounded * step.parallelism.dp, gpu, calibrations)
    others = max(0.0, decoding - 1)
    share = others / output_tokens
    waiting = f"{asked - resident:,} of {asked:,} sequences wait for memory" if resident < asked else None
    part = other_part(
        "other prefills",
        f"{share:.3g} prompts a step" + (f"; {waiting}" if waiting else ""),
        share * prefill.expected_s,
        "other decoding sequences / output tokens x time of a prompt",
        f"{others:.6f} sequences / {output_tokens} output tokens x {us(prefill.expected_s)}",
        "aggregated serving: prompts run on the GPUs that decode",
    )
    return replace(alone, parts=(*alone.parts, part), of=waiting)


def decoding_sequences(resident: int, decode_s: float, prefill_s: float, output_tokens: int) -> float:
    """How many of the resident sequences decode on average, while the others' prompts run or wait."""
    decoding = float(resident)
    for _ in range(ROUNDS):
        prompts_s = max(0.0, decoding - 1) / output_tokens * prefill_s
        tpot_s = decode_s + prompts_s
        share = min(MOST_SHARE, prompts_s / tpot_s)
        ttft_s = prefill_s * (1 + share / (2 * (1 - share)))
        decoding = resident * output_tokens * tpot_s / (output_tokens * tpot_s + ttft_s)
    return decoding


def _step_time(step: Step, batch: int, gpu: Gpu, calibrations: Sequence[Calibration]) -> StepTime:
    part = replace(step, workload=replace(step.workload, batch=batch))
    return step_time(part, part.terms(), gpu, calibrations)
